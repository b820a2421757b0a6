//! One end of a control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{MAX_MESSAGE, Message};
use crate::runtime::io::{self as runtime_io, File};
use crate::sys::descriptors::{self, Packet};

/// One end of a control socket: sends and receives [`Message`]s with their descriptors.
#[derive(Debug)]
pub struct Channel {
    socket: File,
}

/// Why a message did not arrive or did not leave. Any of these ends the connection.
#[derive(Debug)]
pub enum ChannelError {
    /// The peer closed its end or died.
    Closed,
    /// The peer sent what no version of us sends. Says what.
    Protocol(String),
    /// The peer's queue is full, for now. Only from [`Channel::send`].
    Full,
    /// The socket failed.
    Io(io::Error),
}

impl Channel {
    /// Takes over a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Channel {
        Channel { socket: socket.into() }
    }

    /// Waits for the next message, on this thread's runtime.
    ///
    /// # Errors
    /// As [`receive`](Channel::receive).
    pub async fn next<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        loop {
            if let Some(message) = self.receive()? {
                return Ok(message);
            }
            runtime_io::poll_readable(&self.socket).await.map_err(ChannelError::Io)?;
        }
    }

    /// Waits for the next message as [`next`](Channel::next), and leaves it in the socket until it is [`done`](Channel::done):
    /// whoever takes the socket over from a reader that dies meanwhile finds it again.
    ///
    /// # Errors
    /// As [`receive`](Channel::receive).
    pub async fn look<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        loop {
            match self.receive_with(descriptors::peek) {
                Err(ChannelError::Full) => {}
                looked => return looked,
            }
            runtime_io::poll_readable(&self.socket).await.map_err(ChannelError::Io)?;
        }
    }

    /// Takes the message that was looked at out of the socket.
    pub fn done(&self) {
        // It is there, and nothing of it is of interest any more. Copies of its descriptors are closed.
        let _ = descriptors::receive(self.socket.as_fd(), &mut [], false);
    }

    /// Waits until the peer's queue may have room, or the peer is gone.
    ///
    /// # Errors
    /// Of the socket.
    pub async fn writable(&self) -> Result<(), ChannelError> {
        runtime_io::poll_writable(&self.socket).await.map_err(ChannelError::Io)
    }

    /// Ends the connection for both ends, whoever else has the socket open or waits on it.
    pub fn shut_down(&self) {
        // It fails only if the connection has ended already.
        let _ = nix::sys::socket::shutdown(self.socket.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// Sends a message. Never blocks.
    ///
    /// # Errors
    /// [`ChannelError::Full`] if the peer's queue is full: nothing was sent.
    ///
    /// # Panics
    /// If the number of descriptors is not the message's, or the message is longer than [`MAX_MESSAGE`]: our bug.
    pub fn send<M: Message>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_flags(message, descriptors, false)
    }

    /// The same, blocking while the peer's queue is full.
    ///
    /// # Errors
    /// As [`send`](Channel::send), except `Full`.
    pub fn send_blocking<M: Message>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_flags(message, descriptors, true)
    }

    fn send_flags<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>], wait: bool) -> Result<(), ChannelError> {
        send(self.socket.as_fd(), message, fds, wait)
    }

    /// Takes the next message, if one has arrived. Never blocks.
    ///
    /// # Errors
    /// See [`ChannelError`]; after an error the connection is of no further use.
    pub fn receive<M: Message>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, ChannelError> {
        match self.receive_flags(false) {
            Err(ChannelError::Full) => Ok(None),
            Err(error) => Err(error),
            Ok(message) => Ok(Some(message)),
        }
    }

    /// Waits for the next message, blocking the thread. Only for the first words of a connection.
    ///
    /// # Errors
    /// As [`receive`](Channel::receive).
    pub fn receive_blocking<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.receive_flags(true)
    }

    fn receive_flags<M: Message>(&self, wait: bool) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.receive_with(|socket, buffer| descriptors::receive(socket, buffer, wait))
    }

    fn receive_with<M: Message>(
        &self,
        receive: impl Fn(BorrowedFd<'_>, &mut [u8]) -> io::Result<Packet>,
    ) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        // One byte more than the longest message, so that a longer one shows even without MSG_TRUNC.
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let mut packet = receive(self.socket.as_fd(), &mut buffer);
        if packet.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ECONNRESET)) {
            // Said once, if the peer died and had left something unread. What it had said before is still here.
            packet = receive(self.socket.as_fd(), &mut buffer);
        }
        let packet = packet.map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN) => ChannelError::Full,
            Some(libc::ECONNRESET) => ChannelError::Closed,
            _ => ChannelError::Io(error),
        })?;
        if packet.length == 0 {
            return Err(ChannelError::Closed);
        }
        if packet.truncated || packet.length > MAX_MESSAGE {
            return Err(ChannelError::Protocol("a packet that was cut short".into()));
        }
        let bytes = buffer.get(..packet.length).unwrap_or_default();
        let message: M = serde_json::from_slice(bytes)
            .map_err(|error| ChannelError::Protocol(format!("undecodable message: {error}")))?;
        if !message.descriptors().contains(&packet.descriptors.len()) {
            return Err(ChannelError::Protocol(format!("a message with {} descriptors", packet.descriptors.len())));
        }
        Ok((message, packet.descriptors))
    }
}

/// Sends a message over the socket of some channel of this process, whichever thread has that. Never blocks.
///
/// # Errors
/// As [`Channel::send`].
pub(crate) fn say<M: Message>(socket: BorrowedFd<'_>, message: &M) -> Result<(), ChannelError> {
    send(socket, message, &[], false)
}

fn send<M: Message>(
    socket: BorrowedFd<'_>,
    message: &M,
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<(), ChannelError> {
    assert!(message.descriptors().contains(&fds.len()), "descriptors as documented");
    let bytes = serde_json::to_vec(message).expect("messages have string keys and no failing serializers");
    if bytes.len() > MAX_MESSAGE {
        return Err(ChannelError::Protocol(format!("own message of {} bytes", bytes.len())));
    }
    match descriptors::send(socket, &bytes, fds, wait) {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            // The last two: descriptors on their way and buffers are counted for the whole user, or machine.
            Some(libc::EAGAIN | libc::ETOOMANYREFS | libc::ENOBUFS) => ChannelError::Full,
            Some(libc::EPIPE | libc::ECONNRESET) => ChannelError::Closed,
            _ => ChannelError::Io(error),
        }),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChannelError::Closed => f.write_str("the control socket was closed"),
            ChannelError::Protocol(what) => write!(f, "protocol violation on the control socket: {what}"),
            ChannelError::Full => f.write_str("the control socket is full"),
            ChannelError::Io(error) => write!(f, "control socket: {error}"),
        }
    }
}

impl std::error::Error for ChannelError {}

#[cfg(test)]
mod tests {
    use super::super::{CounterValues, ToComponent, ToSupervisor};
    use super::*;
    use crate::RegionId;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (Channel, Channel) {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[test]
    fn messages_arrive_in_order_with_their_descriptors() {
        let (component, supervisor) = pair();
        assert!(supervisor.receive::<ToSupervisor>().unwrap().is_none());
        let file = std::fs::File::open("/dev/null").unwrap();
        component.send(&ToSupervisor::Region { region: RegionId(7), landed: false }, &[file.as_fd()]).unwrap();
        let counters = CounterValues { leased: 1, verified: 2, copied: u64::MAX };
        component.send(&ToSupervisor::Counters { request: 9, counters }, &[]).unwrap();
        let (first, descriptors) = supervisor.receive::<ToSupervisor>().unwrap().unwrap();
        assert!(matches!(first, ToSupervisor::Region { region: RegionId(7), landed: false }));
        assert_eq!(descriptors.len(), 1);
        let (second, descriptors) = supervisor.receive::<ToSupervisor>().unwrap().unwrap();
        assert!(matches!(second, ToSupervisor::Counters { request: 9, counters: c } if c == counters));
        assert!(descriptors.is_empty());
        drop(component);
        assert!(matches!(supervisor.receive::<ToSupervisor>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn the_last_words_of_the_dead_are_heard_though_it_had_not_read_everything() {
        let (component, supervisor) = pair();
        supervisor.send(&ToComponent::Stop, &[]).unwrap();
        component.send(&ToSupervisor::Failed { reason: "the end".into() }, &[]).unwrap();
        drop(component);
        let (last, _) = supervisor.receive::<ToSupervisor>().unwrap().unwrap();
        assert!(matches!(last, ToSupervisor::Failed { reason } if reason == "the end"));
        assert!(matches!(supervisor.receive::<ToSupervisor>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn a_message_that_was_only_looked_at_is_found_by_the_next_reader() {
        use crate::runtime::{Options, Runtime};
        let (component, supervisor) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        component.send(&ToSupervisor::Region { region: RegionId(7), landed: false }, &[writer.as_fd()]).unwrap();
        component.send(&ToSupervisor::Ready, &[]).unwrap();
        drop(writer);
        Runtime::new(Options::default()).unwrap().block_on(async {
            for _ in 0..2 {
                let (first, given) = supervisor.look::<ToSupervisor>().await.unwrap();
                assert!(
                    matches!(first, ToSupervisor::Region { region: RegionId(7), landed: false }) && given.len() == 1
                );
            }
            supervisor.done();
            // End of file: with the message went the last copy of its descriptor.
            assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
            assert!(matches!(supervisor.look().await.unwrap(), (ToSupervisor::Ready, _)));
            supervisor.done();
            drop(component);
            assert!(matches!(supervisor.look::<ToSupervisor>().await, Err(ChannelError::Closed)));
        });
    }

    #[test]
    fn garbage_ends_the_connection() {
        let cases: [&[u8]; 4] = [b"\xff\x00", b"{}", b"{\"message\":\"no-such\"}", b"{\"message\":\"serving\"}"];
        for bytes in cases {
            let (peer, channel) = pair();
            descriptors::send(peer.as_fd(), bytes, &[], false).unwrap();
            assert!(matches!(channel.receive::<ToSupervisor>(), Err(ChannelError::Protocol(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_wrong_number_of_descriptors_ends_the_connection_and_leaks_none() {
        let (peer, channel) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let bytes = serde_json::to_vec(&ToComponent::Stop).unwrap();
        descriptors::send(peer.as_fd(), &bytes, &[writer.as_fd()], false).unwrap();
        drop(writer);
        assert!(matches!(channel.receive::<ToComponent>(), Err(ChannelError::Protocol(_))));
        // End of file: the received copy of the write end is closed.
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);

        let bytes = serde_json::to_vec(&ToSupervisor::Region { region: RegionId(1), landed: false }).unwrap();
        descriptors::send(peer.as_fd(), &bytes, &[], false).unwrap();
        assert!(matches!(channel.receive::<ToSupervisor>(), Err(ChannelError::Protocol(_))));
    }

    #[test]
    fn more_descriptors_than_any_message_has_are_refused_and_closed() {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let (peer, channel) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let numbers = [writer.as_raw_fd(); 40];
        let bytes = serde_json::to_vec(&ToSupervisor::Region { region: RegionId(1), landed: false }).unwrap();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let parts = [io::IoSlice::new(&bytes)];
        sendmsg::<()>(peer.as_fd().as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        assert!(matches!(channel.receive::<ToSupervisor>(), Err(ChannelError::Protocol(_))));
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_peer_that_does_not_read_is_noticed() {
        let (channel, _peer) = pair();
        let error = (0..100_000).find_map(|_| channel.send(&ToComponent::Stop, &[]).err());
        assert!(matches!(error, Some(ChannelError::Full)));
    }
}
