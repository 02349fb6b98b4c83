//! Files of versions, which the host serves itself: those of what is live, and those of the
//! versions before, so that a page that was loaded before a deploy finds its script.
//!
//! - [`name`]: what the name of a file says of it
//! - [`file`]: one file, its compressed variants
//! - [`answer`]: the response to a request for one
//! - [`collection`]: the files that one generation hands over
//! - [`served`]: the files of an app by path, as requests find them
//! - [`kept`]: which versions there are files of, on the disk
//! - [`app`]: all of that of one app

mod answer;
mod app;
mod collection;
mod file;
mod kept;
mod name;
mod served;

pub(crate) use self::{
    answer::{answer, skewed},
    app::{AppAssets, Settings},
    collection::Session,
    served::{Found, Served},
};
