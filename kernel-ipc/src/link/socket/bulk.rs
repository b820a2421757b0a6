//! Leased bytes over a socket: on a connection of their own, so that a small call does not wait behind a large answer.
//!
//! - The client pulls ([`land`]): for each lease that a reply brings it asks for the bytes in chunks, a few at a time, and
//!   they land in a region of its own. What its caller gets is a lease of that region, by the client's own lender: it can be
//!   read, and lent on, like any other. What it asks for is the credit: nothing comes that there is no room for.
//! - The host answers in order ([`serve`]), from the region itself: no copy is made here, and what is on its way keeps its
//!   range from being used again.
//! - Where the bytes are is taken from the lender's books, never from the question; only what this session's client holds can
//!   be asked for.
//! - A connection that is lost is made again, and what had not come is asked for again. To ask twice changes nothing.

pub mod land;
pub mod serve;
