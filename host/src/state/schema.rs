//! Which version of its schema the state of an app has.

use serde::{Deserialize, Serialize};

use super::{
    commit::{Commit, Mutation, StateError},
    place::{Namespace, Place},
    store::Store,
};

/// The key of the record, in a namespace of the host's own of the same name.
const SCHEMA: &str = "schema";

/// The schema of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Schema {
    /// Its number.
    pub(crate) schema: u32,
    /// The lowest number whose versions run with it as well.
    pub(crate) runs_with: u32,
}

impl Schema {
    /// That of a state in which no version has said any.
    pub(crate) const UNSAID: Self = Self {
        schema: 0,
        runs_with: 0,
    };

    /// Returns what an entry of a backup says of the schema; none where it is another entry.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn in_backup(place: &Place, value: &[u8]) -> Result<Option<Self>, StateError> {
        let own = Namespace::own(SCHEMA).place(SCHEMA.as_bytes())?;
        if *place != own {
            return Ok(None);
        }
        Self::read(value).map(Some)
    }

    fn read(value: &[u8]) -> Result<Self, StateError> {
        serde_json::from_slice(value).map_err(|error| {
            StateError::Unavailable(format!(
                "what it says of its schema cannot be read: {error}"
            ))
        })
    }

    /// Whether a version of this schema runs with the state.
    pub(crate) fn suits(self, schema: u32) -> bool {
        (self.runs_with..=self.schema).contains(&schema)
    }
}

impl Store {
    /// Returns the schema of what is on the disk: 0 where no version has said any. None where
    /// nothing is there but what is the host's own. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn schema(&self) -> Result<Option<Schema>, StateError> {
        if !self.exists() {
            return Ok(None);
        }
        let place = Namespace::own(SCHEMA).place(SCHEMA.as_bytes())?;
        let mut found = None;
        self.get(false, &place, |record| {
            found = Some(Schema::read(record.value));
        })?;
        match found {
            Some(schema) => schema.map(Some),
            None if self.is_untouched()? => Ok(None),
            None => Ok(Some(Schema::UNSAID)),
        }
    }

    /// Whether no namespace of the app has anything.
    fn is_untouched(&self) -> Result<bool, StateError> {
        let names = self.snapshot(false)?.namespaces(false)?;
        Ok(names.iter().all(|name| Namespace::is_own(name)))
    }

    /// Says which schema it has, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) async fn set_schema(&self, schema: Schema) -> Result<(), StateError> {
        let value = serde_json::to_vec(&schema)
            .map_err(|error| StateError::Unavailable(error.to_string()))?;
        let commit = Commit {
            is_own: true,
            ..Commit::of(Mutation::Put {
                place: Namespace::own(SCHEMA).place(SCHEMA.as_bytes())?,
                value: value.into(),
                ttl_ms: None,
            })
        };
        self.commit(false, commit).await.map(|_| ())
    }
}
