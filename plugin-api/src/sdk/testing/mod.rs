//! For the tests of a plugin: a host in memory, and a real one.
//!
//! - [`memory`]: contexts without a process, over [`state`] and [`work`] in memory
//! - [`process`]: the program `handover`, with the library that [`build`] has cargo make

mod build;
mod memory;
mod process;
mod state;
mod work;

pub use memory::{MemoryHost, context};
pub use process::{Setup, TestHost};
