//! Campaigns over a lab: the web system over two nodes with large and many files, a link that is cut for a minute, and a long way.
//! They take minutes and print figures, so they run when somebody asks for them:
//!
//! ```sh
//! cargo test -p atoll --test lab_campaign -- --ignored --nocapture --test-threads 1 [NAME]
//! ```
//!
//! `MIB` and `FILES` say how large and how many, `SECONDS` how long the link is cut, `CUT_EVERY` how often (ms), `SEED` when; `DELAY` is
//! how long everything takes each way (ms).

mod common;

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::http::Session;
use common::lab::Lab;
use common::trees::same_trees;
use common::{Random, number};
use kernel_ipc::component::Context;
use kernel_ipc::interface::Cap;
use kernel_ipc::runtime::{self, Options, Runtime};
use protocol::fs::{Client, EXTENT_MAX, Node, Path as VolumePath, READ};
use sha2::{Digest, Sha256};

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

/// A file of random bytes, and its SHA-256.
fn make_file(at: &Path, mib: u64, seed: u64) -> Vec<u8> {
    let (mut file, mut sum, mut random) = (fs::File::create(at).expect("a file"), Sha256::new(), Random(seed));
    for _ in 0..mib {
        let bytes = random.bytes(1 << 20);
        sum.update(&bytes);
        file.write_all(&bytes).expect("there is room");
    }
    sum.finalize().to_vec()
}

fn sum_of(mut from: impl Read) -> Vec<u8> {
    let (mut sum, mut bytes) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match from.read(&mut bytes).expect("it can be read") {
            0 => return sum.finalize().to_vec(),
            length => sum.update(&bytes[..length]),
        }
    }
}

/// A tree of so many small files, a hundred in each directory.
fn make_many(at: &Path, count: u64, seed: u64) {
    let mut random = Random(seed);
    for file in 0..count {
        let directory = at.join(format!("directory-{}", file / 100));
        if file % 100 == 0 {
            fs::create_dir_all(&directory).expect("a directory");
        }
        let length = random.below(4000) as usize;
        fs::write(directory.join(format!("file-{file}")), random.bytes(length)).expect("a file");
    }
}

fn mib_per_second(mib: u64, took: Duration) -> f64 {
    mib as f64 / took.as_secs_f64()
}

#[test]
#[ignore = "a campaign of minutes"]
fn large_and_many_files_and_ranges_are_right_over_two_nodes() {
    let (mib, files) = (number("MIB", 1024), number("FILES", 20_000));
    let mut lab = Lab::start(&[]);
    println!("network: {}", lab.facts["network"]);
    let large = lab.state().join("large");
    let sum = make_file(&large, mib, 1);
    let begun = Instant::now();
    lab.ok(1, &["fs", "put", &text(&large), "/www"]);
    println!("put {mib} MiB: {:.0} MiB/s", mib_per_second(mib, begun.elapsed()));
    let listen = lab.b.listen();
    let begun = Instant::now();
    let output = lab.inside(1, || {
        let url = format!("http://{listen}/large");
        let mut curl = std::process::Command::new("curl");
        let mut curl = curl.args(["-sf", &url]).stdout(std::process::Stdio::piped()).spawn().expect("there is curl");
        let sum = sum_of(curl.stdout.take().expect("it is piped"));
        assert!(curl.wait().expect("it is ours").success());
        sum
    });
    assert!(output == sum, "other bytes");
    println!("curl of {mib} MiB, SHA-256 right: {:.0} MiB/s with the sum", mib_per_second(mib, begun.elapsed()));
    let content = fs::read(&large).expect("a file");
    lab.inside(1, || {
        let (mut random, mut session) = (Random(5), Session::new(&listen));
        for _ in 0..1000 {
            let first = random.below(content.len() as u64);
            let last = (first + random.below(2 << 20)).min(content.len() as u64 - 1);
            let reply = session.get("/large", &format!("Range: bytes={first}-{last}\r\n"));
            assert!(reply.status == 206 && reply.body == content[first as usize..=last as usize], "{first}-{last}");
        }
    });
    println!("1000 ranges are right");
    let tree = lab.state().join("tree");
    make_many(&tree, files, 3);
    let begun = Instant::now();
    lab.ok(1, &["fs", "put", "-r", &text(&tree), "/"]);
    println!("put {files} files: {:.0} a second", files as f64 / begun.elapsed().as_secs_f64());
    let (back, begun) = (lab.state().join("back"), Instant::now());
    lab.ok(1, &["fs", "get", "-r", "/tree", &text(&back)]);
    println!("got {files} files: {:.0} a second", files as f64 / begun.elapsed().as_secs_f64());
    same_trees(&tree, &back);
    assert!(lab.a.ok(&["fs", "check"]).contains("no problem"));
    assert!(lab.end().0.success());
}

#[test]
#[ignore = "a campaign of minutes"]
fn a_link_that_is_cut_for_a_minute_costs_an_upload_and_a_large_read_time_and_nothing_else() {
    let (mib, files, seconds) = (number("MIB", 1024), number("FILES", 2000), number("SECONDS", 60));
    let (every, seed) = (number("CUT_EVERY", 100).to_string(), number("SEED", 1).to_string());
    let mut lab = Lab::start(&["--cut-every", &every, "--seed", &seed]);
    println!("network: {}, relay: {}", lab.facts["network"], lab.facts["relay"]);
    let (large, tree) = (lab.state().join("large"), lab.state().join("tree"));
    let sum = make_file(&large, mib, 1);
    make_many(&tree, files, 3);
    // By the operator of its own node: this is not what is looked at.
    lab.ok(0, &["fs", "put", &text(&large), "/"]);
    let (begun, limit) = (Instant::now(), Duration::from_secs(seconds));
    let (uploads, reads) = std::thread::scope(|scope| {
        let uploads = scope.spawn(|| {
            let mut uploads = 0;
            while uploads == 0 || begun.elapsed() < limit {
                lab.ok(1, &["fs", "put", "-r", &text(&tree), &format!("/tree-{uploads}")]);
                uploads += 1;
            }
            uploads
        });
        let reads = scope.spawn(|| {
            let (mut reads, back) = (0, lab.state().join("back"));
            while reads == 0 || begun.elapsed() < limit {
                lab.ok(1, &["fs", "get", "/large", &text(&back)]);
                assert!(sum_of(fs::File::open(&back).expect("a file")) == sum, "other bytes");
                reads += 1;
            }
            reads
        });
        (uploads.join().expect("no upload fails"), reads.join().expect("no read fails"))
    });
    let took = begun.elapsed();
    for upload in 0..uploads {
        let back = lab.state().join(format!("back-{upload}"));
        lab.ok(0, &["fs", "get", "-r", &format!("/tree-{upload}"), &text(&back)]);
        same_trees(&tree, &back);
        fs::remove_dir_all(&back).expect("it is ours");
    }
    assert!(lab.a.ok(&["fs", "check"]).contains("no problem"));
    let (status, last) = lab.end();
    assert!(status.success());
    println!(
        "{:.0} s: {uploads} uploads of {files} files, {reads} reads of {mib} MiB, all right; {last}",
        took.as_secs_f64()
    );
}

/// A host beside Atoll on node `a`, behind the same relay: of `n` it sends `n` bytes, or a byte for each if `n` is 0.
fn plain_host(lab: &Lab) -> SocketAddr {
    let port = lab.facts["relay"]["ports"][1].as_u64().expect("there is a relay") as u16;
    let at = |name: &str| -> SocketAddr {
        let address: SocketAddr = lab.facts["nodes"][0][name].as_str().expect("text").parse().expect("an address");
        SocketAddr::new(address.ip(), port)
    };
    let listener = lab.inside(0, || TcpListener::bind(at("own")).expect("it is free"));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a connection");
            socket.set_nodelay(true).expect("an option");
            std::thread::spawn(move || {
                let (bytes, mut wanted) = (Random(9).bytes(1 << 20), [0; 8]);
                while socket.read_exact(&mut wanted).is_ok() {
                    let wanted = u64::from_le_bytes(wanted);
                    let sent = match wanted {
                        0 => socket.write_all(&[1]),
                        wanted => (0..wanted >> 20).try_for_each(|_| socket.write_all(&bytes)),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    });
    at("address")
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Asks a plain host for so many bytes on a connection that is there, and takes them.
fn plain(socket: &mut TcpStream, bytes: u64, into: &mut [u8]) -> Duration {
    let begun = Instant::now();
    socket.write_all(&bytes.to_le_bytes()).expect("it is open");
    let mut left = bytes.max(1);
    while left > 0 {
        let most = into.len().min(left as usize);
        left -= socket.read(&mut into[..most]).expect("it comes") as u64;
    }
    begun.elapsed()
}

/// Reads a file from its begin to its end, so many calls at a time, and copies all of it.
async fn read_all(cx: &Context, client: &Client, file: Cap<Node>, bytes: u64, at_a_time: usize) -> Duration {
    let (begun, next, file) = (Instant::now(), Rc::new(Cell::new(0)), Rc::new(file));
    let tasks: Vec<_> = (0..at_a_time)
        .map(|_| {
            let (client, next, file, holder) = (client.clone(), next.clone(), file.clone(), cx.holder());
            runtime::spawn(async move {
                let mut into = vec![0; EXTENT_MAX as usize];
                loop {
                    let at = next.replace(next.get() + u64::from(EXTENT_MAX));
                    if at >= bytes {
                        return;
                    }
                    let lease = client.read(&file, at, EXTENT_MAX).await.expect("a lease").expect("some bytes");
                    assert_eq!(lease.len(), u64::from(EXTENT_MAX));
                    holder.borrow().read(&lease.name(), 0, &mut into).expect("it is held");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    begun.elapsed()
}

#[test]
#[ignore = "a campaign of minutes"]
fn over_a_long_way_what_depends_goes_together_and_a_sequential_read_fills_it() {
    let (mib, delay) = (number("MIB", 100), number("DELAY", 25));
    let mut lab = Lab::start(&["--delay", &delay.to_string()]);
    println!("network: {}, relay: {}", lab.facts["network"], lab.facts["relay"]);
    let plain_at = plain_host(&lab);
    let (large, deep) = (lab.state().join("large"), lab.state().join("1/2/3/4/5/6/7/8"));
    make_file(&large, mib, 1);
    fs::create_dir_all(&deep).expect("directories");
    fs::write(deep.join("file"), [7; 3000]).expect("a file");
    lab.ok(0, &["fs", "put", "-r", &text(&large), &text(&lab.state().join("1")), "/"]);
    let state = lab.b.state().to_owned();
    lab.inside(1, || {
        let mut socket = TcpStream::connect(plain_at).expect("it listens");
        socket.set_nodelay(true).expect("an option");
        let mut into = vec![0; 1 << 20];
        let round_trip = median((0..21).map(|_| plain(&mut socket, 0, &mut into)).collect());
        println!("round trip of a byte over TCP: {:.1} ms", ms(round_trip));
        Runtime::new(Options::default()).expect("a runtime").block_on(async {
            let cx = Context::guest(&state, "campaign").expect("it is up");
            let client: Client = cx.connect("fs.root").await.expect("a session");
            let path = VolumePath::new("1/2/3/4/5/6/7/8/file").expect("a path");
            // The read's answer lends nothing behind the end of the file, and 3000 bytes at its begin.
            for (what, offset) in [("answer", 1 << 20), ("bytes", 0)] {
                let mut all = Vec::new();
                for _ in 0..21 {
                    let begun = Instant::now();
                    let opening = client.open(client.root(), path, READ).ahead().await.expect("it is sent");
                    let lease = client.read(&opening.capability(), offset, EXTENT_MAX).await.expect("an answer");
                    all.push(begun.elapsed());
                    assert_eq!(lease.map_or(0, |lease| lease.len()), if offset == 0 { 3000 } else { 0 });
                    opening.await.expect("it is open");
                }
                let took = median(all);
                let trips = took.as_secs_f64() / round_trip.as_secs_f64();
                println!(
                    "open + read eight directories deep, until the read's {what}: {:.1} ms = {trips:.2} round trips",
                    ms(took)
                );
            }
            for round in 0..3 {
                let took = plain(&mut socket, mib << 20, &mut into);
                let alone = mib_per_second(mib, took);
                print!("round {round}: plain TCP {alone:.1} MiB/s");
                for at_a_time in [1, 6, 16] {
                    let path = VolumePath::new("large").expect("a path");
                    let (file, _) = client.open(client.root(), path, READ).await.expect("it is there");
                    let took = read_all(&cx, &client, file, mib << 20, at_a_time).await;
                    let speed = mib_per_second(mib, took);
                    print!("; {at_a_time} reads at a time {speed:.1} = {:.2}", speed / alone);
                }
                println!();
            }
        });
        for _ in 0..3 {
            print!("{}", lab.b.ok(&["fs", "get", "/large", &text(&lab.state().join("back"))]));
        }
    });
    assert!(fs::read(lab.state().join("back")).expect("a file") == fs::read(&large).expect("a file"), "other bytes");
    assert!(lab.end().0.success());
}
