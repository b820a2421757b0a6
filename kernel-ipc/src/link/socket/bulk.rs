//! Leased bytes beside a session over a socket: connections of their own, so that small calls do not wait behind them.
//!
//! - A lease goes as bytes. They are pulled, in chunks, by the end that they go to: it asks for no more than it has room for.
//!   They land in a region of its own process, where they are read, lent on and given to the kernel like any others.
//! - To the client goes what replies lend ([`land`], [`serve`]); to the host, over another connection, what calls lend
//!   ([`offer`], [`arrive`]). The client dials both, each when there is the first lease to be brought.
//! - The end that lends decides what can be asked for, by its own books and never by the question: of the host's what *this
//!   session's client* holds, of the client's what a call that *this host* has not answered yet names.
//! - A connection that is lost is made again, and what had not come is asked for again. To ask twice
//!   changes nothing.

pub mod arrive;
mod fetch;
pub mod land;
mod line;
pub mod offer;
mod room;
pub mod serve;
mod window;
