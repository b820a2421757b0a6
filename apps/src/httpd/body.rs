//! The body that a request announces: GET and HEAD have no use for one, so it is read past, within a limit.

/// How the bytes after a request head are framed (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The next request follows at once.
    None,
    /// So many bytes, then the next request.
    Length(u64),
    /// Chunks, the last one empty, and a trailer section.
    Chunked,
}

/// Reads past one body.
#[derive(Debug)]
pub struct Drain {
    state: State,
    /// Bytes, framing included, that may still come.
    allowance: u64,
}

#[derive(Debug)]
enum State {
    Plain { left: u64 },
    Size { value: u64, digits: u32, extension: bool },
    Data { left: u64 },
    DataEnd,
    Trailer { line_is_empty: bool },
    Done,
}

/// Why a body cannot be read past; the connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainError {
    /// It is longer than the server cares to read.
    TooLong,
    /// The chunks are malformed, so nobody knows where it ends.
    Malformed,
}

impl Drain {
    /// Starts to read past `body`, of at most `allowance` bytes.
    ///
    /// # Errors
    /// `TooLong` when its announced length alone exceeds the allowance.
    pub fn new(body: Body, allowance: u64) -> Result<Drain, DrainError> {
        let state = match body {
            Body::None => State::Done,
            Body::Length(left) if left > allowance => return Err(DrainError::TooLong),
            Body::Length(left) => State::Plain { left },
            Body::Chunked => State::Size { value: 0, digits: 0, extension: false },
        };
        Ok(Drain { state, allowance })
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Plain { left: 0 })
    }

    /// Reads from `bytes`; says how many belonged to the body.
    ///
    /// # Errors
    /// See [`DrainError`]; do not call again then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, DrainError> {
        let mut used = 0;
        while !self.is_done() {
            let rest = bytes.get(used..).unwrap_or_default();
            let Some(&byte) = rest.first() else { break };
            let step = match &mut self.state {
                State::Plain { left } | State::Data { left } => {
                    let step = (*left).min(rest.len() as u64);
                    *left -= step;
                    step
                }
                _ => 1,
            };
            self.allowance = self.allowance.checked_sub(step).ok_or(DrainError::TooLong)?;
            // `step` is at most `rest.len()`.
            used += step as usize;
            self.advance(byte)?;
        }
        Ok(used)
    }

    /// Takes the framing byte, or leaves a chunk whose data has ended.
    fn advance(&mut self, byte: u8) -> Result<(), DrainError> {
        self.state = match self.state {
            State::Data { left: 0 } => State::DataEnd,
            State::Size { digits: 0, .. } if !byte.is_ascii_hexdigit() => {
                return Err(DrainError::Malformed);
            }
            State::Size { value: 0, .. } if byte == b'\n' => State::Trailer { line_is_empty: true },
            State::Size { value, .. } if byte == b'\n' => State::Data { left: value },
            State::Size { value, digits, extension } => match char::from(byte).to_digit(16) {
                Some(_) if extension => return Ok(()),
                // Fifteen digits cannot overflow.
                Some(digit) if digits < 15 => {
                    State::Size { value: value << 4 | u64::from(digit), digits: digits + 1, extension }
                }
                Some(_) => return Err(DrainError::Malformed),
                None if extension || matches!(byte, b';' | b' ' | b'\t' | b'\r') => {
                    State::Size { value, digits, extension: true }
                }
                None => return Err(DrainError::Malformed),
            },
            State::DataEnd => match byte {
                b'\r' => State::DataEnd,
                b'\n' => State::Size { value: 0, digits: 0, extension: false },
                _ => return Err(DrainError::Malformed),
            },
            State::Trailer { line_is_empty } => match byte {
                b'\n' if line_is_empty => State::Done,
                b'\n' => State::Trailer { line_is_empty: true },
                b'\r' => State::Trailer { line_is_empty },
                _ => State::Trailer { line_is_empty: false },
            },
            State::Plain { .. } | State::Data { .. } | State::Done => return Ok(()),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drained(body: Body, bytes: &[u8]) -> Result<(usize, bool), DrainError> {
        let mut drain = Drain::new(body, 100)?;
        let used = drain.feed(bytes)?;
        Ok((used, drain.is_done()))
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        for (body, bytes, expected) in [
            (Body::None, "GET", Ok((0, true))),
            (Body::Length(0), "GET", Ok((0, true))),
            (Body::Length(3), "abcGET", Ok((3, true))),
            (Body::Length(3), "ab", Ok((2, false))),
            (Body::Length(101), "", Err(DrainError::TooLong)),
            (Body::Chunked, "0\r\n\r\nGET", Ok((5, true))),
            (Body::Chunked, "3\r\nabc\r\n0\r\n\r\nGET", Ok((13, true))),
            (Body::Chunked, "A;x=1\r\n0123456789\r\n0\r\na: b\r\n\r\nGET", Ok((30, true))),
            (Body::Chunked, "3\r\nabc\r\n", Ok((8, false))),
            (Body::Chunked, "3\r\nabcX", Err(DrainError::Malformed)),
            (Body::Chunked, "x\r\n", Err(DrainError::Malformed)),
            (Body::Chunked, "\r\n", Err(DrainError::Malformed)),
            (Body::Chunked, "3z\r\n", Err(DrainError::Malformed)),
            (Body::Chunked, "ffffffffffffffff\r\n", Err(DrainError::Malformed)),
        ] {
            assert_eq!(drained(body, bytes.as_bytes()), expected, "{body:?} {bytes:?}");
        }
    }

    #[test]
    fn chunks_without_end_exhaust_the_allowance() {
        assert_eq!(drained(Body::Chunked, "1\r\nx\r\n".repeat(20).as_bytes()), Err(DrainError::TooLong));
        assert_eq!(drained(Body::Chunked, format!("1;{}", "x".repeat(200)).as_bytes()), Err(DrainError::TooLong));
        assert_eq!(drained(Body::Chunked, format!("ffff\r\n{}", "x".repeat(200)).as_bytes()), Err(DrainError::TooLong));
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_a_body_ends_at_the_same_place(chunks in proptest::collection::vec(1usize..20, 0..4), cut in 1usize..7) {
            let mut bytes = Vec::new();
            for size in &chunks {
                bytes.extend_from_slice(format!("{size:x}\r\n{}\r\n", "d".repeat(*size)).as_bytes());
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let end = bytes.len();
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut drain = Drain::new(Body::Chunked, 1000).unwrap();
            let mut used = 0;
            for piece in bytes.chunks(cut) {
                let step = drain.feed(piece).unwrap();
                used += step;
                if step < piece.len() {
                    break;
                }
            }
            prop_assert!(drain.is_done());
            prop_assert_eq!(used, end);
        }

        #[test]
        fn no_bytes_make_it_panic_or_exceed_its_allowance(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(used) = Drain::new(Body::Chunked, 100).unwrap().feed(&bytes) {
                prop_assert!(used <= 100 && used <= bytes.len());
            }
        }
    }
}
