//! Opening a file eight directories deep and reading it, on a running node:
//! `cargo run --release -p bench --example open_read -- STATE [ROUNDS]`.
//!
//! Does both one behind the other and both together, in turns, with a file system that sleeps before each round, and says how
//! often that was woken and how long it took.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{self, Options, Runtime};
use protocol::fs::{self, CREATE, Client, LOOKUP, Name, READ, WRITE};

type Failure = Box<dyn std::error::Error>;

const DIRECTORIES: usize = 8;
/// Long enough for a server to find nothing more to do, and sleep.
const PAUSE: Duration = Duration::from_millis(3);
/// One write, and one lease.
const BYTES: u32 = 3000;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let state = arguments.next().ok_or("usage: open_read STATE [ROUNDS]")?;
    let rounds: u32 = arguments.next().map_or(Ok(1000), |text| text.parse())?;
    Runtime::new(Options::default())?.block_on(measure(Path::new(&state), rounds))
}

async fn measure(state: &Path, rounds: u32) -> Result<(), Failure> {
    let cx = Context::guest(state, "open-read")?;
    let client: Client = cx.connect("fs.root").await?;
    let path = make(&client).await?;
    let path = checked(&path)?;
    let session = client.root().session();
    let ways = [("one behind the other", false), ("together", true)];
    let mut woken = [0; 2];
    let mut took = [Histogram::<u64>::new(3)?, Histogram::new(3)?];
    for _ in 0..rounds {
        for (way, (_, together)) in ways.iter().enumerate() {
            runtime::sleep(PAUSE).await;
            let (before, begun) = (session.system_calls(), Instant::now());
            let length =
                if *together { open_with_read(&client, path).await? } else { open_then_read(&client, path).await? };
            took[way].record(begun.elapsed().as_nanos() as u64)?;
            woken[way] += session.system_calls() - before;
            assert_eq!(length, u64::from(BYTES));
        }
    }
    for (way, (name, _)) in ways.iter().enumerate() {
        let us = |quantile| took[way].value_at_quantile(quantile) as f64 / 1000.0;
        let each = woken[way] as f64 / f64::from(rounds);
        println!("{name}: {each:.2} wake-ups of the file system, {:.1} / {:.1} us (p50 / p99)", us(0.5), us(0.99));
    }
    Ok(())
}

async fn open_then_read(client: &Client, path: fs::Path<'_>) -> Result<u64, Failure> {
    let (file, _) = client.open(client.root(), path, READ).await.map_err(said)?;
    let lease = client.read(&file, 0, BYTES).await.map_err(said)?;
    Ok(lease.map_or(0, |lease| lease.len()))
}

async fn open_with_read(client: &Client, path: fs::Path<'_>) -> Result<u64, Failure> {
    let opening = client.open(client.root(), path, READ).ahead().await?;
    let lease = client.read(&opening.capability(), 0, BYTES).await.map_err(said)?;
    opening.await.map_err(said)?;
    Ok(lease.map_or(0, |lease| lease.len()))
}

/// Makes the file, if it is not there, and says where it is.
async fn make(client: &Client) -> Result<String, Failure> {
    let all = READ | WRITE | LOOKUP | CREATE;
    let mut path = String::new();
    for number in 1..=DIRECTORIES {
        let (above, _) = client.open(client.root(), checked(&path)?, all).await.map_err(said)?;
        let name = format!("open-read-{number}");
        // It may be there from the last time.
        let _ = client.mkdir(&above, Name::new(&name).map_err(said)?).await;
        path = if path.is_empty() { name } else { format!("{path}/{name}") };
    }
    let (above, _) = client.open(client.root(), checked(&path)?, all).await.map_err(said)?;
    if let Ok((file, _)) = client.create(&above, Name::new("file").map_err(said)?, WRITE).await {
        client.write(&file, 0, &[7; BYTES as usize]).await.map_err(said)?;
    }
    Ok(path + "/file")
}

fn checked(path: &str) -> Result<fs::Path<'_>, String> {
    fs::Path::new(path).map_err(said)
}

fn said(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
