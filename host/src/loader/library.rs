//! A mapped library: from the artifact to the proof that it is gone.

use std::{
    mem::ManuallyDrop,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use abi_stable::{
    abi_stability::abi_checking::check_layout_compatibility,
    library::{AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
};
use libloading::os::unix as dl;
use object::{Object as _, ObjectSymbol as _};

use super::{
    heap::{self, Offer, OwnHeap},
    mapped::{self, Object},
};
use crate::{
    artifact::{Artifact, Image},
    ledger::{self, Account, Held, Holder, Left, Report, Unsettled},
};

/// Whether the layouts of the root module are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layouts {
    /// Compared; what abi_stable caches of it points into the library for ever, so only in a preflight child.
    Check,
    /// Trusted, because preflight compared the very same bytes.
    Trust,
}

/// Why an artifact could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// A mapped library. Dropping it leaves it mapped for the life of the process; [`Library::close`] unmaps it.
#[derive(Debug)]
pub struct Library {
    layouts: Layouts,
    /// The handle. Never dropped: that would unmap. None when the dynamic linker has let the library go, but the kernel has not.
    handle: Option<ManuallyDrop<dl::Library>>,
    /// The name the dynamic linker knows it by.
    name: String,
    account: Account,
    /// Its heap; none when it was built without one of its own. Freed after the library is unmapped, and never when it is not.
    heap: Option<OwnHeap>,
    /// Closed after the library is unmapped, and never when it is not.
    image: ManuallyDrop<Image>,
}

/// One library is mapped or unmapped at a time, so that what the dynamic linker says before and after is about that one.
static LOADER: Mutex<()> = Mutex::new(());

impl Library {
    /// Maps the bytes of `artifact` and asserts that they are what is mapped. Constructors of the library run, on a thread
    /// of their own.
    ///
    /// Blocks: copies the file when its image was mapped before, and runs constructors. A constructor that does not end holds this and every later load;
    /// preflight sees that first.
    ///
    /// # Errors
    /// Nothing is mapped then, except where the error says so.
    pub fn open(artifact: &Artifact, layouts: Layouts) -> Result<Self, LoadError> {
        if !ledger::armed() {
            return Err(LoadError(
                "this executable does not export the functions of the ledger, so what it loads could never be unloaded: link it with the arguments of host/build.rs".into(),
            ));
        }
        let image = artifact
            .take_image()
            .map_err(|error| LoadError(error.to_string()))?;
        let _loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
        let library = on_own_thread("load", || Self::map(image, layouts))??;
        match library.verify(artifact) {
            Ok(()) => Ok(library),
            Err(reason) => Err(LoadError(match library.unmap() {
                Ok(_) => reason,
                Err((_, held)) => format!("{reason}; and it stays mapped, because {held}"),
            })),
        }
    }

    fn map(image: Image, layouts: Layouts) -> Result<Self, LoadError> {
        let name = image.path();
        let before = mapped::objects();
        let executable = before.first().map_or(0..0, |object| object.range.clone());
        let loading = ledger::loading(&executable);
        let offer = Offer::to(&name);
        // SAFETY: runs the constructors of the library, whatever they do: the operator deployed it, and preflight ran them
        // in another process. No symbol of it becomes visible to others (RTLD_LOCAL), none is resolved later (RTLD_NOW).
        let handle = match unsafe { dl::Library::open(Some(&name), dl::RTLD_NOW | dl::RTLD_LOCAL) }
        {
            Ok(handle) => ManuallyDrop::new(handle),
            Err(error) => {
                offer.withdraw();
                return Err(LoadError(format!(
                    "the dynamic linker refused it: {}{}",
                    sentence(&error),
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
            offer.withdraw();
            return Err(LoadError(format!(
                "the dynamic linker gave an old library back instead of mapping the new one (as {name}); nothing was loaded"
            )));
        };
        for brought in after.iter().filter(is_new) {
            if brought.base != object.base {
                pin(brought);
            }
        }
        let heap = offer.take(&handle, object);
        let Some(account) = loading.attribute(vec![object.range.clone()]) else {
            std::mem::forget(image);
            return Err(LoadError(
                "1024 libraries are mapped, more than the ledger can tell apart: restart the host (this one stays mapped, unused)".into(),
            ));
        };
        Ok(Self {
            layouts,
            handle: Some(handle),
            name,
            account,
            heap,
            image: ManuallyDrop::new(image),
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

    /// An artifact without a build id: its manifest in memory is the one in the file. That the image is what is mapped has
    /// been seen before.
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
        // SAFETY: inside the library's mapping, which lives as long as `self`; the symbol lies in a section with data in the
        // file, which a loaded segment covers. Nobody writes a manifest.
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

    /// The root table. Runs code of the library (the module's constructor, once), on a thread of its own. Blocks.
    ///
    /// The table is a reference into the library without a lifetime: whoever keeps it drops all copies before
    /// [`Library::close`]. Nothing of it is cached by the host when layouts are trusted.
    ///
    /// # Errors
    /// When it exports no table, one of another abi_stable or another major version, or (with [`Layouts::Check`]) one whose
    /// layout is another.
    pub fn root<M: RootModule + Send>(&self) -> Result<M, LoadError> {
        on_own_thread("root", || self.root_here())?
    }

    fn root_here<M: RootModule>(&self) -> Result<M, LoadError> {
        let _acting = self.account.act();
        let handle = self
            .handle
            .as_ref()
            .ok_or_else(|| LoadError("it was unmapped".into()))?;
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
        // SAFETY: the symbol is abi_stable's; its address is not null, and what lies there begins with a magic string in every
        // version of abi_stable, which is compared before anything else is looked at.
        let header: AbiHeaderRef =
            unsafe { *handle.get::<AbiHeaderRef>(name).map_err(|_| missing())? };
        // Compares the magic string and the version of abi_stable before it looks at anything else, tests the C ABI with
        // functions of the library, and gives the library's copy of abi_stable the host's globals, which live for ever.
        let header = header.upgrade().map_err(|error| {
            LoadError(format!(
                "its root table is of another abi_stable: {}; build it with the same handover-plugin as the host",
                sentence(&error)
            ))
        })?;
        if self.layouts == Layouts::Check {
            fits::<M>(header)?;
        }
        // SAFETY: the layout was compared just now, or by preflight on the very same bytes (`Image`: sealed, and verified against their SHA-256). In
        // abi_stable 0.11.3 this compares the version strings, calls the library's constructor, and keeps the result in
        // the header, which lies in the library; `RootModule::load_from` and `load_module_with`, which would keep it in
        // the host's statics, and the layout checker, which caches layouts, are not on this way. An error of the
        // constructor is reallocated in the host before it is returned.
        unsafe { header.init_root_module_with_unchecked_layout::<M>() }
            .map_err(|error| does_not_fit(&error))
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

    /// Unmaps it and verifies that it is gone. Finalizers of the library run, on a thread of their own. Blocks.
    /// Gives what it left behind.
    ///
    /// # Errors
    /// Gives it back, mapped and usable, with what holds it: it was not settled, layouts were compared in this process, or the
    /// dynamic linker keeps it. Trying again is allowed.
    pub fn close(self) -> Result<Left, (Self, Held)> {
        if self.layouts == Layouts::Check {
            let reason = "its layouts were compared in this process, and abi_stable keeps references to them";
            return Err((self, Held::by(Holder::Host, reason)));
        }
        let held = self.account.holds();
        if !held.is_empty() {
            return Err((self, held));
        }
        let _loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
        self.unmap()
    }

    fn unmap(self) -> Result<Left, (Self, Held)> {
        // The thread may fail to start; the library comes back then, so it is handed over through this.
        let slot = Mutex::new(Some(self));
        let take = || slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match on_own_thread("unload", || take().map(Self::unmap_here)) {
            Ok(Some(answer)) => answer,
            Ok(None) => unreachable!("the slot is emptied once"),
            Err(LoadError(reason)) => match take() {
                Some(library) => Err((library, Held::by(Holder::Host, reason))),
                None => panic!("{reason}"), // a panic of `unmap_here`, which has none
            },
        }
    }

    fn unmap_here(mut self) -> Result<Left, (Self, Held)> {
        let _acting = self.account.act();
        let inode = self.image.inode();
        if let Err(error) = mapped::of_inode(inode) {
            let reason = format!(
                "cannot read /proc/self/maps to see it go: {error}; mount /proc for this service"
            );
            return Err((self, Held::by(Holder::Host, reason)));
        }
        let mut said = String::new();
        if let Some(handle) = self.handle.take()
            && let Err(error) = ManuallyDrop::into_inner(handle).close()
        {
            said = format!(" ({})", sentence(&error));
        }
        if self.object().is_some() {
            // SAFETY: runs no constructor: it maps nothing, but counts this as a user of the library again.
            let again = unsafe {
                dl::Library::open(
                    Some(&self.name),
                    dl::RTLD_NOW | dl::RTLD_LOCAL | libc::RTLD_NOLOAD,
                )
            };
            self.handle = again.ok().map(ManuallyDrop::new);
            let reason = format!(
                "the dynamic linker keeps it{said}: a thread that is no worker of the host has thread-locals of it, another library uses it, or it was linked to stay (NODELETE, or C++ symbols that are unique)"
            );
            return Err((self, Held::by(Holder::Linker, reason)));
        }
        if let Ok(places) = mapped::of_inode(inode)
            && let Some(place) = places.first()
        {
            let reason = format!(
                "the dynamic linker let it go, but the kernel still has it at {:#x}{said}",
                place.start
            );
            return Err((self, Held::by(Holder::Linker, reason)));
        }
        let left = self.account.close();
        // SAFETY: the library was quiet, and is unmapped with its statics. A pointer to its heap that somebody else still had
        // would be as wrong as one to them; no type of the ABI holds one without holding the generation.
        let heap_bytes = self.heap.map(|heap| unsafe { heap.destroy() });
        drop(ManuallyDrop::into_inner(self.image));
        Ok(Left {
            heap_bytes,
            private_bytes: heap_bytes.is_none().then(heap::private_bytes_outside),
            ..left
        })
    }
}

/// Keeps a library that a plugin brought along (OpenSSL, libstdc++, …) for the life of the process. It is shared by all
/// generations that need it, it may have left pointers to itself anywhere, and nobody proves it quiet; it costs its
/// memory once, not once a generation.
fn pin(object: &Object) {
    let Ok(name) = std::ffi::CString::new(object.name.clone()) else {
        return;
    };
    let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: maps nothing and runs nothing: the object is there, and is marked. The handle is given up on purpose.
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

/// Compares the layouts. The plugin's is the one that is expected: it may be older, so that its tables end before the host's
/// do, and abi_stable lets only the expected side be the shorter one. A newer one was refused by its manifest.
fn fits<M: RootModule>(header: &LibHeader) -> Result<(), LoadError> {
    let theirs = header
        .layout()
        .ok_or_else(|| LoadError("its root table was exported without its layout".into()))?;
    check_layout_compatibility(theirs, M::LAYOUT).map_err(|errors| does_not_fit(&errors))
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

/// An error's text in one line.
fn sentence(error: &impl std::fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
