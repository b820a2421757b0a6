//! The floor of a session over a socket: as many bytes there and back over one TCP connection, without anything around them.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use kernel_ipc::sys::descriptors;

use crate::ipc::floor::RawMode;
use crate::ipc::host::{Account, Host, Task, TaskKind, thread_cpu};
use crate::ipc::{Place, pin, sample, unpin};
use crate::report::Row;

/// Measures the floor for messages of so many bytes there and back.
pub fn measure(
    host: &Host,
    mode: RawMode,
    (bytes, reply): (usize, usize),
    place: &Place,
    duration: Duration,
) -> io::Result<Row> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    host.begin(Task { core: place.host, kind: TaskKind::Tcp { mode, bytes, reply } }, listener.as_fd())?;
    let mut socket = prepared(TcpStream::connect(listener.local_addr()?)?, mode)?;
    let before = pin(place.client);
    let (message, mut answer) = (vec![7; bytes], vec![0; reply]);
    let mut failed = None;
    let name = format!("raw TCP ping-pong, {bytes} bytes, {}, {}", mode.name(), place.name);
    let row = sample(&name, duration, || {
        let exchanged = send(&mut socket, &message).and_then(|()| receive(&mut socket, &mut answer, mode));
        if !matches!(exchanged, Ok(true)) {
            failed.get_or_insert(exchanged.err());
        }
    });
    drop(socket);
    unpin(before);
    host.end()?;
    match failed {
        None => Ok(row),
        Some(error) => Err(error.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
    }
}

/// The other end: answers what comes, until the connection ends.
pub fn answer(
    mode: RawMode,
    (bytes, reply): (usize, usize),
    listener: OwnedFd,
    socket: BorrowedFd<'_>,
) -> io::Result<Account> {
    let listener = TcpListener::from(listener);
    descriptors::send(socket, b"s", &[listener.as_fd()], true)?;
    let mut connection = prepared(listener.accept()?.0, mode)?;
    let began = thread_cpu();
    let (mut message, answer, mut calls) = (vec![0; bytes], vec![7; reply], 0);
    while receive(&mut connection, &mut message, mode)? {
        send(&mut connection, &answer)?;
        calls += 1;
    }
    Ok(Account { cpu_ns: thread_cpu() - began, calls, system_calls: 2 * calls })
}

fn prepared(socket: TcpStream, mode: RawMode) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(mode != RawMode::Futex)?;
    Ok(socket)
}

/// All of it. What does not fit into the kernel is tried again: so much is not under way here.
fn send(socket: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// All of it; false at the connection's end.
fn receive(socket: &mut TcpStream, bytes: &mut [u8], mode: RawMode) -> io::Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match mode {
                RawMode::Spin => std::hint::spin_loop(),
                RawMode::Yield | RawMode::Futex => std::thread::yield_now(),
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
