//! Null calls with both ends in one thread, for counting what one costs:
//! `cargo run --release -p bench --example calls -- in-process|shared CALLS [DEPTH]`; calls that may not run twice, whose host
//! keeps nothing, the answer, or the answer and what was done: `no-ledger|ledger|effect`.
//!
//! Says how long a call took. The instructions of one are the difference of two runs of
//! `valgrind --tool=callgrind`, divided by the difference of their calls.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use bench::ipc::{Near, near};
use kernel_ipc::interface::{Connect, Connection};
use kernel_ipc::runtime::{self, Options, Runtime, Waiting};
use protocol::null::Client;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let near_by = match arguments.next().as_deref() {
        Some("in-process") => Near::InProcess,
        Some("shared") => Near::Shared,
        Some("no-ledger") => Near::NoLedger,
        Some("ledger") => Near::Ledger,
        Some("effect") => Near::Effect,
        _ => return Err("usage: calls in-process|shared|no-ledger|ledger|effect CALLS [DEPTH]".into()),
    };
    let calls: u64 = arguments.next().ok_or("how many calls?")?.parse()?;
    let depth: u64 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    Runtime::new(Options { waiting: Waiting::Spin, ..Options::default() })?.block_on(measure(near_by, calls, depth))
}

async fn measure(near_by: Near, calls: u64, depth: u64) -> Result<(), Failure> {
    let (session, _host) = near(near_by)?;
    let client = Rc::new(Client::from_connection(Connection::fixed(session)));
    let cached = matches!(near_by, Near::NoLedger | Near::Ledger | Near::Effect);
    let begun = Instant::now();
    if depth == 1 {
        call(&client, cached, calls).await?;
    } else {
        let callers: Vec<_> = (0..depth)
            .map(|_| {
                let client = client.clone();
                runtime::spawn(async move { call(&client, cached, calls / depth).await })
            })
            .collect();
        for caller in callers {
            caller.await.map_err(|_| io::Error::other("cancelled"))??;
        }
    }
    println!(
        "{:.1} ns for each of {calls} calls, {depth} outstanding",
        begun.elapsed().as_nanos() as f64 / calls as f64
    );
    Ok(())
}

async fn call(client: &Client, cached: bool, calls: u64) -> io::Result<()> {
    for _ in 0..calls {
        match cached {
            true => drop(client.count(client.root()).await.map_err(io::Error::other)?),
            false => client.null(client.root()).await.map_err(io::Error::other)?,
        }
    }
    Ok(())
}
