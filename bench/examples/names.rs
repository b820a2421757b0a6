//! A directory of very many names, on a running node:
//! `cargo run --release -p bench --example names -- STATE [COUNT [DIRECTORY]]`.
//!
//! Makes COUNT (a million) empty files in a new directory of the volume, looks up as many at random, lists them all,
//! and says how fast each was.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use kernel_ipc::component::Context;
use kernel_ipc::interface::Cap;
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime::{self, Options, Runtime};
use protocol::fs::{self, CREATE, LOOKUP, Name, Node};

type Failure = Box<dyn std::error::Error>;

/// Calls that are outstanding.
const AT_A_TIME: u64 = 16;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let state = arguments.next().ok_or("usage: names STATE [COUNT [DIRECTORY]]")?;
    let count: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let directory = arguments.next().unwrap_or_else(|| "many".into());
    Runtime::new(Options::default())?.block_on(measure(Path::new(&state), count, &directory))
}

async fn measure(state: &Path, count: u64, directory: &str) -> Result<(), Failure> {
    let cx = Context::guest(state, "names")?;
    let client: fs::Client = cx.connect("fs.root").await?;
    let name = Name::new(directory.as_bytes()).map_err(|_| "not a name")?;
    client.mkdir(client.root(), name).await.map_err(|error| format!("mkdir {directory}: {error:?}"))?;
    let path = fs::Path::new(directory.as_bytes()).map_err(|_| "not a path")?;
    let wanted = Rights::READ | LOOKUP | CREATE;
    let (node, _) = client.open(client.root(), path, wanted).await.map_err(|error| format!("{error:?}"))?;
    let node: Rc<Cap<Node>> = Rc::new(node);

    let timed = Instant::now();
    let both = (client.clone(), Rc::clone(&node));
    many(count, move |number| {
        let (client, node) = both.clone();
        async move {
            let name = file(number);
            let made = client.create(&node, Name::new(name.as_bytes()).expect("digits"), Rights::empty()).await;
            made.map(drop).map_err(|error| format!("create {name}: {error:?}"))
        }
    })
    .await?;
    told("creates", count, timed);
    let timed = Instant::now();
    client.sync(client.root()).await.map_err(|error| format!("sync: {error:?}"))?;
    println!("sync {:.2} s", timed.elapsed().as_secs_f64());

    let timed = Instant::now();
    let both = (client.clone(), Rc::clone(&node));
    many(count, move |number| {
        let (client, node) = both.clone();
        async move {
            // Every name once, in an order that no cache likes.
            let name = file(number.wrapping_mul(611_953) % count);
            let found = client.lookup(&node, fs::Path::new(name.as_bytes()).expect("digits")).await;
            found.map(drop).map_err(|error| format!("lookup {name}: {error:?}"))
        }
    })
    .await?;
    told("lookups", count, timed);

    let timed = Instant::now();
    let mut seen = HashSet::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let page = client.readdir(&node, at, u32::MAX).await.map_err(|error| format!("readdir: {error:?}"))?;
        for entry in page.entries() {
            let entry = entry.map_err(|_| "a page that cannot be read")?;
            if !seen.insert(entry.name.as_bytes().to_vec()) {
                return Err(format!("{:?} is listed twice", entry.name).into());
            }
        }
        cursor = page.next;
    }
    told("names listed", seen.len() as u64, timed);
    if seen.len() as u64 != count || (0..count).any(|number| !seen.contains(file(number).as_bytes())) {
        return Err(format!("{} names are listed, {count} were made", seen.len()).into());
    }
    Ok(())
}

fn file(number: u64) -> String {
    format!("file-{number:07}")
}

fn told(what: &str, count: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{count} {what} in {seconds:.2} s: {:.0}/s", count as f64 / seconds);
}

/// Runs `count` calls, so many at a time; ends with the first failure.
async fn many<F: Future<Output = Result<(), String>> + 'static>(
    count: u64,
    call: impl Fn(u64) -> F + 'static,
) -> Result<(), Failure> {
    let (next, call) = (Rc::new(Cell::new(0)), Rc::new(call));
    let tasks: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let (next, call) = (Rc::clone(&next), Rc::clone(&call));
            runtime::spawn(async move {
                while next.get() < count {
                    let number = next.replace(next.get() + 1);
                    call(number).await?;
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|_| "a task was cancelled")??;
    }
    Ok(())
}
