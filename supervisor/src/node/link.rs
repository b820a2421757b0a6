//! The supervisor's line to its keeper.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kernel_ipc::component::waits::{Answer, question};
use kernel_ipc::runtime::io::{File, poll_readable, poll_writable};
use kernel_ipc::runtime::{Changes, yield_now};
use kernel_ipc::sys::descriptors;
use zerocopy::{FromBytes, IntoBytes};

use crate::keeper::wire::{Ask, Key, Notice, Request, TAG, Tell};

/// Sends requests and pairs them with the keeper's replies, which come in order.
pub struct Link {
    socket: File,
    asked: RefCell<VecDeque<Answer<Reply>>>,
    /// A reply has come.
    replied: Changes,
    /// Events that came while a reply was waited for.
    early: RefCell<VecDeque<Event>>,
}

/// Most requests without a reply. So many fit into the socket: asking never blocks, and the keeper has room for the replies.
const MAX_ASKED: usize = 64;

/// What the keeper says.
enum Said {
    Reply(Box<Reply>),
    Event(Event),
}

type Reply = io::Result<(Notice, Option<OwnedFd>)>;

/// What the keeper holds for this supervisor and the next.
#[derive(Debug)]
pub struct Record {
    /// What it is found by.
    pub key: Key,
    /// What is said of it.
    pub tag: [u8; TAG],
    /// What is held, if it is a descriptor.
    pub descriptor: Option<OwnedFd>,
}

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
        Link {
            socket: socket.into(),
            asked: RefCell::default(),
            replied: Changes::default(),
            early: RefCell::default(),
        }
    }

    /// Asks for something, and waits for the reply.
    ///
    /// # Errors
    /// The keeper's errno, or that of the socket.
    pub async fn ask(&self, request: Request, given: &[BorrowedFd<'_>]) -> Reply {
        loop {
            let replied = self.replied.next();
            if self.asked.borrow().len() < MAX_ASKED {
                break;
            }
            replied.await;
        }
        loop {
            match descriptors::send(self.socket.as_fd(), request.as_bytes(), given, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => poll_writable(&self.socket).await?,
                sent => break sent?,
            }
        }
        // Nobody has read the reply yet: this thread is here.
        let (reply, answer) = question();
        self.asked.borrow_mut().push_back(answer);
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
    pub async fn obtain(&self, request: Request) -> io::Result<OwnedFd> {
        let (_, descriptor) = self.ask(request, &[]).await?;
        descriptor.ok_or_else(|| io::Error::other("the keeper's reply lacks its descriptor"))
    }

    /// Keeps a record, in the place of one with the same key. From this call's return on it outlives this process. Does not
    /// wait for the keeper's word; waits for its socket, which it always reads.
    ///
    /// # Errors
    /// Of the socket.
    pub fn put(&self, key: Key, tag: &[u8; TAG], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let request = Request::record(Ask::Put, key).with_tag(tag);
        loop {
            match descriptors::send(self.socket.as_fd(), request.as_bytes(), descriptor.as_slice(), true) {
                // Descriptors on their way are counted for the whole user; the keeper is about to receive ours.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => std::thread::yield_now(),
                sent => return sent,
            }
        }
    }

    /// Forgets a record, if there is one. Otherwise as [`put`](Link::put).
    ///
    /// # Errors
    /// Of the socket.
    pub fn take(&self, key: Key) -> io::Result<()> {
        let request = Request::record(Ask::Take, key);
        descriptors::send(self.socket.as_fd(), request.as_bytes(), &[], true)
    }

    /// All records, in no order. Before anybody listens to events, blocking the thread.
    ///
    /// # Errors
    /// As [`ask`](Link::ask).
    pub fn records(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut cursor = 0;
        loop {
            match self.ask_blocking(Request::new(Ask::List, 0, cursor), &[]) {
                Ok((Notice { slot, a: number, b, c, tag, .. }, descriptor)) => {
                    let kind = u32::try_from(b).map_err(io::Error::other)?;
                    records.push(Record { key: Key { kind, slot, number }, tag, descriptor });
                    cursor = c;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(records),
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that this supervisor has taken over.
    ///
    /// # Errors
    /// Of the socket.
    pub fn serves(&self) -> io::Result<()> {
        descriptors::send(self.socket.as_fd(), Request::new(Ask::Serving, 0, 0).as_bytes(), &[], true)
    }

    /// Ends the node; the keeper kills this process too.
    pub fn end(&self, code: u8) {
        let request = Request::new(Ask::End, 0, code.into());
        let _ = descriptors::send(self.socket.as_fd(), request.as_bytes(), &[], true);
    }

    /// Asks for something before anybody listens to events, blocking the thread.
    ///
    /// # Errors
    /// As [`ask`](Link::ask).
    pub fn ask_blocking(&self, request: Request, given: &[BorrowedFd<'_>]) -> Reply {
        descriptors::send(self.socket.as_fd(), request.as_bytes(), given, true)?;
        loop {
            match self.receive(true)? {
                Said::Reply(reply) => return *reply,
                Said::Event(event) => self.early.borrow_mut().push_back(event),
            }
        }
    }

    /// The keeper's next event; replies that come before it reach whoever asked.
    ///
    /// # Errors
    /// Of the socket, or a record that makes no sense. (The keeper's death kills this process.)
    pub async fn event(&self) -> io::Result<Event> {
        if let Some(event) = self.early.borrow_mut().pop_front() {
            return Ok(event);
        }
        loop {
            match self.receive(false) {
                Ok(Said::Event(event)) => return Ok(event),
                Ok(Said::Reply(reply)) => {
                    let answer = self.asked.borrow_mut().pop_front();
                    let _ = answer.ok_or_else(|| io::Error::other("a reply to nothing"))?.give(*reply);
                    self.replied.happen();
                    // Whoever asked goes on first: what comes next may be the death of what it has got.
                    yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => poll_readable(&self.socket).await?,
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&self, wait: bool) -> io::Result<Said> {
        let mut bytes = [0; size_of::<Notice>()];
        let packet = descriptors::receive(self.socket.as_fd(), &mut bytes, wait)?;
        let notice = Notice::read_from_bytes(&bytes).ok().filter(|_| packet.length == bytes.len() && !packet.truncated);
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no notice from the keeper");
        let notice = notice.ok_or_else(wrong)?;
        let Notice { slot, a, b, .. } = notice;
        Ok(match notice.tell().ok_or_else(wrong)? {
            Tell::Exited => Said::Event(Event::Exited { slot, epoch: a, wait_status: b as u32 as i32 }),
            Tell::Fenced => Said::Event(Event::Fenced { slot, epoch: a }),
            Tell::Terminate => Said::Event(Event::Terminate),
            Tell::Done => Said::Reply(Box::new(Ok((notice, packet.descriptors.into_iter().next())))),
            Tell::Failed => Said::Reply(Box::new(Err(io::Error::from_raw_os_error(a as i32)))),
        })
    }
}
