//! A connection that goes on where a dead run left it.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::net::{Reason, Released, SendFlags};

use super::{Chunk, Connection, Limits, Outgoing, Phase, Progress, Step};
use crate::core::events::EventQueue;
use crate::core::position::Position;

/// What is known of a connection of a dead run.
#[derive(Debug)]
pub struct Recovered<C> {
    /// Accepted sends that the client does not know to be over, in order.
    pub sends: Vec<RecoveredSend<C>>,
    /// Nothing more will be sent than they.
    pub finished: bool,
    /// It is to be closed in order.
    pub closing: bool,
    /// It is over, or to be ended at once, for this reason.
    pub over: Option<Reason>,
    /// The sending side is shut already.
    pub shut: bool,
    /// The client knows, or is being told, that the peer sends no more.
    pub input_ended: bool,
    /// Received bytes that the client has not consumed.
    pub unconsumed: usize,
    /// Bytes that the kernel has taken.
    pub sent: u64,
    /// Bytes that the peer has.
    pub delivered: u64,
}

impl<C> Recovered<C> {
    /// A connection without sends, of which so many received bytes are not consumed.
    pub fn after(position: Position, unconsumed: u64) -> Recovered<C> {
        Recovered {
            sends: Vec::new(),
            finished: false,
            closing: false,
            over: None,
            shut: position.shut,
            input_ended: false,
            unconsumed: usize::try_from(unconsumed).unwrap_or(0),
            sent: position.sent,
            delivered: position.delivered,
        }
    }
}

/// One of its sends.
#[derive(Debug)]
pub struct RecoveredSend<C> {
    /// The client's number for it.
    pub id: u64,
    /// As it was accepted.
    pub flags: SendFlags,
    /// All its bytes.
    pub bytes: u64,
    /// What the kernel has not taken of it.
    pub left: VecDeque<C>,
    /// The client knows, or is being told, that the kernel has taken it.
    pub told: bool,
}

impl<C: Chunk> Connection<C> {
    /// Goes on. Events that the client has not been told are told.
    pub fn recovered(
        id: u64,
        limits: Limits,
        local: bool,
        now: Duration,
        recovered: Recovered<C>,
        events: &mut EventQueue,
    ) -> Connection<C> {
        let mut connection = Connection::new(id, limits, local, now);
        let Recovered { sends, finished, closing, over, shut, input_ended, unconsumed, sent, delivered } = recovered;
        let outgoing = |send: RecoveredSend<C>| Outgoing {
            id: send.id,
            flags: send.flags,
            bytes: send.bytes,
            // Of the notifications for what a dead run has sent nobody hears: its pins count until its fence has ended.
            notifications: 0,
            how: Released::Copied,
            sent: send.told && send.left.is_empty(),
            chunks: send.left,
        };
        connection.outgoing = sends.into_iter().map(outgoing).collect();
        let left = |outgoing: &Outgoing<C>| outgoing.chunks.iter().map(|chunk| chunk.length() as u64).sum::<u64>();
        connection.queued_bytes = connection.outgoing.iter().map(left).sum();
        connection.finished = finished || closing;
        connection.input_ended = input_ended;
        connection.unconsumed = unconsumed;
        connection.sent_bytes = sent;
        connection.progress = Progress { since: now, delivered };
        if shut {
            connection.shutdown = Step::Taken;
        }
        if closing {
            connection.phase = Phase::Draining;
        }
        match over {
            Some(reason) => connection.reset(reason, events),
            None => connection.settle(events),
        }
        connection
    }
}
