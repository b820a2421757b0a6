//! httpd and the network server, asked by ordinary and by nasty clients.

mod common;

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use apps::httpd::server::Limits;
use common::{Answer, Files, Site, client, pattern, read_answer, run};
use net_server::host::Options;

const BIG: usize = (5 << 20) + 123;

fn files() -> Files {
    let mut files = Files::new();
    files.add("index.html", b"<p>welcome</p>");
    files.add("big.bin", &pattern(BIG));
    files.add("empty.txt", b"");
    files.add("dir/index.html", b"in a directory");
    files.add("dir/a b.txt", b"a name with a space");
    files
}

async fn start() -> Site {
    Site::start(files(), Limits::default(), Options::default()).await
}

struct Session(BufReader<TcpStream>);

impl Session {
    fn new(address: SocketAddr) -> Session {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Session(BufReader::new(socket))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn answer(&mut self) -> Answer {
        read_answer(&mut self.0, false).unwrap()
    }

    fn get(&mut self, target: &str, fields: &str) -> Answer {
        self.write(format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
        self.answer()
    }

    /// Whether the server has closed in order, without another byte.
    fn is_at_end(&mut self) -> bool {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }
}

#[test]
fn files_directories_and_errors_on_one_connection() {
    run(async || {
        let site = start().await;
        let address = site.address;
        client(move || {
            let mut session = Session::new(address);
            let page = session.get("/", "");
            assert_eq!((page.status, page.body.as_slice()), (200, b"<p>welcome</p>".as_slice()));
            assert_eq!(page.fields["content-type"], "text/html; charset=utf-8");
            let etag = &page.fields["etag"];
            assert_eq!(session.get("/", &format!("If-None-Match: {etag}\r\n")).status, 304);
            assert!(session.get("/big.bin", "").body == pattern(BIG));
            assert_eq!(session.get("/empty.txt", "").body, b"");
            assert_eq!(session.get("/dir", "").fields["location"], "/dir/");
            assert_eq!(session.get("/dir/", "").body, b"in a directory");
            assert_eq!(session.get("/dir/a%20b.txt", "").body, b"a name with a space");
            for (target, status) in
                [("/none", 404), ("/big.bin/", 404), ("/dir/../../x", 400), ("/dir%2findex.html", 400)]
            {
                assert_eq!(session.get(target, "").status, status, "{target}");
            }
            session.write(b"HEAD /big.bin HTTP/1.1\r\nHost: x\r\n\r\n");
            let head = read_answer(&mut session.0, true).unwrap();
            assert_eq!((head.status, head.fields["content-length"].as_str()), (200, BIG.to_string().as_str()));
            session.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
            assert_eq!(session.answer().fields["allow"], "GET, HEAD");
            assert_eq!(session.get("/", "Connection: close\r\n").status, 200);
            assert!(session.is_at_end());
        })
        .await;
        site.leases_are_back().await;
    });
}

#[test]
fn random_ranges_equal_slices_of_the_file() {
    for lease_bytes in [1 << 20, 70_001, 4096] {
        run(async || {
            let mut files = files();
            files.lease_bytes = lease_bytes;
            let site = Site::start(files, Limits::default(), Options::default()).await;
            let address = site.address;
            client(move || {
                let whole = pattern(BIG);
                let mut session = Session::new(address);
                let mut seed = 0x2545_f491_4f6c_dd1d_u64;
                let mut random = move |below: usize| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    (seed % below as u64) as usize
                };
                for round in 0..60 {
                    let first = random(BIG);
                    let most = if round % 2 == 0 { 5000 } else { BIG };
                    let last = first + random(most);
                    let answer = session.get("/big.bin", &format!("Range: bytes={first}-{last}\r\n"));
                    let end = (last + 1).min(BIG);
                    assert_eq!(answer.status, 206);
                    assert_eq!(answer.fields["content-range"], format!("bytes {first}-{}/{BIG}", end - 1));
                    assert!(answer.body == whole[first..end], "{first}-{last}");
                }
                assert_eq!(session.get("/big.bin", &format!("Range: bytes={BIG}-\r\n")).status, 416);
                assert!(session.get("/big.bin", "Range: bytes=-77\r\n").body == whole[BIG - 77..]);
            })
            .await;
            site.leases_are_back().await;
        });
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async || {
        let site = start().await;
        let address = site.address;
        client(move || {
            let mut session = Session::new(address);
            let targets = ["/", "/big.bin", "/dir/", "/none"];
            for _ in 0..5 {
                let requests: String =
                    targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).concat();
                session.write(requests.as_bytes());
            }
            session.write(b"GET / HTTP/1.0\r\n\r\n");
            for _ in 0..5 {
                let answers: Vec<(u16, usize)> =
                    targets.map(|_| session.answer()).iter().map(|a| (a.status, a.body.len())).collect();
                assert_eq!(answers, [(200, 14), (200, BIG), (200, 14), (404, 14)]);
            }
            assert_eq!(session.answer().fields["connection"], "close");
            assert!(session.is_at_end());
        })
        .await;
        site.leases_are_back().await;
    });
}

#[test]
fn many_clients_at_once_get_every_byte() {
    run(async || {
        let site = start().await;
        let address = site.address;
        client(move || {
            let clients: Vec<_> = (0..24)
                .map(|_| {
                    thread::spawn(move || {
                        let mut session = Session::new(address);
                        for _ in 0..3 {
                            assert!(session.get("/big.bin", "").body == pattern(BIG));
                            assert_eq!(session.get("/", "").status, 200);
                        }
                    })
                })
                .collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
        })
        .await;
        site.leases_are_back().await;
    });
}

#[test]
fn garbage_and_a_megabyte_of_header_get_their_answer_and_the_connection_closes() {
    run(async || {
        let site = start().await;
        let address = site.address;
        client(move || {
            for (bytes, status) in [
                (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".to_vec(), 400),
                (b"GET / HTTP/2.0\r\n\r\n".to_vec(), 505),
                (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_vec(), 400),
                (
                    [b"GET / HTTP/1.1\r\nHost: x\r\nCookie: ".to_vec(), vec![b'a'; 1 << 20], b"\r\n\r\n".to_vec()]
                        .concat(),
                    431,
                ),
                ([b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat(), 414),
            ] {
                let mut session = Session::new(address);
                session.write(&bytes);
                assert_eq!(session.answer().status, status);
                assert!(session.is_at_end());
            }
            // Random bytes never end in anything but an answer or the end.
            let mut seed = 1u32;
            for _ in 0..50 {
                let mut session = Session::new(address);
                let bytes: Vec<u8> = (0..300)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (seed >> 24) as u8
                    })
                    .collect();
                session.write(&bytes);
                session.0.get_ref().shutdown(Shutdown::Write).unwrap();
                match read_answer(&mut session.0, false) {
                    Ok(answer) => assert!(matches!(answer.status, 400 | 414 | 431 | 501 | 505), "{answer:?}"),
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof),
                }
            }
            assert_eq!(Session::new(address).get("/", "").status, 200);
        })
        .await;
        site.leases_are_back().await;
    });
}

#[test]
fn a_head_or_body_that_never_ends_is_timed_out_and_an_idle_connection_closed() {
    run(async || {
        let limits = Limits { head_seconds: 1, body_seconds: 1, idle_seconds: 2, ..Limits::default() };
        let site = Site::start(files(), limits, Options::default()).await;
        let address = site.address;
        client(move || {
            let clients = [
                thread::spawn(move || {
                    let mut session = Session::new(address);
                    session.write(b"GET / HTTP/1.1\r\nHost: ");
                    assert_eq!(session.answer().status, 408);
                    assert!(session.is_at_end());
                }),
                thread::spawn(move || {
                    let mut session = Session::new(address);
                    session.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab");
                    assert_eq!(session.answer().status, 200);
                    assert_eq!(session.answer().status, 408);
                    assert!(session.is_at_end());
                }),
                thread::spawn(move || {
                    let mut session = Session::new(address);
                    assert_eq!(session.get("/", "").status, 200);
                    assert!(session.is_at_end());
                }),
                thread::spawn(move || assert!(Session::new(address).is_at_end())),
            ];
            clients.into_iter().for_each(|client| client.join().unwrap());
        })
        .await;
    });
}

#[test]
fn a_reader_of_one_byte_at_a_time_is_reset_and_holds_no_lease() {
    run(async || {
        let mut options = Options::default();
        options.limits.stall = Duration::from_secs(1);
        let site = Site::start(files(), Limits::default(), options).await;
        let address = site.address;
        let slow = thread::spawn(move || {
            let mut session = TcpStream::connect(address).unwrap();
            for _ in 0..4 {
                session.write_all(b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            }
            let mut byte = [0];
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(100));
                session.read_exact(&mut byte).unwrap();
            }
            let mut rest = Vec::new();
            (session.read_to_end(&mut rest).map_err(|error| error.kind()), rest.len())
        });
        client(move || {
            // Others are served meanwhile.
            let mut session = Session::new(address);
            for _ in 0..10 {
                assert!(session.get("/big.bin", "").body == pattern(BIG));
                thread::sleep(Duration::from_millis(50));
            }
        })
        .await;
        site.leases_are_back().await;
        let (end, length) = client(move || slow.join().unwrap()).await;
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
        assert!(length < 4 * BIG);
    });
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_resets_the_connection() {
    let mut files = files();
    files.broken = Some(("big.bin".to_owned(), 3 << 20));
    a_part_is_sent_and_then_reset(files);
}

/// As when the file system or its disk died between the answer to a read and the send.
#[test]
fn a_lease_that_the_network_refuses_resets_the_connection() {
    let mut files = files();
    files.stale = Some(("big.bin".to_owned(), 3 << 20));
    a_part_is_sent_and_then_reset(files);
}

fn a_part_is_sent_and_then_reset(files: Files) {
    run(async move || {
        let site = Site::start(files, Limits::default(), Options::default()).await;
        let address = site.address;
        client(move || {
            let mut session = Session::new(address);
            session.write(b"GET /big.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let error = read_answer(&mut session.0, false).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "a part may not look like the whole");
            assert!(
                Session::new(address).get("/big.bin", "Range: bytes=0-1000000\r\n").body == pattern(BIG)[..1_000_001]
            );
        })
        .await;
        site.leases_are_back().await;
    });
}

#[test]
fn connections_beyond_the_limit_are_told_to_come_again() {
    run(async || {
        let limits = Limits { connections: 2, ..Limits::default() };
        let site = Site::start(files(), limits, Options::default()).await;
        let address = site.address;
        client(move || {
            let (mut one, mut two) = (Session::new(address), Session::new(address));
            assert_eq!((one.get("/", "").status, two.get("/", "").status), (200, 200));
            let mut three = Session::new(address);
            assert_eq!(three.answer().status, 503);
            assert!(three.is_at_end());
            assert_eq!(one.get("/", "").status, 200);
        })
        .await;
    });
}
