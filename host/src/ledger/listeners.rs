//! Listening sockets that libraries bind: the host keeps each, and hands it to the next generation
//! that wants the same address.
//!
//! A port can be bound once, and an app with a port of its own (metrics, an admin's pages) binds it
//! in each generation while the one before still has it. So the second gets the very socket of the
//! first, in place of its own, with the connections that wait in it. Who is told to end accepts no
//! more from then on. The socket goes when no generation of the app has it any more. In a preflight
//! child an address with a port becomes one with any port, which nobody knows.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    mem::MaybeUninit,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libc::{c_int, sockaddr, socklen_t};

use super::{
    AccountId, descriptors, errno, exits,
    interposed::{Symbol, interposed},
    known, process,
};
use handover_api::AppName;

/// A socket that the host keeps for an app.
struct Kept {
    app: AppName,
    address: SocketAddr,
    socket: OwnedFd,
    /// What tells it from all other sockets.
    inode: u64,
    /// The libraries that have it.
    holders: Vec<AccountId>,
}

/// A socket that a library has bound, and does not listen on yet.
struct Bound {
    account: AccountId,
    inode: u64,
    address: SocketAddr,
}

struct Sockets {
    kept: Vec<Kept>,
    bound: Vec<Bound>,
}

static SOCKETS: Mutex<Sockets> = Mutex::new(Sockets {
    kept: Vec::new(),
    bound: Vec::new(),
});

/// How many are kept: as long as there are none, nobody looks.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Whether this process is a preflight child.
static IS_TRIAL: AtomicBool = AtomicBool::new(false);

/// How long one who was told to end waits in an `accept` that blocks, before it is told that there
/// was nothing.
const PAUSE: Duration = Duration::from_secs(1);

fn sockets() -> MutexGuard<'static, Sockets> {
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

interposed! {
    bind / bind_for / BIND (socket: c_int, address: *const sockaddr, length: socklen_t) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const sockaddr, socklen_t) -> c_int,
        "rcx", "x3", |real, caller| {
            let asked = process::changed_by(caller)
                .filter(|_| is_stream(socket))
                // SAFETY: an address of that length, says the caller.
                .and_then(|account| Some((account, unsafe { internet(address, length) }?)));
            let Some((account, asked)) = asked else {
                // SAFETY: the arguments of the caller, as they came.
                return unsafe { real(socket, address, length) };
            };
            if IS_TRIAL.load(Ordering::Relaxed) {
                return bind_anywhere(socket, asked, real);
            }
            if take_over(account, socket, asked) {
                descriptors::opened(socket, caller);
                return 0;
            }
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { real(socket, address, length) };
            if answer == 0 && let Some(inode) = inode(socket) {
                let bound = Bound { account, inode, address: asked };
                sockets().bound.push(bound);
            }
            answer
        };
    listen / listen_for / LISTEN (socket: c_int, backlog: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, c_int) -> c_int,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { real(socket, backlog) };
            if answer == 0 && process::changed_by(caller).is_some() {
                keep(socket);
            }
            answer
        };
    accept / accept_for / ACCEPT (socket: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int,
        "rcx", "x3", |real, caller| {
            if is_over(socket, caller) {
                return nothing_came(socket);
            }
            // SAFETY: the arguments of the caller, as they came.
            let fd = unsafe { real(socket, address, length) };
            descriptors::opened(fd, caller);
            fd
        };
    accept4 / accept4_for / ACCEPT4 (socket: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int,
        "r8", "x4", |real, caller| {
            if is_over(socket, caller) {
                return nothing_came(socket);
            }
            // SAFETY: the arguments of the caller, as they came.
            let fd = unsafe { real(socket, address, length, flags) };
            descriptors::opened(fd, caller);
            fd
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// Says that this process is a preflight child, in which no address is bound that somebody knows.
pub fn bind_nothing_known() {
    IS_TRIAL.store(true, Ordering::Relaxed);
}

/// Where the sockets that are kept for `app` listen.
pub fn listening(app: &AppName) -> Vec<SocketAddr> {
    let sockets = sockets();
    let its = sockets.kept.iter().filter(|kept| kept.app == *app);
    its.map(|kept| kept.address).collect()
}

/// The address at `address`, if it is one of the internet with a port.
///
/// # Safety
/// `address` is null or has `length` bytes.
unsafe fn internet(address: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
    if address.is_null() || (length as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the caller's promise; each kind is read only where the length says that it is there.
    let address = unsafe {
        match c_int::from((*address).sa_family) {
            libc::AF_INET if length as usize >= size_of::<libc::sockaddr_in>() => {
                let address = address.cast::<libc::sockaddr_in>().read_unaligned();
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                SocketAddr::from((ip, u16::from_be(address.sin_port)))
            }
            libc::AF_INET6 if length as usize >= size_of::<libc::sockaddr_in6>() => {
                let address = address.cast::<libc::sockaddr_in6>().read_unaligned();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                SocketAddr::from((ip, u16::from_be(address.sin6_port)))
            }
            _ => return None,
        }
    };
    (address.port() != 0).then_some(address)
}

/// Binds `socket` to any port of the address.
fn bind_anywhere(
    socket: c_int,
    address: SocketAddr,
    real: unsafe extern "C-unwind" fn(c_int, *const sockaddr, socklen_t) -> c_int,
) -> c_int {
    // SAFETY: all zeroes is a value of both.
    let (mut four, mut six) = unsafe {
        (
            MaybeUninit::<libc::sockaddr_in>::zeroed().assume_init(),
            MaybeUninit::<libc::sockaddr_in6>::zeroed().assume_init(),
        )
    };
    let (pointer, length) = match address {
        SocketAddr::V4(address) => {
            four.sin_family = libc::AF_INET as libc::sa_family_t;
            four.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            ((&raw const four).cast(), size_of_val(&four))
        }
        SocketAddr::V6(address) => {
            six.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            six.sin6_addr.s6_addr = address.ip().octets();
            six.sin6_scope_id = address.scope_id();
            ((&raw const six).cast(), size_of_val(&six))
        }
    };
    // SAFETY: an address of that length.
    unsafe { real(socket, pointer, length as socklen_t) }
}

/// Whether it is a socket of connections.
fn is_stream(socket: c_int) -> bool {
    let (mut kind, mut length) = (0 as c_int, size_of::<c_int>() as socklen_t);
    // SAFETY: room for an integer, and its length.
    let answer = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    answer == 0 && kind == libc::SOCK_STREAM
}

fn inode(socket: c_int) -> Option<u64> {
    if socket < 0 {
        return None;
    }
    // SAFETY: borrowed for this call, by whoever has it open.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino)
}

/// Makes `socket` the one that is kept for this address and the app of `account`. Whether there is
/// one.
fn take_over(account: AccountId, socket: c_int, address: SocketAddr) -> bool {
    if KEPT.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let Some(known) = known::of(account) else {
        return false;
    };
    let mut sockets = sockets();
    let mut kept = sockets.kept.iter_mut();
    let Some(kept) = kept.find(|kept| kept.address == address && kept.app == known.app) else {
        return false;
    };
    // Its number, with the kept socket behind it. Past libc: the number stays whose it is.
    // SAFETY: has no preconditions; both are open, says the caller, or the kernel says no.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_dup3,
            kept.socket.as_raw_fd(),
            socket,
            libc::O_CLOEXEC,
        )
    };
    if answer < 0 {
        return false;
    }
    if !kept.holders.contains(&account) {
        kept.holders.push(account);
    }
    true
}

/// Keeps `socket`, which listens now, if a library has bound it to a port.
fn keep(socket: c_int) {
    let Some(inode) = inode(socket) else { return };
    let bound = {
        let mut sockets = sockets();
        let at = sockets.bound.iter().position(|bound| bound.inode == inode);
        at.map(|at| sockets.bound.swap_remove(at))
    };
    let Some(Bound {
        account, address, ..
    }) = bound
    else {
        return;
    };
    let Some(known) = known::of(account) else {
        return;
    };
    // SAFETY: borrowed for this call.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    // Without a descriptor left the next generation is told that the address is in use.
    if let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(socket, 3) {
        sockets().kept.push(Kept {
            app: known.app,
            address,
            socket,
            inode,
            holders: vec![account],
        });
        KEPT.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether code at `caller`, which wants a connection of `socket`, was told to end, and the socket
/// is its successor's.
fn is_over(socket: c_int, caller: usize) -> bool {
    KEPT.load(Ordering::Relaxed) > 0
        && process::changed_by(caller).is_some_and(exits::is_ending)
        && inode(socket).is_some_and(|inode| sockets().kept.iter().any(|kept| kept.inode == inode))
}

/// The answer of `accept` when nothing came.
fn nothing_came(socket: c_int) -> c_int {
    // SAFETY: has no preconditions.
    let flags = unsafe { libc::fcntl(socket, libc::F_GETFL) };
    if flags & libc::O_NONBLOCK != 0 {
        return errno::fail(libc::EAGAIN);
    }
    // Whoever blocks tries again at once.
    std::thread::sleep(PAUSE);
    errno::fail(libc::ECONNABORTED)
}

/// The library of `account` closes `fd`.
pub(super) fn closing(fd: c_int, account: AccountId) {
    if KEPT.load(Ordering::Relaxed) == 0 {
        return;
    }
    if let Some(inode) = inode(fd) {
        leave(|kept| kept.inode == inode, account);
    }
}

/// Whether any socket is kept.
pub(super) fn are_there() -> bool {
    KEPT.load(Ordering::Relaxed) > 0
}

/// Forgets an account: its library is unmapped.
pub(super) fn forget(account: AccountId) {
    sockets().bound.retain(|bound| bound.account != account);
    leave(|_| true, account);
}

/// Takes `account` away from the holders of some sockets, and closes those that nobody has any
/// more.
fn leave(is_meant: impl Fn(&Kept) -> bool, account: AccountId) {
    let mut gone = Vec::new();
    {
        let mut sockets = sockets();
        let mut at = 0;
        while at < sockets.kept.len() {
            let kept = &mut sockets.kept[at];
            if is_meant(kept) {
                kept.holders.retain(|holder| *holder != account);
            }
            if kept.holders.is_empty() {
                gone.push(sockets.kept.swap_remove(at));
                KEPT.fetch_sub(1, Ordering::Relaxed);
            } else {
                at += 1;
            }
        }
    }
    // Closed without the lock, as closing comes by here.
    drop(gone);
}
