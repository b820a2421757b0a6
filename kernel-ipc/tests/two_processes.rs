//! A client and a host in two processes: this test program starts itself again as the host.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use common::*;
use kernel_ipc::runtime::{self, Waiting};
use kernel_ipc::session::{ClientSession, HostSession, Offer};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Epoch, Executed, Failure, SessionId};

const ROLE: &str = "ATOLL_TEST_HOST_OF";

/// A descriptor of this process as another process of the same user can open it.
fn path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// The host's program, when this test program is started as one: serves the session whose C-segment it is told, until
/// its input ends.
#[test]
fn host_process() {
    let Ok(client_segment) = std::env::var(ROLE) else { return };
    run_waiting(Waiting::Adaptive, async {
        let segment = File::open(client_segment).expect("the client's segment");
        let thing: Rc<Thing> = Rc::default();
        let host = HostSession::start(segment.into(), root(), thing, info(1), Some(lender())).expect("a session");
        let mut out = std::io::stdout();
        writeln!(out, "\nsegment {}", path(host.fd().expect("shared memory"))).expect("a reader");
        out.flush().expect("a reader");
        let input = std::io::stdin();
        let mut fds = [nix::poll::PollFd::new(input.as_fd(), nix::poll::PollFlags::POLLIN)];
        while nix::poll::poll(&mut fds, 0u16).expect("poll") == 0 {
            runtime::sleep(Duration::from_millis(5)).await;
        }
    });
    std::process::exit(0);
}

struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open() -> (ClientSession, Host) {
    let offer = Offer::new(Shape::default()).expect("a segment");
    let mut child = Command::new(std::env::current_exe().expect("own program"))
        .args(["--exact", "host_process", "--nocapture"])
        .env(ROLE, path(offer.fd()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let host = Host(child);
    let segment = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix("segment ")?.to_owned()))
        .expect("the host says where its segment is");
    let segment = File::open(segment).expect("the host's segment");
    (offer.open(segment.into(), SessionId(1), Epoch(1)).expect("a session"), host)
}

#[test]
fn calls_cross_process_boundaries_whether_both_sides_spin_or_sleep() {
    for waiting in [Waiting::Spin, Waiting::Adaptive, Waiting::Block] {
        run_waiting(waiting, async {
            let (client, _host) = open();
            for n in 0..2000usize {
                let payload = bytes(n);
                let reply = client.call(request(client.root(), ECHO, &payload)).await.expect("echo");
                assert_eq!(*reply.payload, payload[..]);
                if n % 500 == 0 {
                    // Both sides fall asleep.
                    runtime::sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
}

#[test]
fn many_calls_at_once_are_all_answered() {
    run(async {
        let (client, _host) = open();
        let calls: Vec<_> = (0..64u64)
            .map(|n| {
                let client = client.clone();
                runtime::spawn(async move {
                    for i in 0..200u64 {
                        let payload = bytes(((n * 37 + i * 11) % 3000) as usize);
                        let reply = client.call(request(client.root(), ECHO, &payload)).await.expect("echo");
                        assert_eq!(*reply.payload, payload[..]);
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.expect("not cancelled");
        }
        // 12,800 calls on 16 slots: most found their host awake.
        assert!(client.system_calls() < 12_800, "one wake-up per call or more: {}", client.system_calls());
    });
}

#[test]
fn a_killed_hosts_calls_say_truthfully_whether_they_ran() {
    run(async {
        let (client, mut host) = open();
        let call = |operation| {
            let client = client.clone();
            runtime::spawn(async move { client.call(request(client.root(), operation, b"")).await.map(|_| ()) })
        };
        let begun = call(HANG);
        // Or the task would publish it behind the call after it.
        settle().await;
        client.call(request(client.root(), ECHO, b"")).await.expect("echo: so the call before it was read too");
        let pid = nix::unistd::Pid::from_raw(host.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).expect("own child");
        runtime::sleep(Duration::from_millis(20)).await;
        let unread = call(ECHO);
        settle().await;
        host.0.kill().expect("own child");
        host.0.wait().expect("own child");
        client.host_died();
        let died = |executed| Failure { cause: Cause::PeerDied, executed };
        assert_eq!(begun.await.expect("not cancelled").unwrap_err(), died(Executed::Unknown));
        assert_eq!(unread.await.expect("not cancelled").unwrap_err(), died(Executed::No));
    });
}

#[test]
fn answers_that_a_killed_host_had_published_are_delivered() {
    run(async {
        let (client, mut host) = open();
        let answered = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), ECHO, b"answered")).await }
        });
        // The call goes out; then this thread looks at nothing until the host has answered and is dead.
        settle().await;
        std::thread::sleep(Duration::from_millis(100));
        host.0.kill().expect("own child");
        host.0.wait().expect("own child");
        client.host_died();
        assert_eq!(*answered.await.expect("not cancelled").expect("its answer").payload, *b"answered");
    });
}
