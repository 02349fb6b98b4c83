//! What the outside asked for: one operation of an app at a time, each with its lines.
//!
//! - [`operation`]: an operation and those who listen to it
//! - [`queue`]: the lock that serialises the operations of an app

pub(crate) mod operation;
pub(crate) mod queue;
