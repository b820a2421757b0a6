//! httpd: files of a capability over HTTP/1.1, GET and HEAD.
//!
//! * The core ([`request`], [`target`], [`body`], [`input`], [`range`], [`response`], …) is plain code over byte slices: it
//!   makes no system call, reads no clock and never panics, whatever a client sends.
//! * Bytes of a client are raw until [`request::parse`] has made a [`request::Message`] of them; nothing downstream looks at
//!   the raw bytes again.
//! * [`server`] is the shell around it.
//! * Payload is never seen here: a reply is a head (copied, small) and the span of the file that follows it.
//! * What breaks the framing of a connection ends it; what is only a bad question gets its answer and the next
//!   question may follow.

pub mod body;
pub mod content_type;
pub mod date;
pub mod input;
pub mod range;
pub mod request;
pub mod response;
pub mod server;
pub mod status;
pub mod target;
