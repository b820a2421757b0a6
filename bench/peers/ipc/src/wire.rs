//! What peers of futures talk over: a unix socket, or TCP over loopback.

use std::net::Ipv4Addr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// A connection of either kind.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

type Stream = Either<UnixStream, TcpStream>;

/// Waits for clients.
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// At a path that is new: a socket, or a file that says the port.
    pub async fn bind(path: &Path, tcp: bool) -> Listener {
        if !tcp {
            return Listener::Unix(UnixListener::bind(path).expect("a new path"));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        std::fs::write(path, address.to_string()).expect("a new path");
        Listener::Tcp(listener)
    }

    pub async fn accept(&self) -> Stream {
        match self {
            Listener::Unix(listener) => Either::Left(listener.accept().await.expect("a client").0),
            Listener::Tcp(listener) => Either::Right(at_once(listener.accept().await.expect("a client").0)),
        }
    }
}

/// A connection to whoever listens at this path.
pub async fn connect(path: &Path) -> Stream {
    match std::fs::read_to_string(path) {
        Ok(address) => Either::Right(at_once(TcpStream::connect(address).await.expect("the server listens"))),
        // A socket cannot be read like a file.
        Err(_) => Either::Left(UnixStream::connect(path).await.expect("the server listens")),
    }
}

/// Small messages do not wait for others.
fn at_once(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("an option of every TCP socket");
    stream
}
