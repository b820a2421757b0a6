//! The issue's full sizes on whole systems: a file of 1 GiB, a tree of 20,000 files. Minutes and gigabytes, so they run
//! only when they are asked for, on a release build:
//!
//! ```sh
//! cargo test --release -p atoll --test campaign -- --ignored --nocapture --test-threads 1
//! ```
//!
//! Needs 4 GiB in the temporary directory (`TMPDIR`). What they start they end, also when they fail.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::http::Session;
use common::{Random, System};
use sha2::{Digest, Sha256};

const LARGE: u64 = 1 << 30;
const RANGES: usize = 200;
const FILES: u64 = 20_000;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn sha256(mut from: impl Read) -> String {
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match from.read(&mut bytes).expect("it can be read") {
            0 => return hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            count => hash.update(&bytes[..count]),
        }
    }
}

/// Says how long something took, and at what rate.
fn timed<T>(what: &str, bytes: u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {seconds:.2} s, {:.0} MiB/s", bytes as f64 / seconds / f64::from(1 << 20));
    done
}

#[test]
#[ignore = "1 GiB; see the head of this file"]
fn a_file_of_one_gibibyte_comes_back_with_its_sha256() {
    let system = System::start(&["--set", "disk.size=4GiB"]);
    let (source, copy) = (system.file("source"), system.file("copy"));
    let mut random = Random(1);
    let mut file = File::create(&source).expect("a file");
    for _ in 0..LARGE >> 20 {
        file.write_all(&random.bytes(1 << 20)).expect("room for 1 GiB");
    }
    let file = File::open(&source).expect("it is there");
    let expected = sha256(&file);
    println!("SHA-256 {expected}");
    timed("put", LARGE, || system.ok(&["fs", "put", text(&source), "/www/large"]));
    for round in ["fresh", "after down and up"] {
        let by_http = timed(&format!("by HTTP, hashed, {round}"), LARGE, || {
            let mut session = Session::new(&system.listen());
            session.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let reply = session.answer(true).expect("an answer");
            assert_eq!((reply.status, reply.header("content-length")), (200, &*LARGE.to_string()));
            sha256(session.rest())
        });
        assert_eq!(by_http, expected, "by HTTP, {round}");
        timed(&format!("get, {round}"), LARGE, || system.ok(&["fs", "get", "/www/large", text(&copy)]));
        assert_eq!(sha256(File::open(&copy).expect("the copy")), expected, "by get, {round}");
        let mut session = Session::new(&system.listen());
        let mut asked = 0;
        for _ in 0..RANGES {
            let first = random.below(LARGE);
            let last = (first + random.below(3 << 20)).min(LARGE - 1);
            let reply = session.get("/large", &format!("Range: bytes={first}-{last}\r\n"));
            let mut own = vec![0; (last - first + 1) as usize];
            file.read_exact_at(&mut own, first).expect("it is there");
            assert!(reply.status == 206 && reply.body == own, "{first}-{last}, {round}");
            asked += own.len();
        }
        println!("{RANGES} random ranges equal, {} MiB, {round}", asked >> 20);
        println!("{}", system.ok(&["fs", "check"]).trim_end());
        timed("down", 0, || system.ok(&["down"]));
        timed("up", 0, || system.up(&["--set", "disk.size=4GiB"]));
    }
}

#[test]
#[ignore = "20,000 files; see the head of this file"]
fn a_tree_of_twenty_thousand_files_comes_back_equal() {
    let system = System::start(&["--set", "disk.size=4GiB"]);
    let mut random = Random(2);
    let source = system.file("source");
    let name = |number: u64| PathBuf::from(format!("d{}/e{}/file-{number}.bin", number % 41, number % 13));
    let mut bytes = 0;
    for number in 0..FILES {
        let most = [200, 3_000, 9_000, 60_000][number as usize % 4];
        let content = random.bytes(random.0 as usize % most);
        let path = source.join(name(number));
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        bytes += content.len() as u64;
        fs::write(path, content).expect("a file");
    }
    println!("{FILES} files, {} MiB", bytes >> 20);
    timed("put -r", bytes, || system.ok(&["fs", "put", "-r", text(&source), "/www/tree"]));
    for round in ["fresh", "after down and up"] {
        let copy = system.file(&format!("copy {round}"));
        timed(&format!("get -r, {round}"), bytes, || system.ok(&["fs", "get", "-r", "/www/tree", text(&copy)]));
        for number in 0..FILES {
            let (own, got) = (fs::read(source.join(name(number))), fs::read(copy.join(name(number))));
            assert!(own.expect("it is there") == got.expect("it came"), "{}, {round}", name(number).display());
        }
        let mut count = 0;
        let mut open = vec![copy];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() { open.push(entry) } else { count += 1 }
            }
        }
        assert_eq!(count, FILES, "nothing came that was not put, {round}");
        println!("{FILES} files equal, {round}");
        println!("{}", system.ok(&["fs", "check"]).trim_end());
        system.ok(&["down"]);
        system.ok(&["fs", "check", "--image", text(&system.file("disk.img"))]);
        system.up(&["--set", "disk.size=4GiB"]);
    }
}
