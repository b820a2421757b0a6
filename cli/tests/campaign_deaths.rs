//! The issue's full sizes while servers die: one download of 1 GiB on one connection, a tree of 20,000 files beside a client with 64
//! calls outstanding. Minutes and gigabytes, so they run only when they are asked for, on a release build:
//!
//! ```sh
//! cargo test --release -p atoll --test campaign_deaths -- --ignored --nocapture --test-threads 1
//! ```
//!
//! Needs curl, and 6 GiB in the temporary directory (`TMPDIR`).

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use common::{Random, System, kill_now};
use serde_json::Value;
use sha2::{Digest, Sha256};

const LARGE: u64 = 1 << 30;
const FILES: u64 = 20_000;
const SERVERS: [&str; 4] = ["disk", "fs", "net", "httpd"];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
#[ignore = "1 GiB; see the head of this file"]
fn one_curl_of_one_gibibyte_goes_on_while_a_server_dies_at_every_twentieth() {
    let system = System::start(&["--set", "disk.size=2GiB", "--set", "fs.cache=64MiB"]);
    let (source, mut hash, mut random) = (system.file("source"), Sha256::new(), Random(1));
    let mut file = File::create(&source).expect("a file");
    for _ in 0..LARGE >> 20 {
        let bytes = random.bytes(1 << 20);
        hash.update(&bytes);
        file.write_all(&bytes).expect("room for 1 GiB");
    }
    let expected = hash.finalize();
    system.ok(&["fs", "put", text(&source), "/www/large"]);
    let start = Instant::now();
    let address = format!("http://{}/large", system.listen());
    let arguments = ["-sS", "--limit-rate", "50M", "-w", "%{stderr}connections %{num_connects}, status %{http_code}"];
    let mut curl = std::process::Command::new("curl");
    let curl = curl.args(arguments).arg(&address).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut curl = curl.spawn().expect("curl is installed");
    let (mut got, mut kills, mut hash, mut bytes) = (0, 0, Sha256::new(), vec![0; 1 << 20]);
    let mut body = curl.stdout.take().expect("a pipe");
    loop {
        let length = body.read(&mut bytes).expect("a pipe can be read");
        if length == 0 {
            break;
        }
        hash.update(&bytes[..length]);
        got += length as u64;
        while kills < 19 && got > (kills + 1) * LARGE / 20 {
            kill_now(system.pid(SERVERS[kills as usize % 4]));
            kills += 1;
        }
    }
    let output = curl.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{got} bytes in {:.1} s through {kills} kills; {said}", start.elapsed().as_secs_f64());
    assert!(output.status.success(), "{said}");
    assert_eq!((got, kills, hash.finalize()), (LARGE, 19, expected), "{said}");
    assert_eq!(said.trim(), "connections 1, status 200");
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
}

#[test]
#[ignore = "20,000 files; see the head of this file"]
fn a_tree_of_twenty_thousand_files_and_64_outstanding_calls_while_each_server_dies_fifty_times() {
    let system = System::start(&["--set", "disk.size=4GiB"]);
    let (source, mut random) = (system.file("source"), Random(2));
    let name = |number: u64| PathBuf::from(format!("d{}/e{}/file-{number}.bin", number % 41, number % 13));
    for number in 0..FILES {
        let most = [200, 3_000, 9_000, 60_000][number as usize % 4];
        let path = source.join(name(number));
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        let length = random.below(most) as usize;
        fs::write(path, random.bytes(length)).expect("a file");
    }
    // One client, 64 workers, each with a call outstanding: create, append, rename, unlink, mkdir, rmdir, read.
    let mut rounds = 0;
    let mut killed = [0; SERVERS.len()];
    while killed.iter().any(|count| *count < 50) {
        let seed = (7 + rounds).to_string();
        let chaos = ["chaos", "--json", "--kinds", "kill", "--workers", "64", "--count", "300", "--rate", "8"];
        let chaos = system.command(&chaos).args(["--seed", &seed]).stdout(Stdio::piped()).spawn().expect("it runs");
        let start = Instant::now();
        system.ok(&["fs", "put", "-r", text(&source), &format!("/tree-{rounds}")]);
        println!("{FILES} files put in {:.1} s", start.elapsed().as_secs_f64());
        let output = chaos.wait_with_output().expect("it ends");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        println!("{} calls, {} from a ledger, restarts {}", report["calls"], report["from_ledger"], report["restarts"]);
        assert_eq!((&report["failed"], &report["wrong"]), (&0.into(), &Value::Array(Vec::new())), "{report}");
        for (count, server) in killed.iter_mut().zip(SERVERS) {
            *count += report["restarts"][server].as_u64().expect("a number");
        }
        rounds += 1;
    }
    // Nothing was synced: what is there is there by ledgers.
    kill_now(system.pid("fs"));
    for round in 0..rounds {
        let copy = system.file("copy");
        system.ok(&["fs", "get", "-r", &format!("/tree-{round}"), text(&copy)]);
        for number in 0..FILES {
            let (own, got) = (fs::read(source.join(name(number))), fs::read(copy.join(name(number))));
            assert!(own.expect("it is there") == got.expect("it came"), "{}", name(number).display());
        }
        fs::remove_dir_all(&copy).expect("ours");
    }
    println!("{rounds} trees of {FILES} files equal; deaths {killed:?} of {SERVERS:?}");
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
    system.ok(&["down"]);
    system.ok(&["fs", "check", "--image", text(&system.file("disk.img"))]);
}
