//! handover: a host process that owns the sockets and loads what answers from versioned plugins.
#![deny(unsafe_code)]

mod access;
mod acme;
mod apps;
mod artifact;
mod assets;
mod background;
mod canary;
mod cli;
mod clock;
mod config;
mod control;
mod daemon;
mod dashboard;
mod dispatch;
mod embed;
mod generation;
mod health;
mod hooks;
mod human;
mod ledger;
mod loader;
mod memory;
mod net;
mod notify;
mod open_files;
mod operations;
mod orchestrator;
mod origin;
mod ownership;
mod preflight;
mod preview;
mod process;
mod process_group;
mod reconfigure;
mod records;
mod replace;
mod report;
mod rollout;
mod shortage;
mod shown;
mod signals;
mod spill;
mod state;
mod supervisor;
mod telemetry;
mod values;
mod wakers;
mod watch;
mod watchdog;
mod work;
mod workers;
mod writers;

pub use crate::{
    cli::main,
    embed::{Builder, Host, StartError, prepare},
};

/// What tests and fuzz targets look at from outside. No part of what the crate promises.
#[doc(hidden)]
pub mod testing {
    pub use crate::{
        access::Access,
        artifact::{
            AbiVersion, Artifact, BuildFacts, DbRevisions, Declared, ElfFacts, JobHandler, Key,
            Manifest, MigrationPath, Migrations, Missed, Sha256, Signature, Store, StoreError,
            inspect,
        },
        config::{Config, RoutePrefix},
        control::{ControlSocket, DashboardDoor, Host, ShutdownHandle, serve},
        dispatch::Routes,
        health::Health,
        loader::{Layouts, Library, LoadError},
        net::{ClientListeners, Connections},
        orchestrator::Orchestrator,
        reconfigure::{ReconfigureError, Reconfigurer},
        telemetry::Gather,
    };

    pub mod elf {
        pub use crate::artifact::elf::{ElfError, is_truncated, read};
    }

    pub mod ledger {
        pub use crate::ledger::mark_worker;
    }

    /// The format of a manifest that this host reads.
    pub const MANIFEST_FORMAT: u32 = crate::artifact::manifest::FORMAT;
}
