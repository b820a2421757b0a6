//! What if the network server or httpd is killed while it serves? Connections go on: each answer continues at the byte that the
//! kernel had not got, and no byte of a request is lost or taken twice.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use common::http::Session;
use common::{Over, Random, System, WATCHDOG, kill_now, signal, wait_for};

/// Kills components in turn at random moments while `work` goes on; gives how often.
fn killing(system: &System, names: &[&str], seed: u64, work: impl FnOnce(&AtomicU64)) -> u64 {
    let (over, kills) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = Random(seed);
            for name in names.iter().cycle() {
                std::thread::sleep(Duration::from_millis(20 + numbers.below(150)));
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // Between two runs there is none to be killed.
                if let Some(pid) = system.component(name)["pid"].as_i64().filter(|pid| *pid > 0) {
                    kill_now(i32::try_from(pid).expect("a process"));
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Also when `work` panics, or its thread would go on for ever.
        let _over = Over(&over);
        work(&kills);
    });
    kills.load(Ordering::Relaxed)
}

fn put(system: &System, name: &str, content: &[u8]) {
    let file = system.file("source.bin");
    std::fs::write(&file, content).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), &format!("/www/{name}")]);
}

/// Downloads a file on one connection, slowly enough for some deaths, and compares every byte as it comes.
fn download(listen: &str, content: &[u8]) {
    let mut session = Session::new(listen);
    session.write(b"GET /file.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let mut rest = session.rest();
    let mut piece = vec![0; 256 << 10];
    loop {
        let length = rest.read(&mut piece).expect("the connection goes on");
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..length]);
        std::thread::sleep(Duration::from_millis(3));
    }
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    assert!(answer[head..] == *content, "{} of {} bytes", answer.len() - head, content.len());
}

#[test]
fn a_download_goes_on_while_the_network_server_is_killed() {
    let system = System::start(&[]);
    let content = Random(9).bytes(96 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let kills = killing(&system, &["net"], 2, |_| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| download(&listen, &content));
            }
        });
    });
    assert!(kills > 3, "{kills} kills");
    assert_eq!(system.listen(), listen);
}

#[test]
fn a_download_goes_on_while_the_network_and_file_servers_are_killed() {
    let system = System::start(&[]);
    let content = Random(11).bytes(96 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let kills = killing(&system, &["net", "fs"], 3, |_| download(&listen, &content));
    assert!(kills > 3, "{kills} kills");
}

#[test]
fn a_download_goes_on_while_httpd_is_killed() {
    let system = System::start(&[]);
    let content = Random(15).bytes(96 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let kills = killing(&system, &["httpd"], 4, |_| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| download(&listen, &content));
            }
        });
    });
    assert!(kills > 3, "{kills} kills");
}

#[test]
fn a_download_goes_on_whoever_is_killed() {
    let system = System::start(&[]);
    let content = Random(17).bytes(96 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let kills = killing(&system, &["net", "httpd", "fs", "disk"], 6, |_| download(&listen, &content));
    assert!(kills > 3, "{kills} kills");
}

/// All four are restarted at each death of the disk.
#[test]
fn a_download_goes_on_while_everything_is_restarted_with_the_disk() {
    let system = System::empty();
    let manifest = system.file("rest.toml");
    let text = include_str!("../../systems/web.toml");
    let text = text.replace("[component.disk]", "[component.disk]\nrestart = \"rest-for-one\"");
    std::fs::write(&manifest, text).expect("a manifest");
    system.up(&[manifest.to_str().expect("UTF-8")]);
    let content = Random(19).bytes(96 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let kills = killing(&system, &["disk"], 8, |_| download(&listen, &content));
    assert!(kills > 3, "{kills} kills");
    wait_for("everything to serve", || system.ps().iter().all(|one| one["state"] == "ready"));
    let httpd = system.component("httpd");
    assert!(httpd["restarts"].as_u64().is_some_and(|restarts| restarts > 3), "{httpd}");
    assert_eq!(httpd["trouble"], "restarted with disk");
}

#[test]
fn no_byte_of_a_request_is_lost_or_taken_twice_by_the_network_server() {
    requests_in_pieces(&["net"]);
}

#[test]
fn no_byte_of_a_request_is_lost_or_taken_twice_by_both_servers() {
    requests_in_pieces(&["net", "httpd", "httpd"]);
}

/// Requests come in pieces of any size, pipelined, from several clients; each answer must be that of its request.
fn requests_in_pieces(killed: &[&str]) {
    let system = System::start(&[]);
    let contents: Vec<Vec<u8>> = (0..7usize).map(|n| Random(n as u64 + 1).bytes(1 + n * 40_000)).collect();
    for (n, content) in contents.iter().enumerate() {
        put(&system, &format!("f{n}"), content);
    }
    let listen = system.listen();
    let kills = killing(&system, killed, 5, |kills| {
        std::thread::scope(|scope| {
            for client in 0..4u64 {
                let (listen, contents) = (&listen, &contents);
                scope.spawn(move || {
                    let mut session = Session::new(listen);
                    let mut numbers = Random(100 + client);
                    let mut round = 0;
                    while round < 30 || (round < 3000 && kills.load(Ordering::Relaxed) < 12) {
                        round += 1;
                        let asked: Vec<usize> = (0..1 + numbers.below(6)).map(|_| numbers.below(7) as usize).collect();
                        let request: String =
                            asked.iter().map(|n| format!("GET /f{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
                        let mut left = request.as_bytes();
                        while !left.is_empty() {
                            let (now, later) = left.split_at(left.len().min(1 + numbers.below(60) as usize));
                            session.write(now);
                            left = later;
                            std::thread::sleep(Duration::from_micros(numbers.below(900)));
                        }
                        for n in asked {
                            let reply = session.answer(false).expect("an answer on the same connection");
                            assert_eq!(reply.status, 200);
                            assert!(reply.body == contents[n], "another answer than that of /f{n}");
                        }
                    }
                });
            }
        });
    });
    assert!(kills > 3, "{kills} kills");
}

#[test]
fn connections_of_a_network_server_that_is_given_up_are_reset() {
    let system = System::start(&[]);
    let content = Random(13).bytes(48 << 20);
    put(&system, "file.bin", &content);
    let listen = system.listen();
    let mut stream = TcpStream::connect(&listen).expect("the server listens");
    stream.set_read_timeout(Some(WATCHDOG)).expect("a socket has a timeout");
    stream.write_all(b"GET /file.bin HTTP/1.1\r\nHost: a\r\n\r\n").expect("room for a request");
    let mut first = [0; 4096];
    stream.read_exact(&mut first).expect("the answer begins");
    for death in 1..=5 {
        system_is(&system, "net", |net| net["state"] == "ready" || net["state"] == "quarantined");
        signal(system.pid("net"), Signal::SIGABRT);
        system_is(&system, "net", |net| net["state"] == "quarantined" || net["restarts"].as_u64() == Some(death));
    }
    system_is(&system, "net", |net| net["state"] == "quarantined");
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).expect_err("a part must not look like the whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let refused = TcpStream::connect(&listen).expect_err("nobody listens any more");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

fn system_is(system: &System, name: &str, is: impl Fn(&serde_json::Value) -> bool) {
    wait_for("a component's state", || is(&system.component(name)));
}
