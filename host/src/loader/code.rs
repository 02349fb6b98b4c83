//! What may be run of a library besides its app: its initialisers, its root table, its finalisers.
//!
//! All of it is code of the plugin, which may block. None of it holds a lock of the host or of the
//! dynamic linker, so whoever runs it on a thread of its own and waits with a deadline holds up
//! nobody.

use std::{
    ffi::c_void,
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use abi_stable::{
    abi_stability::abi_checking::{CheckingGlobals, check_layout_compatibility_with_globals},
    library::{AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
};
use libloading::os::unix as dl;

use super::{
    initialisers::Functions,
    library::{Layouts, LoadError, sentence},
};
use crate::ledger::{self, AccountId};

/// What may be run of a library. Clones are the same: a library is unmapped only when there is no
/// clone besides its own.
#[derive(Clone, Debug)]
pub struct Code(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// For people: `shop 1.2.0 (0123456789ab)`.
    what: String,
    /// Of `dlopen`; the library stays mapped as long as there is a second reference to this.
    handle: Handle,
    functions: Functions,
    layouts: Layouts,
    account: AccountId,
    stage: Stage,
}

#[derive(Debug)]
struct Handle(*mut c_void);

// SAFETY: a handle of `dlopen` may be given to `dlsym` on any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// How far a library is, seen by all who have this. It only goes on.
#[derive(Clone, Debug)]
pub struct Stage(Arc<AtomicU8>);

/// The code of a library that runs outside of its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Running {
    /// Nothing has run.
    Mapped,
    /// Its initialisers run.
    Initialisers,
    /// They have run.
    Initialised,
    /// Its finalisers run.
    Finalisers,
    /// They have run: nothing is called in it any more.
    Finalised,
}

impl Running {
    const ALL: [Self; 5] = [
        Self::Mapped,
        Self::Initialisers,
        Self::Initialised,
        Self::Finalisers,
        Self::Finalised,
    ];
}

impl Stage {
    /// Where it is.
    pub fn running(&self) -> Running {
        Running::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Goes on from `from` to `to`. False when it is elsewhere.
    fn goes_on(&self, from: Running, to: Running) -> bool {
        let (from, to) = (from as u8, to as u8);
        self.0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Code {
    pub(super) fn new(
        what: String,
        handle: *mut c_void,
        functions: Functions,
        layouts: Layouts,
        account: AccountId,
    ) -> Self {
        Self(Arc::new(Inner {
            what,
            handle: Handle(handle),
            functions,
            layouts,
            account,
            stage: Stage(Arc::new(AtomicU8::new(Running::Mapped as u8))),
        }))
    }

    pub(super) fn what(&self) -> &str {
        &self.0.what
    }

    pub(super) fn stage(&self) -> Stage {
        self.0.stage.clone()
    }

    /// Whether nobody else has one of this library. Stays so, as new ones are made from one.
    pub(super) fn is_the_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Runs the initialisers of the library on this thread, if they have not run. Blocks as long as
    /// they do. The thread is one that ends.
    ///
    /// # Errors
    /// When they run on another thread, or the library was finalised.
    pub fn initialise(&self) -> Result<(), LoadError> {
        let Inner {
            functions,
            account,
            stage,
            ..
        } = &*self.0;
        if stage.goes_on(Running::Mapped, Running::Initialisers) {
            let _acting = ledger::act_for(*account);
            // SAFETY: mapped as long as there is a second reference to `Inner` (`Library::close`),
            // and `goes_on` lets one pass, once.
            unsafe { functions.initialise() };
            stage.goes_on(Running::Initialisers, Running::Initialised);
        }
        match stage.running() {
            Running::Initialised => Ok(()),
            Running::Mapped | Running::Initialisers => Err(LoadError(
                "its ELF initialisers run on another thread".into(),
            )),
            Running::Finalisers | Running::Finalised => {
                Err(LoadError("its ELF finalisers have run".into()))
            }
        }
    }

    /// The functions that it runs first and last.
    pub(super) fn functions(&self) -> &Functions {
        &self.0.functions
    }

    /// Whether finalisers are to be run before the library is unmapped.
    pub(super) fn has_to_finish(&self) -> bool {
        self.0.functions.has_finalisers() && self.0.stage.running() == Running::Initialised
    }

    /// Runs the finalisers of the library on this thread, if it was initialised and they have not
    /// run. Blocks as long as they do. The thread is one that ends. Nothing is called in the
    /// library afterwards.
    pub(super) fn finalise(&self) {
        let Inner {
            functions,
            account,
            stage,
            ..
        } = &*self.0;
        if stage.goes_on(Running::Initialised, Running::Finalisers) {
            let _acting = ledger::act_for(*account);
            // SAFETY: the library is mapped: `Library::close`, the only caller, has it. It was
            // initialised, and `goes_on` lets one pass, once.
            unsafe { functions.finalise() };
            stage.goes_on(Running::Finalisers, Running::Finalised);
        }
    }

    /// The root table. Runs code of the library on this thread, which is one that ends: its
    /// initialisers and the module's constructor, each once. Blocks as long as they do.
    ///
    /// The table is a reference into the library without a lifetime: whoever keeps it drops all
    /// copies before [`Library::close`](super::Library::close). Nothing of it is cached by the host
    /// when layouts are trusted.
    ///
    /// # Errors
    /// When it exports no table, one of another abi_stable or another major version, or (with
    /// [`Layouts::Check`]) one whose layout is another.
    pub fn root<M: RootModule>(&self) -> Result<M, LoadError> {
        self.initialise()?;
        let Inner {
            handle,
            layouts,
            account,
            ..
        } = &*self.0;
        let _acting = ledger::act_for(*account);
        // SAFETY: the handle of a library that is mapped (see `Inner`), as it was initialised and
        // not finalised; never dropped, so never closed.
        let handle = ManuallyDrop::new(unsafe { dl::Library::from_raw(handle.0) });
        let missing = || {
            LoadError(
                "it exports no root table: build it with handover-plugin's #[app] as a cdylib"
                    .into(),
            )
        };
        let name = ROOT_MODULE_LOADER_NAME_WITH_NUL;
        // SAFETY: asks for the address only.
        let address = unsafe { handle.get::<*const ()>(name) }.map_err(|_| missing())?;
        if address.is_null() {
            return Err(missing());
        }
        // SAFETY: the symbol is abi_stable's; its address is not null, and what lies there begins
        // with a magic string in every version of abi_stable, which is compared before anything
        // else is looked at.
        let header: AbiHeaderRef =
            unsafe { *handle.get::<AbiHeaderRef>(name).map_err(|_| missing())? };
        // Compares the magic string and the version of abi_stable before it looks at anything else,
        // tests the C ABI with functions of the library, and gives the library's copy of abi_stable
        // the host's globals, which live for ever.
        let header = header.upgrade().map_err(|error| {
            LoadError(format!(
                "its root table is of another abi_stable: {}; build it with the same handover-plugin as the host",
                sentence(&error)
            ))
        })?;
        if *layouts == Layouts::Check {
            fits::<M>(header)?;
        }
        // SAFETY: the layout was compared just now, or by preflight on the very same bytes
        // (`Image`: sealed, and verified against their SHA-256). In abi_stable 0.11.3 this compares
        // the version strings, calls the library's constructor, and keeps the result in the header,
        // which lies in the library; `RootModule::load_from` and `load_module_with`, which would
        // keep it in the host's statics, and the layout checker, which caches layouts, are not on
        // this way. An error of the constructor is reallocated in the host before it is returned.
        unsafe { header.init_root_module_with_unchecked_layout::<M>() }
            .map_err(|error| does_not_fit(&error))
    }
}

/// Compares the layouts. The plugin's is the one that is expected: it may be older, so that its
/// tables end before the host's do, and abi_stable lets only the expected side be the shorter one.
/// A newer one was refused by its manifest.
///
/// What abi_stable remembers of a comparison refers to the layouts, which lie in the library. So it
/// is forgotten here, and not kept in the statics of the host, where it would outlive the library.
fn fits<M: RootModule>(header: &LibHeader) -> Result<(), LoadError> {
    let theirs = header
        .layout()
        .ok_or_else(|| LoadError("its root table was exported without its layout".into()))?;
    let remembered = CheckingGlobals::new();
    check_layout_compatibility_with_globals(theirs, M::LAYOUT, &remembered)
        .map_err(|errors| does_not_fit(&errors))
}

fn does_not_fit(error: &impl std::fmt::Display) -> LoadError {
    let cause = cause(error)
        .replace("Expected:", "the plugin has")
        .replace("Found:", "and this host");
    LoadError(format!("its root table does not fit: {cause}"))
}

/// What abi_stable found wrong, without the layouts of both sides around it, which are pages.
fn cause(error: &impl std::fmt::Display) -> String {
    let text = sentence(error);
    let mut errors: Vec<&str> = text.split("Error:").skip(1).collect();
    errors.dedup();
    match errors.as_slice() {
        [] => text,
        errors => errors
            .iter()
            .take(3)
            .map(|error| {
                error
                    .chars()
                    .take(400)
                    .collect::<String>()
                    .trim()
                    .to_owned()
            })
            .collect::<Vec<_>>()
            .join("; "),
    }
}
