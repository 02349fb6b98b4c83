//! Files that a version hands to the host, which serves them itself: the table of that service, and
//! both halves over it.

use std::{marker::PhantomData, ptr::NonNull};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};

use super::{
    lent::{Grows, Lent, Size},
    panics::catch_panic,
    root::TextSink,
};

/// The number of this service for [`Host::service`](super::host::Host::service). Since 1.4.
pub const ASSETS: u32 = 3;

/// What the host does with files of a version. `put` takes the pointer that came with the host's
/// table; the table can grow at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct AssetsTable {
    pub(super) size: Size,
    /// Takes one file, and copies its bytes. Gives 1 when it is taken, else 0 and the reason to the
    /// sink.
    pub(super) put: unsafe extern "C" fn(*const (), Lent<'_, Asset<'_>>, &TextSink<'_>) -> u32,
}

/// One file.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Asset<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// Where the files are that it belongs to, as the app sees paths: `/assets`.
    pub prefix: RStr<'a>,
    /// Its path below that: `js/app.3f9c2a17.js`.
    pub path: RStr<'a>,
    /// What is in it.
    pub bytes: RSlice<'a, u8>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for AssetsTable {}
// SAFETY: as above.
unsafe impl Grows for Asset<'_> {}

/// The assets that a host serves, as a plugin hands them over.
#[derive(Clone, Copy, Debug)]
pub struct AssetsHandle {
    table: NonNull<AssetsTable>,
    data: *const (),
}

impl AssetsHandle {
    /// # Safety
    /// `table` is what the host gave as the service [`ASSETS`], for `data`.
    pub(super) unsafe fn new(table: NonNull<()>, data: *const ()) -> Self {
        Self {
            table: table.cast(),
            data,
        }
    }

    /// Hands over the file at `path` below `prefix`.
    ///
    /// # Errors
    /// Why the host does not take it: a sentence for the author.
    pub fn put(&self, prefix: &str, path: &str, bytes: &[u8]) -> Result<(), String> {
        let asset = Asset {
            size: Size::of::<Asset<'_>>(),
            prefix: prefix.into(),
            path: path.into(),
            bytes: bytes.into(),
        };
        let mut reason = String::new();
        let taken = TextSink::lend(&mut reason, |sink| {
            // SAFETY: the data came with the table, which lives as long as this code is mapped.
            unsafe { (self.table.as_ref().put)(self.data, Lent::of(&asset), sink) }
        });
        match taken {
            1 => Ok(()),
            _ => Err(reason),
        }
    }
}

/// The assets that a host serves for one generation. Called on any thread of the plugin, and a
/// panic in it ends at the boundary.
pub trait AssetsService: Send + Sync {
    /// Takes a file.
    ///
    /// # Errors
    /// Why not: a sentence for the author.
    fn put(&self, asset: Lent<'_, Asset<'_>>) -> Result<(), String>;
}

/// Whom a table of the host serves.
pub(super) trait ServesAssets: 'static {
    /// The assets behind `data`.
    ///
    /// # Safety
    /// `data` is what the plugin was given with the table of the host.
    unsafe fn assets<'a>(data: *const ()) -> Option<&'a dyn AssetsService>;
}

pub(super) struct Service<S>(PhantomData<S>);

impl<S: ServesAssets> Service<S> {
    pub(super) const TABLE: &'static AssetsTable = &AssetsTable {
        size: Size::of::<AssetsTable>(),
        put: Self::put,
    };

    unsafe extern "C" fn put(
        data: *const (),
        asset: Lent<'_, Asset<'_>>,
        sink: &TextSink<'_>,
    ) -> u32 {
        // SAFETY: the plugin gives back the data that it was given.
        let Some(assets) = (unsafe { S::assets(data) }) else {
            return 0;
        };
        let put = catch_panic(|| assets.put(asset));
        match put.unwrap_or_else(|| Err("the host failed".to_owned())) {
            Ok(()) => 1,
            Err(reason) => {
                sink.put(&reason);
                0
            }
        }
    }
}
