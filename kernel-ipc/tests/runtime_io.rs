//! I/O on owned memory, against the running kernel.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::runtime::io::{self, File, Usage};
use kernel_ipc::runtime::{self, Options, Runtime, Waiting};

fn run<F: Future>(future: F) -> F::Output {
    Runtime::new(Options { waiting: Waiting::Block, ..Options::default() }).expect("a ring").block_on(future)
}

fn temporary_file() -> File {
    tempfile::tempfile().expect("a file").into()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("it must fail").raw_os_error()
}

/// Two ends of a connection over the loopback interface.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    (client, listener.accept().expect("the same").0)
}

#[test]
fn what_was_written_at_an_offset_is_read_there() {
    run(async {
        let file = temporary_file();
        let (written, data) = io::write_at(&file, b"coral".to_vec(), 4096).await;
        assert_eq!(written.expect("room on the disk"), 5);
        assert_eq!(data, b"coral");
        io::fsync(&file).await.expect("fsync");
        io::fdatasync(&file).await.expect("fdatasync");
        let (read, data) = io::read_at(&file, vec![0; 16], 4094).await;
        assert_eq!(read.expect("readable"), 7);
        assert_eq!(&data[..7], b"\0\0coral");
        let (read, _) = io::read_at(&file, vec![0; 16], 8192).await;
        assert_eq!(read.expect("the end of a file is no error"), 0);
    });
}

#[test]
fn more_operations_than_the_ring_has_entries_all_end() {
    let runtime = Runtime::new(Options { entries: 4, waiting: Waiting::Block, ..Options::default() }).expect("a ring");
    runtime.block_on(async {
        let file = temporary_file();
        let writes: Vec<_> = (0..500u64)
            .map(|number| {
                let file = file.clone();
                runtime::spawn(async move { io::write_at(&file, number.to_le_bytes().to_vec(), number * 8).await.0 })
            })
            .collect();
        for write in writes {
            assert_eq!(write.await.expect("not cancelled").expect("room on the disk"), 8);
        }
        let (_, data) = io::read_at(&file, vec![0; 4000], 0).await;
        assert!(data.chunks_exact(8).zip(0u64..).all(|(bytes, number)| bytes == number.to_le_bytes()));
    });
}

#[test]
fn fallocate_punches_holes_and_says_what_it_cannot_do() {
    run(async {
        let file = temporary_file();
        io::write_at(&file, vec![7; 8192], 0).await.0.expect("room on the disk");
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        io::fallocate(&file, punch, 0, 4096).await.expect("a file system that knows holes");
        let (_, data) = io::read_at(&file, vec![1; 8192], 0).await;
        assert!(data[..4096].iter().all(|byte| *byte == 0) && data[4096..].iter().all(|byte| *byte == 7));
        assert_eq!(errno(io::fallocate(&file, punch, 0, 0).await), Some(libc::EINVAL));
    });
}

#[test]
fn fixed_buffers_are_registered_when_they_are_first_used() {
    run(async {
        let file = temporary_file();
        io::write_at(&file, (0..=255).collect::<Vec<u8>>(), 0).await.0.expect("room on the disk");
        let mut buffers = io::Buffers::new(vec![0u8; 4 * 65536], 65536).expect("an empty table");
        assert_eq!(buffers.counts(), (0, 0));
        assert_eq!(buffers.buffer(65536, 4096), Some(1));
        assert_eq!(buffers.buffer(65536 + 4096, 4096), Some(1));
        assert_eq!(buffers.counts(), (1, 0));
        assert_eq!(buffers.buffer(65536 - 1, 2), None, "a range across two chunks");
        assert_eq!(buffers.buffer(4 * 65536, 1), None, "beyond the memory");
        assert_eq!(buffers.buffer(0, 0), None, "an empty range");
        // Memory outside of the registered chunk: the kernel checks it.
        let (result, _) = io::read_fixed(&file, vec![0; 16], 0, 1).await;
        assert_eq!(errno(result), Some(libc::EFAULT));
        assert_eq!(
            io::Buffers::new(vec![0u8; 16], 16).err().and_then(|error| error.raw_os_error()),
            Some(libc::EBUSY),
            "a second table"
        );
    });
}

#[test]
fn bytes_go_over_a_connection_and_its_shutdown_is_seen() {
    run(async {
        let (client, server) = UnixStream::pair().expect("a pair");
        let (client, server) = (File::from(OwnedFd::from(client)), File::from(OwnedFd::from(server)));
        let receiving = runtime::spawn(async move {
            let (received, data) = io::recv(&server, vec![0; 64], 0).await;
            let data = data[..received.expect("a byte")].to_vec();
            assert_eq!(io::recv(&server, vec![0; 64], 0).await.0.expect("the end"), 0);
            data
        });
        runtime::yield_now().await;
        assert_eq!(io::send(&client, b"lagoon".to_vec(), 0).await.0.expect("a peer"), 6);
        io::shutdown(&client, Shutdown::Write).await.expect("connected");
        assert_eq!(receiving.await.expect("not cancelled"), b"lagoon");
        io::close(client).await.expect("closed once");
    });
}

#[test]
fn a_send_to_nobody_is_an_error_and_not_a_signal() {
    run(async {
        let (client, server) = UnixStream::pair().expect("a pair");
        drop(server);
        let client = File::from(OwnedFd::from(client));
        assert_eq!(errno(io::send(&client, vec![1], 0).await.0), Some(libc::EPIPE));
    });
}

#[test]
fn a_zero_copy_send_ends_twice_and_gives_its_memory_back_at_the_second() {
    let (client, mut server) = connection();
    let runtime = Runtime::new(Options { waiting: Waiting::Block, ..Options::default() }).expect("a ring");
    if !runtime.features().send_zc {
        println!("skipped: this kernel has no IORING_OP_SEND_ZC");
        return;
    }
    let client = File::from(OwnedFd::from(client));
    let (sent, notification) = runtime.block_on(io::send_zc(&client, vec![9u8; 4000], 0));
    assert_eq!(sent.expect("a peer"), 4000);
    let mut received = vec![0; 4000];
    server.read_exact(&mut received).expect("what was sent");
    assert!(received.iter().all(|byte| *byte == 9));
    let (usage, memory) = runtime.block_on(notification);
    // The loopback interface always copies in the end.
    assert_eq!(usage, Usage::Copied);
    assert_eq!(memory, received);
}

#[test]
fn a_zero_copy_send_that_the_socket_refuses_still_gives_its_memory_back() {
    run(async {
        let (client, _server) = UnixStream::pair().expect("a pair");
        let client = File::from(OwnedFd::from(client));
        let (sent, notification) = io::send_zc(&client, vec![3; 10], 0).await;
        assert!(matches!(errno(sent), Some(libc::EOPNOTSUPP | libc::EINVAL)));
        assert_eq!(notification.await.1, vec![3; 10]);
    });
}

#[test]
fn one_accept_gives_many_connections_and_closes_those_that_nobody_took() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let file = File::from(OwnedFd::from(listener));
        let mut accept = io::accept(&file);
        let clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).expect("a connection")).collect();
        let mut servers = Vec::new();
        for _ in 0..20 {
            servers.push(accept.next().await.expect("a connection"));
        }
        drop((clients, servers));
        let mut late = TcpStream::connect(address).expect("a connection");
        runtime::sleep(Duration::from_millis(5)).await;
        drop(accept);
        runtime::sleep(Duration::from_millis(5)).await;
        late.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        assert_eq!(late.read(&mut [0]).expect("closed by the other side"), 0);
    });
}

#[test]
fn an_accept_on_what_does_not_listen_fails_every_time() {
    run(async {
        let file = temporary_file();
        let mut accept = io::accept(&file);
        assert_eq!(errno(accept.next().await), Some(libc::ENOTSOCK));
        assert_eq!(errno(accept.next().await), Some(libc::ENOTSOCK));
    });
}

#[test]
fn readiness_is_reported_when_it_comes() {
    run(async {
        let (client, mut server) = UnixStream::pair().expect("a pair");
        let client = File::from(OwnedFd::from(client));
        io::poll_writable(&client).await.expect("room");
        let waiting = runtime::spawn({
            let client = client.clone();
            async move { io::poll_readable(&client).await }
        });
        runtime::sleep(Duration::from_millis(2)).await;
        assert!(!waiting.is_finished());
        server.write_all(b"x").expect("a peer");
        waiting.await.expect("not cancelled").expect("readable");
    });
}

/// Memory that tells when it is dropped.
struct Traced(Vec<u8>, Rc<Cell<bool>>);

impl Drop for Traced {
    fn drop(&mut self) {
        self.1.set(true);
    }
}

mod sys {
    #![allow(unsafe_code)]
    // SAFETY: as for the vector inside.
    unsafe impl kernel_ipc::runtime::IoMemory for super::Traced {
        fn io_ptr(&self) -> *const u8 {
            self.0.as_ptr()
        }
        fn io_len(&self) -> usize {
            self.0.len()
        }
    }
    // SAFETY: as for the vector inside.
    unsafe impl kernel_ipc::runtime::IoMemoryMut for super::Traced {
        fn io_mut_ptr(&mut self) -> *mut u8 {
            self.0.as_mut_ptr()
        }
    }
}

#[test]
fn a_dropped_receive_keeps_memory_and_socket_until_the_kernel_is_done_with_them() {
    run(async {
        let (client, mut server) = UnixStream::pair().expect("a pair");
        let dropped = Rc::new(Cell::new(false));
        let file = File::from(OwnedFd::from(client));
        let memory = Traced(vec![0; 16], Rc::clone(&dropped));
        let mut receiving = Box::pin(io::recv(&file, memory, 0));
        drop(futures_poll_once(&mut receiving).await);
        drop(receiving);
        drop(file);
        assert!(!dropped.get(), "the kernel may still write there");
        runtime::sleep(Duration::from_millis(5)).await;
        assert!(dropped.get(), "the receive was never cancelled");
        assert_eq!(
            server.write(b"x").map_err(|error| error.kind()),
            Err(std::io::ErrorKind::BrokenPipe),
            "the socket was never closed"
        );
    });
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn a_runtime_that_ends_waits_for_its_operations_before_their_memory_goes() {
    let dropped = Rc::new(Cell::new(false));
    let (client, _server) = UnixStream::pair().expect("a pair");
    run(async {
        let memory = Traced(vec![0; 16], Rc::clone(&dropped));
        let file = File::from(OwnedFd::from(client));
        drop(runtime::spawn(async move { drop(io::recv(&file, memory, 0).await) }));
        runtime::yield_now().await;
        assert!(!dropped.get());
    });
    assert!(dropped.get());
}

#[test]
fn the_fence_ends_with_the_ring_and_not_before() {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("a pipe");
    let runtime = Runtime::new(Options { fence: Some(writer), ..Options::default() }).expect("a ring");
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&reader, &mut byte), Err(nix::errno::Errno::EAGAIN), "the ring holds the other end");
    drop(runtime);
    // The kernel ends a ring in a work item of its own.
    let end = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(1));
        nix::unistd::read(&reader, &mut byte)
    })
    .find(|result| *result != Err(nix::errno::Errno::EAGAIN));
    assert_eq!(end, Some(Ok(0)));
}

#[test]
fn one_transfer_of_many_that_ends_is_told_though_the_others_never_end() {
    run(async {
        // So many in flight that their completions are taken in batches; a pipe's reads end when somebody writes.
        let pipes: Vec<_> = (0..32).map(|_| nix::unistd::pipe().expect("a pipe")).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let reads: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                let reader: io::File = reader.into();
                // Offset -1: where the pipe stands.
                runtime::spawn(async move { io::read_at(&reader, vec![0u8; 1], u64::MAX).await })
            })
            .collect();
        for (number, read) in reads.into_iter().enumerate().take(20) {
            runtime::sleep(std::time::Duration::from_millis(1)).await;
            nix::unistd::write(&writers[number], &[number as u8]).expect("room");
            let (result, bytes) = read.await.expect("not cancelled");
            assert_eq!((result.expect("read"), bytes[0]), (1, number as u8));
        }
    });
}
