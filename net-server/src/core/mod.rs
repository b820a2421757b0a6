//! The network server's core: what a connection does next, as plain code.
//!
//! * No system calls and no clock: the shell says what happened ([`connection::Connection`] takes it in) and asks what to do
//!   ([`connection::Connection::next_piece`], [`connection::Connection::begin_receive`], [`connection::Connection::next_end`]).
//! * What the client must hear goes to its session's [`events::EventQueue`].
//! * Every queue is bounded; what is full pushes back towards whoever fills it.

pub mod connection;
pub mod events;
pub mod position;
pub mod zero_copy;
