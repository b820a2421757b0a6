//! Floors: what the kernel itself offers between two processes.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::measure::{BYTES, Calls};

/// A stream socket of either kind.
pub struct Socket<S>(S);

impl Socket<UnixStream> {
    pub fn connect(path: &Path) -> Self {
        Socket(UnixStream::connect(path).expect("the server listens"))
    }

    /// Echoes until the client is gone.
    pub fn serve(path: &Path, ready: impl FnOnce()) {
        let listener = UnixListener::bind(path).expect("a new path");
        ready();
        echo(listener.accept().expect("a client").0);
    }
}

impl Socket<TcpStream> {
    /// The path says the port.
    pub fn connect(path: &Path) -> Self {
        let address = std::fs::read_to_string(path).expect("the server's address");
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("an option of every TCP socket");
        Socket(stream)
    }

    /// Echoes until the client is gone.
    pub fn serve(path: &Path, ready: impl FnOnce()) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        std::fs::write(path, listener.local_addr().expect("an address").to_string()).expect("a new path");
        ready();
        let stream = listener.accept().expect("a client").0;
        stream.set_nodelay(true).expect("an option of every TCP socket");
        echo(stream);
    }
}

fn echo(mut stream: impl Read + Write) {
    let mut bytes = [0; BYTES];
    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
}

impl<S: Read + Write> Calls for Socket<S> {
    fn send(&mut self) {
        self.0.write_all(&[7; BYTES]).expect("the server lives");
    }

    fn receive(&mut self) {
        self.0.read_exact(&mut [0; BYTES]).expect("the server lives");
    }
}

/// Two named pipes.
pub struct Pipes {
    to: PipeWriter,
    from: PipeReader,
}

impl Pipes {
    pub fn connect(path: &Path) -> Pipes {
        let to = std::fs::OpenOptions::new().write(true).open(path.join("there")).expect("a reader");
        let from = std::fs::File::open(path.join("back")).expect("a writer");
        Pipes { to: std::os::fd::OwnedFd::from(to).into(), from: std::os::fd::OwnedFd::from(from).into() }
    }

    pub fn serve(path: &Path, ready: impl FnOnce()) {
        std::fs::create_dir(path).expect("a new path");
        for name in ["there", "back"] {
            let made = std::process::Command::new("mkfifo").arg(path.join(name)).status().expect("mkfifo is there");
            assert!(made.success());
        }
        ready();
        let mut from = std::fs::File::open(path.join("there")).expect("a writer");
        let mut to = std::fs::OpenOptions::new().write(true).open(path.join("back")).expect("a reader");
        let mut bytes = [0; BYTES];
        while from.read_exact(&mut bytes).is_ok() && to.write_all(&bytes).is_ok() {}
    }
}

impl Calls for Pipes {
    fn send(&mut self) {
        self.to.write_all(&[7; BYTES]).expect("the server lives");
    }

    fn receive(&mut self) {
        self.from.read_exact(&mut [0; BYTES]).expect("the server lives");
    }
}
