//! Atoll's calls beside those of other systems, in turns in one run: 64 bytes there and back between two processes, each
//! pinned to a core of its own, one call at a time and 64 outstanding; on one machine, and over TCP as between two.
//!
//! ```sh
//! cargo build --release                                    # the workspace: target/release/atoll
//! cargo run --release --manifest-path bench/peers/ipc/Cargo.toml -- [SECONDS for each row] [ROUNDS] [FILE]
//! ```
//!
//! Prints a table; `FILE.json` gets the rows of all rounds, `FILE.svg` the drawing. `ATOLL=path` names another binary of Atoll.

mod measure;
mod plain;
mod plot;
mod rpc;
mod shared;
mod wire;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use measure::{BYTES, DEPTH, Row, cores, of_calls, pin};
use serde_json::{Value, json};
use wire::Listener;

capnp::generated_code!(pub mod echo_capnp);

const LOCAL: [&str; 8] = ["iceoryx2", "pipe", "unix", "ipc-channel", "tarpc", "grpc", "capnp", "dbus"];
const OVER_TCP: [&str; 4] = ["tcp", "tarpc-tcp", "grpc-tcp", "capnp-tcp"];

/// How a place of Atoll's is called in the table.
const PLACES: [(&str, &str); 3] =
    [("process", "Atoll"), ("socket", "Atoll over TCP"), ("socket-encrypted", "Atoll over TLS 1.3")];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, peer, path] = arguments.as_slice()
        && serve == "serve"
    {
        return serve_peer(peer, Path::new(path));
    }
    let number = |at: usize, default: u64| arguments.get(at).map_or(default, |text| text.parse().expect("a number"));
    let (duration, rounds) = (Duration::from_secs(number(0, 1)), number(1, 3));
    let atoll = std::env::var("ATOLL").unwrap_or_else(|_| "target/release/atoll".into());
    let mut all = Vec::new();
    for round in 0..rounds {
        for (place, name) in PLACES {
            eprintln!("round {} of {rounds}: {name}", round + 1);
            all.extend(of_atoll(&atoll, place, name, duration));
        }
        for peer in LOCAL.into_iter().chain(OVER_TCP) {
            eprintln!("round {} of {rounds}: {peer}", round + 1);
            all.extend(of_peer(peer, duration));
        }
    }
    let best = medians(&all);
    print!("{}", table(&best));
    if let Some(file) = arguments.get(2) {
        let file = PathBuf::from(file);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let machine = json!({ "kernel": read("/proc/sys/kernel/osrelease"), "load": read("/proc/loadavg") });
        let run = json!({ "machine": machine, "medians": best, "rows": all });
        let text = serde_json::to_string_pretty(&run).expect("numbers and names");
        std::fs::write(file.with_extension("json"), text + "\n").expect("a place to write to");
        std::fs::write(file.with_extension("svg"), plot::svg(&best)).expect("a place to write to");
    }
}

/// The rows of `atoll bench ipc --place PLACE` that are about the same: 64 bytes, a core each.
fn of_atoll(atoll: &str, place: &str, name: &str, duration: Duration) -> Vec<Row> {
    let seconds = duration.as_secs().max(1).to_string();
    let output = Command::new(atoll)
        .args(["bench", "ipc", "--place", place, "--json", "--seconds", &seconds])
        .output()
        .unwrap_or_else(|error| panic!("{atoll}: {error}; build it, or say with ATOLL where it is"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("rows");
    let is_memory = place == "process";
    let floor = rows.iter()
        .filter(|_| is_memory)
        .find(|row| row["wait"] == "spin" && row["pin"] == "apart" && row["size"] == 0);
    let mut found: Vec<Row> = rows
        .iter()
        .filter(|row| row["pin"] == "apart" && row["size"] == BYTES && [1, DEPTH].iter().any(|d| row["depth"] == *d))
        .map(|row| {
            let number = |name: &str| row[name].as_u64().expect("a whole number");
            let wait = match row["wait"].as_str() {
                Some("spin") => "spin",
                Some("adaptive") => "adaptive",
                _ => "block",
            };
            Row {
                peer: name.into(),
                place: if is_memory { "shm" } else { "tcp" },
                wait,
                pin: "apart",
                size: BYTES,
                depth: number("depth") as usize,
                p50_ns: number("p50_ns"),
                p99_ns: number("p99_ns"),
                p999_ns: number("p999_ns"),
                calls_per_s: row["calls_per_s"].as_f64().expect("a number"),
            }
        })
        .collect();
    assert!(!found.is_empty(), "{atoll} has no rows of {BYTES} bytes");
    if let Some(p50_ns) = floor.and_then(|row| row["floor_p50_ns"].as_u64()) {
        let calls_per_s = 1e9 / p50_ns as f64;
        let name = "(one word each way)".to_owned();
        let like = found[0].clone();
        found.push(Row { peer: name, wait: "spin", depth: 1, p50_ns, p99_ns: 0, p999_ns: 0, calls_per_s, ..like });
    }
    found
}

fn of_peer(peer: &str, duration: Duration) -> Vec<Row> {
    let directory = std::env::temp_dir().join(format!("atoll-peers-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let path = directory.join(peer);
    let server = Server::start(peer, &path);
    // The client is a thread of its own, so that its core is its own.
    let (name, served) = (peer.to_owned(), path.clone());
    let client = std::thread::spawn(move || {
        if let Some((core, _)) = cores() {
            pin(core);
        }
        call_peer(&name, &served, duration)
    });
    let rows = client.join().expect("the client's thread ends");
    drop(server);
    let _ = std::fs::remove_dir_all(&directory);
    rows
}

fn call_peer(peer: &str, path: &Path, duration: Duration) -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    match peer {
        "iceoryx2" => of_calls("iceoryx2", "spin", &mut shared::Iceoryx::connect(path), duration),
        "ipc-channel" => of_calls("ipc-channel", "block", &mut shared::Channels::connect(path), duration),
        "pipe" => of_calls("two pipes", "block", &mut plain::Pipes::connect(path), duration),
        "unix" => of_calls("unix socket", "block", &mut plain::Socket::<UnixStream>::connect(path), duration),
        "tcp" => of_calls("TCP socket", "block", &mut plain::Socket::<TcpStream>::connect(path), duration),
        "tarpc" => local.block_on(&runtime, rpc::tarpc_echo::measure("tarpc", path, duration)),
        "tarpc-tcp" => local.block_on(&runtime, rpc::tarpc_echo::measure("tarpc over TCP", path, duration)),
        "grpc" => local.block_on(&runtime, rpc::grpc_echo::measure("gRPC (tonic)", path, duration)),
        "grpc-tcp" => local.block_on(&runtime, rpc::grpc_echo::measure("gRPC (tonic) over TCP", path, duration)),
        "capnp" => local.block_on(&runtime, rpc::capnp_echo::measure("Cap'n Proto (capnp-rpc)", path, duration)),
        "capnp-tcp" => local.block_on(&runtime, rpc::capnp_echo::measure("Cap'n Proto over TCP", path, duration)),
        "dbus" => local.block_on(&runtime, rpc::dbus_echo::measure(path, duration)),
        other => panic!("no peer is called {other}"),
    }
}

/// The program of a server's process.
fn serve_peer(peer: &str, path: &Path) {
    if let Some((_, core)) = cores() {
        pin(core);
    }
    let ready = || println!("ready");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    match peer {
        "iceoryx2" => shared::Iceoryx::serve(path, ready),
        "ipc-channel" => shared::Channels::serve(path, ready),
        "pipe" => plain::Pipes::serve(path, ready),
        "unix" => plain::Socket::<UnixStream>::serve(path, ready),
        "tcp" => plain::Socket::<TcpStream>::serve(path, ready),
        "tarpc" | "tarpc-tcp" => local.block_on(&runtime, async {
            rpc::tarpc_echo::serve(Listener::bind(path, peer.ends_with("-tcp")).await, ready).await;
        }),
        "grpc" | "grpc-tcp" => local.block_on(&runtime, async {
            rpc::grpc_echo::serve(Listener::bind(path, peer.ends_with("-tcp")).await, ready).await;
        }),
        "capnp" | "capnp-tcp" => local.block_on(&runtime, async {
            rpc::capnp_echo::serve(Listener::bind(path, peer.ends_with("-tcp")).await, ready).await;
        }),
        "dbus" => local.block_on(&runtime, rpc::dbus_echo::serve(path, ready)),
        other => panic!("no peer is called {other}"),
    }
}

/// Killed when it is dropped.
struct Server(Child);

impl Server {
    fn start(peer: &str, path: &Path) -> Server {
        let mut child = Command::new(std::env::current_exe().expect("own program"))
            .arg("serve")
            .arg(peer)
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "{peer} does not serve");
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of each row the round with the median of the medians: what the machine did meanwhile shows in few rounds.
fn medians(all: &[Row]) -> Vec<Row> {
    let mut kinds: Vec<(&str, &str, usize)> = Vec::new();
    for row in all {
        if !kinds.contains(&(row.peer.as_str(), row.wait, row.depth)) {
            kinds.push((&row.peer, row.wait, row.depth));
        }
    }
    let of_kind = |(peer, wait, depth): (&str, &str, usize)| {
        let mut rows: Vec<&Row> =
            all.iter().filter(|row| row.peer == peer && row.wait == wait && row.depth == depth).collect();
        rows.sort_by_key(|row| row.p50_ns);
        rows[rows.len() / 2].clone()
    };
    kinds.into_iter().map(of_kind).collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<26} {:<9} {:>6} {:>12} {:>12} {:>12} {:>14}\n",
        "", "waits", "depth", "p50 us", "p99 us", "p99.9 us", "calls/s"
    );
    for depth in [1, DEPTH] {
        let mut of_depth: Vec<&Row> = rows.iter().filter(|row| row.depth == depth).collect();
        of_depth.sort_by_key(|row| row.p50_ns);
        for row in of_depth {
            let us = |ns: u64| if ns == 0 { String::new() } else { format!("{:.2}", ns as f64 / 1000.0) };
            text += &format!(
                "{:<26} {:<9} {:>6} {:>12} {:>12} {:>12} {:>14.0}\n",
                row.peer,
                row.wait,
                row.depth,
                us(row.p50_ns),
                us(row.p99_ns),
                us(row.p999_ns),
                row.calls_per_s
            );
        }
        text += "\n";
    }
    text
}
