//! What is remembered: of apps over restarts, and of events in this run of the host.
//!
//! - [`app_record`]: the record of one app on disk
//! - [`history`]: the entries of it, and what a rollback goes back to
//! - [`audit`]: who changed what
//! - [`events`]: what happened, for those who follow it
//! - [`journal`]: what runs, for the host after this one
//! - [`room`]: room on the disk for records, taken in advance
//! - [`settings`]: the live settings of an app
//! - [`order`]: the order of what happened

pub(crate) mod app_record;
pub(crate) mod audit;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod order;
pub(crate) mod room;
pub(crate) mod settings;
