//! The dispositions that each account and the host have, and what of them the kernel is told.
//!
//! Read by the handler of the host on any thread at any instruction, so reading takes no lock. Who
//! changes something holds the lock of the signal for a few instructions and one system call, with
//! all signals blocked on its thread.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use libc::c_int;

use super::{Class, SIGNALS, action::Action, calls, class, deliver};
use crate::ledger::{
    AccountId,
    undisturbed::{Spin, Undisturbed},
};

/// How many libraries can want something of one signal at once: as many as can be mapped.
const CAPACITY: usize = 1024;

/// What one account wants of one signal.
#[derive(Debug)]
pub(super) struct Wish {
    /// Zero while it is nobody's.
    owner: AtomicU64,
    handler: AtomicUsize,
    mask: AtomicU64,
    flags: AtomicI32,
    /// Threads that call the handler, or are about to look whether they do.
    running: AtomicU32,
}

/// Whether faults are told of before they end the process.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// All that is wanted of one signal.
#[derive(Debug)]
pub(super) struct Table {
    lock: Spin,
    /// What the host wants, once it is known.
    pub(super) host: Wish,
    /// Whether `host` was ever written.
    known: AtomicBool,
    /// Whether a library ever had a disposition for it other than the default.
    had: AtomicBool,
    /// No wish at or above this index was ever used.
    high: AtomicUsize,
    wishes: [Wish; CAPACITY],
}

/// By the number of the signal.
static TABLES: [Table; SIGNALS + 1] = [const { Table::new() }; SIGNALS + 1];

/// The table of a signal; none for a number that no signal has.
pub(super) fn of(signal: c_int) -> Option<&'static Table> {
    usize::try_from(signal)
        .ok()
        .filter(|signal| *signal > 0)
        .and_then(|signal| TABLES.get(signal))
}

/// Every signal with its table.
fn all() -> impl Iterator<Item = (c_int, &'static Table)> {
    (0..).zip(&TABLES).skip(1)
}

impl Wish {
    const fn new() -> Self {
        Self {
            owner: AtomicU64::new(0),
            handler: AtomicUsize::new(libc::SIG_DFL),
            mask: AtomicU64::new(0),
            flags: AtomicI32::new(0),
            running: AtomicU32::new(0),
        }
    }

    /// The disposition. Two threads may see parts of two when one of them does not hold the lock;
    /// the handler is always one that was set.
    pub(super) fn action(&self) -> Action {
        Action {
            handler: self.handler.load(Ordering::SeqCst),
            flags: self.flags.load(Ordering::Relaxed),
            mask: self.mask.load(Ordering::Relaxed),
        }
    }

    fn set(&self, action: Action) {
        self.flags.store(action.flags, Ordering::Relaxed);
        self.mask.store(action.mask, Ordering::Relaxed);
        self.handler.store(action.handler, Ordering::SeqCst);
    }

    /// Gives its handler to `call`, if it has one and `account` is its owner or none. The owner's
    /// library stays mapped meanwhile. Whether there was one.
    pub(super) fn call(&self, account: Option<AccountId>, call: impl FnOnce(usize)) -> bool {
        if !self.action().calls() {
            return false;
        }
        // Counted before it looks again: whoever takes the handler away looks at the count after
        // that, so one of the two sees the other.
        self.running.fetch_add(1, Ordering::SeqCst);
        let is_asked = account.is_none_or(|account| self.owner.load(Ordering::SeqCst) == account);
        let handler = is_asked.then(|| self.take_handler()).flatten();
        let has = handler.is_some();
        if let Some(handler) = handler {
            call(handler);
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        has
    }

    /// The handler, which is the default from then on if it was set for one time.
    fn take_handler(&self) -> Option<usize> {
        loop {
            let action = self.action();
            if !action.calls() {
                return None;
            }
            let once = action.flags & libc::SA_RESETHAND != 0;
            if !once
                || self
                    .handler
                    .compare_exchange(
                        action.handler,
                        libc::SIG_DFL,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )
                    .is_ok()
            {
                return Some(action.handler);
            }
        }
    }
}

impl Table {
    const fn new() -> Self {
        Self {
            lock: Spin::new(),
            host: Wish::new(),
            known: AtomicBool::new(false),
            had: AtomicBool::new(false),
            high: AtomicUsize::new(0),
            wishes: [const { Wish::new() }; CAPACITY],
        }
    }

    /// The wishes of all accounts that have one, and maybe some that are nobody's.
    pub(super) fn wishes(&self) -> &[Wish] {
        &self.wishes[..self.high.load(Ordering::SeqCst).min(CAPACITY)]
    }

    /// The wish of an account.
    pub(super) fn wish(&self, account: AccountId) -> Option<&Wish> {
        let mut wishes = self.wishes().iter();
        wishes.find(|wish| wish.owner.load(Ordering::SeqCst) == account)
    }

    /// Reads, and with `new` changes, what `account`, or the host, wants. Gives what it wanted
    /// before; none when no more libraries can want something.
    ///
    /// Not in a forked child. May be called in a signal handler.
    pub(super) fn exchange(
        &self,
        signal: c_int,
        account: Option<AccountId>,
        new: Option<Action>,
    ) -> Option<Action> {
        let _lock = Undisturbed::lock(&self.lock);
        self.learn(signal);
        let Some(new) = new else {
            let wish = match account {
                None => Some(&self.host),
                Some(account) => self.wish(account),
            };
            return Some(wish.map_or(Action::DEFAULT, Wish::action));
        };
        let wish = match account {
            None => &self.host,
            Some(account) => self.wish(account).or_else(|| self.claim(account))?,
        };
        let old = wish.action();
        wish.set(new);
        if account.is_some() && new.handler != libc::SIG_DFL {
            self.had.store(true, Ordering::SeqCst);
        }
        self.tell_kernel(signal);
        Some(old)
    }

    /// The host has told the kernel what it wants, past [`exchange`](Self::exchange): it was asked
    /// while nothing was loaded yet.
    pub(super) fn host_set(&self, signal: c_int, action: Action) {
        let _lock = Undisturbed::lock(&self.lock);
        self.host.set(action);
        self.known.store(true, Ordering::SeqCst);
        self.tell_kernel(signal);
    }

    /// Has the host's handler called for `signal`, a fault, whether a library listens or not.
    pub(super) fn watch(&self, signal: c_int) {
        WATCHED.store(true, Ordering::SeqCst);
        let _lock = Undisturbed::lock(&self.lock);
        self.learn(signal);
        self.tell_kernel(signal);
    }

    /// Finds out what the host wants, once: until then it is what the kernel has.
    fn learn(&self, signal: c_int) {
        if self.known.load(Ordering::SeqCst) {
            return;
        }
        let found = calls::kernel(signal, None);
        if !deliver::is_ours(found.handler) {
            self.host.set(found);
        }
        self.known.store(true, Ordering::SeqCst);
    }

    /// A wish for an account that has none.
    fn claim(&self, account: AccountId) -> Option<&Wish> {
        let (at, wish) = self
            .wishes
            .iter()
            .enumerate()
            .find(|(_, wish)| wish.owner.load(Ordering::SeqCst) == 0)?;
        wish.set(Action::DEFAULT);
        wish.owner.store(account, Ordering::SeqCst);
        self.high.fetch_max(at + 1, Ordering::SeqCst);
        Some(wish)
    }

    /// Tells the kernel what all wishes together come to.
    fn tell_kernel(&self, signal: c_int) {
        let host = self.host.action();
        let handlers = self.wishes().iter().filter_map(|wish| {
            let action = wish.action();
            (wish.owner.load(Ordering::SeqCst) != 0 && action.calls()).then_some(action)
        });
        let always = match class(signal) {
            Class::Fault => host.handler != libc::SIG_IGN && WATCHED.load(Ordering::SeqCst),
            Class::Notice => host.handler == libc::SIG_DFL && self.had.load(Ordering::SeqCst),
            Class::Process => false,
        };
        calls::kernel(
            signal,
            Some(together(class(signal), host, handlers, always)),
        );
    }
}

/// What the kernel is told when the host wants `host`, libraries have `handlers`, and the host's
/// handler is needed without them if `always`.
///
/// Each of them is called with less than it asked for rather than with more than it can bear:
/// - signals that any of them wants blocked are blocked, and so is the signal itself unless all of
///   them want to be interrupted by it;
/// - a system call is started again only if all of them want that: who relies on its being
///   interrupted would wait for ever otherwise;
/// - they run on the alternate stack of the thread if one of them has to, and for faults, where
///   there may be no other;
/// - that children are stopped is told if one wants to know. Children are reaped by themselves if
///   the host wants it, never for a library.
fn together(
    class: Class,
    host: Action,
    handlers: impl Iterator<Item = Action>,
    always: bool,
) -> Action {
    const ALL_WANT: c_int = libc::SA_RESTART | libc::SA_NODEFER | libc::SA_NOCLDSTOP;
    let mut handlers = handlers.peekable();
    let none = handlers.peek().is_none();
    if none && !always {
        return host;
    }
    let ours = Action {
        handler: deliver::address(),
        flags: ALL_WANT,
        mask: 0,
    };
    let mut all = handlers
        .chain(host.calls().then_some(host))
        .fold(ours, |all, one| Action {
            flags: all.flags & (one.flags | !ALL_WANT) | one.flags & libc::SA_ONSTACK,
            mask: all.mask | one.mask,
            ..all
        });
    if none {
        all.flags &= !libc::SA_NODEFER;
    }
    all.flags |= libc::SA_SIGINFO | host.flags & libc::SA_NOCLDWAIT;
    if class == Class::Fault {
        all.flags |= libc::SA_ONSTACK;
    }
    all
}

/// A signal that holds a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) struct Holding {
    /// The number of the signal.
    pub(in crate::ledger) signal: c_int,
    /// Its handler has not returned; otherwise it may be called.
    pub(in crate::ledger) running: bool,
}

/// The signals that the library of `account` has a handler for, or whose handler runs.
pub(in crate::ledger) fn held(account: AccountId) -> Vec<Holding> {
    all()
        .filter_map(|(signal, table)| {
            let wish = table.wish(account)?;
            let running = wish.running.load(Ordering::SeqCst) > 0;
            (running || wish.action().calls()).then_some(Holding { signal, running })
        })
        .collect()
}

/// Takes the handlers of the library of `account` away, those for faults with `faults` and all
/// others without: none of them is called again, though one may be running. Gives the signals that
/// it had one for.
///
/// Code that still runs may live on its faults: they are not repaired from then on.
pub(in crate::ledger) fn leave(account: AccountId, faults: bool) -> Vec<c_int> {
    let mut left = Vec::new();
    for (signal, table) in all() {
        if (class(signal) == Class::Fault) != faults || table.wish(account).is_none() {
            continue;
        }
        let old = table.exchange(signal, Some(account), Some(Action::DEFAULT));
        if old.is_some_and(Action::calls) {
            left.push(signal);
        }
    }
    left
}

/// Forgets an account: its library is unmapped.
pub(in crate::ledger) fn forget(account: AccountId) {
    leave(account, false);
    leave(account, true);
    for (_, table) in all() {
        if table.wish(account).is_none() {
            continue;
        }
        let _lock = Undisturbed::lock(&table.lock);
        if let Some(wish) = table.wish(account) {
            wish.owner.store(0, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(flags: c_int, mask: u64) -> Action {
        Action {
            handler: 0x1000,
            flags,
            mask,
        }
    }

    #[test]
    fn the_kernel_is_told_what_the_most_careful_of_all_wants() {
        let flags = |handlers: &[Action]| {
            let all = together(
                Class::Notice,
                Action::DEFAULT,
                handlers.iter().copied(),
                true,
            );
            assert!(deliver::is_ours(all.handler));
            (all.flags & !libc::SA_SIGINFO, all.mask)
        };
        let (restart, nodefer, stack) = (libc::SA_RESTART, libc::SA_NODEFER, libc::SA_ONSTACK);
        assert_eq!(
            flags(&[action(restart | nodefer, 1)]),
            (restart | nodefer, 1)
        );
        assert_eq!(
            flags(&[action(restart | nodefer, 1), action(stack, 2)]),
            (stack, 3)
        );
        let once = action(libc::SA_RESETHAND, 0);
        assert_eq!(flags(&[once]), (0, 0));
    }

    #[test]
    fn without_a_listener_it_is_what_the_host_wants_and_never_a_default_that_kills() {
        let none = std::iter::empty::<Action>;
        let ignore = Action {
            handler: libc::SIG_IGN,
            ..Action::DEFAULT
        };
        for class in [Class::Fault, Class::Process, Class::Notice] {
            assert_eq!(together(class, ignore, none(), false), ignore);
            assert_eq!(
                together(class, Action::DEFAULT, none(), false),
                Action::DEFAULT
            );
        }
        let kept = together(Class::Notice, Action::DEFAULT, none(), true);
        assert!(deliver::is_ours(kept.handler));
    }

    #[test]
    fn a_handler_that_was_set_for_one_time_is_called_once() {
        let wish = Wish::new();
        wish.set(action(libc::SA_RESETHAND, 0));
        assert!(wish.call(None, |handler| assert_eq!(handler, 0x1000)));
        assert!(!wish.call(None, |_| unreachable!("it was called before")));
        assert_eq!(wish.action().handler, libc::SIG_DFL);
    }
}
