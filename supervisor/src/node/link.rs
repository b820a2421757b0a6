//! The supervisor's line to its keeper.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kernel_ipc::component::waits::{Answer, question};
use kernel_ipc::runtime::io::{File, poll_readable};
use kernel_ipc::sys::descriptors;
use zerocopy::{FromBytes, IntoBytes};

use crate::keeper::wire::{Ask, Notice, Request, Tell};

/// Sends requests and pairs them with the keeper's replies, which come in order.
pub struct Link {
    socket: File,
    asked: RefCell<VecDeque<Answer<Reply>>>,
}

type Reply = io::Result<(u64, Option<OwnedFd>)>;

/// News from the keeper that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process in `slot`, epoch `epoch`, died.
    Exited {
        /// Which slot.
        slot: u32,
        /// Which epoch of it.
        epoch: u64,
        /// As `waitpid` gives it.
        wait_status: i32,
    },
    /// The kernel has let go of everything of this epoch.
    Fenced {
        /// Which slot.
        slot: u32,
        /// Which epoch of it.
        epoch: u64,
    },
    /// Someone asks for the node's end by a signal to the keeper.
    Terminate,
}

impl Link {
    /// Takes over the socket.
    pub fn new(socket: OwnedFd) -> Link {
        Link { socket: socket.into(), asked: RefCell::default() }
    }

    /// Asks for something, and waits for the reply.
    ///
    /// # Errors
    /// The keeper's errno, or that of the socket.
    pub async fn ask(&self, request: Request, given: &[BorrowedFd<'_>]) -> Reply {
        let (reply, answer) = question();
        // The keeper always reads, so this does not block for long; queued before it is sent only in theory.
        self.asked.borrow_mut().push_back(answer);
        descriptors::send(self.socket.as_fd(), request.as_bytes(), given, true)?;
        reply.await.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The same, for requests that give no descriptor back.
    ///
    /// # Errors
    /// As [`ask`](Link::ask).
    pub async fn tell(&self, ask: Ask, slot: u32, a: u64) -> io::Result<()> {
        self.ask(Request::new(ask, slot, a), &[]).await.map(drop)
    }

    /// Asks for something that comes with a descriptor.
    ///
    /// # Errors
    /// As [`ask`](Link::ask).
    pub async fn obtain(&self, ask: Ask, slot: u32, a: u64) -> io::Result<OwnedFd> {
        let (_, descriptor) = self.ask(Request::new(ask, slot, a), &[]).await?;
        descriptor.ok_or_else(|| io::Error::other("the keeper's reply lacks its descriptor"))
    }

    /// Ends the node; the keeper kills this process too.
    pub fn end(&self, code: u8) {
        let request = Request::new(Ask::End, 0, code.into());
        let _ = descriptors::send(self.socket.as_fd(), request.as_bytes(), &[], true);
    }

    /// The keeper's next event; replies that come before it reach whoever asked.
    ///
    /// # Errors
    /// Of the socket, or a record that makes no sense. (The keeper's death kills this process.)
    pub async fn event(&self) -> io::Result<Event> {
        loop {
            let mut bytes = [0; size_of::<Notice>()];
            let packet = match descriptors::receive(self.socket.as_fd(), &mut bytes, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_readable(&self.socket).await?;
                    continue;
                }
                packet => packet?,
            };
            let notice = Notice::read_from_bytes(&bytes).ok().filter(|_| packet.length == bytes.len() && !packet.truncated);
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no notice from the keeper");
            let notice = notice.ok_or_else(wrong)?;
            let Notice { slot, a, b, .. } = notice;
            let reply = match notice.tell().ok_or_else(wrong)? {
                Tell::Exited => return Ok(Event::Exited { slot, epoch: a, wait_status: b as u32 as i32 }),
                Tell::Fenced => return Ok(Event::Fenced { slot, epoch: a }),
                Tell::Terminate => return Ok(Event::Terminate),
                Tell::Done => Ok((a, packet.descriptors.into_iter().next())),
                Tell::Failed => Err(io::Error::from_raw_os_error(a as i32)),
            };
            let answer = self.asked.borrow_mut().pop_front().ok_or_else(wrong)?;
            let _ = answer.give(reply);
        }
    }
}
