//! The supervisor's seat: how it is started, and started again.
//!
//! - A supervisor that was killed, or that left because somebody wants another one, is followed at once. One that ends by its
//!   own making is followed after a pause, as a component is; the fifth of those within 30 s is the last.
//! - The next one is the program that is now found where the keeper's own came from, if there is one, so that a supervisor can
//!   be upgraded. If that one does not come to serve, the keeper's own program is tried.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::lifecycle::{Cause, Decision, Restarts, cause};
use crate::sys::process::{self, Program};

/// How a supervisor ends that leaves its seat to another one.
pub const LEAVES: i32 = 0;

pub(super) struct Seat {
    /// The keeper's end of its socket; none between two supervisors.
    pub(super) link: Option<OwnedFd>,
    /// When the next one is started.
    pub(super) next: Option<Instant>,
    /// It broke the protocol: its death is of its own making.
    pub(super) at_fault: bool,
    arguments: Vec<CString>,
    /// The keeper's own program, and where it was found.
    program: OwnedFd,
    path: Option<CString>,
    /// What is found there now did not come to serve.
    distrusted: bool,
    serves_since: Option<Instant>,
    restarts: Restarts,
}

impl Seat {
    /// With nobody in it. `arguments` are the supervisor's.
    ///
    /// # Errors
    /// An argument with a NUL, or of opening this process's program.
    pub(super) fn new(arguments: &[String]) -> io::Result<Seat> {
        let program = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let path = std::fs::read_link("/proc/self/exe").ok();
        let arguments =
            ["atoll", "supervisor"].into_iter().chain(arguments.iter().map(String::as_str)).map(CString::new);
        Ok(Seat {
            link: None,
            next: None,
            at_fault: false,
            arguments: arguments.collect::<Result<_, _>>()?,
            program,
            path: path.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok()),
            distrusted: false,
            serves_since: None,
            restarts: Restarts::default(),
        })
    }

    /// Starts a supervisor with these descriptors.
    ///
    /// # Errors
    /// Of starting a process.
    pub(super) fn start(&mut self, environment: &[&CStr], given: &[BorrowedFd<'_>]) -> io::Result<process::Child> {
        self.next = None;
        self.at_fault = false;
        self.serves_since = None;
        let path = self.path.as_deref().filter(|_| !self.distrusted);
        let found = path.and_then(|path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok());
        let mut arguments = [c""; process::MAX_STRINGS];
        let used = self.arguments.len().min(process::MAX_STRINGS);
        for (to, from) in arguments.iter_mut().zip(&self.arguments) {
            *to = from;
        }
        process::spawn(&Program {
            executable: found.as_ref().unwrap_or(&self.program).as_fd(),
            arguments: &arguments[..used],
            environment,
            descriptors: given,
        })
    }

    /// It has taken over.
    pub(super) fn serves(&mut self) {
        self.serves_since = Some(Instant::now());
    }

    /// It has ended. Says when the next one is to be started; `None` if that does not help.
    pub(super) fn ended(&mut self, wait_status: i32) -> Option<Instant> {
        let now = Instant::now();
        let served = self.serves_since.take().map(|since| now.saturating_duration_since(since));
        let left = libc::WIFEXITED(wait_status) && libc::WEXITSTATUS(wait_status) == LEAVES && !self.at_fault;
        if left && served.is_some() {
            self.distrusted = false;
            self.next = Some(now);
            return self.next;
        }
        let cause = if self.at_fault { Cause::Own } else { cause(wait_status) };
        self.distrusted |= cause == Cause::Own && served.is_none();
        self.next = match self.restarts.died(now, cause, served) {
            Decision::Restart(pause) => Some(now + pause),
            Decision::GiveUp => None,
        };
        self.next
    }

    /// None could be started: another try later, if that may help.
    pub(super) fn not_started(&mut self) -> Option<Instant> {
        self.ended(libc::SIGABRT)
    }

    /// How long nothing is to be done about it.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.next.map(|next| next.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Seat {
        Seat::new(&["--set".into(), "disk.size=1MiB".into()]).unwrap()
    }

    const EXIT: i32 = 1 << 8;

    #[test]
    fn one_that_is_killed_is_followed_at_once_however_often() {
        let mut seat = seat();
        for _ in 0..100 {
            seat.serves();
            assert!(seat.ended(libc::SIGKILL).is_some_and(|next| next <= Instant::now()));
        }
        assert!(!seat.distrusted);
    }

    #[test]
    fn the_fifth_that_ends_by_its_own_making_is_the_last() {
        let mut seat = seat();
        for n in 0..4 {
            assert!(seat.ended(EXIT).is_some(), "death {n}");
        }
        assert_eq!(seat.ended(EXIT), None);
    }

    #[test]
    fn one_that_leaves_is_not_counted_but_only_if_it_had_served() {
        let mut seat = seat();
        for _ in 0..100 {
            seat.serves();
            assert!(seat.ended(LEAVES).is_some_and(|next| next <= Instant::now()));
        }
        assert!((0..5).any(|_| seat.ended(LEAVES).is_none()));
    }

    #[test]
    fn a_program_that_does_not_come_to_serve_is_not_tried_again_until_somebody_wants_it() {
        let mut seat = seat();
        seat.ended(EXIT);
        assert!(seat.distrusted);
        seat.serves();
        seat.ended(libc::SIGKILL);
        assert!(seat.distrusted);
        seat.serves();
        seat.ended(LEAVES);
        assert!(!seat.distrusted);
    }

    #[test]
    fn a_broken_protocol_is_its_own_making_though_we_kill_it() {
        let mut seat = seat();
        let fifth = (0..5).map(|_| {
            seat.serves();
            seat.at_fault = true;
            seat.ended(libc::SIGKILL)
        });
        assert_eq!(fifth.last(), Some(None));
    }
}
