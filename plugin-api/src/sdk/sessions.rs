//! A store for `tower-sessions`: sessions that survive swaps, restarts and crashes.

use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use tower_sessions_core::{
    SessionStore,
    session::{Id, Record},
    session_store::{Error, Result},
};

use super::state::{State, StateError};

/// Keeps sessions in a namespace of the state: give it to `SessionManagerLayer::new`.
///
/// Sessions are gone when they expire, by themselves.
#[derive(Clone, Debug)]
pub struct Sessions(State);

impl Sessions {
    /// Sessions in `state`, which nothing else should be kept in.
    pub fn new(state: State) -> Self {
        Self(state)
    }
}

fn failed(error: StateError) -> Error {
    match error {
        StateError::Encode(why) => Error::Encode(why),
        StateError::Decode(why) => Error::Decode(why),
        error => Error::Backend(error.to_string()),
    }
}

/// How long `record` stays from now on; none when it has expired.
fn ttl(record: &Record) -> Option<Duration> {
    Duration::try_from(record.expiry_date - OffsetDateTime::now_utc())
        .ok()
        .filter(|left| !left.is_zero())
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> Result<()> {
        loop {
            let made = &*record;
            let create = |tx: super::state::Transaction| async move {
                let key = made.id.to_string();
                if tx.get_bytes(&key).await?.is_some() {
                    return Ok(false);
                }
                if let Some(ttl) = ttl(made) {
                    tx.put_ttl(&key, made, ttl)?;
                }
                Ok::<_, StateError>(true)
            };
            if self.0.transaction(create).await.map_err(failed)? {
                return Ok(());
            }
            record.id = Id::default();
        }
    }

    async fn save(&self, record: &Record) -> Result<()> {
        let key = record.id.to_string();
        let saved = match ttl(record) {
            Some(ttl) => self.0.put_ttl(key, record, ttl).await,
            None => self.0.delete(key).await,
        };
        saved.map_err(failed)
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let found: Option<Record> = self.0.get(id.to_string()).await.map_err(failed)?;
        Ok(found.filter(|record| ttl(record).is_some()))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        self.0.delete(id.to_string()).await.map_err(failed)
    }
}
