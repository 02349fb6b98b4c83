//! What is set for the requests of an app: how many requests at a time, how many may wait for their
//! turn, how long an answer may take.
//!
//! An app without limits pays one branch for them. A request of an app that has some waits for its
//! turn *before* its generation is chosen: what waits belongs to no generation, so it holds up no
//! drain, and it is answered by what is active when its turn comes.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use handover_api::AppName;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Body;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

use super::{
    body::ResponseBody,
    call::{Dispatched, dispatch},
    connection::ConnectionInfo,
    error_response,
    execution::{OffloadedCall, Threads},
    pause::{Pause, Released, Wait},
    rates::{Admitted, AwaitPlace, RateAdmission, Rates, TooMany},
    route::Routes,
    upgrade::UpgradePermit,
};
use crate::{canary::Sample, config};

/// The limits of one app, over all its generations.
#[derive(Debug)]
pub struct Limits {
    app: AppName,
    timeout: Option<Duration>,
    slots: Option<Arc<Slots>>,
    rates: Option<Arc<Rates>>,
    /// Where its requests run, if not on the workers of the host.
    threads: Option<Arc<Threads>>,
    events: Arc<Events>,
    /// While the app is paused.
    pause: Option<Arc<Pause>>,
}

/// How many requests at a time.
#[derive(Debug)]
struct Slots {
    /// First come, first served.
    free: Arc<Semaphore>,
    all: AtomicUsize,
    queue: AtomicUsize,
    waiting: AtomicUsize,
}

/// What the limits did so far.
#[derive(Debug, Default)]
struct Events {
    refused: AtomicU64,
    too_many: AtomicU64,
    timed_out: AtomicU64,
}

/// What the limits did so far, and what they hold now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests that count against `max_concurrent` now.
    pub running: u64,
    /// Requests that wait for their turn now.
    pub waiting: u64,
    /// Requests that wait for others of the same client or tenant now.
    pub queued: u64,
    /// Requests that were refused with 503.
    pub refused: u64,
    /// Requests that were refused with 429.
    pub too_many: u64,
    /// Requests that were ended with 504.
    pub timed_out: u64,
}

impl Limits {
    /// The limits that `settings` name, if they name any.
    pub fn new(app: &AppName, settings: &config::App) -> Option<Arc<Self>> {
        Self::of(app, settings, Self::start(app, settings), None)
    }

    /// The limits that `settings` name in the place of `before`, which went by `old`: what is under
    /// way and what waits counts for them as well. To be called within a runtime.
    pub fn retuned(
        before: Option<&Arc<Self>>,
        app: &AppName,
        old: &config::App,
        settings: &config::App,
    ) -> Option<Arc<Self>> {
        let threads_of = |settings: &config::App| (settings.execution, settings.execution_threads);
        let threads = if threads_of(old) == threads_of(settings) {
            before.and_then(|before| before.threads.clone())
        } else {
            Self::start(app, settings)
        };
        Self::of(app, settings, threads, before)
    }

    fn of(
        app: &AppName,
        settings: &config::App,
        threads: Option<Arc<Threads>>,
        before: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        let slots = settings.max_concurrent.map(|most| {
            let most = most.get().min(Semaphore::MAX_PERMITS);
            let known = before.and_then(|before| before.slots.clone());
            let slots = known.unwrap_or_else(|| Arc::new(Slots::new(most)));
            slots.resize(most, settings.queue);
            slots
        });
        let known = before.and_then(|before| before.rates.as_ref());
        let rates = Rates::new(&settings.limit, settings.tenant.from.as_ref(), known);
        let any = slots.is_some()
            || rates.is_some()
            || threads.is_some()
            || settings.request_timeout.is_some();
        any.then(|| {
            Arc::new(Self {
                app: app.clone(),
                timeout: settings.request_timeout,
                slots,
                rates,
                threads,
                events: before.map_or_else(Arc::default, |before| Arc::clone(&before.events)),
                pause: None,
            })
        })
    }

    /// The same limits, or none, of an app whose requests `pause` has wait.
    pub(crate) fn paused(
        before: Option<&Arc<Self>>,
        app: &AppName,
        pause: Arc<Pause>,
    ) -> Arc<Self> {
        Arc::new(Self {
            app: app.clone(),
            timeout: before.and_then(|before| before.timeout),
            slots: before.and_then(|before| before.slots.clone()),
            rates: before.and_then(|before| before.rates.clone()),
            threads: before.and_then(|before| before.threads.clone()),
            events: before.map_or_else(Arc::default, |before| Arc::clone(&before.events)),
            pause: Some(pause),
        })
    }

    /// Returns whether requests wait for the app to be resumed.
    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    fn start(app: &AppName, settings: &config::App) -> Option<Arc<Threads>> {
        let threads = Threads::start(app, settings).unwrap_or_else(|error| {
            tracing::error!(%app, "it gets no threads of its own and runs on the workers of the host: {error}");
            None
        });
        threads.map(Arc::new)
    }

    /// What is counted, now.
    pub fn counts(&self) -> Counts {
        let slots = self.slots.as_ref();
        Counts {
            running: slots.map_or(0, |slots| {
                let all = slots.all.load(Ordering::Relaxed);
                all.saturating_sub(slots.free.available_permits()) as u64
            }),
            waiting: slots.map_or(0, |slots| slots.waiting.load(Ordering::Relaxed) as u64),
            queued: self
                .rates
                .as_ref()
                .map_or(0, |rates| rates.waiting() as u64),
            refused: self.events.refused.load(Ordering::Relaxed),
            too_many: self.events.too_many.load(Ordering::Relaxed),
            timed_out: self.events.timed_out.load(Ordering::Relaxed),
        }
    }

    /// Counts a request among those of whose it is.
    fn count(
        &self,
        (uri, headers, client): (&Uri, &HeaderMap, &Option<SocketAddr>),
    ) -> Result<Option<RateAdmission>, TooMany> {
        let Some(rates) = &self.rates else {
            return Ok(None);
        };
        let counted = rates.admit(uri, headers, client);
        counted.map(Some).inspect_err(|_| self.refused_one())
    }

    /// There was one request too many of somebody.
    fn refused_one(&self) {
        self.events.too_many.fetch_add(1, Ordering::Relaxed);
    }

    fn admit(&self) -> Admission {
        let Some(slots) = &self.slots else {
            return Admission::Now(None);
        };
        if let Ok(permit) = Arc::clone(&slots.free).try_acquire_owned() {
            return Admission::Now(Some(permit));
        }
        let place = slots
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < slots.queue.load(Ordering::Relaxed)).then_some(waiting + 1)
            });
        if place.is_err() {
            self.events.refused.fetch_add(1, Ordering::Relaxed);
            return Admission::Full;
        }
        let place = Place(Arc::clone(slots));
        let free = Arc::clone(&slots.free);
        Admission::Wait(Box::pin(async move {
            let permit = free.acquire_owned().await.ok();
            drop(place);
            permit
        }))
    }
}

/// A place in the queue. Dropping it gives it up, also when the client has left.
struct Place(Arc<Slots>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slots {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            all: AtomicUsize::new(most),
            queue: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Makes room for `most` at a time from now on. Where that are fewer, those that are under way
    /// end, and their places with them.
    fn resize(&self, most: usize, queue: usize) {
        self.queue.store(queue, Ordering::Relaxed);
        let before = self.all.swap(most, Ordering::Relaxed);
        if most > before {
            self.free.add_permits(most - before);
            return;
        }
        let taken = self.free.forget_permits(before - most);
        let owed = before - most - taken;
        if let Ok(owed) = u32::try_from(owed)
            && owed > 0
        {
            let free = Arc::clone(&self.free);
            tokio::spawn(async move {
                if let Ok(places) = free.acquire_many_owned(owed).await {
                    places.forget();
                }
            });
        }
    }
}

type AcquirePermit = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

enum Admission {
    Now(Option<OwnedSemaphorePermit>),
    Wait(AcquirePermit),
    Full,
}

/// A request of an app that has limits.
pub(super) struct Limited<B> {
    limits: Arc<Limits>,
    stage: Stage<B>,
    deadline: Option<Pin<Box<Sleep>>>,
    permit: Option<RequestPermit>,
    /// Who is to be told that its time is over, while a version of its app is on trial.
    sample: Option<Arc<Sample>>,
}

enum Stage<B> {
    /// Its app is paused.
    Paused(Option<Paused<B>>),
    /// It waits for those of the same client or tenant.
    Queued(Option<Queued<B>>),
    Waiting(Option<Waiting<B>>),
    Running(Dispatched<B>),
    OffloadedCall(OffloadedCall),
    Refused,
    TooMany(TooMany),
}

/// What a request has of its limits, until its answer has ended.
#[derive(Debug, Default)]
pub(super) struct RequestPermit {
    _slot: Option<OwnedSemaphorePermit>,
    admitted: Option<Admitted>,
}

impl RequestPermit {
    fn of(slot: Option<OwnedSemaphorePermit>, admitted: Option<Admitted>) -> Option<Self> {
        (slot.is_some() || admitted.is_some()).then_some(Self {
            _slot: slot,
            admitted,
        })
    }
}

/// What is needed when the app is resumed.
struct Paused<B> {
    wait: Wait,
    request: Request<B>,
    routes: Arc<Routes>,
    connection: Arc<ConnectionInfo>,
}

/// What is needed when the turn comes among those of the same client or tenant.
struct Queued<B> {
    turn: AwaitPlace,
    request: Request<B>,
    routes: Arc<Routes>,
    connection: Arc<ConnectionInfo>,
}

/// What is needed when the turn comes.
struct Waiting<B> {
    acquire: AcquirePermit,
    request: Request<B>,
    routes: Arc<Routes>,
    connection: Arc<ConnectionInfo>,
}

impl<B> fmt::Debug for Limited<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<B> Limited<B>
where
    B: Body<Data = Bytes, Error: fmt::Display> + Send + Unpin + 'static,
{
    fn begin(limits: &Limits, dispatched: Dispatched<B>) -> Stage<B> {
        match &limits.threads {
            Some(threads) => Stage::OffloadedCall(threads.run(dispatched)),
            None => Stage::Running(dispatched),
        }
    }

    pub(super) fn new(
        limits: Arc<Limits>,
        routes: &Arc<Routes>,
        request: Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) -> Self {
        let deadline = limits
            .timeout
            .map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        if let Some(pause) = &limits.pause {
            let paused = Paused {
                wait: pause.wait(),
                request,
                routes: Arc::clone(routes),
                connection: Arc::clone(connection),
            };
            return Self {
                stage: Stage::Paused(Some(paused)),
                limits,
                deadline,
                permit: None,
                sample: None,
            };
        }
        let asked = (request.uri(), request.headers(), &connection.client);
        let turn = limits.count(asked);
        let mut this = Self {
            stage: Stage::Refused,
            limits,
            deadline,
            permit: None,
            sample: None,
        };
        match turn {
            Err(too_many) => this.stage = Stage::TooMany(too_many),
            Ok(None) => this.enter(None, routes, request, connection),
            Ok(Some(RateAdmission::Now(admitted))) => {
                this.enter(Some(admitted), routes, request, connection);
            }
            Ok(Some(RateAdmission::Later(turn))) => {
                this.stage = Stage::Queued(Some(Queued {
                    turn,
                    request,
                    routes: Arc::clone(routes),
                    connection: Arc::clone(connection),
                }));
            }
        }
        this
    }

    /// Goes on with a request that is `admitted` among those of whose it is.
    fn enter(
        &mut self,
        admitted: Option<Admitted>,
        routes: &Arc<Routes>,
        request: Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) {
        let admitted = admitted.filter(Admitted::is_under_way);
        let (stage, slot) = match self.limits.admit() {
            Admission::Now(slot) => {
                let dispatched = Dispatched::admitted(routes, request, connection);
                self.sample = dispatched.sample();
                (Self::begin(&self.limits, dispatched), slot)
            }
            Admission::Wait(acquire) => {
                let waiting = Waiting {
                    acquire,
                    request,
                    routes: Arc::clone(routes),
                    connection: Arc::clone(connection),
                };
                (Stage::Waiting(Some(waiting)), None)
            }
            Admission::Full => (Stage::Refused, None),
        };
        self.stage = stage;
        self.permit = RequestPermit::of(slot, admitted);
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        if let Stage::Paused(paused) = &mut self.stage
            && let Some(wait) = paused.as_mut().map(|paused| paused.wait.as_mut())
            && let Poll::Ready(released) = wait.poll(cx)
            && let Some(paused) = paused.take()
        {
            if released == Released::Refused {
                return Poll::Ready(error_response::paused(&self.limits.app));
            }
            // By the limits and the routes that there are now.
            self.stage =
                Stage::Running(dispatch(&paused.routes, paused.request, &paused.connection));
        }
        if let Stage::Queued(queued) = &mut self.stage
            && let Some(turn) = queued.as_mut().map(|queued| queued.turn.as_mut())
            && let Poll::Ready(turn) = turn.poll(cx)
            && let Some(queued) = queued.take()
        {
            match turn {
                Ok(admitted) => self.enter(
                    Some(admitted),
                    &queued.routes,
                    queued.request,
                    &queued.connection,
                ),
                Err(too_many) => {
                    self.limits.refused_one();
                    self.stage = Stage::TooMany(too_many);
                }
            }
        }
        if let Stage::Waiting(waiting) = &mut self.stage
            && let Some(acquire) = waiting.as_mut().map(|waiting| waiting.acquire.as_mut())
            && let Poll::Ready(slot) = acquire.poll(cx)
            && let Some(waiting) = waiting.take()
        {
            let admitted = self.permit.take().and_then(|permit| permit.admitted);
            self.permit = RequestPermit::of(slot, admitted);
            let dispatched =
                Dispatched::admitted(&waiting.routes, waiting.request, &waiting.connection);
            self.sample = dispatched.sample();
            self.stage = Self::begin(&self.limits, dispatched);
        }
        match &mut self.stage {
            Stage::Refused => return Poll::Ready(error_response::busy(&self.limits.app)),
            Stage::TooMany(TooMany(wait)) => {
                return Poll::Ready(error_response::too_many(&self.limits.app, *wait));
            }
            Stage::Paused(_) | Stage::Queued(_) | Stage::Waiting(_) => {}
            Stage::Running(dispatched) => {
                if let Poll::Ready(response) = Pin::new(dispatched).poll(cx) {
                    return Poll::Ready(hand_on(self.permit.take(), response));
                }
            }
            Stage::OffloadedCall(offloaded) => {
                if let Poll::Ready(response) = offloaded.poll(cx) {
                    let response =
                        response.unwrap_or_else(|| error_response::ends(&self.limits.app));
                    return Poll::Ready(hand_on(self.permit.take(), response));
                }
            }
        }
        let late = self
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if !late {
            return Poll::Pending;
        }
        self.limits.events.timed_out.fetch_add(1, Ordering::Relaxed);
        if let Some(sample) = self.sample.take() {
            sample.answered(true);
        }
        // What it was doing is dropped before its answer goes out, and with it its permit.
        self.stage = Stage::Waiting(None);
        self.permit = None;
        Poll::Ready(error_response::timed_out(&self.limits.app))
    }
}

/// Gives the permit to what goes on after the head of the answer: the upgraded connection, or the
/// body.
fn hand_on(
    permit: Option<RequestPermit>,
    mut response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    let Some(permit) = permit else {
        return response;
    };
    if let Some(upgrade) = response.extensions_mut().remove::<UpgradePermit>() {
        upgrade.take(permit);
        return response;
    }
    response.map(|body| body.with_permit(Some(permit)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn limits(most: usize, queue: usize) -> Arc<Limits> {
        let settings = config::App {
            max_concurrent: most.try_into().ok(),
            queue,
            ..config::App::default()
        };
        Limits::new(&"shop".parse().unwrap(), &settings).unwrap()
    }

    #[test]
    fn an_app_without_limits_has_none() {
        assert!(Limits::new(&"shop".parse().unwrap(), &config::App::default()).is_none());
    }

    #[tokio::test]
    async fn what_is_under_way_counts_for_limits_that_were_changed() {
        let app = "shop".parse().unwrap();
        let with = |most: usize, queue| config::App {
            max_concurrent: most.try_into().ok(),
            queue,
            ..config::App::default()
        };
        let wide = limits(3, 0);
        let permits: Vec<_> = (0..3).map(|_| wide.admit()).collect();
        let narrow = Limits::retuned(Some(&wide), &app, &with(3, 0), &with(1, 1)).unwrap();
        let Admission::Wait(mut waits) = narrow.admit() else {
            panic!("three are under way, and one may be")
        };
        tokio::task::yield_now().await;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for permit in permits {
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            drop(permit);
            tokio::task::yield_now().await;
        }
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(narrow.counts().waiting, 0);
        let none = config::App::default();
        assert!(Limits::retuned(Some(&narrow), &app, &with(1, 1), &none).is_none());
    }

    #[tokio::test]
    async fn those_who_wait_come_in_order_and_the_rest_is_refused() {
        let limits = limits(1, 2);
        let Admission::Now(first) = limits.admit() else {
            panic!("the first waits")
        };
        let (Admission::Wait(mut second), Admission::Wait(mut third)) =
            (limits.admit(), limits.admit())
        else {
            panic!("there is room for two")
        };
        assert!(matches!(limits.admit(), Admission::Full));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(third.as_mut().poll(&mut cx).is_pending());
        let Poll::Ready(second) = second.as_mut().poll(&mut cx) else {
            panic!("its turn has come")
        };
        let counts = limits.counts();
        assert_eq!((counts.running, counts.waiting, counts.refused), (1, 1, 1));
        // Its client leaves.
        drop(third);
        drop(second);
        let counts = limits.counts();
        assert_eq!((counts.running, counts.waiting), (0, 0));
    }
}
