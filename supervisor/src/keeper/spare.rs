//! The spare: a process that has been started before it is wanted.
//!
//! - A component's run begins in it. It is executed, linked and set up by then, which is a third of what a restart takes.
//! - It has no authority: it waits at a socket for the supervisor's request for a process, and gets what any process gets.
//! - It is of the `atoll` binary that was started last. For another one, for a program that is none, or if there is none, a process is made as
//!   ever.
//! - It is made a while after a component has begun to live, so that no restart waits for the next one's; and so one that cannot
//!   be started is not tried for ever.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kernel_ipc::sys::descriptors;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::fstat;
use zerocopy::IntoBytes;

use super::wire::Request;
use crate::spare::{VERB, WAITS};
use crate::sys::process::{self, Child, Program};

/// How long after a component has begun to live.
const PAUSE: Duration = Duration::from_millis(20);

/// Where a spare is made, or waits.
#[derive(Debug, Default)]
pub(super) struct Standby {
    spare: Option<Spare>,
    /// When the next one is made.
    due: Option<Instant>,
    /// What was started last.
    program: Option<OwnedFd>,
}

#[derive(Debug)]
struct Spare {
    child: Child,
    socket: OwnedFd,
    program: File,
    /// It has said that it waits.
    waits: bool,
}

impl Spare {
    /// Whether it is as far as that. A program that knows of no spares never is.
    fn waits(&mut self) -> bool {
        if !self.waits {
            let mut word = [0; WAITS.len()];
            let said = descriptors::receive(self.socket.as_fd(), &mut word, false);
            self.waits = said.is_ok_and(|packet| packet.length == word.len()) && word == WAITS;
        }
        self.waits
    }
}

/// Device and inode of a program.
type File = (u64, u64);

fn file(program: BorrowedFd<'_>) -> io::Result<File> {
    let stat = fstat(program)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Standby {
    /// Gives the spare what a process was asked for with: it is that process now. None: there is no spare of this program.
    pub(super) fn take(
        &mut self,
        program: BorrowedFd<'_>,
        request: &Request,
        given: &[BorrowedFd<'_>],
    ) -> Option<Child> {
        let Spare { child, socket, program: of, .. } = self.spare.take_if(Spare::waits)?;
        let fits = file(program).is_ok_and(|program| program == of);
        match fits && descriptors::send(socket.as_fd(), request.as_bytes(), given, false).is_ok() {
            true => Some(child),
            false => {
                // Its end is an orphan's.
                let _ = process::signal(child.pidfd.as_fd(), libc::SIGKILL);
                None
            }
        }
    }

    /// This program was started.
    pub(super) fn started(&mut self, program: OwnedFd) {
        self.program = Some(program);
    }

    /// A component has begun to live.
    pub(super) fn component_lives(&mut self) {
        if self.spare.is_none() && self.due.is_none() {
            self.due = Some(Instant::now() + PAUSE);
        }
    }

    /// Makes one if it is time. Its standard output and error are the keeper's until it becomes somebody's.
    ///
    /// # Errors
    /// Of making a process; the next one is made when a component lives again.
    pub(super) fn make_if_due(&mut self, environment: &[&CStr], null: BorrowedFd<'_>) -> io::Result<()> {
        let Some(program) = self.program.as_ref().filter(|_| self.due.is_some_and(|due| due <= Instant::now())) else {
            return Ok(());
        };
        self.due = None;
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let child = process::spawn(&Program {
            executable: program.as_fd(),
            arguments: &[c"atoll", VERB, crate::spare::ROOM],
            environment,
            descriptors: &[null, stdout.as_fd(), stderr.as_fd(), theirs.as_fd()],
        })?;
        self.spare = Some(Spare { child, socket, program: file(program.as_fd())?, waits: false });
        Ok(())
    }

    /// How long nothing is to be done here.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Forgets the spare if this process, which was reaped, is it; then there is another one soon.
    pub(super) fn exited(&mut self, pid: i32) {
        // One that has never come to wait is not tried again before a component lives.
        if self.spare.take_if(|spare| spare.child.pid == pid).is_some_and(|mut spare| spare.waits()) {
            self.component_lives();
        }
    }

    /// The node ends: no spare is made any more, and the one that waits is killed.
    pub(super) fn end(&mut self) {
        (self.due, self.program) = (None, None);
        if let Some(spare) = &self.spare {
            let _ = process::signal(spare.child.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        self.spare.is_some()
    }
}
