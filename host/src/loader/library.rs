//! A mapped library: from the artifact to the proof that it is gone.

use std::{
    any::Any,
    ffi::OsString,
    mem::ManuallyDrop,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use abi_stable::library::RootModule;
use libloading::os::unix as dl;
use object::{Object as _, ObjectSymbol as _};

use super::{
    code::{Code, Running, Stage},
    heap::{self, HeapGrant, OwnHeap},
    initialisers::Functions,
    linker_lock::LinkerLock,
    mapped::{self, Object},
    missing, own_environ,
    references::{self, Reference},
};
use crate::{
    artifact::{Artifact, Image},
    ledger::{self, Account, Leftovers, Report, RetainReason, RetainReasons, Unsettled},
};

/// Whether the layouts of the root module are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layouts {
    /// Compared, in a preflight child: it runs code of the library and takes milliseconds.
    Check,
    /// Trusted, because preflight compared the very same bytes.
    Trust,
}

/// Why an artifact could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// A mapped library. Dropping it leaves it mapped for the life of the process; [`Library::close`]
/// unmaps it.
#[derive(Debug)]
pub struct Library {
    /// What may be run of it.
    code: Code,
    /// The handle. Never dropped: that would unmap. None when the dynamic linker has let the
    /// library go, but the kernel has not.
    handle: Option<ManuallyDrop<dl::Library>>,
    /// The name the dynamic linker knows it by.
    name: Box<str>,
    account: Account,
    /// Its heap; none when it was built without one of its own. Freed after the library is
    /// unmapped, and never when it is not.
    heap: Option<OwnHeap>,
    /// Closed after the library is unmapped, and never when it is not.
    image: ManuallyDrop<Box<Image>>,
    /// What its code has pointers to, and may follow on whatever thread it left. Dropped after it
    /// is unmapped, and never when it is not.
    kept: ManuallyDrop<Option<Arc<dyn Any + Send + Sync>>>,
    staying: Box<Staying>,
}

/// Why a library stays mapped, though nothing is registered for it.
#[derive(Debug, Default)]
struct Staying {
    /// The pointer to it that kept it mapped when it was last looked for.
    reference: Option<Reference>,
    /// Why it is never unmapped, if it is not.
    always: Option<String>,
}

impl Library {
    /// Maps the bytes of `artifact`, as [`Library::map`] does, and runs the initialisers of the
    /// library, on a thread of their own. Blocks as long as they do: for one whom somebody else
    /// ends, such as a preflight child.
    ///
    /// # Errors
    /// As [`Library::map`].
    pub fn open(artifact: &Artifact, layouts: Layouts) -> Result<Self, LoadError> {
        let library = Self::map(artifact, layouts)?;
        library.initialise()?;
        Ok(library)
    }

    /// Runs the initialisers of the library, on a thread of their own, and blocks as long as they
    /// do.
    ///
    /// # Errors
    /// As [`Code::initialise`].
    pub fn initialise(&self) -> Result<(), LoadError> {
        let code = self.code();
        on_own_thread("initialise", || code.initialise())?
    }

    /// Maps the bytes of `artifact` and asserts that they are what is mapped. Nothing of the
    /// library runs but its resolvers of ifuncs, and the initialisers of libraries that it brings
    /// along: those within `dlopen`, on a thread of their own.
    ///
    /// Blocks: copies the file, and waits for its turn with the dynamic linker.
    ///
    /// # Errors
    /// Nothing is mapped then, except where the error says so.
    pub fn map(artifact: &Artifact, layouts: Layouts) -> Result<Self, LoadError> {
        if !ledger::armed() {
            return Err(LoadError(
                "this executable does not export the functions of the ledger, so what it loads could never be unloaded: link it with the arguments of host/build.rs".into(),
            ));
        }
        let image = artifact
            .take_image()
            .map_err(|error| LoadError(error.to_string()))?;
        let manifest = &artifact.manifest;
        let what = format!(
            "{} {} ({})",
            manifest.app,
            manifest.version,
            artifact.sha256.short()
        );
        let lock = LinkerLock::take(format!("loading {what}"))
            .map_err(|busy| LoadError(busy.to_string()))?;
        let library = on_own_thread("load", || {
            Self::map_image(image, what, layouts).map_err(|LoadError(said)| {
                let more = missing::explain(&said, &artifact.elf.linkage, layouts);
                LoadError(said + &more)
            })
        })??;
        match library.verify(artifact) {
            Ok(()) => Ok(library),
            Err(reason) => Err(LoadError(match library.unmap(lock) {
                Ok(_) => reason,
                Err((_, held)) => format!("{reason}; and it stays mapped, because {held}"),
            })),
        }
    }

    fn map_image(image: Image, what: String, layouts: Layouts) -> Result<Self, LoadError> {
        let name = image.path();
        let before = mapped::objects();
        references::note_host(&before);
        let executable = before.first().map_or(0..0, |object| object.range.clone());
        let loading = ledger::loading(&executable);
        let grant = HeapGrant::to(&name);
        // SAFETY: runs the initialisers of the libraries that it brings along, whatever they do:
        // the operator deployed it, and preflight ran them in another process. No symbol of it
        // becomes visible to others (RTLD_LOCAL), none is resolved later (RTLD_NOW).
        let handle = match unsafe { dl::Library::open(Some(&name), dl::RTLD_NOW | dl::RTLD_LOCAL) }
        {
            Ok(handle) => ManuallyDrop::new(handle),
            Err(error) => {
                grant.withdraw();
                return Err(LoadError(format!(
                    "the dynamic linker refused it: {}{}",
                    linker_sentence(&error),
                    if std::path::Path::new(&name).exists() {
                        ""
                    } else {
                        " (/proc/self/fd is not there: mount /proc for this service)"
                    }
                )));
            }
        };
        let after = mapped::objects();
        let is_new = |object: &&Object| {
            !before
                .iter()
                .any(|old| old.base == object.base && old.name == object.name)
        };
        let Some(object) = after
            .iter()
            .filter(is_new)
            .find(|object| object.name == name.as_bytes())
        else {
            // Nothing was mapped: the reference to the old library, whatever it is, goes back.
            drop(ManuallyDrop::into_inner(handle));
            grant.withdraw();
            return Err(LoadError(format!(
                "the dynamic linker gave an old library back instead of mapping the new one (as {name}); nothing was loaded"
            )));
        };
        for brought in after.iter().filter(is_new) {
            if brought.base != object.base {
                pin(brought);
            }
        }
        let heap = grant.take(&handle, object);
        let Some(account) = loading.attribute(vec![object.range.clone()]) else {
            std::mem::forget(image);
            return Err(LoadError(
                "1024 libraries are mapped, more than the ledger can tell apart: restart the host (this one stays mapped, unused)".into(),
            ));
        };
        let functions =
            match Functions::mapped(Arc::clone(image.initialisers()), object.base, &object.range) {
                Ok(functions) => functions,
                Err(reason) => {
                    // It was never used, and is no library that anybody builds: not worth an
                    // unload.
                    std::mem::forget(image);
                    return Err(LoadError(format!("{reason}; it stays mapped, unused")));
                }
            };
        let raw = ManuallyDrop::into_inner(handle).into_raw();
        // SAFETY: of a library that is open, taken out of its value just now.
        let handle = ManuallyDrop::new(unsafe { dl::Library::from_raw(raw) });
        Ok(Self {
            code: Code::new(what, raw, functions, layouts, account.id()),
            handle: Some(handle),
            name: name.into(),
            account,
            heap,
            image: ManuallyDrop::new(Box::new(image)),
            kept: ManuallyDrop::new(None),
            staying: Box::default(),
        })
    }

    /// What is mapped is this image and no other, at an address where nothing else is.
    fn verify(&self, artifact: &Artifact) -> Result<(), String> {
        let object = self
            .object()
            .ok_or("the dynamic linker does not list it after loading it")?;
        let places = mapped::of_inode(self.image.inode()).map_err(|error| {
            format!("cannot read /proc/self/maps to see what was mapped: {error}; mount /proc for this service")
        })?;
        if !places.iter().any(|place| place.start == object.range.start)
            || !places
                .iter()
                .all(|place| object.range.contains(&place.start))
        {
            return Err(format!(
                "what is mapped at {:#x} is not the artifact that was opened",
                object.base
            ));
        }
        match &artifact.elf.build_id {
            Some(build_id) if object.build_id.as_ref() == Some(build_id) => Ok(()),
            Some(_) => Err(
                "the build id in memory is not the one of the artifact: other code was loaded"
                    .into(),
            ),
            None => self.verify_manifest(&object),
        }
    }

    /// An artifact without a build id: its manifest in memory is the one in the file. That the
    /// image is what is mapped has been seen before.
    fn verify_manifest(&self, mapped: &Object) -> Result<(), String> {
        let bytes = self
            .image
            .bytes()
            .map_err(|error| format!("cannot read the copy in memory: {error}"))?;
        let file =
            object::File::parse(&*bytes).map_err(|error| format!("it is no ELF: {error}"))?;
        let Some(symbol) = file
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok("HANDOVER_MANIFEST"))
        else {
            return Ok(());
        };
        let section = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .ok_or("its manifest lies nowhere")?;
        let expected = object::ObjectSection::data_range(&section, symbol.address(), symbol.size())
            .ok()
            .flatten()
            .ok_or("its manifest lies outside of its section")?;
        let start = mapped.base.wrapping_add(symbol.address() as usize);
        if !mapped.range.contains(&start) || mapped.range.end - start < expected.len() {
            return Err("its manifest lies outside of what is mapped".into());
        }
        // SAFETY: inside the library's mapping, which lives as long as `self`; the symbol lies in a
        // section with data in the file, which a loaded segment covers. Nobody writes a manifest.
        let found = unsafe { std::slice::from_raw_parts(start as *const u8, expected.len()) };
        if found == expected {
            Ok(())
        } else {
            Err(
                "the manifest in memory is not the one of the artifact: other code was loaded"
                    .into(),
            )
        }
    }

    /// What the dynamic linker says about it; none when it does not know it.
    fn object(&self) -> Option<Object> {
        mapped::objects()
            .into_iter()
            .find(|object| object.name == self.name.as_bytes())
    }

    /// [`Code::root`], on a thread of its own. Blocks as long as code of the library runs.
    ///
    /// # Errors
    /// As there.
    pub fn root<M: RootModule + Send>(&self) -> Result<M, LoadError> {
        on_own_thread("root", || self.code.root())?
    }

    /// What may be run of it, on any thread that ends. It is unmapped when all that this gave are
    /// dropped.
    pub fn code(&self) -> Code {
        self.code.clone()
    }

    /// Gives it the arguments and the environment of a program of its own: what `std::env` tells
    /// it. Once, before anything of it runs; later it changes nothing.
    pub fn surround(
        &self,
        arguments: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) {
        if self.stage().running() != Running::Mapped {
            return;
        }
        let arguments = arguments.into_iter().map(OsString::from);
        self.code.functions().give_arguments(arguments);
        let Some(object) = self.object() else { return };
        if let Some(own) = ledger::own_environment(self.account.id(), environment) {
            // SAFETY: mapped as long as this is, and nothing of it has run. The address is the
            // ledger's for as long as it is mapped.
            unsafe { own_environ::bind(&object, own) };
        }
    }

    /// How far it is, now and later.
    pub fn stage(&self) -> Stage {
        self.code.stage()
    }

    /// For people: `shop 1.2.0 (0123456789ab)`.
    pub fn what(&self) -> &str {
        self.code.what()
    }

    /// The address that its file's address 0 is mapped at: what a debugger needs to find its
    /// symbols.
    pub fn base(&self) -> Option<usize> {
        self.object().map(|object| object.base)
    }

    /// Keeps what its code is about to be given a pointer to: until it is unmapped, or for ever. It
    /// is given one such thing, once.
    pub fn keep(&mut self, pointee: Arc<dyn Any + Send + Sync>) {
        if let Some(before) = self.kept.replace(pointee) {
            std::mem::forget(before);
        }
    }

    /// What is kept for it, if it is a `T`.
    pub fn kept<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.kept.as_deref()?.downcast_ref()
    }

    /// Has it stay mapped for the life of the process, if there is a reason.
    pub fn stay(&mut self, reason: Option<String>) {
        self.staying.always = reason;
    }

    /// Why it is never unmapped, if it is not.
    pub fn stays(&self) -> Option<&str> {
        self.staying.always.as_deref()
    }

    /// Where its code and its statics are mapped.
    pub fn range(&self) -> Option<Range<usize>> {
        self.object().map(|object| object.range)
    }

    /// What it holds in the host.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// [`Account::settle`] of its account: to be awaited before [`Library::close`].
    pub async fn settle(&self, deadline: Duration) -> Result<Report, Unsettled> {
        self.account.settle(deadline).await
    }

    /// The bytes of the heap that it holds; none when it was built without one of its own.
    pub fn heap_bytes(&self) -> Option<u64> {
        self.heap.as_ref().map(OwnHeap::live)
    }

    /// Runs its finalisers, unmaps it, and verifies that it is gone. Gives what it left behind.
    ///
    /// Blocks: the finalisers run on a thread of their own, and what a library does there it does
    /// as long as it likes; nobody else is held up by that.
    ///
    /// # Errors
    /// Gives it back, mapped, with what holds it: it was not settled, code of it may be running, or
    /// the dynamic linker keeps it. Trying again is allowed: the finalisers have run then, and do
    /// not run again.
    pub fn close(mut self) -> Result<Leftovers, (Self, RetainReasons)> {
        if let Some(reason) = &self.staying.always {
            let held = RetainReasons::by(RetainReason::Crash, reason.as_str());
            return Err((self, held));
        }
        if !self.code.is_the_last() {
            let reason = "code of it may be running on a thread of the host";
            return Err((self, RetainReasons::by(RetainReason::Host, reason)));
        }
        let held = self.account.retain_reasons();
        if !held.is_empty() {
            return Err((self, held));
        }
        // Before the finalisers: what is called back later finds its statics as they were.
        let reference = self.staying.reference.as_ref();
        if !reference.is_some_and(Reference::is_recent) {
            self.staying.reference = references::to(&self.name);
        }
        if let Some(reference) = &self.staying.reference {
            let held = RetainReasons::by(RetainReason::References, reference.sentence());
            return Err((self, held));
        }
        if self.code.has_to_finish() {
            if let Err(LoadError(reason)) = on_own_thread("finalise", || self.code.finalise()) {
                return Err((self, RetainReasons::by(RetainReason::Host, reason)));
            }
            // They may have started a thread.
            let held = self.account.retain_reasons();
            if !held.is_empty() {
                return Err((self, held));
            }
        }
        match LinkerLock::take(format!("unloading {}", self.what())) {
            Ok(lock) => self.unmap(lock),
            Err(busy) => Err((
                self,
                RetainReasons::by(RetainReason::Linker, busy.to_string()),
            )),
        }
    }

    fn unmap(self, _lock: LinkerLock) -> Result<Leftovers, (Self, RetainReasons)> {
        // The thread may fail to start; the library comes back then, so it is handed over through
        // this.
        let slot = Mutex::new(Some(self));
        let take = || slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match on_own_thread("unload", || take().map(Self::unmap_here)) {
            Ok(Some(answer)) => answer,
            Ok(None) => unreachable!("the slot is emptied once"),
            Err(LoadError(reason)) => match take() {
                Some(library) => Err((library, RetainReasons::by(RetainReason::Host, reason))),
                None => panic!("{reason}"), // a panic of `unmap_here`, which has none
            },
        }
    }

    fn unmap_here(mut self) -> Result<Leftovers, (Self, RetainReasons)> {
        let _acting = self.account.act();
        let inode = self.image.inode();
        if let Err(error) = mapped::of_inode(inode) {
            let reason = format!(
                "cannot read /proc/self/maps to see it go: {error}; mount /proc for this service"
            );
            return Err((self, RetainReasons::by(RetainReason::Host, reason)));
        }
        let range = self.object().map_or(0..0, |object| object.range);
        let mut said = String::new();
        if let Some(handle) = self.handle.take()
            && let Err(error) = ManuallyDrop::into_inner(handle).close()
        {
            said = format!(" ({})", linker_sentence(&error));
        }
        if self.object().is_some() {
            // SAFETY: runs no constructor: it maps nothing, but counts this as a user of the
            // library again.
            let again = unsafe {
                dl::Library::open(
                    Some(&*self.name),
                    dl::RTLD_NOW | dl::RTLD_LOCAL | libc::RTLD_NOLOAD,
                )
            };
            self.handle = again.ok().map(ManuallyDrop::new);
            let reason = format!(
                "the dynamic linker keeps it{said}: a thread that is no worker of the host has thread-locals of it, another library uses it, or it was linked to stay (NODELETE, or C++ symbols that are unique)"
            );
            return Err((self, RetainReasons::by(RetainReason::Linker, reason)));
        }
        // Elsewhere the image may have been mapped as a file, by whoever looked up names for a
        // backtrace: code of the library is none of that, and std keeps such a mapping for ever.
        let overlaps = |place: &Range<usize>| place.start < range.end && range.start < place.end;
        if let Ok(places) = mapped::of_inode(inode)
            && let Some(place) = places.into_iter().find(overlaps)
        {
            let reason = format!(
                "the dynamic linker let it go, but the kernel still has it at {:#x}{said}",
                place.start
            );
            return Err((self, RetainReasons::by(RetainReason::Linker, reason)));
        }
        let left = self.account.close();
        // SAFETY: the library was quiet, and is unmapped with its statics. A pointer to its heap
        // that somebody else still had would be as wrong as one to them; no type of the ABI holds
        // one without holding the generation.
        let heap_bytes = self.heap.map(|heap| unsafe { heap.destroy() });
        drop(ManuallyDrop::into_inner(self.image));
        drop(ManuallyDrop::into_inner(self.kept));
        Ok(Leftovers {
            heap_bytes,
            private_bytes: heap_bytes.is_none().then(heap::private_bytes_outside),
            ..left
        })
    }
}

/// Keeps a library that a plugin brought along (OpenSSL, libstdc++, …) for the life of the process.
/// It is shared by all generations that need it, it may have left pointers to itself anywhere, and
/// nobody proves it quiet; it costs its memory once, not once a generation.
fn pin(object: &Object) {
    let Ok(name) = std::ffi::CString::new(object.name.clone()) else {
        return;
    };
    let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: maps nothing and runs nothing: the object is there, and is marked. The handle is
    // given up on purpose.
    unsafe { libc::dlopen(name.as_ptr(), flags) };
}

/// Runs `code` on a thread that has ended, with all that it registered, when this returns.
fn on_own_thread<T: Send>(name: &str, code: impl FnOnce() -> T + Send) -> Result<T, LoadError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(name.into())
            .spawn_scoped(scope, code)
            .map_err(|error| LoadError(format!("cannot start a thread to {name} it: {error}")))?
            .join()
            .map_err(|_| LoadError(format!("the thread to {name} it panicked")))
    })
}

/// What the dynamic linker said, in one line. libloading has it as the source of its error, whose
/// own text is only that a call failed.
fn linker_sentence(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| sentence(error), |said| sentence(&said))
}

/// An error's text in one line.
pub(super) fn sentence(error: &impl std::fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
