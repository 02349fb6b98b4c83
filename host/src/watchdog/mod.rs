//! Calls into plugins that do not come back.
//!
//! - [`stall`]: finds them, and keeps the others served meanwhile

pub(crate) mod stall;
