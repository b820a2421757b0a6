//! Peers that speak by hand, and mostly break the rules.

use std::io::Write;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::link::socket::frame::{self, Refusal, kind};
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::Request;
use kernel_ipc::wire::Submission;
use kernel_ipc::{Cause, Executed, Failure};

use super::common::allocations::Peak;
use super::common::*;
use super::world::*;

#[test]
fn a_deadline_crosses_as_what_is_left_of_it() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        greet(&mut socket, &hello(0, 1)).await;
        // A second, whatever this machine's clock says: read as a time it would have passed long ago.
        let call = Submission { deadline: 1_000_000_000, ..echo(0, 1) };
        socket.write_all(&message(&call)).expect("sent");
        assert_eq!(answer(&mut socket).await.status, kernel_ipc::wire::Status::Done);
        let late = Submission { deadline: 1, ..echo(0, 2) };
        runtime::sleep(Duration::from_millis(20)).await;
        socket.write_all(&message(&late)).expect("sent");
        // A nanosecond has passed before anybody looks; the clock that is looked at may be a tick behind.
        runtime::sleep(Duration::from_millis(20)).await;
        let _ = answer(&mut socket).await;

        let client = host.connect(Options::default()).await;
        let short = Request { deadline: Some(Duration::from_millis(30)), ..request(client.root(), HANG, b"") };
        let failure = client.call(short).await.expect_err("nobody answers");
        assert_eq!(failure, Failure { cause: Cause::Deadline, executed: Executed::Unknown });
        // The cancel goes out, and the handler hears it.
        until(|| thing.cancelled.get() == 1).await;
    });
}

#[test]
fn strangers_and_liars_are_shown_out_and_nobody_else_notices() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let bystander = host.connect(Options::default()).await;
        let dial = || TcpStream::connect(host.address).expect("loopback");
        let greeting = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = framed(kind::HELLO, &hello(0, 1).to_bytes());
            change(&mut bytes);
            let mut socket = dial();
            socket.write_all(&bytes).expect("sent");
            socket
        };

        for (what, mut socket, expected) in [
            ("another language", greeting(&|bytes| bytes[8] = b'X'), Refusal::NoHello),
            ("another version", greeting(&|bytes| bytes[16] = 9), Refusal::Version(kernel_ipc::wire::VERSION)),
            ("no slots", greeting(&|bytes| bytes[20] = 0), Refusal::Shape),
            ("another kind", greeting(&|bytes| bytes[4] = kind::BYE as u8), Refusal::NoHello),
            ("too long", greeting(&|bytes| bytes[1] = 1), Refusal::NoHello),
            ("another interface", greeting(&|bytes| bytes[80] ^= 1), Refusal::Interface),
            ("no such session", greeting(&|bytes| bytes[32] = 77), Refusal::NoSuchSession),
        ] {
            assert_eq!(refusal(&mut socket).await, expected, "{what}");
            assert_eq!(read_frame(&mut socket).await, None, "{what}");
        }
        // One that says nothing is dropped after the time for greetings.
        let mut silent = dial();
        assert_eq!(read_frame(&mut silent).await, None);

        // A session's own client, after a right greeting.
        let payload = |length: u8| {
            let mut bytes = message(&echo(0, 1));
            bytes[8 + 16] = length;
            bytes
        };
        for (what, bytes) in [
            ("an unknown kind", framed(11, b"")),
            ("a pull where calls come", framed(kind::PULL, &[1; 32])),
            ("a second hello", framed(kind::HELLO, &hello(0, 1).to_bytes())),
            ("a message that is too short", framed(kind::MESSAGE, &[0; 63])),
            ("a message longer than any", frame::header(kind::MESSAGE, 64 + 4097).to_vec()),
            ("a length beyond reason", frame::header(kind::MESSAGE, u32::MAX as usize).to_vec()),
            ("a payload that did not come along", payload(100)),
            ("a slot that is none", message(&echo(12, 1))),
            ("an old seq", [message(&echo(1, 5)), message(&echo(1, 5))].concat()),
            ("a heartbeat with a body", framed(kind::HEARTBEAT, b"x")),
            ("a resume that nobody asked for", {
                let mut bytes = message(&echo(0, 1));
                bytes[8 + 2] = 1;
                bytes
            }),
        ] {
            let before = thing.closed.get();
            let mut socket = dial();
            greet(&mut socket, &hello(0, 1)).await;
            socket.write_all(&bytes).expect("sent");
            while let Some((kind, _)) = read_frame(&mut socket).await {
                assert!(matches!(kind, kind::MESSAGE | kind::BYE), "{what}: {kind}");
            }
            until(|| thing.closed.get() > before).await;
        }
        let reply = bystander.call(request(bystander.root(), ECHO, b"still here")).await.expect("echo");
        assert_eq!(*reply.payload, *b"still here");
    });
}

#[test]
fn a_trickling_peer_gets_its_answer_when_its_call_is_whole() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        socket.set_nodelay(true).expect("an option");
        greet(&mut socket, &hello(0, 1)).await;
        let other = host.connect(Options::default()).await;
        for byte in message(&echo(0, 1)) {
            socket.write_all(&[byte]).expect("sent");
            other.call(request(other.root(), ECHO, b"")).await.expect("echo");
        }
        assert_eq!(answer(&mut socket).await.seq, 1);
    });
}

#[test]
fn a_peer_that_reads_nothing_ends_its_own_session_in_bounded_memory() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let other = host.connect(Options::default()).await;
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        greet(&mut socket, &hello(0, 1)).await;
        // Large answers to calls on slots whose answers it has not read: no correct client can know that they are free.
        let mut sent = 0u64;
        let mut seq = 1;
        let peak = Peak::begin();
        socket.set_nonblocking(true).expect("an option");
        while thing.closed.get() == 0 {
            let call = Submission { operation: FAIL, ..echo(0, seq) };
            let payload = bytes(4000);
            let mut bytes = message(&call);
            bytes[..4].copy_from_slice(&(64 + 4000u32).to_le_bytes());
            bytes[8 + 16..8 + 20].copy_from_slice(&4000u32.to_le_bytes());
            bytes.extend(payload);
            let mut left = &bytes[..];
            while !left.is_empty() && thing.closed.get() == 0 {
                match socket.write(left) {
                    Ok(count) => {
                        left = &left[count..];
                        sent += count as u64;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        runtime::sleep(Duration::from_millis(1)).await;
                    }
                    Err(_) => break,
                }
            }
            if left.is_empty() {
                seq += 1;
            } else if thing.closed.get() == 0 {
                runtime::yield_now().await;
            }
            if seq.is_multiple_of(64) {
                other.call(request(other.root(), ECHO, b"")).await.expect("the others notice nothing");
            }
        }
        // A buffer that grows is there twice while it does, in the old size and in the new one.
        let most = 4 * SHAPE.ring_entries() as usize * frame::largest(SHAPE);
        let grown = peak.bytes();
        println!("{grown} bytes of memory, at most {most}, for answers to {sent} bytes of calls");
        assert!((1..most).contains(&grown), "{grown} bytes of memory for answers to {sent} bytes of calls");
        other.call(request(other.root(), ECHO, b"")).await.expect("the others notice nothing");
    });
}
