//! What people and machines are told of the host.
//!
//! - [`status`]: what `handover status` shows
//! - [`figures`]: what apps have counted, for charts
//! - [`metrics`]: the same and more, for Prometheus
//! - [`leaks`]: what generations leave behind, and the budget for it
//! - [`residue`]: an estimate of what those without a heap of their own left in memory
//! - [`changed`]: what generations changed for the whole process
//! - [`panics`]: panics that were caught in generations
//! - [`growth`]: how much memory apps take while the process grows

pub(crate) mod changed;
pub(crate) mod figures;
pub(crate) mod growth;
pub(crate) mod holders;
pub(crate) mod leaks;
pub(crate) mod metrics;
pub(crate) mod panics;
pub(crate) mod residue;
pub(crate) mod status;
