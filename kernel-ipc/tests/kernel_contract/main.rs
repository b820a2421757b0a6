//! What the kernel must guarantee and Atoll relies on, checked wherever it is built.
//!
//! Each test is one fact of section 3 of the design notes on IPC that a law of the design stands on: one writer per
//! segment, waiting through read-only mappings, leases by the kernel's own reading, the fence of a dead process.
//! A kernel that is too old for a fact which Atoll can do without prints `skipped: reason`.
#![deny(unsafe_code)]

mod sys;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use kernel_ipc::RegionId;
use kernel_ipc::lease::{Region, RegionReader};
use kernel_ipc::runtime::IoMemory;
use kernel_ipc::sys::segment::{SegmentReader, SegmentWriter, memfd, set_len};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use sys::{Mapping, READ, READ_WRITE, child, futex_wait, futex_waitv, futex_wake};

const LEN: usize = 8192;

fn dup(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().expect("a descriptor more")
}

fn sealed() -> SegmentWriter {
    SegmentWriter::create("contract", LEN).expect("a segment")
}

fn unsealed() -> OwnedFd {
    let fd = memfd("contract").expect("a memfd");
    set_len(&fd, LEN).expect("its size");
    fd
}

/// (major, minor) of the running kernel.
fn kernel() -> (u32, u32) {
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Prints why a test says nothing here.
fn older_than(major: u32, minor: u32, what: &str) -> bool {
    let old = kernel() < (major, minor);
    if old {
        println!("skipped: {what} exists from Linux {major}.{minor}");
    }
    old
}

#[test]
fn a_writer_that_has_sealed_its_segment_goes_on_writing_and_nobody_else_ever_does() {
    let writer = sealed();
    let reader = SegmentReader::open(dup(writer.fd()), LEN).expect("sealed");
    writer.store_u32(4096, 7, Release);
    assert_eq!(reader.load_u32(4096, Acquire), 7);

    // The peer has the descriptor, open for writing.
    let fd = dup(writer.fd());
    assert_eq!(Mapping::new(&fd, LEN, READ_WRITE).err(), Some(Errno::EPERM));
    let map = Mapping::new(&fd, LEN, READ).expect("read-only is allowed");
    assert_eq!(map.protect(READ_WRITE), Err(Errno::EACCES));
    assert_eq!(nix::sys::uio::pwrite(&fd, b"x", 0), Err(Errno::EPERM));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(&fd, punch, 0, 4096), Err(Errno::EPERM));
    assert_eq!(fallocate(&fd, FallocateFlags::empty(), 0, 2 * LEN as i64), Err(Errno::EPERM));
    for len in [0, LEN as i64 - 1, LEN as i64 + 1] {
        assert_eq!(nix::unistd::ftruncate(&fd, len), Err(Errno::EPERM), "to {len} bytes");
    }
    assert_eq!(fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM), "no seal comes later");
    assert_eq!(map.word(4096).load(Relaxed), 7);
    writer.store_u32(4096, 8, Release);
    assert_eq!(map.word(4096).load(Relaxed), 8, "the writer's own mapping still writes");
}

#[test]
fn opening_a_sealed_segment_again_gives_no_second_writer() {
    let writer = sealed();
    let path = format!("/proc/self/fd/{}", writer.fd().as_raw_fd());
    let again = OpenOptions::new().read(true).write(true).open(path).expect("opening is allowed");
    assert_eq!(Mapping::new(&again, LEN, READ_WRITE).err(), Some(Errno::EPERM));
    assert_eq!(nix::sys::uio::pwrite(&again, b"x", 0), Err(Errno::EPERM));
    assert!(SegmentWriter::adopt(again.into()).is_err());
}

#[test]
fn a_file_that_is_not_sealed_against_shrinking_kills_its_readers_and_is_refused() {
    let fd = unsealed();
    let _writer = Mapping::new(&fd, LEN, READ_WRITE).expect("a writer");
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).expect("half of the seals");
    assert!(SegmentReader::open(dup(fd.as_fd()), LEN).is_err(), "half of the seals are not enough");
    let reader = Mapping::new(&fd, LEN, READ).expect("whoever does not check");
    nix::unistd::ftruncate(&fd, 0).expect("nothing forbids it");
    let status = child(|| sys::touch(&reader)).wait();
    assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGBUS, _)), "{status:?}");
}

#[test]
fn segments_without_seals_or_too_short_are_refused() {
    assert!(SegmentReader::open(unsealed(), LEN).is_err(), "no seals");
    let (read_end, _write_end) = nix::unistd::pipe().expect("a pipe");
    assert!(SegmentReader::open(read_end, 1).is_err(), "no memfd");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(LEN as u64).expect("its size");
    assert!(SegmentReader::open(file.into(), LEN).is_err(), "a file that cannot be sealed");
    assert!(SegmentReader::open(dup(sealed().fd()), LEN + 1).is_err(), "too short");
}

#[test]
fn memory_cannot_be_frozen_while_its_writer_maps_it() {
    let fd = unsealed();
    let writer = Mapping::new(&fd, LEN, READ_WRITE).expect("a writer");
    assert_eq!(fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EBUSY));
    drop(writer);
    // Children of other tests of this file may hold a copy of the mapping for a moment.
    let freeze = || fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_ok();
    let frozen = (0..1000).any(|_| {
        freeze() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }
    });
    assert!(frozen, "nobody maps it writable any more");
}

#[test]
fn a_process_sleeps_on_a_futex_through_its_read_only_mapping() {
    let writer = sealed();
    let reader = Mapping::new(writer.fd(), LEN, READ).expect("a reader");
    let sleeper = child(|| match futex_wait(reader.word(0), 0) {
        Ok(()) => 0,
        Err(Errno::EAGAIN) => 1, // the word had changed before it slept, which the test avoids
        Err(_) => 2,
    });
    let writable = writer.word(0).as_ptr();
    let mut woken = 0;
    for _ in 0..1000 {
        woken = futex_wake(writable).expect("a wake");
        if woken > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(woken, 1, "one process slept");
    assert!(matches!(sleeper.wait(), WaitStatus::Exited(_, 0)));
}

#[test]
fn a_process_wakes_a_sleeper_through_its_read_only_mapping() {
    let writer = sealed();
    let reader = Mapping::new(writer.fd(), LEN, READ).expect("a reader");
    let own = Mapping::new(writer.fd(), LEN, READ).expect("the sleeper's");
    let waker = child(|| {
        for _ in 0..10_000 {
            match futex_wake(reader.word(64).as_ptr()) {
                Ok(0) => std::thread::sleep(Duration::from_millis(1)),
                Ok(_) => return 0,
                Err(_) => return 2,
            }
        }
        1
    });
    assert_eq!(futex_wait(own.word(64), 0), Ok(()));
    assert!(matches!(waker.wait(), WaitStatus::Exited(_, 0)));
}

#[test]
fn a_thread_waits_on_up_to_128_futexes_at_once() {
    let writer = sealed();
    let reader = Mapping::new(writer.fd(), LEN, READ).expect("a reader");
    // The word is 0, so a wait for 1 answers at once that it has changed.
    assert_eq!(futex_waitv(reader.word(0), 1, 128), Err(Errno::EAGAIN));
    assert_eq!(futex_waitv(reader.word(0), 1, 129), Err(Errno::EINVAL));
}

#[test]
fn io_uring_sleeps_on_a_futex_in_a_read_only_mapping_and_another_process_wakes_it() {
    let mut ring = IoUring::new(4).expect("io_uring");
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).expect("a probe");
    if !probe.is_supported(opcode::FutexWait::CODE) {
        assert!(kernel() < (6, 7), "the kernel is new enough for IORING_OP_FUTEX_WAIT");
        println!("skipped: IORING_OP_FUTEX_WAIT exists from Linux 6.7");
        return;
    }
    let writer = sealed();
    let reader = Mapping::new(writer.fd(), LEN, READ).expect("a reader");
    let theirs = Mapping::new(writer.fd(), LEN, READ).expect("the waker's");
    let waker = child(|| {
        for _ in 0..10_000 {
            match futex_wake(theirs.word(128).as_ptr()) {
                Ok(0) => std::thread::sleep(Duration::from_millis(1)),
                Ok(_) => return 0,
                Err(_) => return 2,
            }
        }
        1
    });
    const FUTEX2_SIZE_U32: u32 = 2;
    let wait = opcode::FutexWait::new(reader.word(128).as_ptr(), 0, u32::MAX.into(), FUTEX2_SIZE_U32).build();
    assert_eq!(sys::run(&mut ring, &wait, 1)[0].0, 0);
    assert!(matches!(waker.wait(), WaitStatus::Exited(_, 0)));
    // A word that has changed already does not sleep.
    let wait = opcode::FutexWait::new(reader.word(128).as_ptr(), 1, u32::MAX.into(), FUTEX2_SIZE_U32).build();
    assert_eq!(sys::run(&mut ring, &wait, 1)[0].0, -libc::EAGAIN);
}

#[test]
fn only_a_writable_mapping_can_be_registered_as_fixed_buffers() {
    let region = Region::create("contract", RegionId(1), LEN).expect("a region");
    let reader = RegionReader::open(dup(region.fd()), RegionId(1)).expect("its reader");
    let ring = IoUring::new(4).expect("io_uring");
    let slice = reader.slice(0, LEN).expect("inside");
    let refused = sys::register_buffer(&ring, slice.io_ptr(), LEN).expect_err("the kernel pins with write intent");
    assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
    let own = region.slice(0, LEN).expect("inside");
    sys::register_buffer(&ring, own.io_ptr(), LEN).expect("an owner reads into its own region, sealed or not");
}

#[test]
fn the_kernel_reads_into_an_owners_region_and_readers_see_it() {
    let region = Region::create("contract", RegionId(1), LEN).expect("a region");
    let reader = RegionReader::open(dup(region.fd()), RegionId(1)).expect("its reader");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[5; LEN]).expect("its bytes");
    let mut ring = IoUring::new(4).expect("io_uring");
    let own = region.slice(0, LEN).expect("inside");
    sys::register_buffer(&ring, own.io_ptr(), LEN).expect("registered");
    let at = own.io_ptr().cast_mut();
    let read = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), at, 4096, 0).offset(0).build();
    assert_eq!(sys::run(&mut ring, &read, 1)[0].0, 4096);
    let mut bytes = [0; LEN];
    reader.copy_out(0, &mut bytes).expect("inside");
    assert_eq!((bytes[0], bytes[4095], bytes[4096]), (5, 5, 0));
}

#[test]
fn the_kernel_writes_a_file_directly_from_a_read_only_mapping() {
    let region = Region::create("contract", RegionId(1), LEN).expect("a region");
    region.copy_in(0, &[9; LEN]).expect("inside");
    let reader = RegionReader::open(dup(region.fd()), RegionId(1)).expect("its reader");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("direct");
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
    let file = match options.read(true).write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) => {
            println!("skipped: no direct I/O in {}: {error}", directory.path().display());
            return;
        }
    };
    let mut ring = IoUring::new(4).expect("io_uring");
    let slice = reader.slice(0, LEN).expect("inside");
    let write = opcode::Write::new(types::Fd(file.as_raw_fd()), slice.io_ptr(), LEN as u32).offset(0).build();
    assert_eq!(sys::run(&mut ring, &write, 1)[0].0, LEN as i32);
    assert_eq!(std::fs::read(&path).expect("what was written"), [9; LEN]);
}

#[test]
fn pages_of_a_read_only_mapping_are_sent_without_copy_and_a_notification_says_when_they_are_free() {
    let region = Region::create("contract", RegionId(1), LEN).expect("a region");
    region.copy_in(0, &[3; LEN]).expect("inside");
    let reader = RegionReader::open(dup(region.fd()), RegionId(1)).expect("its reader");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let mut far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
    let (near, _) = listener.accept().expect("the connection");
    let mut ring = IoUring::new(4).expect("io_uring");
    let slice = reader.slice(0, LEN).expect("inside");
    let received = std::thread::spawn(move || {
        let mut bytes = vec![0; LEN];
        far.read_exact(&mut bytes).map(|()| bytes)
    });
    let send = opcode::SendZc::new(types::Fd(near.as_raw_fd()), slice.io_ptr(), LEN as u32).build();
    let seen = sys::run(&mut ring, &send, 2);
    assert_eq!(seen[0].0, LEN as i32);
    assert!(io_uring::cqueue::more(seen[0].1), "the completion announces a notification");
    assert!(io_uring::cqueue::notif(seen[1].1), "the notification comes second");
    assert_eq!(received.join().expect("a reader").expect("all of it"), [3; LEN]);
}

/// Whether the pipe's read end reports its end within `timeout_ms`.
fn ended(pipe: &OwnedFd, timeout_ms: u16) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(timeout_ms)).expect("poll");
    fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

#[test]
fn a_pipe_that_only_a_ring_holds_ends_when_the_ring_is_gone() {
    let (read_end, write_end) = nix::unistd::pipe().expect("a pipe");
    let mut ring = IoUring::new(4).expect("io_uring");
    ring.submitter().register_files(&[write_end.as_raw_fd()]).expect("registered");
    drop(write_end);
    // A request that would never end by itself does not keep the ring: it is cancelled with it.
    let (idle, _other) = UnixStream::pair().expect("a socket");
    let mut buffer = [0u8; 8];
    let recv = opcode::Recv::new(types::Fd(idle.as_raw_fd()), buffer.as_mut_ptr(), 8).build();
    sys::start(&mut ring, &recv);
    assert!(!ended(&read_end, 50), "the ring holds the pipe");
    drop(ring);
    assert!(ended(&read_end, 10_000), "nothing holds the pipe any more");
}

#[test]
fn the_fence_of_a_killed_process_ends_after_its_rings() {
    let (read_end, write_end) = nix::unistd::pipe().expect("a pipe");
    let (ready, theirs) = UnixStream::pair().expect("a socket");
    let ring = IoUring::new(4).expect("io_uring");
    ring.submitter().register_files(&[write_end.as_raw_fd()]).expect("registered");
    // The child inherits the ring; afterwards it alone has it.
    let holder = child(|| {
        let _ = (&theirs).write_all(b"x");
        std::thread::sleep(Duration::from_secs(60));
        0
    });
    (&ready).read_exact(&mut [0]).expect("the child runs");
    drop((ring, write_end));
    // The child's copies of the pipe's own descriptors go with the child, as the ring does.
    assert!(!ended(&read_end, 50), "the child holds ring and pipe");
    drop(holder);
    assert!(ended(&read_end, 10_000), "the dead process's ring is gone");
}

#[test]
fn a_message_carries_up_to_253_descriptors() {
    let (near, far) = UnixStream::pair().expect("a socket");
    let null = File::open("/dev/null").expect("/dev/null");
    assert_eq!(sys::send_descriptors(near.as_fd(), null.as_fd(), 254), Err(Errno::EINVAL));
    assert_eq!(sys::send_descriptors(near.as_fd(), null.as_fd(), 253), Ok(1));
    drop(far);
}

#[test]
fn a_ring_cannot_be_sent_to_another_process() {
    if older_than(6, 8, "the refusal to send rings") {
        return;
    }
    let (near, _far) = UnixStream::pair().expect("a socket");
    let ring = IoUring::new(4).expect("io_uring");
    let fd = nix::unistd::dup(ring_fd(&ring)).expect("a descriptor more");
    assert_eq!(sys::send_descriptors(near.as_fd(), fd.as_fd(), 1), Err(Errno::EINVAL));
}

fn ring_fd(ring: &IoUring) -> BorrowedFd<'_> {
    sys::borrow(ring.as_raw_fd(), ring)
}

#[test]
fn a_socket_names_its_peer_by_pidfd() {
    if older_than(6, 5, "SO_PEERPIDFD") {
        return;
    }
    let (near, _far) = UnixStream::pair().expect("a socket");
    assert!(sys::peer_pidfd(near.as_fd()).is_ok_and(|fd| fd >= 0));
}
