//! `atoll demo crash`: a copy and a download with checksums, while every server dies once a second.
//!
//! It starts a system of its own in a directory that it removes, and uses it as anybody would: `atoll fs put` and `get`, and
//! HTTP.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kernel_ipc::runtime;
use protocol::control::{self, Signal};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::download::Download;
use crate::args::Common;
use crate::node::{connect, visit};
use crate::output::{self, Colour, Failed, paint, size as bytes_of};
use crate::{chaos::Numbers, control::components, interrupt};

/// The servers, in the order in which they die.
const SERVERS: [&str; 4] = ["disk", "fs", "net", "httpd"];
/// Each of them dies once in so long.
const EVERY: Duration = Duration::from_secs(1);

/// What is counted while it runs, by several threads. All `Relaxed`: nothing else is told by it.
#[derive(Default)]
struct Counts {
    over: AtomicBool,
    deaths: [AtomicU64; SERVERS.len()],
    copies: AtomicU64,
    downloads: AtomicU64,
    connections: AtomicU64,
    /// Of the present download.
    downloaded: AtomicU64,
    troubles: Mutex<Vec<String>>,
}

impl Counts {
    fn trouble(&self, what: String) {
        self.troubles.lock().expect("nobody panics with it").push(what);
        self.over.store(true, Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Relaxed) || interrupt::check().is_err()
    }
}

/// Shows it.
pub fn crash(common: &Common, seconds: u64, size: u64) -> Result<(), Failed> {
    interrupt::watch()?;
    let directory = Directory::make()?;
    let system = Common { state: directory.0.join("state"), json: false };
    let source = directory.0.join("source");
    let hash = make_file(&source, size)?;
    let mut image = 64 << 20;
    while image < size * 4 {
        image *= 2;
    }
    atoll(&system, &["up", "--detach", "--set", "httpd.listen=127.0.0.1:0", "--set", &format!("disk.size={image}")])?;
    let shown = on_the_system(&system, &source, &hash, seconds, size);
    let down = atoll(&system, &["down"]);
    let counts = shown?;
    down?;
    report(common, &counts, size)
}

fn on_the_system(system: &Common, source: &Path, hash: &[u8], seconds: u64, size: u64) -> Result<Counts, Failed> {
    atoll(system, &["fs", "put", text(source)?, "/www/demo.bin"])?;
    let all = visit(system, async |context| components(&context).await)?;
    let address: Option<SocketAddr> = all.iter().find_map(|one| one.listen.parse().ok());
    let address = address.ok_or_else(|| Failed::new("nobody serves HTTP"))?;
    let counts = Counts::default();
    let show = Show::new(size);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(failed) = kill(system, &counts) {
                counts.trouble(failed.message);
            }
        });
        scope.spawn(|| copy(system, source, hash, &counts));
        scope.spawn(|| download_again_and_again(address, hash, size, &counts));
        let begin = Instant::now();
        while !counts.is_over() && begin.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(50));
            show.update(&counts, begin.elapsed());
        }
        counts.over.store(true, Relaxed);
        show.end();
    });
    interrupt::check()?;
    Ok(counts)
}

/// Kills the servers in turn until it is over.
fn kill(system: &Common, counts: &Counts) -> Result<(), Failed> {
    visit(system, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        loop {
            for (server, deaths) in SERVERS.iter().zip(&counts.deaths) {
                runtime::sleep(EVERY / SERVERS.len() as u32).await;
                if counts.is_over() {
                    return Ok(());
                }
                // It may be on its way back from its last death.
                if control.signal(control.root(), server, Signal::Kill).await.is_ok() {
                    deaths.fetch_add(1, Relaxed);
                }
            }
        }
    })
}

/// Copies the file in and out and compares, until it is over.
fn copy(system: &Common, source: &Path, hash: &[u8], counts: &Counts) {
    let back = source.with_file_name("back");
    let once = || -> Result<bool, Failed> {
        atoll(system, &["fs", "put", text(source)?, "/copy.bin"])?;
        atoll(system, &["fs", "get", "/copy.bin", text(&back)?])?;
        Ok(hash_of(&back)? == hash)
    };
    while !counts.is_over() {
        match once() {
            Ok(true) => _ = counts.copies.fetch_add(1, Relaxed),
            Ok(false) => counts.trouble("a copy came back with other bytes".into()),
            Err(failed) => counts.trouble(format!("copy: {}", failed.message)),
        }
    }
}

/// Downloads the file and compares, until it is over: about three times in ten seconds.
fn download_again_and_again(address: SocketAddr, hash: &[u8], size: u64, counts: &Counts) {
    let download = Download { address, path: "/demo.bin", size, rate: (size / 3).max(1) };
    while !counts.is_over() {
        match download.run(&|at| counts.downloaded.store(at, Relaxed)) {
            Ok(came) if came.hash == hash => {
                counts.downloads.fetch_add(1, Relaxed);
                counts.connections.fetch_add(came.connections, Relaxed);
            }
            Ok(_) => counts.trouble("a download came with other bytes".into()),
            Err(why) => counts.trouble(format!("download: {why}")),
        }
    }
}

/// Three lines on a terminal.
struct Show {
    all: MultiProgress,
    lines: [ProgressBar; 3],
    download: ProgressBar,
}

impl Show {
    fn new(size: u64) -> Show {
        let wanted = output::stderr_colours();
        let target = if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let line = || {
            let style = ProgressStyle::with_template("{prefix:10} {msg}").expect("a valid template");
            all.add(ProgressBar::new(0).with_style(style))
        };
        let lines = [line().with_prefix("deaths"), line().with_prefix("copies"), line().with_prefix("downloads")];
        let style = ProgressStyle::with_template("{prefix:10} {wide_bar} {binary_bytes} of {binary_total_bytes}");
        let style = style.expect("a valid template").progress_chars("━╸ ");
        let download = all.add(ProgressBar::new(size).with_style(style).with_prefix("download"));
        Show { all, lines, download }
    }

    fn update(&self, counts: &Counts, time: Duration) {
        let [deaths, copies, downloads] = &self.lines;
        deaths.set_message(format!("{} after {} s", died(counts), time.as_secs()));
        copies.set_message(format!("{}, every byte equal", counts.copies.load(Relaxed)));
        downloads.set_message(format!("{}, every byte equal", counts.downloads.load(Relaxed)));
        self.download.set_position(counts.downloaded.load(Relaxed));
    }

    fn end(&self) {
        let _ = self.all.clear();
    }
}

fn died(counts: &Counts) -> String {
    let each = SERVERS.iter().zip(&counts.deaths);
    each.map(|(server, deaths)| format!("{server} {}", deaths.load(Relaxed))).collect::<Vec<_>>().join(", ")
}

fn report(common: &Common, counts: &Counts, size: u64) -> Result<(), Failed> {
    let troubles = counts.troubles.lock().expect("nobody panics with it");
    let [copies, downloads, connections] =
        [&counts.copies, &counts.downloads, &counts.connections].map(|count| count.load(Relaxed));
    if common.json {
        let deaths = SERVERS.iter().zip(&counts.deaths);
        output::json(&json!({
            "deaths": deaths.map(|(server, deaths)| (*server, deaths.load(Relaxed))).collect::<std::collections::BTreeMap<_, _>>(),
            "bytes": size,
            "copies": copies,
            "downloads": downloads,
            "connections": connections,
            "troubles": *troubles,
        }))?;
    } else {
        let colours = output::stdout_colours();
        let equal = paint("every byte equal", Colour::Green, colours);
        output::line(&format!("killed      {}", died(counts)))?;
        output::line(&format!("copies      {copies} times in and out, {} each: {equal}", bytes_of(size)))?;
        output::line(&format!(
            "downloads   {downloads} on {connections} connections, {} each: {equal}",
            bytes_of(size)
        ))?;
    }
    match troubles.first() {
        None => Ok(()),
        Some(trouble) => Err(Failed::new(trouble)),
    }
}

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Directory, Failed> {
        let path = std::env::temp_dir().join(format!("atoll-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| Failed::new(format!("{}: {error}", path.display())))?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes a file that no compression would make smaller; its SHA-256.
fn make_file(path: &Path, size: u64) -> Result<Vec<u8>, Failed> {
    let (mut file, mut hash, mut numbers) = (File::create(path)?, Sha256::new(), Numbers::new(1));
    let mut left = size;
    while left > 0 {
        let piece: Vec<u8> = (0..32 << 10).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let piece = &piece[..usize::try_from(left).unwrap_or(usize::MAX).min(piece.len())];
        file.write_all(piece)?;
        hash.update(piece);
        left -= piece.len() as u64;
    }
    Ok(hash.finalize().to_vec())
}

fn hash_of(path: &Path) -> Result<Vec<u8>, Failed> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().to_vec()),
            length => hash.update(&piece[..length]),
        }
    }
}

fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| Failed::usage(format!("{}: not UTF-8", path.display())))
}

/// Runs a command line on the system; its message is the failure.
fn atoll(system: &Common, arguments: &[&str]) -> Result<(), Failed> {
    let done = Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--state")
        .arg(&system.state)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()?;
    match done.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&done.stderr);
            Err(Failed::new(format!(
                "atoll {}: {}",
                arguments.join(" "),
                said.trim_start_matches("error: ").trim_end()
            )))
        }
    }
}
