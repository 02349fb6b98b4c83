//! The dashboard: a page for browsers on this machine, that shows what the control socket answers
//! and asks it for the same operations.
//!
//! - [`answer`]: one request: who it is of, and which part it gets
//! - [`assets`]: the files of the page, compiled in
//! - [`events`]: the stream of what changes
//! - [`figures`]: what was counted in the last minutes, for the charts
//! - [`listen`]: where it is reached, and the links to it
//! - [`guard`]: what browsers are told, and which of their requests are another site's
//! - [`sessions`]: links that are good once, and the browsers that used one
//!
//! Other programs on this machine reach the listener too, and so do pages of other sites through a
//! browser. So nothing is answered without a session, whose cookie only its own path is sent with:
//! browsers send cookies to all ports of an address, and apps are served on others.

mod answer;
mod assets;
mod events;
mod figures;
mod guard;
mod listen;
mod sessions;

pub(crate) use self::listen::{Page, serve};
