//! What the supervisor asks: received, done, and replied to exactly once. Records alone are put and taken without a reply.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use kernel_ipc::sys::descriptors;
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::slots::MAX_DEAD;
use super::store::Record;
use super::wire::{self, Ask, Key, Notice, Request, SLOTS, SUPERVISOR_SLOT, Slotful, Tell};
use super::{Keeper, strings};
use crate::manifest::SERVE;
use crate::sys::process::{self, Program};

/// What a request is answered with.
struct Reply {
    notice: Notice,
    descriptor: Option<OwnedFd>,
}

impl Keeper {
    /// The next request, with the descriptors that came with it; none: there is none now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the socket has ended, `InvalidData` if it is no request.
    pub(super) fn receive(&self) -> io::Result<Option<(Ask, Request, Vec<OwnedFd>)>> {
        let Some(link) = &self.seat.link else { return Ok(None) };
        let mut bytes = [0; size_of::<Request>()];
        let packet = match descriptors::receive(link.as_fd(), &mut bytes, false) {
            // The second: it died with something unread. What it had sent comes behind that.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            packet => packet?,
        };
        if packet.length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let request =
            Request::read_from_bytes(&bytes).ok().filter(|_| packet.length == bytes.len() && !packet.truncated);
        let (ask, request) = request
            .and_then(|request| Some((request.ask()?, request)))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no request"))?;
        Ok(Some((ask, request, packet.descriptors)))
    }

    /// Does what was asked, and replies exactly once.
    pub(super) fn answer(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) {
        let slot = request.slot;
        let outcome = if slot >= SLOTS { Err(Errno::EINVAL.into()) } else { self.carry_out(ask, request, descriptors) };
        match outcome {
            Ok(Reply { notice, descriptor }) => self.tell(notice, descriptor),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                self.tell(Notice::new(Tell::Failed, slot, errno as u64, 0), None);
            }
        }
    }

    /// Puts a record or takes it away.
    pub(super) fn keep(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) {
        let kept = match (ask, request.key()) {
            (_, None) => Err(Errno::EINVAL),
            (Ask::Take, Some(key)) => {
                self.store.take(&key);
                Ok(())
            }
            (_, Some(key)) => {
                let descriptor = descriptors.into_iter().next();
                self.store.put(Record { key, tag: request.tag(), descriptor })
            }
        };
        if let Err(errno) = kept {
            eprintln!("keeper: a record of the supervisor is not kept: {errno}");
        }
    }

    fn carry_out(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<Reply> {
        let Request { slot, a, .. } = *request;
        let done = |a, descriptor| Ok(Reply { notice: Notice::new(Tell::Done, slot, a, 0), descriptor });
        match ask {
            Ask::Spawn => {
                if !self.slots.is_free(slot, MAX_DEAD) {
                    return Err(Errno::EBUSY.into());
                }
                let (fence, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                let child = self.spawn(request, descriptors)?;
                let pid = child.pid as u64;
                self.slots.started(slot, a, child, Some(fence));
                self.says_what_is_fenced(slot);
                done(pid, Some(end))
            }
            Ask::Promote => {
                let from = u32::try_from(request.b).ok().filter(|from| ![slot, SUPERVISOR_SLOT].contains(from));
                let from = from.ok_or(Errno::EINVAL)?;
                if !self.slots.is_free(slot, MAX_DEAD) {
                    return Err(Errno::EBUSY.into());
                }
                let (fence, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                let child = self.slots.take(from).ok_or(Errno::ESRCH)?;
                let pid = child.pid as u64;
                self.slots.started(slot, a, child, Some(fence));
                self.says_what_is_fenced(slot);
                done(pid, Some(end))
            }
            Ask::Guest => {
                if !self.slots.is_free(slot, 0) {
                    return Err(Errno::EBUSY.into());
                }
                let (fence, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                self.slots.guest(slot, a, fence);
                self.says_what_is_fenced(slot);
                self.lives(slot, a);
                done(0, Some(end))
            }
            Ask::GuestGone => {
                self.slots.guest_gone(slot);
                self.died(slot);
                done(0, None)
            }
            Ask::Lives => {
                // Not for one that died while the request was on its way.
                if self.slots.lives(slot, a) {
                    self.lives(slot, a);
                    self.standby.component_lives();
                }
                done(0, None)
            }
            Ask::Signal => {
                let signal = i32::try_from(a).map_err(|_| Errno::EINVAL)?;
                process::signal(self.slots.pidfd(slot).ok_or(Errno::ESRCH)?, signal)?;
                done(0, None)
            }
            Ask::Attach if a == wire::VERSION => done(self.slots.epoch(SUPERVISOR_SLOT), None),
            Ask::Attach => Err(Errno::EPROTO.into()),
            Ask::Slot => {
                let said = self.slots.describe(slot).ok_or(Errno::EINVAL)?;
                let mut notice = Notice::new(Tell::Done, slot, 0, 0);
                notice.tag[..size_of::<Slotful>()].copy_from_slice(said.as_bytes());
                Ok(Reply { notice, descriptor: None })
            }
            Ask::List => {
                let (record, next) = self.store.next(a).ok_or(Errno::ENOENT)?;
                let Key { kind, slot, number } = record.key;
                let mut notice = Notice::new(Tell::Done, slot, number, kind.into());
                (notice.c, notice.tag) = (next, record.tag);
                Ok(Reply { notice, descriptor: record.descriptor.as_ref().map(OwnedFd::try_clone).transpose()? })
            }
            Ask::Ending => {
                self.heard_by = None;
                done(0, None)
            }
            Ask::Status => done(0, Some(self.status.fd().try_clone_to_owned()?)),
            // Handled in the loop.
            Ask::Put | Ask::Take | Ask::Serving | Ask::End => Err(Errno::EINVAL.into()),
        }
    }

    /// Makes the process that is asked for of the spare, or anew.
    fn spawn(&mut self, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<process::Child> {
        let Ok([executable, control, stdout, stderr]) = <[_; 4]>::try_from(descriptors) else {
            return Err(Errno::EINVAL.into());
        };
        let (arguments, used) = request.arguments().ok_or(Errno::EINVAL)?;
        let given = [stdout.as_fd(), stderr.as_fd(), control.as_fd()];
        // A spare is of the `atoll` binary, and can be any component of that.
        let is_ours = arguments[..used].get(1).is_some_and(|verb| verb.to_str() == Ok(SERVE));
        let spare = is_ours.then(|| self.standby.take(executable.as_fd(), request, &given));
        let child = match spare.flatten() {
            Some(child) => child,
            None => {
                let [stdout, stderr, control] = given;
                process::spawn(&Program {
                    executable: executable.as_fd(),
                    arguments: &arguments[..used],
                    environment: &strings(&self.environment)[..self.environment.len()],
                    descriptors: &[self.null.as_fd(), stdout, stderr, control],
                })?
            }
        };
        if is_ours {
            self.standby.started(executable);
        }
        Ok(child)
    }
}
