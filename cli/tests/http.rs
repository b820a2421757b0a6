//! The web server of a whole system, asked by ordinary clients and by nasty ones. None of them may disturb another.

mod common;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::http::Session;
use common::{Random, System, get};
use nix::sys::socket::{setsockopt, sockopt};

const BIG: usize = (6 << 20) + 4321;

/// A system that serves a few files, and the content of the big one.
fn start() -> (System, String, Vec<u8>) {
    let system = System::start(&[]);
    let big = Random(11).bytes(BIG);
    let put = |name: &str, bytes: &[u8]| {
        let file = system.file("source");
        std::fs::write(&file, bytes).expect("a file to put");
        system.ok(&["fs", "put", file.to_str().expect("UTF-8"), name]);
    };
    system.ok(&["fs", "mkdir", "/www/with", "/www/without", "/secret"]);
    put("/www/big.bin", &big);
    put("/www/empty.txt", b"");
    put("/www/with/index.html", b"the index");
    put("/www/without/a file.txt", b"a name with a space");
    put("/secret/file", b"not below /www");
    let listen = system.listen();
    (system, listen, big)
}

#[test]
fn one_connection_serves_request_after_request() {
    let (_system, listen, big) = start();
    let mut session = Session::new(&listen);
    let page = session.get("/", "");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(String::from_utf8(page.body).expect("text").contains("Atoll"));
    let whole = session.get("/big.bin", "");
    assert!(whole.body == big);
    assert_eq!(session.get("/empty.txt", "").body, b"");
    assert_eq!(session.get("/with/", "").body, b"the index");
    let moved = session.get("/with", "");
    assert_eq!((moved.status, moved.header("location")), (301, "/with/"));
    assert_eq!(session.get("/without/", "").status, 404);
    assert_eq!(session.get("/without/a%20file.txt", "").body, b"a name with a space");

    let etag = whole.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".into()] {
        let reply = session.get("/big.bin", &format!("If-None-Match: {known}\r\n"));
        assert_eq!((reply.status, reply.header("etag")), (304, etag.as_str()), "{known}");
    }
    assert_eq!(session.get("/empty.txt", &format!("If-None-Match: {etag}\r\n")).status, 200);

    let head = session.ask("HEAD", "/big.bin", "");
    assert_eq!((head.status, head.header("content-length")), (200, BIG.to_string().as_str()));
    let posted = session.ask("POST", "/", "Content-Length: 0\r\n");
    assert_eq!((posted.status, posted.header("allow")), (405, "GET, HEAD"));
    // Still the same connection, and it ends when it is asked to.
    assert_eq!(session.get("/", "Connection: close\r\n").status, 200);
    assert!(session.is_at_end());
}

#[test]
fn a_changed_file_has_another_etag() {
    let (system, listen, _) = start();
    let mut session = Session::new(&listen);
    let before = session.get("/with/", "").header("etag").to_owned();
    let file = system.file("source");
    // Of the same length: only its content tells.
    std::fs::write(&file, b"the INDEX").expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/with/index.html"]);
    let after = session.get("/with/", &format!("If-None-Match: {before}\r\n"));
    assert_eq!((after.status, after.body.as_slice()), (200, b"the INDEX".as_slice()));
    assert_ne!(after.header("etag"), before);
}

#[test]
fn a_small_file_that_is_replaced_while_it_is_served_never_has_the_tag_of_another_content() {
    let (system, listen, _) = start();
    let put = |version: usize| {
        let file = system.file("version");
        // Other contents, other lengths: also across blocks.
        std::fs::write(&file, vec![b'a' + (version % 26) as u8; 1 + version * 997 % 20_000]).expect("a file to put");
        system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/small.txt"]);
    };
    put(0);
    let done = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut session, mut seen) = (Session::new(&listen), Vec::new());
                    while !done.load(Ordering::Relaxed) {
                        let page = session.get("/small.txt", "");
                        assert_eq!(page.status, 200);
                        assert!(page.body.iter().all(|byte| *byte == page.body[0]), "two versions in one answer");
                        let told = (page.header("etag").to_owned(), page.body);
                        if seen.last() != Some(&told) {
                            seen.push(told);
                        }
                    }
                    seen
                })
            })
            .collect();
        (1..40).for_each(put);
        done.store(true, Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().expect("a reader")).collect::<Vec<_>>()
    });
    let mut bodies: HashMap<&str, &[u8]> = HashMap::new();
    for (etag, body) in &seen {
        assert_eq!(*bodies.entry(etag).or_insert(body), body.as_slice(), "{etag}");
    }
    assert!(bodies.len() > 1, "nobody saw a change");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_system, listen, big) = start();
    let mut session = Session::new(&listen);
    let targets = ["/with/", "/big.bin", "/none", "/empty.txt"];
    for _ in 0..8 {
        let requests = targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).concat();
        session.write(requests.as_bytes());
    }
    for _ in 0..8 {
        assert_eq!(session.answer(false).expect("an answer").body, b"the index");
        assert!(session.answer(false).expect("an answer").body == big);
        assert_eq!(session.answer(false).expect("an answer").status, 404);
        assert_eq!(session.answer(false).expect("an answer").body, b"");
    }
}

#[test]
fn nothing_above_the_servers_directory_is_reached() {
    let (_system, listen, _) = start();
    for target in [
        "/../secret/file",
        "/..%2fsecret/file",
        "/%2e%2e/secret/file",
        "/%2E%2E%2Fsecret%2Ffile",
        "/with/../../secret/file",
        "/./../secret/file",
        "//../secret/file",
        "/%00",
        "/big.bin%00.txt",
        "/%c0%ae%c0%ae/secret/file",
        "/secret/file",
        "/%",
        "/%zz",
    ] {
        let reply = get(&listen, target).expect("an answer");
        assert!(matches!(reply.status, 400 | 404), "{target}: {}", reply.status);
        assert!(!reply.body.windows(9).any(|bytes| bytes == b"not below"), "{target}");
    }
    let long = format!("/{}", "x".repeat(256));
    assert_eq!(get(&listen, &long).expect("an answer").status, 404, "no file has such a name");
    let deep = format!("/{}", "d/".repeat(10_000));
    assert!(matches!(get(&listen, &deep).expect("an answer").status, 404 | 414));
}

#[test]
fn what_is_not_http_gets_the_status_that_says_why() {
    let (_system, listen, _) = start();
    for (request, status) in [
        ("\x16\x03\x01\x02\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("BREW / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 501),
        ("DELETE /with/index.html HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        ("GET /big.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=99999999-\r\nConnection: close\r\n\r\n", 416),
    ] {
        let mut session = Session::new(&listen);
        session.write(request.as_bytes());
        let answer = session.answer(false).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert_eq!(answer.status, status, "{request:?}");
    }
    for (size, request) in [(414, "GET /"), (431, "GET / HTTP/1.1\r\nHost: x\r\nCookie: ")] {
        let mut session = Session::new(&listen);
        // It may be refused, and the connection ended, before all of it is sent.
        let bytes = [request.as_bytes(), &vec![b'a'; 1 << 20], b"\r\n\r\n"].concat();
        session.write(&bytes);
        assert_eq!(session.answer(false).expect("an answer").status, size);
        assert!(session.is_at_end());
    }
    assert_eq!(get(&listen, "/with/").expect("an answer").status, 200);
}

/// Requests of all kinds while `nasty` does what it does; all must be answered right.
fn others_are_served_beside(listen: &str, big: &[u8], nasty: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let nasty = scope.spawn(nasty);
        let mut session = Session::new(listen);
        let mut rounds = 0;
        while !nasty.is_finished() || rounds < 3 {
            assert!(session.get("/big.bin", "").body == big);
            assert_eq!(session.get("/with/", "").body, b"the index");
            assert_eq!(get(listen, "/none").expect("an answer").status, 404);
            rounds += 1;
            thread::sleep(Duration::from_millis(20));
        }
        nasty.join().expect("the nasty client saw what it should");
    });
}

#[test]
fn slow_silent_and_vanishing_clients_disturb_nobody() {
    let (system, listen, big) = start();
    let request = b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n";
    others_are_served_beside(&listen, &big, || {
        // A body that never comes, a head that never ends, nothing at all, and a reader that reads nothing: kept open.
        let mut waiting: Vec<Session> = (0..20).map(|_| Session::new(&listen)).collect();
        for (index, session) in waiting.iter_mut().enumerate() {
            match index % 4 {
                0 => session.write(b"GET /with/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"),
                1 => session.write(b"GET /with/ HTTP/1.1\r\nHos"),
                2 => {}
                _ => session.write(request),
            }
        }
        // A reader of a byte at a time.
        let mut slow = Session::new(&listen);
        slow.write(request);
        let mut byte = [0];
        for _ in 0..40 {
            slow.read(&mut byte).expect("a byte");
            thread::sleep(Duration::from_millis(25));
        }
        // Gone in the middle of a download: in order, and by a reset.
        for index in 0..40 {
            let mut session = Session::new(&listen);
            session.write(request);
            session.read(&mut [0; 4096]).expect("some bytes");
            if index % 2 == 0 {
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(session.socket(), sockopt::Linger, &linger).expect("it can be reset");
            }
        }
    });
    // Every lease that the vanished clients' answers held is given back: the same bytes can be read again and again.
    for _ in 0..30 {
        assert!(system.get("/big.bin").body == big);
    }
    assert!(system.ps().iter().all(|one| one["restarts"] == 0), "{:?}", system.ps());
}

#[test]
fn a_client_that_has_sent_its_last_byte_gets_its_answer() {
    let (_system, listen, big) = start();
    let mut session = Session::new(&listen);
    session.write(b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    session.socket().shutdown(Shutdown::Write).expect("half of it closes");
    assert!(session.answer(false).expect("an answer").body == big);
    assert!(session.is_at_end());

    let mut cut = Session::new(&listen);
    cut.write(b"GET /big.bin HTTP/1.1\r\nHo");
    cut.socket().shutdown(Shutdown::Write).expect("half of it closes");
    match cut.answer(false) {
        Ok(reply) => assert_eq!(reply.status, 400),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
}

#[test]
fn a_thousand_connections_come_and_go() {
    let (system, listen, big) = start();
    let net = system.pid("net");
    let open = || std::fs::read_dir(format!("/proc/{net}/fd")).expect("it lives").count();
    let before = open();
    others_are_served_beside(&listen, &big, || {
        for round in 0..10 {
            let all: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&listen).expect("it accepts")).collect();
            if round % 2 == 0 {
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                all.iter().for_each(|socket| setsockopt(socket, sockopt::Linger, &linger).expect("it can be reset"));
            }
        }
    });
    assert!(system.ps().iter().all(|one| one["restarts"] == 0), "{:?}", system.ps());
    // Nothing of them is left in the server that has the sockets.
    common::wait_for("the sockets to be closed", || open() <= before);
}

#[test]
fn a_connection_that_the_server_closes_leaves_the_next_one_alone() {
    let system = System::start(&["--set", "httpd.idle_seconds=1"]);
    let listen = system.listen();
    for _ in 0..3 {
        let mut session = Session::new(&listen);
        assert_eq!(session.get("/", "").status, 200);
        assert!(session.is_at_end(), "idle for a second");
    }
}
