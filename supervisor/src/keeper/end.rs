//! The end of a node.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

use super::Keeper;
use crate::sys::process;

/// How long a component may take to end in order before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the killed may take to die (one of them may be in an uninterruptible wait for its disk).
const DYING: Duration = Duration::from_secs(30);

impl Keeper {
    /// The supervisor has ended the node in order: kill what is left, wait for it, and go.
    pub(super) fn end_now(mut self, code: u8) -> ExitCode {
        self.kill_all();
        ExitCode::from(code)
    }

    /// Without a supervisor: asks each component to end, last started first, and waits for each; then goes. The order of
    /// starts is the order of dependencies, so each component still has what it uses while it ends.
    pub(super) fn end_in_order(mut self, code: u8) -> ExitCode {
        // The supervisor must not start anything again.
        self.kill(super::SUPERVISOR_SLOT);
        while let Some(slot) = self.slots.last_started() {
            if let Some(pidfd) = self.slots.pidfd(slot) {
                let _ = process::signal(pidfd, libc::SIGTERM);
            }
            self.wait_until(PATIENCE, |keeper| keeper.slots.pidfd(slot).is_none());
            if self.slots.pidfd(slot).is_some() {
                eprintln!("keeper: the component in slot {slot} does not end; killing it");
                self.kill(slot);
                self.wait_until(DYING, |keeper| keeper.slots.pidfd(slot).is_none());
                if self.slots.pidfd(slot).is_some() {
                    break;
                }
            }
        }
        self.kill_all();
        ExitCode::from(code)
    }

    fn kill_all(&mut self) {
        for slot in 0..super::SLOTS {
            self.kill(slot);
        }
        self.standby.end();
        self.wait_until(DYING, |keeper| !keeper.slots.any() && !keeper.standby.any());
    }

    pub(super) fn kill(&self, slot: u32) {
        if let Some(pidfd) = self.slots.pidfd(slot) {
            let _ = process::signal(pidfd, libc::SIGKILL);
        }
    }

    /// Reaps until `done` or the time is up.
    fn wait_until(&mut self, patience: Duration, done: impl Fn(&Keeper) -> bool) {
        let deadline = Instant::now() + patience;
        loop {
            while let Ok(Some(_)) = self.signals.read_signal() {}
            while let Some((pid, wait_status)) = process::reap() {
                match self.slots.exited(pid, wait_status) {
                    Some((slot, _)) => self.died(slot),
                    None => self.standby.exited(pid),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if done(self) || left.is_zero() {
                return;
            }
            let mut set =
                [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&self.signals), nix::poll::PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = nix::poll::poll(&mut set, timeout);
        }
    }
}
