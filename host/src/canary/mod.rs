//! A version on trial beside the live one: which requests it gets, what is counted of both, and
//! whether the figures speak against it.
//!
//! - [`trial`]: the share of requests, the counts of both sides, the verdict
//! - [`evidence`]: the sequential test
//! - [`course`]: its steps and how long each lasts
//! - [`latency`]: how long answers took

mod course;
mod evidence;
mod latency;
mod trial;

pub(crate) use self::{
    course::{Course, Next},
    trial::{Against, FULL, Sample, Share, Side, Trial},
};
