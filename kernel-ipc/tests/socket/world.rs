//! A host to dial, and the frames of a peer that speaks by hand.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial;
use kernel_ipc::link::socket::frame::{self, Hello, Refusal, Welcome, kind};
use kernel_ipc::link::socket::keys::Keys;
use kernel_ipc::link::socket::listen::{Listener, Options, Peer};
use kernel_ipc::link::socket::nodes::Nodes;
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{ClientSession, Service};
use kernel_ipc::wire::{Completion, Handle, Shape, Submission};
use kernel_ipc::{Cause, Epoch, Executed, Failure, SessionId};

pub use super::common::frames::read_frame;
use super::common::{ECHO, TEST, info, root};

pub const SHAPE: Shape = Shape { slots: 8, window_bytes: 4096 };

/// Short enough for a test that waits for the end of it.
pub fn hasty() -> Options {
    let millis = Duration::from_millis;
    Options { greeting: millis(500), heartbeat: millis(50), dead_after: millis(400), give_up: millis(800) }
}

/// Serves `service` on a port of its own.
pub struct Host {
    pub address: SocketAddr,
    pub listening: JoinHandle<()>,
}

impl Host {
    pub fn start<S: Service>(service: &Rc<S>, options: Options) -> Host {
        Host::start_lending(service, options, None)
    }

    pub fn start_lending<S: Service>(service: &Rc<S>, options: Options, lending: Option<Lending>) -> Host {
        let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        Host::over(listener, service, options, lending)
    }

    /// The same over TLS, for the whole world.
    pub fn start_secured<S: Service>(service: &Rc<S>, options: Options, lending: Option<Lending>, keys: Keys) -> Host {
        let everywhere = "0.0.0.0:0".parse().expect("an address");
        Host::over(Listener::bind_secured(everywhere, keys).expect("a socket"), service, options, lending)
    }

    /// And only for machines that are nodes.
    pub fn start_among<S: Service>(service: &Rc<S>, keys: Keys, nodes: &Nodes) -> Host {
        let everywhere = "0.0.0.0:0".parse().expect("an address");
        let listener = Listener::bind_secured(everywhere, keys).expect("a socket").among(nodes);
        Host::over(listener, service, Options::default(), None)
    }

    fn over<S: Service>(listener: Listener, service: &Rc<S>, options: Options, lending: Option<Lending>) -> Host {
        let address = listener.address();
        let last = Cell::new(0);
        let admit = move |_: &Peer, _: &_| {
            last.set(last.get() + 1);
            Some((root(), info(last.get())))
        };
        Host { address, listening: runtime::spawn(listener.serve(service.clone(), lending, options, admit)) }
    }

    /// Its address as seen from this machine.
    pub fn near(&self) -> SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, self.address.port()).into()
    }

    pub async fn connect(&self, options: Options) -> ClientSession {
        dial::connect(self.address, TEST.name, SHAPE, options).await.expect("a session")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.listening.cancel();
    }
}

pub fn no(cause: Cause) -> Failure {
    Failure { cause, executed: Executed::No }
}

/// Waits until it is so. The watchdog is the limit.
pub async fn until(so: impl Fn() -> bool) {
    while !so() {
        runtime::sleep(Duration::from_millis(1)).await;
    }
}

pub fn hello(session: u64, number: u64) -> Hello {
    let interface = frame::interface_bytes(TEST.name).expect("a name");
    Hello { shape: SHAPE, session: SessionId(session), number, outstanding: 0, secret: [7; 32], interface }
}

pub fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
    [&frame::header(kind, body.len()), body].concat()
}

pub fn message(call: &Submission) -> Vec<u8> {
    framed(kind::MESSAGE, &frame::descriptor_bytes(&call.to_raw()))
}

pub fn echo(slot: u16, seq: u64) -> Submission {
    Submission { slot, seq, operation: ECHO, handle: Handle { index: 0, generation: 1 }, ..Submission::default() }
}

/// Greets as a correct client.
pub async fn greet(socket: &mut TcpStream, hello: &Hello) -> Welcome {
    socket.write_all(&framed(kind::HELLO, &hello.to_bytes())).expect("sent");
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::WELCOME);
    Welcome::check(&body.try_into().expect("its length"), hello).expect("a welcome")
}

/// Greets as a correct host, on its own thread.
pub fn welcome(socket: &mut TcpStream) {
    let mut bytes = [0; frame::HEADER_BYTES + frame::HELLO_BYTES];
    socket.read_exact(&mut bytes).expect("a hello");
    let hello = Hello::check(bytes[frame::HEADER_BYTES..].try_into().expect("its length")).expect("a hello");
    let root = Handle { index: 0, generation: 1 };
    let welcome = Welcome { shape: hello.shape, session: SessionId(1), epoch: Epoch(1), root, number: hello.number };
    socket.write_all(&framed(kind::WELCOME, &welcome.to_bytes())).expect("sent");
}

pub async fn answer(socket: &mut TcpStream) -> Completion {
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::MESSAGE);
    let descriptor = body.first_chunk().expect("a descriptor");
    let raw = frame::descriptor(descriptor, body.len(), SHAPE).expect("a message");
    Completion::check(&raw, SHAPE).expect("a completion")
}

pub async fn refusal(socket: &mut TcpStream) -> Refusal {
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::REFUSED);
    Refusal::check(body.try_into().expect("its length")).expect("a refusal")
}
