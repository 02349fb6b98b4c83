//! A child with a process group of its own, which ends with all that it has started.

use rustix::process::{Pid, Signal, kill_process_group};

/// A child that leads a process group of its own. Dropping this kills all that is in it: the child
/// must not have been waited for before, so that its number cannot have gone to somebody else.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// The group of the child with this number, if it has one still.
    pub(crate) fn of(child: Option<u32>) -> Self {
        Self(child.and_then(|number| Pid::from_raw(number.cast_signed())))
    }

    /// Takes it out, and leaves what kills nothing.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Kills nothing any more: its child has been waited for.
    pub(crate) fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // An error means that all of it has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
