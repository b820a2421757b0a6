//! The first frames of a connection: hello, and what is answered to it. Waits, without blocking the thread; the caller
//! limits for how long.

use std::io;

use super::frame::{
    self, BULK_BYTES, BadHello, Bulk, FrameError, HEADER_BYTES, HELLO_BYTES, Header, Hello, Refusal, Welcome, kind,
};
use super::stream::Stream;
use crate::wire::MIN_WINDOW_BYTES;

/// What became of a greeting.
#[derive(Debug)]
pub enum Unanswered {
    /// The connection is lost.
    Io(io::Error),
    /// The peer is no Atoll, or not a correct one.
    Frame(FrameError),
    /// It does not want us.
    Refused(Refusal),
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Unanswered::Io(error)
    }
}

impl From<FrameError> for Unanswered {
    fn from(error: FrameError) -> Self {
        Unanswered::Frame(error)
    }
}

/// Says hello and hears what the host answers.
pub async fn greet(stream: &Stream, hello: &Hello) -> Result<Welcome, Unanswered> {
    send(stream, kind::HELLO, &hello.to_bytes()).await?;
    let header = receive_header(stream).await?;
    match header.kind {
        kind::WELCOME => Ok(Welcome::check(&stream.receive_all().await?, hello)?),
        kind::REFUSED => Err(Unanswered::Refused(Refusal::check(stream.receive_all().await?)?)),
        kind => Err(FrameError::Kind(kind).into()),
    }
}

/// The same on a connection for leased bytes.
pub async fn greet_bulk(stream: &Stream, hello: &Bulk) -> Result<(), Unanswered> {
    send(stream, kind::BULK, &hello.to_bytes()).await?;
    let header = receive_header(stream).await?;
    match header.kind {
        kind::READY => Ok(()),
        kind::REFUSED => Err(Unanswered::Refused(Refusal::check(stream.receive_all().await?)?)),
        kind => Err(FrameError::Kind(kind).into()),
    }
}

/// What a client wants with its connection.
pub enum Wanted {
    /// Calls.
    Session(Hello),
    /// Leased bytes.
    Bulk(Bulk),
}

/// Hears a client's hello.
pub async fn hear(stream: &Stream) -> Result<Result<Wanted, BadHello>, Unanswered> {
    let header = receive_header(stream).await?;
    match header.kind {
        kind::HELLO => Ok(Hello::check(&stream.receive_all::<HELLO_BYTES>().await?).map(Wanted::Session)),
        kind::BULK => Ok(Bulk::check(&stream.receive_all::<BULK_BYTES>().await?).map(Wanted::Bulk)),
        kind => Err(FrameError::Kind(kind).into()),
    }
}

/// Takes a connection for leased bytes.
pub async fn ready(stream: &Stream) -> io::Result<()> {
    send(stream, kind::READY, &[]).await
}

/// Takes the client.
pub async fn welcome(stream: &Stream, welcome: &Welcome) -> io::Result<()> {
    send(stream, kind::WELCOME, &welcome.to_bytes()).await
}

/// Does not take it.
pub async fn refuse(stream: &Stream, refusal: Refusal) -> io::Result<()> {
    send(stream, kind::REFUSED, &refusal.to_bytes()).await
}

async fn send(stream: &Stream, kind: u16, body: &[u8]) -> io::Result<()> {
    stream.send_all([&frame::header(kind, body.len()), body].concat(), false).await
}

async fn receive_header(stream: &Stream) -> Result<Header, Unanswered> {
    // No window is agreed yet, so the smallest; a message has no place here anyway.
    Ok(Header::check(stream.receive_all::<HEADER_BYTES>().await?, MIN_WINDOW_BYTES)?)
}

/// The header of a frame of this kind and the first `M` bytes of its body, together `N`: for a connection on which nothing else
/// may come.
pub async fn receive_frame<const N: usize, const M: usize>(
    stream: &Stream,
    kind: u16,
) -> Result<(Header, [u8; M]), Unanswered> {
    const { assert!(N == HEADER_BYTES + M) };
    let bytes = stream.receive_all::<N>().await?;
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let (header, body) = (header.first_chunk(), body.first_chunk());
    let (header, body) = header.zip(body).expect("the lengths were compared when this was compiled");
    match Header::check(*header, MIN_WINDOW_BYTES)? {
        header if header.kind == kind => Ok((header, *body)),
        header => Err(FrameError::Kind(header.kind).into()),
    }
}
