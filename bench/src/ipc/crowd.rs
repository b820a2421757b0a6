//! A host with many sessions: what each costs, and what the others cost the one that is used.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::interface::{Connect, Connection};
use kernel_ipc::runtime::{Options as RuntimeOptions, Runtime, Waiting};
use kernel_ipc::session::Offer;
use kernel_ipc::wire::Shape;

use super::host::{self, EPOCH, Host, SESSION, TaskKind};
use super::null::{Client, Nothing};
use super::{Calls, Place, measure_task};
use crate::report::{Row, Run, histogram};

/// Sessions of the host.
const SESSIONS: u16 = 1000;

/// Adds what opening one takes, and a null call beside 999 sessions that do nothing. `single` is the call without those.
pub(super) fn add(
    run: &mut Run,
    host: &Host,
    place: &Place,
    single: Option<&Row>,
    duration: Duration,
) -> io::Result<()> {
    let (opening, resident) = opening()?;
    run.rows.push(opening);
    run.notes.push(format!(
        "a session that has made one call takes {:.1} KiB of resident memory, both ends together",
        resident as f64 / 1024.0
    ));
    if let Some(single) = single {
        let kind = TaskKind::Crowd { waiting: Waiting::Spin, others: SESSIONS - 1 };
        let calls = Calls { waiting: Waiting::Spin, depth: 1, bytes: 0, cached: false };
        let mut row = measure_task(host, kind, &calls, place, duration)?.median_beside(single);
        row.name = format!("{}, {SESSIONS} sessions", row.name);
        run.rows.push(row);
    }
    Ok(())
}

/// Opens [`SESSIONS`] sessions, both ends in this thread, each of which makes one call: how long one takes to open, and how
/// many bytes it makes resident.
fn opening() -> io::Result<(Row, u64)> {
    let runtime = Runtime::new(RuntimeOptions { waiting: Waiting::Spin, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        let mut latencies = histogram();
        let mut open = Vec::new();
        let before = resident()?;
        let begin = Instant::now();
        for _ in 0..SESSIONS {
            let began = Instant::now();
            let offer = Offer::new(Shape::default())?;
            let session = host::open(offer.fd().try_clone_to_owned()?, Nothing::default())?;
            let segment = session.fd().ok_or_else(|| io::Error::other("no segment"))?.try_clone_to_owned()?;
            let client = offer.open(segment, SESSION, EPOCH).map_err(io::Error::other)?;
            latencies.saturating_record(began.elapsed().as_nanos() as u64);
            open.push((session, client));
        }
        let seconds = begin.elapsed().as_secs_f64();
        for (_, session) in &open {
            let client = Rc::new(Client::from_connection(Connection::fixed(session.clone())));
            client.null(client.root()).await.map_err(io::Error::other)?;
        }
        let each = resident()?.saturating_sub(before) / u64::from(SESSIONS);
        Ok((Row::new("open a session, both ends", &latencies, seconds, 0), each))
    })
}

/// Bytes of memory that this process has: a page that it has mapped twice, as the writer and as the reader, counts once.
fn resident() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("/proc/self/smaps_rollup makes no sense"))
}
