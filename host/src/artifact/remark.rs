//! What an author or an operator should know of an artifact that is taken all the same.

use serde::{Deserialize, Serialize};

/// What a remark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// It is marked to stay mapped.
    NeverUnloads,
    /// Its code is written to while it is loaded.
    TextRelocations,
    /// It looks for libraries beside itself.
    OriginPath,
    /// It brings an allocator.
    BundledAllocator,
    /// It brings a SQLite.
    BundledSqlite,
    /// A library that it needs is another one in the host than in preflight.
    Companion,
    /// It was retained at the end of the rehearsal.
    Retained,
    /// It left descriptors open at the end of the rehearsal that could not be closed for it.
    LeftOpen,
    /// It did not become quiet when it was told to drain.
    SlowDrain,
    /// The rehearsal of its end reached its deadline.
    SlowEnd,
    /// Tasks that nobody counts ran in preflight.
    BareTasks,
    /// It hands over assets whose names have no hash of their content.
    AssetsWithoutHash,
}

impl Topic {
    /// The word for programs, which is that of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeverUnloads => "never_unloads",
            Self::TextRelocations => "text_relocations",
            Self::OriginPath => "origin_path",
            Self::BundledAllocator => "bundled_allocator",
            Self::BundledSqlite => "bundled_sqlite",
            Self::Companion => "companion",
            Self::Retained => "retained",
            Self::LeftOpen => "left_open",
            Self::SlowDrain => "slow_drain",
            Self::SlowEnd => "slow_end",
            Self::BareTasks => "bare_tasks",
            Self::AssetsWithoutHash => "assets_without_hash",
        }
    }

    /// Whether it means that the library of a replaced generation stays mapped.
    pub fn is_retained(self) -> bool {
        match self {
            Self::NeverUnloads | Self::Retained | Self::SlowEnd => true,
            Self::TextRelocations
            | Self::OriginPath
            | Self::BundledAllocator
            | Self::BundledSqlite
            | Self::Companion
            | Self::LeftOpen
            | Self::SlowDrain
            | Self::BareTasks
            | Self::AssetsWithoutHash => false,
        }
    }
}

/// One thing to know of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// What it is about.
    pub topic: Topic,
    /// Whether something is lost with each deploy, so that somebody should act. Else it is only
    /// good to know.
    pub warning: bool,
    /// The sentence for a person, with what to do.
    pub message: String,
}

impl Remark {
    /// Something that costs with each deploy.
    pub fn warning(topic: Topic, message: impl Into<String>) -> Self {
        Self {
            topic,
            warning: true,
            message: message.into(),
        }
    }

    /// Something that is good to know.
    pub fn note(topic: Topic, message: impl Into<String>) -> Self {
        Self {
            topic,
            warning: false,
            message: message.into(),
        }
    }
}
