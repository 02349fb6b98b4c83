//! Work that outlives the code: durable jobs, schedules and leases, which the host keeps for its
//! apps.
//!
//! - [`record`]: a durable job as it lies in the state of its app
//! - [`queue`]: which job is next, in memory
//! - [`jobs`]: the jobs of one app: enqueued, claimed, finished
//! - [`schedule`]: when a handler is due, and the jobs that are made then
//! - [`lease`]: what one holder has at a time
//! - [`settings`]: the live settings of an app, as its generations have them
//! - [`inbox`]: what the host asks a generation
//! - [`answer`]: what is answered over the ABI
//! - [`session`]: all of it as one generation sees it, over the ABI
//! - [`registry`]: the work of all apps
//!
//! A job is enqueued by a commit of its app's state, so together with other changes or not at all.
//! It is claimed by another commit, whose version is the fence of the attempt, before a plugin gets
//! it; and it is finished by a third one, which is refused where the record is not of that version
//! any more. What is in memory only says which job is next, and is made anew from the records.

mod answer;
mod inbox;
mod jobs;
mod lease;
mod queue;
mod record;
mod registry;
mod schedule;
mod session;
mod settings;

pub(crate) use self::{
    answer::Refused,
    inbox::{Inbox, Reply},
    jobs::{JobFilter, Settings},
    record::JobId,
    registry::{AppWork, WorkRegistry},
    schedule::check as check_schedules,
    session::WorkSession,
};
