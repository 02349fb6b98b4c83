//! State that outlives the code: what the app keeps in the host, over swaps and restarts.
//!
//! Values are JSON. A value is read by code that did not write it, older and newer, at the same
//! time while a generation drains: so the format has to name its fields, as postcard does not. Of
//! those that do, JSON is what people read, write and grep (`handover state get`), and what an app
//! has a serializer for anyway. Who counts bytes has [`State::put_bytes`].

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    jobs::{self, Enqueue, NewJob, encode_jobs},
    writes,
};
use crate::abi::{
    lent::Size,
    poll::PollState,
    state::{
        self as abi, ADD, DELETE, HAS_AFTER, HAS_TO, IS_THERE, PREFIX, PUT, REVERSE, StateCall,
        StateHandle, StateSnapshot, TakeState, codes,
    },
    work::{ENQUEUE, FINISH, WorkCall, WorkHandle},
};

/// The namespace of [`Context::state`](crate::Context::state).
const DEFAULT: &str = "default";
/// Entries that a scan asks for at a time.
const PAGE: u64 = 256;
/// How often a transaction is tried before it is given up.
const TRIES: u32 = 1000;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Why something of the state was not done. Nothing is half done then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// Somebody else changed what the commit was based on.
    Conflict,
    /// A namespace, a key or a commit is none: the sentence.
    Invalid(String),
    /// A value or a commit is too large: the sentence.
    TooLarge(String),
    /// The app would hold more than it may: the sentence.
    Quota(String),
    /// What is to be added to is no whole number, or the sum is none.
    NoCounter,
    /// The state cannot be read or written now: the sentence. A request that needs it is to be
    /// answered with 503.
    Unavailable(String),
    /// More is written than the disk takes: try again.
    Busy,
    /// This generation has ended.
    Ended,
    /// A value could not be made JSON: the cause.
    Encode(String),
    /// What is there is not of the type that is asked for: the cause.
    Decode(String),
}

impl StateError {
    pub(super) fn of(code: u32, why: &str) -> Self {
        match code {
            codes::CONFLICT => Self::Conflict,
            codes::INVALID => Self::Invalid(why.to_owned()),
            codes::TOO_LARGE => Self::TooLarge(why.to_owned()),
            codes::QUOTA => Self::Quota(why.to_owned()),
            codes::NO_COUNTER => Self::NoCounter,
            codes::BUSY => Self::Busy,
            codes::ENDED => Self::Ended,
            _ => Self::Unavailable(why.to_owned()),
        }
    }

    /// The host keeps no state.
    fn none() -> Self {
        Self::Unavailable("this host keeps no state".to_owned())
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict => f.write_str("somebody else changed what this commit was based on"),
            Self::Invalid(why)
            | Self::TooLarge(why)
            | Self::Quota(why)
            | Self::Unavailable(why) => f.write_str(why),
            Self::NoCounter => f.write_str(
                "the value is no counter: it is no whole number of 64 bits, or the sum is none",
            ),
            Self::Busy => f.write_str("more is being written than the disk takes: try again"),
            Self::Ended => {
                f.write_str("this generation has ended: it can neither read nor write any more")
            }
            Self::Encode(why) => write!(f, "the value cannot be JSON: {why}"),
            Self::Decode(why) => write!(f, "the value is of another type: {why}"),
        }
    }
}

impl std::error::Error for StateError {}

/// A namespace of the state of an app. Cheap to clone.
///
/// What is acknowledged is on the disk. It survives swaps, restarts and crashes, and all
/// generations of the app see the same.
#[derive(Clone, Debug)]
pub struct State {
    handle: Option<StateHandle>,
    /// For jobs of transactions.
    work: Option<WorkHandle>,
    namespace: Arc<str>,
}

impl State {
    pub(super) fn new(handle: Option<StateHandle>, work: Option<WorkHandle>) -> Self {
        if let Some(handle) = &handle {
            writes::used(handle.settings());
        }
        Self {
            handle,
            work,
            namespace: DEFAULT.into(),
        }
    }

    /// The namespace `name` of the same app: 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`. Its keys
    /// are apart from those of all others.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self {
            handle: self.handle,
            work: self.work,
            namespace: name.into(),
        }
    }

    /// The namespace `name` of what is kept in memory only: it survives swaps, not the host.
    #[must_use]
    pub fn memory(&self, name: &str) -> Self {
        self.namespace(&format!("memory:{name}"))
    }

    /// Reads `key`; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "reading may have to wait one day")]
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>, StateError> {
        let read = read(self.handle, None, &self.namespace, key.as_ref(), decode)?;
        read.map(|(value, _)| value).transpose()
    }

    /// Reads the bytes at `key`; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::unused_async, reason = "as in `get`")]
    pub async fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StateError> {
        let copy = Bytes::copy_from_slice;
        let read = read(self.handle, None, &self.namespace, key.as_ref(), copy)?;
        Ok(read.map(|(value, _)| value))
    }

    /// Reads several keys as they were at one time, in their order.
    ///
    /// # Errors
    /// When one of them cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "as in `get`")]
    pub async fn get_many<T: DeserializeOwned>(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Vec<Option<T>>, StateError> {
        let handle = self.handle.ok_or_else(StateError::none)?;
        let snapshot = handle.snapshot();
        keys.into_iter()
            .map(|key| {
                let key = key.as_ref();
                let read = read(
                    Some(handle),
                    snapshot.as_ref(),
                    &self.namespace,
                    key,
                    decode,
                )?;
                read.map(|(value, _)| value).transpose()
            })
            .collect()
    }

    /// Puts `value` at `key`. It is on its way when this returns, and on the disk when what this
    /// gives has ended; dropping that changes nothing but that nobody hears of an error.
    pub fn put<T: Serialize + ?Sized>(&self, key: impl AsRef<[u8]>, value: &T) -> Write<()> {
        self.put_encoded(key.as_ref(), encode(value), None)
    }

    /// As [`put`](Self::put); it is gone after `ttl`.
    pub fn put_ttl<T: Serialize + ?Sized>(
        &self,
        key: impl AsRef<[u8]>,
        value: &T,
        ttl: Duration,
    ) -> Write<()> {
        self.put_encoded(key.as_ref(), encode(value), Some(ttl))
    }

    /// As [`put`](Self::put), with the bytes as they are.
    pub fn put_bytes(&self, key: impl AsRef<[u8]>, value: &[u8]) -> Write<()> {
        self.put_raw(key.as_ref(), value, None)
    }

    /// As [`put_bytes`](Self::put_bytes); it is gone after `ttl`.
    pub fn put_bytes_ttl(&self, key: impl AsRef<[u8]>, value: &[u8], ttl: Duration) -> Write<()> {
        self.put_raw(key.as_ref(), value, Some(ttl))
    }

    /// Removes `key`, if it is there. As for [`put`](Self::put), it is on its way when this
    /// returns.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Write<()> {
        self.write(key.as_ref(), &[], None, 0, DELETE)
    }

    /// Adds `delta` to the number at `key`, which is 0 when it is not there, and gives the sum.
    /// Additions of many at a time are each done once. As for [`put`](Self::put), it is on its way
    /// when this returns.
    pub fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Write<i64> {
        self.write(key.as_ref(), &[], None, delta, ADD)
    }

    /// As [`add`](Self::add). A counter that is not there yet is gone after `ttl`; one that is
    /// there keeps its end.
    pub fn add_ttl(&self, key: impl AsRef<[u8]>, delta: i64, ttl: Duration) -> Write<i64> {
        self.write(key.as_ref(), &[], Some(ttl), delta, ADD)
    }

    fn put_encoded(
        &self,
        key: &[u8],
        value: Result<Vec<u8>, StateError>,
        ttl: Option<Duration>,
    ) -> Write<()> {
        match value {
            Ok(value) => self.put_raw(key, &value, ttl),
            Err(error) => Write::failed(error),
        }
    }

    fn put_raw(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Write<()> {
        self.write(key, value, ttl, 0, PUT)
    }

    fn write<T: Written>(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
        delta: i64,
        kind: u32,
    ) -> Write<T> {
        let Some(handle) = &self.handle else {
            return Write::failed(StateError::none());
        };
        let mutation = abi::Mutation {
            namespace: (&*self.namespace).into(),
            key: key.into(),
            value: value.into(),
            ttl_ms: ttl.map_or(0, milliseconds),
            delta,
            kind,
        };
        let mutations = [mutation];
        Write::begun(handle.commit(&abi::Commit {
            size: Size::of::<abi::Commit<'_>>(),
            checks: (&[][..]).into(),
            ranges: (&[][..]).into(),
            mutations: (&mutations[..]).into(),
        }))
    }

    /// The entries whose keys begin with `prefix`, in the order of their keys, as they were when
    /// the scan began.
    pub fn scan<T: DeserializeOwned>(&self, prefix: impl AsRef<[u8]>) -> Scan<T> {
        Scan::new(
            self.handle,
            Arc::clone(&self.namespace),
            Range::prefix(prefix.as_ref()),
        )
    }

    /// The entries from the key `from` on, up to and without `to`.
    pub fn scan_range<T: DeserializeOwned>(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
    ) -> Scan<T> {
        let range = Range {
            from: from.as_ref().to_vec(),
            to: Some(to.as_ref().to_vec()),
            is_prefix: false,
        };
        Scan::new(self.handle, Arc::clone(&self.namespace), range)
    }

    /// Runs `work` as a transaction: all that it reads is as it was at one time, and what it writes
    /// happens at once, or not at all. When somebody else changed what it has read, it is run
    /// again, so it must do nothing else that may not happen twice.
    ///
    /// # Errors
    /// Those of `work`, after which nothing is written, and those of the commit.
    pub async fn transaction<R, E, F>(&self, work: impl Fn(Transaction) -> F) -> Result<R, E>
    where
        F: Future<Output = Result<R, E>>,
        E: From<StateError>,
    {
        self.transaction_with(work, |_| Ok(With::Nothing)).await
    }

    /// As [`transaction`](Self::transaction), with what `with` makes of the result in the same
    /// commit.
    pub(super) async fn transaction_with<R, E, F>(
        &self,
        work: impl Fn(Transaction) -> F,
        with: impl Fn(&R) -> Result<With, E>,
    ) -> Result<R, E>
    where
        F: Future<Output = Result<R, E>>,
        E: From<StateError>,
    {
        let handle = self.handle.ok_or_else(StateError::none)?;
        let mut pause = Duration::from_micros(200);
        for _ in 0..TRIES {
            let transaction = Transaction::begin(handle, self.work, Arc::clone(&self.namespace));
            let result = work(transaction.clone()).await?;
            match transaction.commit(with(&result)?).await {
                Ok(()) => return Ok(result),
                Err(StateError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
            // Others were faster: not all at once again.
            tokio::time::sleep(pause.mul_f64(writes::fraction())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(StateError::Conflict.into())
    }

    /// Tells of each change of a key that begins with `prefix`, from now on, whichever generation
    /// makes it.
    pub fn watch(&self, prefix: impl AsRef<[u8]>) -> Watch {
        self.begin_watch(prefix.as_ref(), None)
    }

    /// As [`watch`](Self::watch), from where an earlier watch was when it gave `token`.
    pub fn watch_after(&self, prefix: impl AsRef<[u8]>, token: u64) -> Watch {
        self.begin_watch(prefix.as_ref(), Some(token))
    }

    fn begin_watch(&self, prefix: &[u8], token: Option<u64>) -> Watch {
        let call = self.handle.map(|handle| {
            handle.watch(&abi::Watch {
                size: Size::of::<abi::Watch<'_>>(),
                flags: if token.is_some() { HAS_TO } else { 0 },
                namespace: (&*self.namespace).into(),
                prefix: prefix.into(),
                token: token.unwrap_or(0),
            })
        });
        Watch(call)
    }
}

/// The state of an app as it was at one time, to be read only: what a migration begins with.
#[derive(Clone, Debug)]
pub struct Snapshot {
    handle: Option<StateHandle>,
    snapshot: Option<Arc<StateSnapshot>>,
    namespace: Arc<str>,
}

impl Snapshot {
    pub(super) fn of(state: &State) -> Self {
        let snapshot = state.handle.and_then(|handle| handle.snapshot());
        Self {
            handle: state.handle,
            snapshot: snapshot.map(Arc::new),
            namespace: Arc::clone(&state.namespace),
        }
    }

    /// The namespace `name` at the same time.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self {
            namespace: name.into(),
            ..self.clone()
        }
    }

    /// Reads `key`; none when it was not there.
    ///
    /// # Errors
    /// When it cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>, StateError> {
        let snapshot = self.snapshot.as_deref();
        let read = read(self.handle, snapshot, &self.namespace, key.as_ref(), decode)?;
        read.map(|(value, _)| value).transpose()
    }

    /// Reads the bytes at `key`; none when it was not there.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StateError> {
        let (snapshot, copy) = (self.snapshot.as_deref(), Bytes::copy_from_slice);
        let read = read(self.handle, snapshot, &self.namespace, key.as_ref(), copy)?;
        Ok(read.map(|(value, _)| value))
    }

    /// The entries whose keys begin with `prefix`, in the order of their keys.
    pub fn scan<T: DeserializeOwned>(&self, prefix: impl AsRef<[u8]>) -> Scan<T> {
        Scan::of(
            self.handle,
            self.snapshot.clone(),
            Arc::clone(&self.namespace),
            Range::prefix(prefix.as_ref()),
        )
    }
}

/// The changes of a migration, in the namespace `default` unless another one is named. What it
/// does not name stays as it is.
///
/// It is written a part at a time, so it may be larger than memory; nobody sees any of it before
/// all migrations of a deploy have ended well, and nothing of it is left when one has not.
#[derive(Debug)]
pub struct Batch {
    handle: Option<StateHandle>,
    written: Vec<Buffered>,
    bytes: usize,
}

/// The changes of a migration in one namespace: see [`Batch::namespace`].
#[derive(Debug)]
pub struct BatchNamespace<'a> {
    batch: &'a mut Batch,
    namespace: Arc<str>,
}

impl Batch {
    /// How many bytes are written at a time, about.
    const PART: usize = 8 << 20;
    /// How many changes are written at a time.
    const MOST: usize = 50_000;

    pub(super) fn of(state: &State) -> Self {
        Self {
            handle: state.handle,
            written: Vec::new(),
            bytes: 0,
        }
    }

    /// The same changes in the namespace `name`, which is on the disk: what is in memory is empty
    /// after a migration.
    pub fn namespace(&mut self, name: &str) -> BatchNamespace<'_> {
        BatchNamespace {
            namespace: name.into(),
            batch: self,
        }
    }

    /// Puts `value` at `key`.
    ///
    /// # Errors
    /// When it cannot be encoded, or what came before cannot be written.
    pub async fn put<T: Serialize + ?Sized>(
        &mut self,
        key: impl AsRef<[u8]>,
        value: &T,
    ) -> Result<(), StateError> {
        self.namespace(DEFAULT).put(key, value).await
    }

    /// Removes `key`, if it is there.
    ///
    /// # Errors
    /// When what came before cannot be written.
    pub async fn delete(&mut self, key: impl AsRef<[u8]>) -> Result<(), StateError> {
        self.namespace(DEFAULT).delete(key).await
    }

    async fn add(&mut self, write: Buffered) -> Result<(), StateError> {
        self.bytes += write.key.len() + write.value.as_ref().map_or(0, Vec::len);
        self.written.push(write);
        if self.bytes < Self::PART && self.written.len() < Self::MOST {
            return Ok(());
        }
        self.write().await
    }

    /// Writes what has been gathered.
    pub(super) async fn write(&mut self) -> Result<(), StateError> {
        let written = std::mem::take(&mut self.written);
        self.bytes = 0;
        if written.is_empty() {
            return Ok(());
        }
        let handle = self.handle.ok_or_else(StateError::none)?;
        let commit = {
            let mutations: Vec<_> = written.iter().map(Buffered::mutation).collect();
            Write::<()>::begun(handle.commit(&abi::Commit {
                size: Size::of::<abi::Commit<'_>>(),
                checks: (&[][..]).into(),
                ranges: (&[][..]).into(),
                mutations: mutations[..].into(),
            }))
        };
        commit.await
    }
}

impl BatchNamespace<'_> {
    /// Puts `value` at `key`.
    ///
    /// # Errors
    /// When it cannot be encoded, or what came before cannot be written.
    pub async fn put<T: Serialize + ?Sized>(
        &mut self,
        key: impl AsRef<[u8]>,
        value: &T,
    ) -> Result<(), StateError> {
        let value = encode(value)?;
        self.change(key.as_ref(), Some(value), 0).await
    }

    /// As [`put`](Self::put); it is gone after `ttl`.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn put_ttl<T: Serialize + ?Sized>(
        &mut self,
        key: impl AsRef<[u8]>,
        value: &T,
        ttl: Duration,
    ) -> Result<(), StateError> {
        let value = encode(value)?;
        self.change(key.as_ref(), Some(value), milliseconds(ttl))
            .await
    }

    /// As [`put`](Self::put), with the bytes as they are.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn put_bytes(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl Into<Vec<u8>>,
    ) -> Result<(), StateError> {
        self.change(key.as_ref(), Some(value.into()), 0).await
    }

    /// Removes `key`, if it is there.
    ///
    /// # Errors
    /// When what came before cannot be written.
    pub async fn delete(&mut self, key: impl AsRef<[u8]>) -> Result<(), StateError> {
        self.change(key.as_ref(), None, 0).await
    }

    async fn change(
        &mut self,
        key: &[u8],
        value: Option<Vec<u8>>,
        ttl_ms: u64,
    ) -> Result<(), StateError> {
        let write = Buffered {
            namespace: Arc::clone(&self.namespace),
            key: key.to_vec(),
            value,
            ttl_ms,
        };
        self.batch.add(write).await
    }
}

fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, StateError> {
    serde_json::to_vec(value).map_err(|error| StateError::Encode(error.to_string()))
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(value).map_err(|error| StateError::Decode(error.to_string()))
}

/// A time as it crosses: more than none, as 0 is for ever.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Reads one key: what `make` makes of its value, and its version. The value is lent to it as the
/// host has it.
fn read<R>(
    handle: Option<StateHandle>,
    snapshot: Option<&StateSnapshot>,
    namespace: &str,
    key: &[u8],
    make: impl Fn(&[u8]) -> R,
) -> Result<Option<(R, u64)>, StateError> {
    struct One<R, F> {
        make: F,
        found: Option<(R, u64)>,
        error: Option<StateError>,
    }
    impl<R, F: Fn(&[u8]) -> R> TakeState for One<R, F> {
        fn entry(&mut self, _key: &[u8], value: &[u8], version: u64) {
            self.found = Some(((self.make)(value), version));
        }

        fn failed(&mut self, code: u32, why: &str) {
            self.error = Some(StateError::of(code, why));
        }
    }
    let mut one = One {
        make,
        found: None,
        error: None,
    };
    handle
        .ok_or_else(StateError::none)?
        .get(snapshot, namespace, key, &mut one);
    one.error.map_or(Ok(one.found), Err)
}

/// What a write ends with.
pub trait Written: private::Sealed {
    /// Of the sums of a commit.
    #[doc(hidden)]
    fn of(sums: &[i64]) -> Self;
}

mod private {
    pub trait Sealed: Unpin {}
    impl Sealed for () {}
    impl Sealed for i64 {}
}

impl Written for () {
    fn of(_: &[i64]) -> Self {}
}

impl Written for i64 {
    fn of(sums: &[i64]) -> Self {
        sums.first().copied().unwrap_or_default()
    }
}

/// A write on its way. It ends when it is on the disk, or was refused.
///
/// Dropped while a request is answered, it is waited for before the answer leaves: see
/// `answers_wait` in the operator's guide.
#[derive(Debug)]
pub struct Write<T> {
    call: Option<StateCall>,
    error: Option<StateError>,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T> Write<T> {
    fn begun(call: StateCall) -> Self {
        Self {
            call: Some(call),
            error: None,
            kind: std::marker::PhantomData,
        }
    }

    fn failed(error: StateError) -> Self {
        Self {
            call: None,
            error: Some(error),
            kind: std::marker::PhantomData,
        }
    }
}

/// What became of a commit.
#[derive(Default)]
struct Ended {
    sums: Vec<i64>,
    error: Option<StateError>,
}

impl TakeState for Ended {
    fn committed(&mut self, _version: u64, sums: &[i64]) {
        self.sums = sums.to_vec();
    }

    fn failed(&mut self, code: u32, why: &str) {
        self.error = Some(StateError::of(code, why));
    }
}

/// Polls a commit to its end.
pub(super) fn poll_commit(
    call: &mut StateCall,
    cx: &task::Context<'_>,
) -> Poll<Result<Vec<i64>, StateError>> {
    let mut ended = Ended::default();
    match call.poll(cx.waker(), &mut ended) {
        PollState::Pending => Poll::Pending,
        PollState::Ready => Poll::Ready(Ok(ended.sums)),
        _ => Poll::Ready(Err(ended.error.unwrap_or_else(|| {
            StateError::Unavailable("the host did not say what became of it".to_owned())
        }))),
    }
}

impl<T: Written> Future for Write<T> {
    type Output = Result<T, StateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &mut self.call else {
            let error = self.error.take();
            return Poll::Ready(Err(error.unwrap_or(StateError::Conflict)));
        };
        poll_commit(call, cx).map(|ended| {
            self.call = None;
            ended.map(|sums| T::of(&sums))
        })
    }
}

impl<T> Drop for Write<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            writes::leave(call);
        }
        if let Some(error) = self.error.take() {
            writes::leave_failed(error);
        }
    }
}

#[derive(Clone, Debug)]
struct Range {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    is_prefix: bool,
}

impl Range {
    fn prefix(prefix: &[u8]) -> Self {
        Self {
            from: prefix.to_vec(),
            to: None,
            is_prefix: true,
        }
    }

    fn flags(&self) -> u32 {
        let prefix = if self.is_prefix { PREFIX } else { 0 };
        prefix | if self.to.is_some() { HAS_TO } else { 0 }
    }
}

/// The bytes of an entry: its key and its value.
type KeyAndValue = (Vec<u8>, Vec<u8>);
/// The bytes of an entry: its key, its value, and the version of its commit.
type RawEntry = (Vec<u8>, Vec<u8>, u64);

/// A page of a range.
#[derive(Default)]
struct PageOf {
    entries: Vec<RawEntry>,
    version: u64,
    more: bool,
    error: Option<StateError>,
}

impl TakeState for PageOf {
    fn entry(&mut self, key: &[u8], value: &[u8], version: u64) {
        self.entries.push((key.to_vec(), value.to_vec(), version));
    }

    fn page(&mut self, version: u64, more: bool) {
        (self.version, self.more) = (version, more);
    }

    fn failed(&mut self, code: u32, why: &str) {
        self.error = Some(StateError::of(code, why));
    }
}

fn read_page(
    handle: StateHandle,
    snapshot: Option<&StateSnapshot>,
    namespace: &str,
    range: &Range,
    after: Option<&[u8]>,
    reverse: bool,
    limit: u64,
) -> Result<PageOf, StateError> {
    let mut flags = range.flags();
    if after.is_some() {
        flags |= HAS_AFTER;
    }
    if reverse {
        flags |= REVERSE;
    }
    let mut page = PageOf::default();
    let scan = abi::Scan {
        size: Size::of::<abi::Scan<'_>>(),
        flags,
        namespace: namespace.into(),
        from: range.from[..].into(),
        to: range.to.as_deref().unwrap_or_default().into(),
        after: after.unwrap_or_default().into(),
        snapshot: std::ptr::null(),
        limit,
    };
    handle.scan(snapshot, scan, &mut page);
    match page.error.take() {
        Some(error) => Err(error),
        None => Ok(page),
    }
}

/// The entries of a range, read a page at a time from one snapshot.
#[derive(Debug)]
pub struct Scan<T> {
    handle: Option<StateHandle>,
    snapshot: Option<Arc<StateSnapshot>>,
    namespace: Arc<str>,
    range: Range,
    reverse: bool,
    after: Option<Vec<u8>>,
    page: std::vec::IntoIter<RawEntry>,
    ended: bool,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Scan<T> {
    fn new(handle: Option<StateHandle>, namespace: Arc<str>, range: Range) -> Self {
        let snapshot = handle.and_then(|handle| handle.snapshot());
        Self::of(handle, snapshot.map(Arc::new), namespace, range)
    }

    fn of(
        handle: Option<StateHandle>,
        snapshot: Option<Arc<StateSnapshot>>,
        namespace: Arc<str>,
        range: Range,
    ) -> Self {
        Self {
            snapshot,
            handle,
            namespace,
            range,
            reverse: false,
            after: None,
            page: Vec::new().into_iter(),
            ended: false,
            kind: std::marker::PhantomData,
        }
    }

    /// From the end to the begin.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Goes on behind `key`, the last of an earlier page: a cursor that a client may keep.
    #[must_use]
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.after = Some(key.as_ref().to_vec());
        self
    }

    /// The bytes of the next entry; none at the end.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn next_bytes(&mut self) -> Result<Option<(Vec<u8>, Vec<u8>)>, StateError> {
        self.advance()
    }

    fn advance(&mut self) -> Result<Option<KeyAndValue>, StateError> {
        loop {
            if let Some((key, value, _)) = self.page.next() {
                return Ok(Some((key, value)));
            }
            if self.ended {
                return Ok(None);
            }
            let page = read_page(
                self.handle.ok_or_else(StateError::none)?,
                self.snapshot.as_deref(),
                &self.namespace,
                &self.range,
                self.after.as_deref(),
                self.reverse,
                PAGE,
            )?;
            self.ended = !page.more;
            self.after = page.entries.last().map(|(key, ..)| key.clone());
            self.page = page.entries.into_iter();
        }
    }

    /// The next entry; none at the end.
    ///
    /// # Errors
    /// When it cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn next(&mut self) -> Result<Option<(Vec<u8>, T)>, StateError> {
        match self.advance()? {
            Some((key, value)) => Ok(Some((key, decode(&value)?))),
            None => Ok(None),
        }
    }

    /// The next `limit` entries, all of them with `usize::MAX`.
    ///
    /// # Errors
    /// When one of them cannot be read, or is of another type.
    pub async fn take(&mut self, limit: usize) -> Result<Vec<(Vec<u8>, T)>, StateError> {
        let mut entries = Vec::new();
        while entries.len() < limit
            && let Some(entry) = self.next().await?
        {
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// A transaction under way: see [`State::transaction`]. It sees what it has written itself.
#[derive(Clone, Debug)]
pub struct Transaction {
    inner: Arc<Mutex<TransactionState>>,
    work: Option<WorkHandle>,
    namespace: Arc<str>,
}

#[derive(Debug)]
struct TransactionState {
    handle: StateHandle,
    snapshot: Option<StateSnapshot>,
    /// What was read: the place and the version that was there.
    read: Vec<(Arc<str>, Vec<u8>, u64)>,
    ranges: Vec<(Arc<str>, Range, u64)>,
    /// What is to be written, in order.
    written: Vec<Buffered>,
    /// Jobs that are enqueued with it.
    jobs: Vec<NewJob>,
}

/// What happens in the same commit as a transaction.
pub(super) enum With {
    /// Nothing more.
    Nothing,
    /// The end of an attempt of a job: what the host is told of it, and its result.
    Finish(WorkHandle, serde_json::Value, Vec<u8>),
}

#[derive(Debug)]
struct Buffered {
    namespace: Arc<str>,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    ttl_ms: u64,
}

impl Buffered {
    /// It as it crosses.
    fn mutation(&self) -> abi::Mutation<'_> {
        abi::Mutation {
            namespace: (&*self.namespace).into(),
            key: self.key[..].into(),
            value: self.value.as_deref().unwrap_or_default().into(),
            ttl_ms: self.ttl_ms,
            delta: 0,
            kind: if self.value.is_some() { PUT } else { DELETE },
        }
    }
}

impl Transaction {
    fn begin(handle: StateHandle, work: Option<WorkHandle>, namespace: Arc<str>) -> Self {
        Self {
            work,
            inner: Arc::new(Mutex::new(TransactionState {
                handle,
                snapshot: handle.snapshot(),
                read: Vec::new(),
                ranges: Vec::new(),
                written: Vec::new(),
                jobs: Vec::new(),
            })),
            namespace,
        }
    }

    /// The same transaction in another namespace. It cannot write both to those on the disk and to
    /// those in memory.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            work: self.work,
            namespace: name.into(),
        }
    }

    /// Enqueues a job for the handler called `name` with this transaction: both happen, or neither.
    /// Its options and its identity are those of [`Jobs::enqueue`](crate::Jobs::enqueue).
    pub fn enqueue<T: Serialize + ?Sized>(&self, name: &str, payload: &T) -> Enqueue {
        Enqueue::with(self.clone(), self.work, name, payload)
    }

    pub(super) fn add_job(&self, job: NewJob) {
        self.inner.lock().jobs.push(job);
    }

    /// Reads `key`; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>, StateError> {
        self.read_bytes(key.as_ref())?
            .map(|value| decode(&value))
            .transpose()
    }

    /// Reads the bytes at `key`; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StateError> {
        self.read_bytes(key.as_ref())
    }

    fn read_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let mut inner = self.inner.lock();
        let own = inner
            .written
            .iter()
            .rev()
            .find(|write| write.key == key && write.namespace == self.namespace);
        if let Some(own) = own {
            return Ok(own.value.clone());
        }
        let found = read(
            Some(inner.handle),
            inner.snapshot.as_ref(),
            &self.namespace,
            key,
            <[u8]>::to_vec,
        )?;
        let version = found.as_ref().map_or(0, |(_, version)| *version);
        let namespace = Arc::clone(&self.namespace);
        inner.read.push((namespace, key.to_vec(), version));
        Ok(found.map(|(value, _)| value))
    }

    /// Puts `value` at `key`.
    ///
    /// # Errors
    /// When it cannot be JSON.
    pub fn put<T: Serialize + ?Sized>(
        &self,
        key: impl AsRef<[u8]>,
        value: &T,
    ) -> Result<(), StateError> {
        self.buffer(key.as_ref(), Some(encode(value)?), 0);
        Ok(())
    }

    /// As [`put`](Self::put); it is gone after `ttl`.
    ///
    /// # Errors
    /// When it cannot be JSON.
    pub fn put_ttl<T: Serialize + ?Sized>(
        &self,
        key: impl AsRef<[u8]>,
        value: &T,
        ttl: Duration,
    ) -> Result<(), StateError> {
        self.buffer(key.as_ref(), Some(encode(value)?), milliseconds(ttl));
        Ok(())
    }

    /// As [`put`](Self::put), with the bytes as they are.
    pub fn put_bytes(&self, key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) {
        self.buffer(key.as_ref(), Some(value.into()), 0);
    }

    /// Removes `key`, if it is there.
    pub fn delete(&self, key: impl AsRef<[u8]>) {
        self.buffer(key.as_ref(), None, 0);
    }

    /// Adds `delta` to the number at `key`, which is 0 when it is not there, and gives the sum.
    ///
    /// # Errors
    /// When it cannot be read, is no whole number, or the sum is none.
    pub async fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<i64, StateError> {
        let key = key.as_ref();
        let before = match self.get::<i64>(key).await {
            Err(StateError::Decode(_)) => return Err(StateError::NoCounter),
            read => read?.unwrap_or(0),
        };
        let sum = before.checked_add(delta).ok_or(StateError::NoCounter)?;
        self.put(key, &sum)?;
        Ok(sum)
    }

    /// All entries whose keys begin with `prefix`, in the order of their keys. Keys that come into
    /// the range later are a conflict as well.
    ///
    /// # Errors
    /// When one of them cannot be read, or is of another type.
    #[allow(clippy::unused_async, reason = "as in `State::get`")]
    pub async fn scan<T: DeserializeOwned>(
        &self,
        prefix: impl AsRef<[u8]>,
    ) -> Result<Vec<(Vec<u8>, T)>, StateError> {
        let range = Range::prefix(prefix.as_ref());
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut found = std::collections::BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = read_page(
                inner.handle,
                inner.snapshot.as_ref(),
                &self.namespace,
                &range,
                after.as_deref(),
                false,
                PAGE,
            )?;
            if after.is_none() {
                let namespace = Arc::clone(&self.namespace);
                inner.ranges.push((namespace, range.clone(), page.version));
            }
            after = page.entries.last().map(|(key, ..)| key.clone());
            for (key, value, version) in page.entries {
                // Its end in time is no change that the check of the range sees.
                let namespace = Arc::clone(&self.namespace);
                inner.read.push((namespace, key.clone(), version));
                found.insert(key, value);
            }
            if !page.more {
                break;
            }
        }
        for write in &inner.written {
            if write.namespace != self.namespace || !write.key.starts_with(prefix.as_ref()) {
                continue;
            }
            match &write.value {
                Some(value) => found.insert(write.key.clone(), value.clone()),
                None => found.remove(&write.key),
            };
        }
        found
            .into_iter()
            .map(|(key, value)| Ok((key, decode(&value)?)))
            .collect()
    }

    fn buffer(&self, key: &[u8], value: Option<Vec<u8>>, ttl_ms: u64) {
        self.inner.lock().written.push(Buffered {
            namespace: Arc::clone(&self.namespace),
            key: key.to_vec(),
            value,
            ttl_ms,
        });
    }

    /// Hands it over, and waits until it is on the disk.
    async fn commit(&self, with: With) -> Result<(), StateError> {
        match self.hand_over(with) {
            None => Ok(()),
            Some(Committing::State(write)) => write.await,
            Some(Committing::Work(mut call)) => {
                let done = poll_fn(|cx| jobs::poll_work(&mut call, cx)).await;
                match done {
                    Ok(_) => Ok(()),
                    Err(jobs::WorkError::Superseded) => Err(StateError::Invalid(
                        "this attempt of the job has ended: it was given to another, or was cancelled"
                            .to_owned(),
                    )),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Hands it over; none when there is nothing to write, and so nothing to wait for.
    fn hand_over(&self, with: With) -> Option<Committing> {
        let inner = self.inner.lock();
        if inner.written.is_empty() && inner.jobs.is_empty() && matches!(with, With::Nothing) {
            return None;
        }
        let checks: Vec<_> = inner
            .read
            .iter()
            .map(|(namespace, key, version)| abi::Check {
                namespace: (&**namespace).into(),
                key: key[..].into(),
                version: *version,
            })
            .collect();
        let ranges: Vec<_> = inner
            .ranges
            .iter()
            .map(|(namespace, range, version)| abi::RangeCheck {
                namespace: (&**namespace).into(),
                from: range.from[..].into(),
                to: range.to.as_deref().unwrap_or_default().into(),
                version: *version,
                flags: range.flags(),
            })
            .collect();
        let mutations: Vec<_> = inner.written.iter().map(Buffered::mutation).collect();
        let commit = abi::Commit {
            size: Size::of::<abi::Commit<'_>>(),
            checks: checks[..].into(),
            ranges: ranges[..].into(),
            mutations: mutations[..].into(),
        };
        let (jobs, payloads) = encode_jobs(&inner.jobs);
        Some(match with {
            With::Finish(work, mut text, mut bytes) => {
                text["jobs"] = jobs;
                bytes.extend(payloads);
                let text = text.to_string();
                Committing::Work(work.begin(FINISH, &text, &bytes, Some(&commit)))
            }
            With::Nothing => match self.work {
                Some(work) if !inner.jobs.is_empty() => {
                    let text = serde_json::json!({ "jobs": jobs }).to_string();
                    Committing::Work(work.begin(ENQUEUE, &text, &payloads, Some(&commit)))
                }
                _ => Committing::State(Write::begun(inner.handle.commit(&commit))),
            },
        })
    }
}

/// A transaction on its way to the disk.
enum Committing {
    State(Write<()>),
    Work(WorkCall),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// The version of the commit that changed it, which only grows.
    pub version: u64,
    /// Whether something is there now; else it was removed, or has expired.
    pub is_there: bool,
}

/// What has changed since the last time, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The changes, those of a commit together.
    pub changes: Vec<Change>,
    /// There were changes that are no longer known, for the host was restarted, or who watches was
    /// slow: read anew what is watched.
    pub missed: bool,
    /// Where [`State::watch_after`] goes on.
    pub token: u64,
}

/// Tells of changes: see [`State::watch`].
#[derive(Debug)]
pub struct Watch(Option<StateCall>);

impl Watch {
    /// Waits for the next changes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the state is not available.
    pub async fn next(&mut self) -> Result<Changes, StateError> {
        struct Taken(Changes, Option<StateError>);
        impl TakeState for Taken {
            fn changed(&mut self, changes: &[abi::Change<'_>], token: u64, missed: bool) {
                self.0 = Changes {
                    changes: changes
                        .iter()
                        .map(|change| Change {
                            key: change.key.to_vec(),
                            version: change.version,
                            is_there: change.flags & IS_THERE != 0,
                        })
                        .collect(),
                    missed,
                    token,
                };
            }

            fn failed(&mut self, code: u32, why: &str) {
                self.1 = Some(StateError::of(code, why));
            }
        }
        let call = self.0.as_mut().ok_or_else(StateError::none)?;
        poll_fn(|cx| {
            let mut taken = Taken(Changes::default(), None);
            match call.poll(cx.waker(), &mut taken) {
                PollState::Pending => Poll::Pending,
                PollState::Ready => Poll::Ready(Ok(taken.0)),
                _ => Poll::Ready(Err(taken.1.unwrap_or_else(StateError::none))),
            }
        })
        .await
    }
}
