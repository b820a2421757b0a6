//! The receiving half of one connection: what arrived and was not yet understood.
//!
//! * Holds at most [`CAPACITY`] bytes; the caller stops receiving when [`Input::room`] is zero, and a head that fills it all
//!   is answered with 431.
//! * Requests may be cut anywhere and may follow each other in one piece.
//! * The body of a request is read past when the *next* request is asked for: its answer does not wait for it.

use super::body::{Body, Drain};
use super::request::{MAX_HEAD_BYTES, Message, Parsed, parse};
use super::status::Status;

/// Most bytes that are held.
pub const CAPACITY: usize = 2 * MAX_HEAD_BYTES;
/// Longest body that is read past.
pub const MAX_DRAINED_BYTES: u64 = 64 << 10;
/// A head up to this long is parsed at each arrival, so that garbage is refused at once.
const EAGER_BYTES: usize = 1024;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive more.
    Wait(Phase),
    /// Answer this.
    Message(Box<Message>),
    /// Answer with this status and close.
    Broken(Status),
    /// The body of the last request is too long or malformed: close, the answer has been given.
    Abandon,
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
}

/// See the module's contract.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Bytes at the front that are done with.
    start: usize,
    /// Where in the peer's stream `bytes` begin.
    offset: u64,
    /// Where in the peer's stream the last request began that was looked at.
    request: u64,
    /// Bytes after `start` that were parsed in vain; more are needed than these.
    parsed: usize,
    body: Option<Drain>,
}

impl Input {
    /// An input that has received nothing.
    pub fn new() -> Input {
        Input::default()
    }

    /// How many bytes can be pushed.
    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.bytes.len() - self.start)
    }

    /// How many bytes wait to be understood.
    pub fn waiting(&self) -> usize {
        self.unread().len()
    }

    /// Nothing has arrived yet, and what will comes from this position of the peer's stream on.
    pub fn begin_at(&mut self, position: u64) {
        self.offset = position;
        self.request = position;
    }

    /// Where in the peer's stream the request begins that the last step was about.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// Takes what arrived. Bytes beyond [`Self::room`] are kept too; the caller's promise is only about memory.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.offset += self.start as u64;
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Makes the next step of what has arrived.
    pub fn next_step(&mut self) -> Step {
        if let Some(mut drain) = self.body.take() {
            match drain.feed(self.unread()) {
                Ok(used) => self.start += used,
                Err(_) => return Step::Abandon,
            }
            if !drain.is_done() {
                self.body = Some(drain);
                return Step::Wait(Phase::Body);
            }
        }
        // RFC 9112 section 2.2: empty lines before a request are ignored.
        self.start += self.unread().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.request = self.offset + self.start as u64;
        if self.unread().is_empty() {
            return Step::Wait(Phase::Idle);
        }
        // A long head that arrives byte by byte is not parsed again for each of them, only for each line.
        let news = self.unread().get(self.parsed..).unwrap_or_default();
        if self.parsed > EAGER_BYTES && !news.contains(&b'\n') && self.unread().len() < MAX_HEAD_BYTES {
            return Step::Wait(Phase::Head);
        }
        match parse(self.unread()) {
            Parsed::Partial => {
                self.parsed = self.unread().len();
                Step::Wait(Phase::Head)
            }
            Parsed::Complete { message, consumed } => {
                self.start += consumed;
                self.parsed = 0;
                self.begin_body(message)
            }
            Parsed::Broken(status) => Step::Broken(status),
        }
    }

    fn begin_body(&mut self, mut message: Box<Message>) -> Step {
        if message.body != Body::None {
            match Drain::new(message.body, MAX_DRAINED_BYTES) {
                Ok(drain) => self.body = Some(drain),
                Err(_) => message.after = super::request::After::Close,
            }
        }
        Step::Message(message)
    }

    fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::After;
    use super::*;
    use proptest::prelude::*;

    /// The paths and refusals that a stream of bytes, cut into pieces, leads to; then how it ended.
    fn trace(stream: &[u8], cut: usize) -> Vec<String> {
        let mut input = Input::new();
        let mut seen = Vec::new();
        for piece in stream.chunks(cut.max(1)) {
            input.push(piece);
            loop {
                match input.next_step() {
                    Step::Wait(_) => break,
                    Step::Message(message) => {
                        seen.push(match message.ask {
                            Ok(ask) => String::from_utf8_lossy(ask.path.as_bytes()).into_owned(),
                            Err(status) => status.code().to_string(),
                        });
                        if message.after == After::Close {
                            seen.push("close".to_owned());
                            return seen;
                        }
                    }
                    Step::Broken(status) => {
                        seen.push(format!("broken {}", status.code()));
                        return seen;
                    }
                    Step::Abandon => {
                        seen.push("abandon".to_owned());
                        return seen;
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn pipelined_requests_come_out_in_order_however_they_are_cut() {
        let stream = b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789\
            GET /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHEAD /d HTTP/1.1\nHost: x\n\nGET /e HTTP/1.0\r\n\r\n";
        for cut in 1..stream.len() {
            assert_eq!(trace(stream, cut), ["a", "405", "c", "d", "e", "close"], "cut {cut}");
        }
    }

    #[test]
    fn a_megabyte_of_header_is_refused_as_soon_as_it_exceeds_the_limit() {
        let mut input = Input::new();
        input.push(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: ");
        let mut pushed = 0;
        let status = loop {
            match input.next_step() {
                Step::Wait(phase) => assert_eq!(phase, Phase::Head),
                Step::Broken(status) => break status,
                other => panic!("{other:?}"),
            }
            assert!(pushed < 1 << 20);
            input.push(&[b'a'; 1000]);
            pushed += 1000;
        };
        assert_eq!(status, Status::HeaderFieldsTooLarge);
        assert!(pushed <= CAPACITY);
    }

    #[test]
    fn a_body_that_is_too_long_closes_the_connection() {
        assert_eq!(trace(b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", 4096), ["a", "close"]);
        let mut endless = b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        endless.extend(std::iter::repeat_n(b"1\r\nx\r\n".as_slice(), 20_000).flatten());
        assert_eq!(trace(&endless, 4096), ["a", "abandon"]);
    }

    #[test]
    fn waiting_says_for_what() {
        let mut input = Input::new();
        assert_eq!(input.next_step(), Step::Wait(Phase::Idle));
        input.push(b"\r\n");
        assert_eq!(input.next_step(), Step::Wait(Phase::Idle));
        input.push(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n");
        assert_eq!(input.next_step(), Step::Wait(Phase::Head));
        input.push(b"\r\n");
        assert!(matches!(input.next_step(), Step::Message(_)));
        assert_eq!(input.next_step(), Step::Wait(Phase::Body));
        input.push(b"ab");
        assert_eq!(input.next_step(), Step::Wait(Phase::Idle));
        assert_eq!(input.room(), CAPACITY);
    }

    proptest! {
        #[test]
        fn no_stream_makes_it_panic_or_depend_on_its_cuts(stream in proptest::collection::vec(any::<u8>(), 0..600), cut in 1usize..50) {
            let whole = trace(&stream, stream.len().max(1));
            let pieces = trace(&stream, cut);
            prop_assert_eq!(whole, pieces);
        }
    }
}
