//! Making processes, and the calls about them that no safe wrapper covers.
//!
//! - [`spawn`] is a fork by `clone3` with a pidfd; between fork and exec the child makes only async-signal-safe system
//!   calls on memory that the parent prepared, and allocates nothing.
//! - A child that cannot be set up exits with code 126, one whose program cannot be executed with 127; both say so on
//!   their standard error.

use std::ffi::{CStr, c_char};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use kernel_ipc::sys::descriptors;

/// `linux/sched.h`: the child starts with default signal handlers.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Most strings in an argument list or environment.
pub const MAX_STRINGS: usize = 15;

/// What a child starts with.
#[derive(Debug)]
pub struct Program<'a> {
    /// The executable.
    pub executable: BorrowedFd<'a>,
    /// Its arguments, name first; at most [`MAX_STRINGS`].
    pub arguments: &'a [&'a CStr],
    /// Its environment; at most [`MAX_STRINGS`].
    pub environment: &'a [&'a CStr],
    /// Its descriptors 0, 1, 2, …; at most [`MAX_STRINGS`]. Every other one is closed.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its process id; not reused before it is reaped.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// Starts a process: a session of its own, killed when this thread's process dies, `no_new_privs`, no core dumps, signals
/// as by default, and exactly the descriptors of `program`.
///
/// # Errors
/// Of `clone3`; `InvalidInput` if `program` has too much of anything.
///
/// # Panics
/// Never. Call it from a single-threaded process: the child sees a copy of this thread only.
pub fn spawn(program: &Program<'_>) -> io::Result<Child> {
    let mut argv = [ptr::null::<c_char>(); MAX_STRINGS + 1];
    let mut envp = [ptr::null::<c_char>(); MAX_STRINGS + 1];
    let mut numbers = [-1; MAX_STRINGS];
    if program.arguments.len() > MAX_STRINGS
        || program.environment.len() > MAX_STRINGS
        || program.descriptors.len() > MAX_STRINGS
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in argv.iter_mut().zip(program.arguments) {
        *to = from.as_ptr();
    }
    for (to, from) in envp.iter_mut().zip(program.environment) {
        *to = from.as_ptr();
    }
    for (to, from) in numbers.iter_mut().zip(program.descriptors) {
        *to = from.as_raw_fd();
    }
    let numbers = &numbers[..program.descriptors.len()];

    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: getpid cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: without CLONE_VM and without a stack this is a fork: the child runs on its own copy of this stack. The
    // child makes only system calls (no allocation, no lock) until it executes or exits, in `child`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child(parent, program.executable.as_raw_fd(), numbers, &argv, &envp),
        // SAFETY: CLONE_PIDFD made the kernel store a fresh descriptor, ours alone.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Everything between fork and exec.
fn child(parent: i32, program: RawFd, numbers: &[RawFd], argv: &[*const c_char], envp: &[*const c_char]) -> ! {
    // SAFETY: plain system calls on values; `argv` and `envp` end with a null and point to strings of the parent's copy
    // that live until the exec.
    unsafe {
        libc::setsid();
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            fail(126, b"atoll: prctl failed\n");
        }
        // The parent may have died before PDEATHSIG was set.
        if libc::getppid() != parent {
            libc::_exit(126);
        }
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        raise(libc::RLIMIT_NOFILE, DESCRIPTORS);
        raise(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY);

        // First out of the way of 0, 1, 2, …, then into place.
        let program = libc::fcntl(program, libc::F_DUPFD_CLOEXEC, 64);
        if program < 0 {
            fail(126, b"atoll: too many descriptors\n");
        }
        let mut moved = [-1; MAX_STRINGS];
        for (to, &from) in moved.iter_mut().zip(numbers) {
            *to = libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 64);
            if *to < 0 {
                fail(126, b"atoll: too many descriptors\n");
            }
        }
        for (to, &from) in moved.iter().take(numbers.len()).enumerate() {
            if libc::dup2(from, to as RawFd) < 0 {
                fail(126, b"atoll: dup2 failed\n");
            }
        }
        let first = numbers.len() as libc::c_uint;
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
            fail(126, b"atoll: close_range failed\n");
        }
        libc::syscall(libc::SYS_execveat, program, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH);
        fail(127, b"atoll: the program cannot be executed\n")
    }
}

/// Descriptors that a process of a node may have, if the hard limit allows.
const DESCRIPTORS: libc::rlim_t = 65_536;

/// Lets this process have as many descriptors as those that it starts.
pub fn raise_descriptors() {
    raise(libc::RLIMIT_NOFILE, DESCRIPTORS);
}

/// Raises a soft limit to at most `wanted`, within the hard one.
fn raise(resource: libc::__rlimit_resource_t, wanted: libc::rlim_t) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives across both calls.
    unsafe {
        if libc::getrlimit(resource, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(wanted));
            libc::setrlimit(resource, &raw const limit);
        }
    }
}

/// The child's last words.
fn fail(code: i32, words: &[u8]) -> ! {
    // SAFETY: `words` lives across the call; `_exit` does not return.
    unsafe {
        libc::write(2, words.as_ptr().cast(), words.len());
        libc::_exit(code)
    }
}

/// Sends a signal to exactly the process of this pidfd.
///
/// # Errors
/// Of `pidfd_send_signal`: `ESRCH` if it has ended.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null `siginfo` is allowed.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reaps one ended child, if there is one: its pid and wait status.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Accepts one connection, if there is one.
///
/// # Errors
/// Of `accept4`, `EAGAIN` among them if `listener` does not block.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let number = nix::sys::socket::accept4(listener.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes this process the parent of its descendants' orphans.
///
/// # Errors
/// Of `prctl`.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: changes a flag of this process.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes over the descriptor that a keeper or supervisor is started with. `None` if it is not open, or was taken before.
pub fn inherited() -> Option<OwnedFd> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: this number is by contract ours, and `TAKEN` says that this is the first taking.
    unsafe { descriptors::inherited(FIRST_INHERITED) }
}

/// Makes `given` this process's standard output, standard error and descriptor 3, as if it had been started with them. `socket`
/// is what it was started with as its descriptor 3.
///
/// # Errors
/// Of `dup2`.
pub fn become_started_with(socket: OwnedFd, given: [OwnedFd; 3]) -> io::Result<()> {
    // The number stays open until something else is put there, and is nobody's meanwhile.
    std::mem::forget(socket);
    for (to, from) in (1..=FIRST_INHERITED).zip(&given) {
        // SAFETY: 1 and 2 are used by number only, and 3 is the socket that was just given up.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The number of the descriptor that a keeper or supervisor may be started with.
pub const FIRST_INHERITED: RawFd = 3;

/// Lets a child keep `descriptors` as its 3, 4, …; for `Command`.
pub fn pass_on(command: &mut std::process::Command, descriptors: Vec<OwnedFd>) {
    use std::os::unix::process::CommandExt;
    let place = move || {
        let mut moved = [-1; 4];
        for (to, from) in moved.iter_mut().zip(&descriptors) {
            // SAFETY: duplicates an open descriptor.
            *to = unsafe { libc::fcntl(from.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) };
            if *to < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (i, &from) in moved.iter().take(descriptors.len()).enumerate() {
            // SAFETY: puts our duplicate at a number that only the program about to be executed will use.
            if unsafe { libc::dup2(from, FIRST_INHERITED + i as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `place` makes only async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(place) };
}
