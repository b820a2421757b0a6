//! Request heads (RFC 9112): from the bytes of a connection to a [`Message`].
//!
//! * [`parse`] looks at a prefix of what arrived and either needs more, has one whole message, or knows that the
//!   connection cannot go on.
//! * Whatever makes it unclear where the next request starts (a bad head, two different lengths, an unknown transfer
//!   coding) breaks the connection. Everything else is an answerable message.

use super::body::Body;
use super::status::Status;
use super::target::{self, Path};

/// Longest request head that is read.
pub const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most header fields that are read.
pub const MAX_HEADERS: usize = 100;
/// Longest request target.
const MAX_TARGET_BYTES: usize = 8 << 10;

/// What became of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A head that has not ended yet.
    Partial,
    /// One message; its head took `consumed` bytes.
    Complete {
        /// The message.
        message: Box<Message>,
        /// Length of the head, empty line included.
        consumed: usize,
    },
    /// Answer with this status and close.
    Broken(Status),
}

/// A well-framed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it asks for, or the status that refuses it.
    pub ask: Result<Ask, Status>,
    /// HEAD: no answer to it has a body.
    pub head_only: bool,
    /// What becomes of the connection after the answer.
    pub after: After,
    /// What follows the head.
    pub body: Body,
}

/// A question that can be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// The file.
    pub path: Path,
    /// `Range`, of a GET that has exactly one such field.
    pub range: Option<Vec<u8>>,
    /// `If-Range`.
    pub if_range: Option<Vec<u8>>,
    /// `If-None-Match`, several fields joined.
    pub if_none_match: Option<Vec<u8>>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<Vec<u8>>,
}

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It closes; the answer says so.
    Close,
    /// It stays open, as HTTP/1.1 does by default.
    KeepAlive,
    /// It stays open, which an HTTP/1.0 client must be told.
    KeepAliveSaid,
}

/// Reads one request head at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut fields);
    let consumed = match head.parse(bytes) {
        Ok(httparse::Status::Complete(consumed)) if consumed > MAX_HEAD_BYTES => {
            return Parsed::Broken(Status::HeaderFieldsTooLarge);
        }
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Parsed::Partial,
        Ok(httparse::Status::Partial) if head.version.is_none() => {
            return Parsed::Broken(Status::UriTooLong);
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Broken(Status::HeaderFieldsTooLarge);
        }
        Err(httparse::Error::Version) => return Parsed::Broken(version_status(bytes)),
        Err(_) => return Parsed::Broken(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Parsed::Broken(Status::BadRequest);
    };
    let fields = match Fields::collect(head.headers) {
        Ok(fields) => fields,
        Err(status) => return Parsed::Broken(status),
    };
    match frame(&fields, minor) {
        Ok((after, body)) => {
            let ask = ask(method, target, minor, fields);
            Parsed::Complete { message: Box::new(Message { ask, head_only: method == "HEAD", after, body }), consumed }
        }
        Err(status) => Parsed::Broken(status),
    }
}

/// `HTTP/2.0` is another version, `HTPP/1.1` no HTTP at all.
fn version_status(bytes: &[u8]) -> Status {
    let line = bytes.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let version = line.trim_ascii_end().rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    match version.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => Status::VersionNotSupported,
        Some([major]) if major.is_ascii_digit() => Status::VersionNotSupported,
        _ => Status::BadRequest,
    }
}

/// The header fields that matter here.
#[derive(Default)]
struct Fields {
    hosts: usize,
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
    transfer_encoding: Option<Vec<u8>>,
    expects: bool,
    ranges: usize,
    ask: Ask,
}

impl Fields {
    fn collect(headers: &[httparse::Header<'_>]) -> Result<Fields, Status> {
        let mut fields = Fields::default();
        for header in headers {
            let value = header.value.trim_ascii();
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("host") {
                fields.hosts += 1;
            } else if is("connection") {
                for option in value.split(|&byte| byte == b',') {
                    fields.close |= option.trim_ascii().eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= option.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("content-length") {
                let length = length(value).ok_or(Status::BadRequest)?;
                if fields.length.is_some_and(|other| other != length) {
                    return Err(Status::BadRequest);
                }
                fields.length = Some(length);
            } else if is("transfer-encoding") {
                join(&mut fields.transfer_encoding, value);
            } else if is("expect") {
                fields.expects = true;
            } else if is("range") {
                fields.ranges += 1;
                fields.ask.range = Some(value.to_vec());
            } else if is("if-range") {
                fields.ask.if_range = Some(value.to_vec());
            } else if is("if-none-match") {
                join(&mut fields.ask.if_none_match, value);
            } else if is("if-modified-since") {
                fields.ask.if_modified_since = Some(value.to_vec());
            }
        }
        Ok(fields)
    }
}

/// Appends a field's value to those of the same name before it, as a list.
fn join(list: &mut Option<Vec<u8>>, value: &[u8]) {
    match list {
        Some(list) => {
            list.extend_from_slice(b", ");
            list.extend_from_slice(value);
        }
        None => *list = Some(value.to_vec()),
    }
}

/// Digits only: a sign or a list is how requests are smuggled.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Where the next request starts, and whether one may come.
fn frame(fields: &Fields, minor: u8) -> Result<(After, Body), Status> {
    let body = match (&fields.transfer_encoding, fields.length) {
        // RFC 9112 section 6.1: both together, or in HTTP/1.0, are an attempt to smuggle a request.
        (Some(_), Some(_)) => return Err(Status::BadRequest),
        (Some(_), None) if minor == 0 => return Err(Status::BadRequest),
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
        (Some(_), None) => return Err(Status::NotImplemented),
        (None, None | Some(0)) => Body::None,
        (None, Some(length)) => Body::Length(length),
    };
    // A client that waits for `100 Continue` gets its final answer instead and need not send the body at all, so nobody
    // could say where its next request starts.
    let undecided = fields.expects && body != Body::None;
    let after = if fields.close || undecided || (minor == 0 && !fields.keep_alive) {
        After::Close
    } else if minor == 0 {
        After::KeepAliveSaid
    } else {
        After::KeepAlive
    };
    Ok((after, body))
}

fn ask(method: &str, target: &str, minor: u8, fields: Fields) -> Result<Ask, Status> {
    if fields.hosts > 1 || (minor == 1 && fields.hosts == 0) {
        return Err(Status::BadRequest);
    }
    match method {
        "GET" | "HEAD" => {}
        "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" | "TRACE" | "CONNECT" => {
            return Err(Status::MethodNotAllowed);
        }
        _ => return Err(Status::NotImplemented),
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(Status::UriTooLong);
    }
    let path = target::parse(target.as_bytes())?;
    let mut ask = Ask { path, ..fields.ask };
    // RFC 9110 section 14.2: a range is defined for GET only; of two Range fields neither is trusted.
    if method == "HEAD" || fields.ranges > 1 {
        ask.range = None;
    }
    Ok(ask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(head: &str) -> Message {
        match parse(head.as_bytes()) {
            Parsed::Complete { message, consumed } => {
                assert_eq!(consumed, head.len(), "{head:?}");
                *message
            }
            other => panic!("{head:?}: {other:?}"),
        }
    }

    fn refused(head: &str) -> Option<u16> {
        message(head).ask.err().map(Status::code)
    }

    #[test]
    fn a_plain_get_is_read() {
        let got = message(
            "GET /a/b?c HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2 \r\nIf-None-Match: \"a\"\r\nIf-None-Match: \"b\"\r\n\r\n",
        );
        let ask = got.ask.unwrap();
        assert_eq!(ask.path.as_bytes(), b"a/b");
        assert_eq!(ask.range.as_deref(), Some(b"bytes=1-2".as_slice()));
        assert_eq!(ask.if_none_match.as_deref(), Some(b"\"a\", \"b\"".as_slice()));
        assert_eq!((got.head_only, got.after, got.body), (false, After::KeepAlive, Body::None));
    }

    #[test]
    fn the_version_and_the_connection_field_decide_what_comes_after() {
        for (head, after) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", After::KeepAlive),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n", After::Close),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: te, close\r\n\r\n", After::Close),
            ("GET / HTTP/1.0\r\n\r\n", After::Close),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", After::KeepAliveSaid),
            ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", After::Close),
            ("GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", After::Close),
        ] {
            assert_eq!(message(head).after, after, "{head:?}");
        }
    }

    #[test]
    fn questions_that_cannot_be_answered_keep_the_connection() {
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", 405),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ] {
            assert_eq!(refused(head), Some(status), "{head:?}");
            assert_eq!(message(head).after, After::KeepAlive, "{head:?}");
        }
        assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a/".repeat(5000))), Some(414));
    }

    #[test]
    fn what_hides_the_next_request_breaks_the_connection() {
        let garbage = "a".repeat(MAX_HEAD_BYTES);
        for (head, status) in [
            ("\x16\x03\x01\x02\x00\x01\x00\x01", 400),
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTPP/1.1\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/3\r\n\r\n", 505),
            ("GET / HTTP/0.9\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            (&format!("GET /{garbage}"), 414),
            (&format!("GET / HTTP/1.1\r\nA: {garbage}"), 431),
            (&format!("GET / HTTP/1.1\r\nA: {garbage}\r\n\r\n"), 431),
            (&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1)), 431),
        ] {
            assert_eq!(
                parse(head.as_bytes()),
                Parsed::Broken(match status {
                    400 => Status::BadRequest,
                    414 => Status::UriTooLong,
                    431 => Status::HeaderFieldsTooLarge,
                    501 => Status::NotImplemented,
                    _ => Status::VersionNotSupported,
                }),
                "{:?}",
                &head[..head.len().min(60)]
            );
        }
    }

    #[test]
    fn every_prefix_of_a_head_waits_for_the_rest() {
        let head = b"GET /a HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end]), Parsed::Partial, "{end}");
        }
    }

    #[test]
    fn ranges_are_for_single_get_fields_only() {
        assert_eq!(message("HEAD / HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n").ask.unwrap().range, None);
        assert_eq!(
            message("GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\nRange: bytes=2-3\r\n\r\n").ask.unwrap().range,
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_near_request_makes_it_panic(
            bytes in "(GET|HEAD|POST|\\x00)? ?(/|/%2e|\\*|http://)?[a-z%./]{0,9} ?(HTTP/1\\.[019])?(\r\n|\n)?((Host|Range|Content-Length|Transfer-Encoding|Connection): ?[-0-9a-z=,]{0,9}\r\n){0,4}(\r\n)?",
        ) {
            if let Parsed::Complete { consumed, .. } = parse(bytes.as_bytes()) {
                prop_assert!(consumed <= bytes.len());
            }
        }
    }
}
