//! What if the network server or httpd dies while clients come? The listening socket outlives both: nobody is refused, and
//! whoever waits to be accepted gets his whole answer.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;

use common::{Over, System, WATCHDOG, keep_asking, kill_now, signal, wait_for};

/// A file that is not one extent, so that a torn answer cannot look right.
fn content() -> Vec<u8> {
    (0..1_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

fn start() -> System {
    let system = System::start(&[]);
    let file = system.file("source.bin");
    std::fs::write(&file, content()).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    system
}

/// A connection that has asked and not been answered.
fn asked(listen: &str) -> TcpStream {
    let mut stream = TcpStream::connect(listen).expect("somebody listens, dead or alive");
    stream.set_read_timeout(Some(WATCHDOG)).expect("a socket has a timeout");
    stream.write_all(b"GET /file.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("room for a request");
    stream
}

fn is_answered(mut stream: TcpStream) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("a whole answer");
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    assert!(answer[head..] == content(), "{} bytes", answer.len() - head);
}

#[test]
fn connections_that_wait_for_a_dead_network_server_are_answered_by_its_next_run() {
    let system = start();
    let listen = system.listen();
    for _ in 0..3 {
        let net = system.pid("net");
        // Stopped, it accepts nothing that comes from now on.
        signal(net, Signal::SIGSTOP);
        let waiting: Vec<TcpStream> = (0..20).map(|_| asked(&listen)).collect();
        kill_now(net);
        waiting.into_iter().for_each(is_answered);
        assert_eq!(system.listen(), listen);
    }
}

#[test]
fn connections_that_wait_for_a_dead_httpd_are_answered_by_its_next_run() {
    let system = start();
    let listen = system.listen();
    for _ in 0..3 {
        let httpd = system.pid("httpd");
        signal(httpd, Signal::SIGSTOP);
        let waiting: Vec<TcpStream> = (0..20).map(|_| asked(&listen)).collect();
        kill_now(httpd);
        waiting.into_iter().for_each(is_answered);
        assert_eq!(system.listen(), listen);
    }
}

#[test]
fn connections_that_wait_for_both_are_answered() {
    let system = start();
    let listen = system.listen();
    let (net, httpd) = (system.pid("net"), system.pid("httpd"));
    signal(net, Signal::SIGSTOP);
    let waiting: Vec<TcpStream> = (0..20).map(|_| asked(&listen)).collect();
    kill_now(httpd);
    kill_now(net);
    waiting.into_iter().for_each(is_answered);
    assert_eq!(system.listen(), listen);
}

#[test]
fn nobody_is_refused_whoever_dies() {
    let system = start();
    let listen = system.listen();
    let (stop, right) = (AtomicBool::new(false), AtomicU64::new(0));
    // Whoever was being served is reset.
    let not_refused = |error: std::io::Error| assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| keep_asking(&listen, &content(), &stop, &right, not_refused));
        }
        let stopper = Over(&stop);
        for round in 0..12 {
            let before = right.load(Ordering::Relaxed);
            for name in [&["net"][..], &["httpd"], &["net", "httpd"]][round % 3] {
                // Between two runs there is none to be killed.
                if let Some(pid) = system.component(name)["pid"].as_i64() {
                    kill_now(i32::try_from(pid).expect("a pid"));
                }
            }
            wait_for("answers after a death", || right.load(Ordering::Relaxed) > before + 3);
        }
        drop(stopper);
    });
    assert_eq!(system.listen(), listen);
}

#[test]
fn a_system_that_ends_listens_no_more() {
    let system = start();
    let listen = system.listen();
    kill_now(system.pid("net"));
    wait_for("the next run", || {
        let net = system.component("net");
        net["epoch"] == 2 && net["state"] == "ready"
    });
    assert_eq!(system.get("/file.bin").body, content());
    system.ok(&["down"]);
    let error = TcpStream::connect(&listen).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
