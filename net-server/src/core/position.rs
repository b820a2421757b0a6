//! Where a connection stands, by what its socket says.
//!
//! A process that is killed cannot say how much of what it wanted to send the kernel took, nor how much it had received. The
//! socket can: TCP counts what was acknowledged and what came, and knows what is queued. No operation of a dead process's
//! ring touches the socket once the process was reaped.
//!
//! ```text
//! bytes taken from us   = acknowledged + queued unacknowledged  - 1 if our FIN is among them
//! bytes taken out of it = received     - queued unread          - 1 if the peer's FIN is among them
//! ```
//!
//! The handshake counts on neither side of an accepted connection. (Measured on Linux 6.18, in every state below.)

/// What a socket says, all of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// `tcpi_state`.
    pub state: u8,
    /// `tcpi_bytes_acked`.
    pub acknowledged: u64,
    /// `tcpi_bytes_received`.
    pub received: u64,
    /// `SIOCOUTQ`.
    pub unacknowledged: u64,
    /// `SIOCINQ`.
    pub unread: u64,
}

/// States of a TCP connection, as the kernel numbers them (include/net/tcp_states.h).
mod tcp {
    pub const ESTABLISHED: u8 = 1;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const CLOSING: u8 = 11;
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes of the stream that the kernel has taken from us.
    pub sent: u64,
    /// Bytes of the peer's stream that were taken out of the socket.
    pub taken: u64,
    /// Bytes that the peer has.
    pub delivered: u64,
    /// Our side is shut.
    pub shut: bool,
}

impl SocketState {
    /// Where the connection stands. `None`: it is over, in order or not.
    pub fn position(&self) -> Option<Position> {
        let (shut, ended) = match self.state {
            tcp::ESTABLISHED => (false, false),
            tcp::CLOSE_WAIT => (false, true),
            tcp::FIN_WAIT1 | tcp::FIN_WAIT2 => (true, false),
            tcp::LAST_ACK | tcp::CLOSING => (true, true),
            _ => return None,
        };
        let sent = self.acknowledged.checked_add(self.unacknowledged)?.checked_sub(shut.into())?;
        let taken = self.received.checked_sub(self.unread)?.checked_sub(ended.into())?;
        Some(Position { sent, taken, delivered: self.acknowledged.min(sent), shut })
    }

    /// Of a connection that is over: whether the peer has acknowledged `end` bytes.
    pub fn has_acknowledged(&self, end: u64) -> bool {
        self.acknowledged >= end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(state: u8, acknowledged: u64, unacknowledged: u64, received: u64, unread: u64) -> Option<Position> {
        SocketState { state, acknowledged, received, unacknowledged, unread }.position()
    }

    #[test]
    fn a_fin_is_no_byte() {
        let at = |sent, taken, delivered, shut| Some(Position { sent, taken, delivered, shut });
        assert_eq!(state(tcp::ESTABLISHED, 0, 0, 0, 0), at(0, 0, 0, false));
        assert_eq!(state(tcp::ESTABLISHED, 32_768, 3_876_512, 100, 60), at(3_909_280, 40, 32_768, false));
        assert_eq!(state(tcp::CLOSE_WAIT, 1000, 0, 101, 60), at(1000, 40, 1000, false));
        assert_eq!(state(tcp::FIN_WAIT1, 32_768, 3_876_513, 0, 0), at(3_909_280, 0, 32_768, true));
        assert_eq!(state(tcp::FIN_WAIT2, 11, 0, 0, 0), at(10, 0, 10, true));
        assert_eq!(state(tcp::CLOSING, 10, 1, 1, 0), at(10, 0, 10, true));
        assert_eq!(state(tcp::LAST_ACK, 10, 1, 101, 0), at(10, 100, 10, true));
    }

    #[test]
    fn a_connection_that_is_over_stands_nowhere() {
        for over in [0, 2, 3, 6, 7, 10, 12, 255] {
            assert_eq!(state(over, 1, 1, 1, 1), None, "{over}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_no_position() {
        assert_eq!(state(tcp::ESTABLISHED, u64::MAX, 1, 0, 0), None);
        assert_eq!(state(tcp::FIN_WAIT2, 0, 0, 0, 0), None);
        assert_eq!(state(tcp::ESTABLISHED, 0, 0, 5, 6), None);
        assert_eq!(state(tcp::CLOSE_WAIT, 0, 0, 0, 0), None);
    }
}
