//! Events, and streams of results: what a host tells its client without being asked each time.
//!
//! Calls from host to client do not exist. A client that wants to hear keeps one *standing call* open, an operation of the
//! shape `(cursor, most) -> (next cursor, items)` without a deadline, which the host answers as soon as there is something to
//! tell, with as much as one answer holds. The cursor counts items: a client's says that it has consumed all before it.
//!
//! - An answer that is lost with a host or a link is asked for again, with the cursor before; the same items come again.
//! - What the client has not consumed is its own charge. A queue that is full asks its producer to wait: for a stream of
//!   results that is the credit, for events the time to stop whatever they come from.
//! - One-way messages in the other direction need no queue: [`post`](crate::interface::Pending::post).

mod producer;
mod queue;
mod stream;

pub use producer::{AlreadyOpen, Batch, Producer, Standing};
pub use queue::{BadCursor, BatchLimits, Event, Queue};
pub use stream::Stream;
