//! What is to be said over a control socket and does not fit into it yet.
//!
//! - Sending never blocks and loses nothing: what the peer has no room for waits here, in order, for [`Outbox::write`].
//! - It has no bound of its own. Whoever may make it long by what he does must be made to wait by its owner, who sees
//!   [`Outbox::waiting`] and can wait for [`Outbox::emptied`]; a peer that does not read is never by itself a reason to end it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::{Channel, ChannelError, Message};
use crate::runtime::{self, Changes};

/// Before the next try when the socket has room and the kernel still has none: descriptors on their way are counted too.
const PAUSE: Duration = Duration::from_millis(10);

/// The sending half of a control socket.
pub struct Outbox<M> {
    channel: Rc<Channel>,
    queue: RefCell<VecDeque<(M, Vec<OwnedFd>)>>,
    closed: Cell<bool>,
    changes: Changes,
}

impl<M: Message + Clone> Outbox<M> {
    /// For this socket; whoever makes it spawns [`write`](Outbox::write).
    pub fn new(channel: Rc<Channel>) -> Outbox<M> {
        Outbox { channel, queue: RefCell::default(), closed: Cell::new(false), changes: Changes::default() }
    }

    /// Sends a message, now or when there is room. Never blocks.
    ///
    /// # Errors
    /// Never [`ChannelError::Full`]. After an error nothing more will reach the peer.
    pub fn send(&self, message: &M, given: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if self.closed.get() {
            return Err(ChannelError::Closed);
        }
        if self.queue.borrow().is_empty() {
            match self.channel.send(message, given) {
                Err(ChannelError::Full) => {}
                sent => return sent,
            }
        }
        let given: Result<Vec<OwnedFd>, _> = given.iter().map(|fd| fd.try_clone_to_owned()).collect();
        self.queue.borrow_mut().push_back((message.clone(), given.map_err(ChannelError::Io)?));
        self.changes.happen();
        Ok(())
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Waits until nothing waits, or nothing more can be sent.
    pub async fn emptied(&self) {
        loop {
            let next = self.changes.next();
            if self.closed.get() || self.queue.borrow().is_empty() {
                return;
            }
            next.await;
        }
    }

    /// Sends what waits as the peer makes room, until the outbox is closed or the socket has ended.
    pub async fn write(self: Rc<Self>) {
        loop {
            let next = self.changes.next();
            if self.closed.get() {
                return;
            }
            if self.queue.borrow().is_empty() {
                next.await;
                continue;
            }
            if self.channel.writable().await.is_err() {
                return self.close();
            }
            match self.send_waiting(Channel::send) {
                Ok(0) => runtime::sleep(PAUSE).await,
                Ok(_) => {}
                Err(_) => return self.close(),
            }
        }
    }

    /// Sends everything that waits, blocking the thread: before the process ends.
    ///
    /// # Errors
    /// Of the socket.
    pub fn write_blocking(&self) -> Result<(), ChannelError> {
        self.send_waiting(Channel::send_blocking).map(drop)
    }

    /// What waits is dropped, and nothing more is taken.
    pub fn close(&self) {
        self.closed.set(true);
        self.queue.take();
        self.changes.happen();
    }

    /// How many were sent.
    fn send_waiting(
        &self,
        send: impl Fn(&Channel, &M, &[BorrowedFd<'_>]) -> Result<(), ChannelError>,
    ) -> Result<usize, ChannelError> {
        use std::os::fd::AsFd;
        let mut sent = 0;
        loop {
            let first = self.queue.borrow_mut().pop_front();
            let Some((message, given)) = first else { break };
            let fds: Vec<BorrowedFd<'_>> = given.iter().map(AsFd::as_fd).collect();
            match send(&self.channel, &message, &fds) {
                Ok(()) => sent += 1,
                Err(ChannelError::Full) => {
                    drop(fds);
                    self.queue.borrow_mut().push_front((message, given));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if self.queue.borrow().is_empty() {
            self.changes.happen();
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ToComponent, ToSupervisor};
    use super::*;
    use crate::RegionId;
    use crate::runtime::{Options, Runtime, spawn};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    const MANY: u64 = 5000;

    fn pair() -> (Rc<Channel>, Channel) {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Rc::new(Channel::new(a)), Channel::new(b))
    }

    #[test]
    fn a_peer_that_does_not_read_gets_everything_in_order_when_it_does() {
        let (ours, peer) = pair();
        let outbox = Rc::new(Outbox::new(ours));
        let file = std::fs::File::open("/dev/null").unwrap();
        Runtime::new(Options::default()).unwrap().block_on(async {
            spawn(outbox.clone().write());
            for region in 0..MANY {
                outbox
                    .send(&ToSupervisor::Region { region: RegionId(region), landed: false }, &[file.as_fd()])
                    .unwrap();
            }
            assert!(outbox.waiting() > 0, "more than a socket takes");
            for expected in 0..MANY {
                let (message, given) = peer.next::<ToSupervisor>().await.unwrap();
                assert!(matches!(message, ToSupervisor::Region { region, .. } if region.get() == expected));
                assert_eq!(given.len(), 1);
            }
            outbox.emptied().await;
            assert_eq!(outbox.waiting(), 0);
        });
    }

    #[test]
    fn whoever_waits_for_room_hears_that_the_peer_is_gone() {
        let (ours, peer) = pair();
        let outbox = Rc::new(Outbox::new(ours));
        Runtime::new(Options::default()).unwrap().block_on(async {
            spawn(outbox.clone().write());
            (0..MANY).for_each(|_| outbox.send(&ToComponent::Stop, &[]).unwrap());
            drop(peer);
            outbox.emptied().await;
            assert!(matches!(outbox.send(&ToComponent::Stop, &[]), Err(ChannelError::Closed)));
        });
    }
}
