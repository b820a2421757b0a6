//! An answer that the last run of this server had begun.
//!
//! The network says how much of it is sent and how it began. This run makes the same answer again, with the same date, and sends
//! what is missing. If it does not begin with the same bytes (the file has changed), the connection is reset: nobody can say
//! what the rest of the old answer would have been.

use std::rc::Rc;

use super::super::response::Reply;
use super::peer::Gone;

/// What the network says of it.
pub(super) struct Resumed {
    sent: u64,
    head: Vec<u8>,
}

impl Resumed {
    pub(super) fn new(sent: u64, head: &[u8]) -> Resumed {
        Resumed { sent, head: head.to_vec() }
    }

    /// Whether anything of it is sent.
    pub(super) fn has_begun(&self) -> bool {
        self.sent > 0
    }

    /// The date that it bears.
    pub(super) fn date(&self) -> Option<Rc<str>> {
        let text = std::str::from_utf8(&self.head).ok()?;
        let line = text.split("\r\n").find_map(|line| line.strip_prefix("Date: "))?;
        Some(line.into())
    }

    /// Leaves of the answer what is not sent. Says whether that is anything.
    ///
    /// # Errors
    /// It is another answer than the one that was begun.
    pub(super) fn cut(&self, reply: &mut Reply) -> Result<bool, Gone> {
        if !self.has_begun() {
            return Ok(true);
        }
        if reply.head != self.head {
            return Err(Gone);
        }
        let of_head = usize::try_from(self.sent).unwrap_or(usize::MAX).min(reply.head.len());
        let of_body = self.sent - of_head as u64;
        reply.head.drain(..of_head);
        match &mut reply.body {
            Some(span) if of_body <= span.length => {
                span.offset += of_body;
                span.length -= of_body;
                if span.length == 0 {
                    reply.body = None;
                }
            }
            None if of_body == 0 => {}
            _ => return Err(Gone),
        }
        Ok(!reply.head.is_empty() || reply.body.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::response::Span;
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nDate: today\r\nETag: 1\r\n\r\n";

    fn reply() -> Reply {
        Reply { head: HEAD.to_vec(), body: Some(Span { offset: 1000, length: 50 }), close: false }
    }

    fn cut(sent: u64) -> Option<(bool, Vec<u8>, Option<Span>)> {
        let mut reply = reply();
        let more = Resumed::new(sent, HEAD).cut(&mut reply).ok()?;
        Some((more, reply.head, reply.body))
    }

    #[test]
    fn what_is_sent_is_left_out() {
        let head = HEAD.len() as u64;
        let span = |offset, length| Some(Span { offset, length });
        assert_eq!(cut(0), Some((true, HEAD.to_vec(), span(1000, 50))));
        assert_eq!(cut(5), Some((true, HEAD[5..].to_vec(), span(1000, 50))));
        assert_eq!(cut(head), Some((true, vec![], span(1000, 50))));
        assert_eq!(cut(head + 49), Some((true, vec![], span(1049, 1))));
        assert_eq!(cut(head + 50), Some((false, vec![], None)));
        assert_eq!(cut(head + 51), None);
        assert_eq!(cut(u64::MAX), None);
    }

    #[test]
    fn another_answer_is_not_gone_on_with() {
        let mut other = Reply { head: HEAD.to_ascii_uppercase(), ..reply() };
        assert!(Resumed::new(1, HEAD).cut(&mut other).is_err());
        assert!(Resumed::new(0, HEAD).cut(&mut other).is_ok(), "nothing of it was sent");
        let headless = || Reply { body: None, ..reply() };
        assert!(Resumed::new(HEAD.len() as u64 + 1, HEAD).cut(&mut headless()).is_err());
        assert_eq!(Resumed::new(HEAD.len() as u64, HEAD).cut(&mut headless()).ok(), Some(false));
    }

    #[test]
    fn the_date_is_the_one_of_the_answer_that_was_begun() {
        assert_eq!(Resumed::new(1, HEAD).date().as_deref(), Some("today"));
        assert_eq!(Resumed::new(0, b"").date(), None);
        assert_eq!(Resumed::new(1, b"\xff").date(), None);
    }
}
