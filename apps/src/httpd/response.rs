//! Answers: the head as bytes, and the span of the file that follows it.
//!
//! Nothing here reads a clock or a file: the caller says what the file is ([`File`]) and what the time is (the `Date` field's
//! value, formatted once a second).

use std::io::Write as _;

use super::content_type;
use super::date;
use super::range::{Selection, select};
use super::request::{After, Ask, Message};
use super::status::Status;

/// What an answer needs to know of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// A number that changes whenever the content does (generation or modification time in nanoseconds).
    pub version: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last modification, seconds since 1970.
    pub modified: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status line, fields, empty line; for an error its text too.
    pub head: Vec<u8>,
    /// What of the file follows.
    pub body: Option<Span>,
    /// Whether the connection closes after it.
    pub close: bool,
}

/// A non-empty part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, at least 1.
    pub length: u64,
}

/// Answers `ask` (of `message`) with the file at `path`, which may be an index page of the path asked for.
pub fn file(message: &Message, ask: &Ask, path: &[u8], file: &File, date: &str) -> Reply {
    let etag = format!("\"{:x}-{:x}-{:x}\"", file.inode, file.version, file.size);
    let modified = date::format(file.modified);
    if is_current(ask, &etag, file.modified) {
        let mut head = Head::new(Status::NotModified, message.after, date);
        head.validators(&etag, &modified);
        return head.end(None);
    }
    let selection = match &ask.range {
        Some(range) if range_applies(ask, &etag, &modified) => select(range, file.size),
        _ => Selection::Whole,
    };
    let (status, span) = match selection {
        Selection::Whole => (Status::Ok, Span { offset: 0, length: file.size }),
        Selection::Part { first, last } => (Status::PartialContent, Span { offset: first, length: last - first + 1 }),
        Selection::Unsatisfiable => {
            let mut head = Head::new(Status::RangeNotSatisfiable, message.after, date);
            head.field("Content-Range", format_args!("bytes */{}", file.size));
            return head.text(Status::RangeNotSatisfiable, message.head_only);
        }
    };
    let mut head = Head::new(status, message.after, date);
    head.field("Content-Type", format_args!("{}", content_type::of(path)));
    head.field("Content-Length", format_args!("{}", span.length));
    if let Selection::Part { first, last } = selection {
        head.field("Content-Range", format_args!("bytes {first}-{last}/{}", file.size));
    }
    head.validators(&etag, &modified);
    head.field("Accept-Ranges", format_args!("bytes"));
    let body = (!message.head_only && span.length > 0).then_some(span);
    head.end(body)
}

/// Answers with an error.
pub fn error(status: Status, head_only: bool, after: After, date: &str) -> Reply {
    let mut head = Head::new(status, after, date);
    if status == Status::MethodNotAllowed {
        head.field("Allow", format_args!("GET, HEAD"));
    }
    if status == Status::ServiceUnavailable {
        head.field("Retry-After", format_args!("1"));
    }
    head.text(status, head_only)
}

/// Answers that the path asked for is a directory, whose name ends in a slash.
pub fn moved(message: &Message, ask: &Ask, date: &str) -> Reply {
    let mut head = Head::new(Status::MovedPermanently, message.after, date);
    head.field("Location", format_args!("{}", ask.path.directory_target()));
    head.text(Status::MovedPermanently, message.head_only)
}

/// RFC 9110 section 13.2.2: `If-None-Match` decides if it is there, else `If-Modified-Since`.
fn is_current(ask: &Ask, etag: &str, modified: u64) -> bool {
    match (&ask.if_none_match, &ask.if_modified_since) {
        (Some(list), _) => {
            list == b"*" || tags(list).any(|tag| tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
        }
        (None, Some(since)) => date::parse(since).is_some_and(|since| modified <= since),
        (None, None) => false,
    }
}

/// The entity tags of a list. A comma inside a tag of another server's making cuts it in two, and neither half is ours.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// RFC 9110 section 13.1.5: only an exact validator keeps the range.
fn range_applies(ask: &Ask, etag: &str, modified: &str) -> bool {
    ask.if_range.as_ref().is_none_or(|validator| validator == etag.as_bytes() || validator == modified.as_bytes())
}

/// A head being written. Writing to a `Vec` cannot fail, so results of `write!` are dropped.
struct Head {
    bytes: Vec<u8>,
    after: After,
}

impl Head {
    fn new(status: Status, after: After, date: &str) -> Head {
        let mut head = Head { bytes: Vec::with_capacity(384), after };
        let _ =
            write!(head.bytes, "HTTP/1.1 {} {}\r\nServer: atoll\r\nDate: {date}\r\n", status.code(), status.reason());
        head
    }

    fn field(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        let _ = write!(self.bytes, "{name}: {value}\r\n");
    }

    fn validators(&mut self, etag: &str, modified: &str) {
        self.field("ETag", format_args!("{etag}"));
        self.field("Last-Modified", format_args!("{modified}"));
    }

    /// Ends a head whose body is the status as text.
    fn text(mut self, status: Status, head_only: bool) -> Reply {
        let text = format!("{} {}\n", status.code(), status.reason());
        self.field("Content-Type", format_args!("text/plain; charset=utf-8"));
        self.field("Content-Length", format_args!("{}", text.len()));
        let mut reply = self.end(None);
        if !head_only {
            reply.head.extend_from_slice(text.as_bytes());
        }
        reply
    }

    fn end(mut self, body: Option<Span>) -> Reply {
        match self.after {
            After::Close => self.field("Connection", format_args!("close")),
            After::KeepAliveSaid => self.field("Connection", format_args!("keep-alive")),
            After::KeepAlive => {}
        }
        self.bytes.extend_from_slice(b"\r\n");
        Reply { head: self.bytes, body, close: self.after == After::Close }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Parsed, parse};
    use super::*;
    use proptest::prelude::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const FILE: File = File { inode: 0x2a, version: 7, size: 1000, modified: 784_111_777 };
    const ETAG: &str = "\"2a-7-3e8\"";

    fn answer(fields: &str) -> (String, Option<(u64, u64)>) {
        answer_of("GET", fields, &FILE)
    }

    fn answer_of(method: &str, fields: &str, of: &File) -> (String, Option<(u64, u64)>) {
        let Parsed::Complete { message, .. } =
            parse(format!("{method} /a.txt HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes())
        else {
            panic!("{fields}")
        };
        let ask = message.ask.clone().unwrap();
        let reply = file(&message, &ask, ask.path.as_bytes(), of, DATE);
        (String::from_utf8(reply.head).unwrap(), reply.body.map(|span| (span.offset, span.length)))
    }

    #[test]
    fn a_whole_file_has_every_field() {
        let (head, body) = answer("");
        assert_eq!(
            head,
            format!(
                "HTTP/1.1 200 OK\r\nServer: atoll\r\nDate: {DATE}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 1000\r\n\
                 ETag: {ETAG}\r\nLast-Modified: {DATE}\r\nAccept-Ranges: bytes\r\n\r\n"
            )
        );
        assert_eq!(body, Some((0, 1000)));
    }

    #[test]
    fn head_answers_as_get_without_a_body() {
        assert_eq!(answer_of("HEAD", "", &FILE), (answer("").0, None));
    }

    #[test]
    fn a_range_is_answered_in_part() {
        let (head, body) = answer("Range: bytes=10-19\r\n");
        assert!(head.starts_with("HTTP/1.1 206 Partial Content\r\n"));
        assert!(
            head.contains("\r\nContent-Range: bytes 10-19/1000\r\n") && head.contains("\r\nContent-Length: 10\r\n")
        );
        assert_eq!(body, Some((10, 10)));
        let (head, body) = answer("Range: bytes=1000-\r\n");
        assert!(
            head.starts_with("HTTP/1.1 416 Range Not Satisfiable\r\n")
                && head.contains("\r\nContent-Range: bytes */1000\r\n")
        );
        assert_eq!(body, None);
        assert!(answer("Range: bytes=0-1,5-6\r\n").0.starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_range_needs_the_validator_it_names() {
        for (validator, expected) in [
            (ETAG, "206"),
            (DATE, "206"),
            ("\"other\"", "200"),
            (&format!("W/{ETAG}"), "200"),
            ("Sun, 06 Nov 1994 08:49:38 GMT", "200"),
        ] {
            let (head, _) = answer(&format!("Range: bytes=0-1\r\nIf-Range: {validator}\r\n"));
            assert_eq!(&head[9..12], expected, "{validator}");
        }
    }

    #[test]
    fn a_current_copy_is_not_sent_again() {
        let later = "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT";
        for (fields, expected) in [
            (format!("If-None-Match: {ETAG}"), "304"),
            (format!("If-None-Match: \"x\", W/{ETAG}"), "304"),
            ("If-None-Match: *".to_owned(), "304"),
            ("If-None-Match: \"x\"".to_owned(), "200"),
            (later.to_owned(), "304"),
            (format!("{later}\r\nIf-None-Match: \"x\""), "200"),
            ("If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT".to_owned(), "200"),
            ("If-Modified-Since: never".to_owned(), "200"),
        ] {
            let (head, body) = answer(&format!("{fields}\r\n"));
            assert_eq!(&head[9..12], expected, "{fields}");
            if expected == "304" {
                assert_eq!(body, None);
                assert!(head.contains(ETAG) && !head.contains("Content-Length"));
            }
        }
    }

    #[test]
    fn an_empty_file_has_no_span() {
        let empty = File { size: 0, ..FILE };
        let (head, body) = answer_of("GET", "", &empty);
        assert!(head.contains("\r\nContent-Length: 0\r\n"));
        assert_eq!(body, None);
    }

    #[test]
    fn errors_say_what_is_allowed_and_whether_the_connection_ends() {
        let reply = error(Status::MethodNotAllowed, false, After::Close, DATE);
        let text = String::from_utf8(reply.head).unwrap();
        assert!(text.contains("\r\nAllow: GET, HEAD\r\n") && text.contains("\r\nConnection: close\r\n"));
        assert!(text.ends_with("\r\n\r\n405 Method Not Allowed\n") && reply.close);
        let reply = error(Status::NotFound, true, After::KeepAliveSaid, DATE);
        let text = String::from_utf8(reply.head).unwrap();
        assert!(text.ends_with("\r\nContent-Length: 14\r\nConnection: keep-alive\r\n\r\n") && !reply.close);
    }

    #[test]
    fn a_directory_without_its_slash_is_moved() {
        let Parsed::Complete { message, .. } = parse(b"GET /a%20b?q HTTP/1.1\r\nHost: x\r\n\r\n") else { panic!() };
        let reply = moved(&message, message.ask.as_ref().unwrap(), DATE);
        assert!(String::from_utf8(reply.head).unwrap().contains("\r\nLocation: /a%20b/\r\n"));
    }

    proptest! {
        #[test]
        fn the_length_announced_is_the_length_that_follows(size in 0u64..5000, range in "bytes=[0-9]{0,4}-[0-9]{0,4}") {
            let (head, body) = answer_of("GET", &format!("Range: {range}\r\n"), &File { size, ..FILE });
            if !head.starts_with("HTTP/1.1 416") {
                let announced: u64 = head.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
                prop_assert_eq!(announced, body.map_or(0, |(_, length)| length));
                if let Some((offset, length)) = body {
                    prop_assert!(length > 0 && offset + length <= size);
                }
            }
        }
    }
}
