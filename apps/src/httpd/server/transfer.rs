//! Sending a span of a file: leases from the file system to the network, several ahead.
//!
//! * A span is cut at multiples of [`STEP`], which is how the file system stores large files, so that a read is one lease.
//! * At most [`AHEAD`] steps of a connection are being read or sent at a time, and all connections share a budget.
//! * What was announced is sent completely or the connection is reset: no client takes a part for the whole.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::interface::{Cap, Lease};
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::wire::MAX_LEASES;
use kernel_ipc::{CallError, Cause};
use protocol::fs::{Node, ReadError};

use super::super::response::Span;
use super::Server;
use super::budget::Share;
use super::peer::{Gone, Peer};

/// Bytes that are read at a time: the file system's largest extent.
const STEP: u64 = protocol::fs::EXTENT_MAX as u64;
/// How long the file system may say that it is busy before an answer that has begun is given up.
const BUSY_FOR: Duration = Duration::from_secs(30);
/// Steps of one connection that are being read or sent.
const AHEAD: usize = 4;

/// The leases of one step, in order.
struct Filled {
    leases: Vec<Lease>,
    share: Rc<Share>,
}

/// The file system did not give what it has announced.
struct Failed(Option<CallError<ReadError>>);

/// Sends `head` and the bytes of `span`. After an error the caller resets the connection.
pub(super) async fn send(
    server: &Rc<Server>,
    peer: &Rc<Peer>,
    node: Rc<Cap<Node>>,
    head: Vec<u8>,
    span: Span,
    close: bool,
) -> Result<(), Gone> {
    let end = span.offset.saturating_add(span.length);
    let first = step_end(span.offset, end);
    let mut head = head;
    if first == end {
        // Nearly all files: one read, one send, no task.
        let filled = fill(server.clone(), node, span.offset, end).await;
        return send_step(server, peer, filled, &mut head, close).await;
    }
    let mut reading: VecDeque<Reading> = VecDeque::new();
    let mut next = span.offset;
    loop {
        while next < end && reading.len() + peer.unreleased() < AHEAD {
            let until = step_end(next, end);
            reading.push_back(Reading(runtime::spawn(fill(server.clone(), node.clone(), next, until))));
            next = until;
        }
        match reading.pop_front() {
            Some(mut step) => {
                let filled = (&mut step.0).await.unwrap_or(Err(Failed(None)));
                let last = next == end && reading.is_empty();
                send_step(server, peer, filled, &mut head, close && last).await?;
            }
            None if next == end => return Ok(()),
            None if peer.is_closed() => return Err(Gone),
            None => peer.room().await,
        }
    }
}

/// A step being read; forgotten when the connection is.
struct Reading(JoinHandle<Result<Filled, Failed>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Where the step that begins at `offset` ends.
fn step_end(offset: u64, end: u64) -> u64 {
    (offset / STEP + 1).saturating_mul(STEP).min(end)
}

/// Leases all bytes from `offset` to `end`.
async fn fill(server: Rc<Server>, node: Rc<Cap<Node>>, offset: u64, end: u64) -> Result<Filled, Failed> {
    let share = Rc::new(server.budget.take(end - offset).await);
    let mut leases = Vec::with_capacity(1);
    let mut at = offset;
    let mut busy_since = None;
    while at < end {
        let want = u32::try_from(end - at).unwrap_or(u32::MAX);
        match server.fs.read(&node, at, want).await {
            // The file is shorter than it was.
            Ok(None) => return Err(Failed(None)),
            Ok(Some(lease)) => {
                at += lease.len().min(end - at);
                leases.push(lease);
                busy_since = None;
            }
            // The head is out, so there is no 503 any more; only time.
            Err(CallError::Failed { cause: Cause::Busy { retry_after_us }, .. })
                if busy_since.get_or_insert_with(Instant::now).elapsed() < BUSY_FOR =>
            {
                let pause = Duration::from_micros(retry_after_us.into());
                runtime::sleep(pause.clamp(Duration::from_millis(1), Duration::from_secs(1))).await;
            }
            Err(error) => return Err(Failed(Some(error))),
        }
    }
    Ok(Filled { leases, share })
}

/// Sends what one step gave, with the head before the first.
async fn send_step(
    server: &Server,
    peer: &Peer,
    filled: Result<Filled, Failed>,
    head: &mut Vec<u8>,
    close: bool,
) -> Result<(), Gone> {
    let Filled { leases, share } = match filled {
        Ok(filled) => filled,
        Err(Failed(error)) => {
            tracing::warn!(?error, "a file could not be read to the announced end");
            return Err(Gone);
        }
    };
    let mut leases = leases.into_iter().peekable();
    while leases.peek().is_some() {
        let group: Vec<Lease> = leases.by_ref().take(MAX_LEASES).collect();
        let close = close && leases.peek().is_none();
        peer.send(server, &std::mem::take(head), group, Some(share.clone()), close).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_at_multiples_or_at_the_end() {
        assert_eq!(step_end(0, 10), 10);
        assert_eq!(step_end(0, STEP), STEP);
        assert_eq!(step_end(STEP - 1, 3 * STEP), STEP);
        assert_eq!(step_end(STEP, 3 * STEP), 2 * STEP);
        assert_eq!(step_end(u64::MAX - 1, u64::MAX), u64::MAX);
    }
}
