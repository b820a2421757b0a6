//! Landlock: a thread gives up, for itself and all that it will start, what it does not need any more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr` (linux/landlock.h); a kernel that knows fewer fields takes zeros in the others.
#[repr(C)]
#[derive(Default)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// Rights to files by the version that has them first: 13 of version 1, then `REFER`, `TRUNCATE`, and in 5 `IOCTL_DEV`.
const FILES: [(i32, u64); 4] = [(1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// `LANDLOCK_ACCESS_NET_BIND_TCP`, `LANDLOCK_ACCESS_NET_CONNECT_TCP`, since version 4.
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
const NET_SINCE: i32 = 4;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`, `LANDLOCK_SCOPE_SIGNAL`, since version 6.
const SCOPED: u64 = 3;
const SCOPED_SINCE: i32 = 6;

/// What is taken from this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// To open, make or change files by their paths, and to trace processes.
    pub files: bool,
    /// To connect, and to listen where it was not asked for.
    pub tcp: bool,
    /// To send signals to others, and to reach abstract unix sockets.
    pub signals: bool,
}

/// Takes from this thread and all that it will start: to open files by their paths and to execute them, to signal and trace processes that
/// are not its own, and TCP but what is asked for. What is open stays open. Nobody can undo it. Gives what this kernel was able to take.
///
/// # Errors
/// The kernel has no Landlock, or it is switched off.
pub fn confine(listens: bool, connects: bool) -> io::Result<Confined> {
    // SAFETY: without attributes the call looks at nothing and answers with a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0, VERSION) };
    let version = i32::try_from(version).unwrap_or(i32::MAX);
    if version < 1 {
        return Err(io::Error::last_os_error());
    }
    let files = FILES.iter().filter(|(since, _)| version >= *since).map(|(_, rights)| rights).sum();
    let net = if listens { 0 } else { BIND_TCP } | if connects { 0 } else { CONNECT_TCP };
    let ruleset = Ruleset {
        handled_access_fs: files,
        handled_access_net: if version >= NET_SINCE { net } else { 0 },
        scoped: if version >= SCOPED_SINCE { SCOPED } else { 0 },
    };
    // SAFETY: the kernel reads as many bytes of the structure as it has, and gives a new descriptor or fails.
    let fd = unsafe {
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size_of::<Ruleset>(), 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: no memory is involved; the descriptor is a ruleset's.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Confined { files: true, tcp: version >= NET_SINCE, signals: version >= SCOPED_SINCE })
}
