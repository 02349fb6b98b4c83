//! A cache whose entries survive swaps, and that computes each once at a time.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex as AsyncMutex;

use super::state::{State, StateError};

/// The flights by their keys: who computes holds the lock, the others wait for it.
type Flights = Mutex<HashMap<Vec<u8>, Weak<AsyncMutex<()>>>>;

/// A cache in a namespace of the state, with a TTL for each entry. Cheap to clone.
///
/// In a namespace of [`State::memory`] it survives swaps, in any other restarts as well. A value is
/// computed once at a time in each generation: those who ask for it meanwhile wait for the one who
/// computes it. While two generations drain and serve, each may.
#[derive(Clone, Debug)]
pub struct Cache {
    state: State,
    flights: Arc<Flights>,
}

impl Cache {
    /// A cache in `state`, which nothing else should be kept in.
    pub fn new(state: State) -> Self {
        Self {
            state,
            flights: Arc::default(),
        }
    }

    /// The value at `key`, or what `compute` gives, which is kept for `ttl`. When the state is not
    /// available, it is computed each time.
    ///
    /// # Errors
    /// Those of `compute`, of which nothing is kept.
    pub async fn get_or<T, E, F>(
        &self,
        key: impl AsRef<[u8]>,
        ttl: Duration,
        compute: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        let key = key.as_ref();
        // What cannot be read, or is of another type, of a version before, is computed anew.
        if let Ok(Some(value)) = self.state.get(key).await {
            return Ok(value);
        }
        let flight = self.flight(key);
        let _alone = flight.lock().await;
        if let Ok(Some(value)) = self.state.get(key).await {
            return Ok(value);
        }
        let value = compute().await?;
        // A value that cannot be kept is a value.
        let _ = self.state.put_ttl(key, &value, ttl).await;
        Ok(value)
    }

    /// Forgets the value at `key`.
    ///
    /// # Errors
    /// When the state is not available.
    pub async fn forget(&self, key: impl AsRef<[u8]>) -> Result<(), StateError> {
        self.state.delete(key).await
    }

    fn flight(&self, key: &[u8]) -> Arc<AsyncMutex<()>> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        // Those that have ended are taken away now and then, so that the map stays as large as what
        // is under way.
        if flights.len() >= 64 && flights.len().is_power_of_two() {
            flights.retain(|_, flight| flight.strong_count() > 0);
        }
        let flight = Arc::default();
        flights.insert(key.to_vec(), Arc::downgrade(&flight));
        flight
    }
}
