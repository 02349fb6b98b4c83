//! The open connections of one listener, which finish what they have when it closes.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::generation::Cut;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct OpenConnections(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By the address of the switch.
    connections: Mutex<HashMap<usize, Arc<Cut>>>,
    ended: Notify,
}

/// One of them, as long as it is open.
#[derive(Debug)]
pub(super) struct OpenConnection {
    cut: Arc<Cut>,
    among: Arc<Shared>,
}

impl OpenConnections {
    /// A new one.
    pub(super) fn add(&self) -> OpenConnection {
        let cut = Arc::new(Cut::default());
        let among = Arc::clone(&self.0);
        among
            .connections
            .lock()
            .insert(Arc::as_ptr(&cut).addr(), Arc::clone(&cut));
        OpenConnection { cut, among }
    }

    /// Asks all of them to finish, and waits until they have.
    pub(super) async fn finish(self) {
        for cut in self.0.connections.lock().values() {
            cut.finish();
        }
        loop {
            // Asks to be told first and looks then, so that none that ends in between is missed.
            let ended = self.0.ended.notified();
            if self.0.connections.lock().is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl OpenConnection {
    /// Its switch.
    pub(super) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut connections = self.among.connections.lock();
        connections.remove(&Arc::as_ptr(&self.cut).addr());
        if connections.is_empty() {
            self.among.ended.notify_one();
        }
    }
}
