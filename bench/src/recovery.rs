//! How long a death is felt: from the kill to the first answered call.
//!
//! * Each component of a running system is killed many times, one at a time, each time when all are ready again.
//! * The file server is killed with many files open and with changes that no checkpoint holds.
//! * The supervisor is killed as well: what is measured then is its own answer, nobody else waits.
//! * The floor is a process of the same binary that is started, does nothing and is reaped.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kernel_ipc::interface::Cap;
use kernel_ipc::{CallError, Cause, Rights, runtime};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use protocol::control::{self, Signal, State};
use protocol::fs::{CREATE, Name, Node};
use protocol::{block, fs};

use crate::report::{Row, Run, histogram};

/// Changes before each kill of the file server, and bytes of each.
const CHANGES: usize = 256;
const CHANGE: usize = 1024;
/// Files that are made before each kill, where it is names that change.
const MADE: usize = 2000;
/// How long a component may take to be ready again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a component is ready, so that its next death does not meet what the last one has left to do.
const PAUSE: Duration = Duration::from_millis(50);

/// The system that is measured.
pub struct System {
    /// Its block driver.
    pub disk: block::Client,
    /// Its file server.
    pub fs: fs::Client,
    /// Its supervisor.
    pub control: control::Client,
    /// Where its web server listens.
    pub http: SocketAddr,
    /// The binary, for the floor.
    pub program: std::path::PathBuf,
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Kills of each component.
    pub kills: u64,
    /// Files that are open when the file server dies.
    pub files: usize,
}

/// Measures.
///
/// # Errors
/// A call that failed, or a component that did not come back.
pub async fn run(system: &System, options: &Options) -> io::Result<Run> {
    let mut run = Run::begin("recovery");
    run.notes.push(format!("from the kill to the first answered call, {} kills each, one at a time", options.kills));
    let floor = floor(system, options.kills)?;
    let mut add = |row: Row| run.rows.push(row.median_beside(&floor));
    add(kills(system, "httpd", "httpd", options.kills, async || Ok(()), async || ask(system.http)).await?);
    add(kills(system, "net", "net", options.kills, async || Ok(()), async || ask(system.http)).await?);
    let read = async || system.disk.read(system.disk.root(), 0, 1).await.map(drop).map_err(io::Error::other);
    add(kills(system, "block driver", "disk", options.kills, async || Ok(()), read).await?);
    let look = async || system.fs.stat(system.fs.root()).await.map(drop).map_err(io::Error::other);
    add(kills(system, "fs-server", "fs", options.kills, async || Ok(()), look).await?);
    let open = make_files(system, "open", options.files).await?;
    system.fs.sync(system.fs.root()).await.map_err(io::Error::other)?;
    let name = format!("fs-server, {} files open, {CHANGES} changes of {CHANGE} bytes not synced", open.len());
    let mut next = 0;
    let dirty = async || {
        for _ in 0..CHANGES {
            next = (next + 7919) % open.len();
            system.fs.append(&open[next], &[b'x'; CHANGE]).await.map_err(io::Error::other)?;
        }
        Ok(())
    };
    let stat = async || system.fs.stat(&open[0]).await.map(drop).map_err(io::Error::other);
    add(kills(system, &name, "fs", options.kills, dirty, stat).await?);
    let name = format!("fs-server, {} files open, {MADE} more made and not synced", open.len());
    let mut made = 0;
    let make = async || {
        made += 1;
        make_files(system, &format!("made-{made}"), MADE).await.map(drop)
    };
    let stat = async || system.fs.stat(&open[0]).await.map(drop).map_err(io::Error::other);
    add(kills(system, &name, "fs", options.kills, make, stat).await?);
    add(supervisor(system, options.kills).await?);
    run.rows.insert(0, floor);
    Ok(run)
}

/// From the supervisor's death until the next one has taken over and answers. (Nobody else waits meanwhile.)
async fn supervisor(system: &System, count: u64) -> io::Result<Row> {
    let (mut times, start) = (histogram(), Instant::now());
    for _ in 0..count {
        settled(system).await?;
        let before = system.control.supervisor(system.control.root()).await.map_err(io::Error::other)?;
        let pid = i32::try_from(before.pid).map_err(io::Error::other)?;
        let begin = Instant::now();
        kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
        loop {
            match system.control.supervisor(system.control.root()).await {
                Ok(now) if now.restarts != before.restarts => break,
                Err(CallError::Failed { cause: Cause::PeerDied, .. }) | Ok(_) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        times.saturating_record(begin.elapsed().as_nanos() as u64);
    }
    Ok(Row::new("supervisor, its own answer", &times, start.elapsed().as_secs_f64(), 0))
}

fn floor(system: &System, count: u64) -> io::Result<Row> {
    let (mut times, begin) = (histogram(), Instant::now());
    for _ in 0..count {
        let begin = Instant::now();
        let mut process = std::process::Command::new(&system.program);
        process.arg("--version").stdout(std::process::Stdio::null()).status()?;
        times.saturating_record(begin.elapsed().as_nanos() as u64);
    }
    Ok(Row::new("floor: a process of this binary", &times, begin.elapsed().as_secs_f64(), 0))
}

async fn kills(
    system: &System,
    name: &str,
    component: &str,
    count: u64,
    mut before: impl AsyncFnMut() -> io::Result<()>,
    mut call: impl AsyncFnMut() -> io::Result<()>,
) -> io::Result<Row> {
    let (mut times, begin) = (histogram(), Instant::now());
    for _ in 0..count {
        settled(system).await?;
        before().await?;
        let begin = Instant::now();
        system.control.signal(system.control.root(), component, Signal::Kill).await.map_err(io::Error::other)?;
        call().await?;
        times.saturating_record(begin.elapsed().as_nanos() as u64);
    }
    settled(system).await?;
    Ok(Row::new(name, &times, begin.elapsed().as_secs_f64(), 0))
}

/// Waits until every component is ready, and a little more.
async fn settled(system: &System) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        let page = system.control.ps(system.control.root(), 0).await.map_err(io::Error::other)?;
        if page.components.iter().all(|one| one.state == State::Ready) {
            break;
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a component did not come back"));
        }
        runtime::sleep(Duration::from_millis(2)).await;
    }
    runtime::sleep(PAUSE).await;
    Ok(())
}

/// Makes so many files in a directory of their own, which stay open while they are kept.
async fn make_files(system: &System, directory: &str, count: usize) -> io::Result<Vec<Cap<Node>>> {
    let (client, path) = (&system.fs, fs::Path::new(directory).expect("a good path"));
    client.mkdir(client.root(), Name::new(directory).expect("a good name")).await.map_err(io::Error::other)?;
    let opened = client.open(client.root(), path, Rights::READ | Rights::WRITE | CREATE).await;
    let (directory, _) = opened.map_err(io::Error::other)?;
    let mut files = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("f{number}");
        let want = Rights::READ | Rights::WRITE;
        let made = client.create(&directory, Name::new(&name).expect("a good name"), want).await;
        files.push(made.map_err(io::Error::other)?.0);
    }
    Ok(files)
}

/// One request of the web server, answered whole.
fn ask(address: SocketAddr) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        let answer = || -> io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        match answer() {
            Ok(answer) if answer.starts_with(b"HTTP/1.1 200") => return Ok(()),
            // Cut off by the death: whoever asks again is answered.
            _ if begin.elapsed() < PATIENCE => {}
            Ok(answer) => return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
            Err(error) => return Err(error),
        }
    }
}
