//! The floor: one word each way between two processes, without anything around it.
//!
//! * The words lie in sealed segments as those of a session do: each side writes its own and reads the other's.
//! * Both sides spin on the word, or spin with `sched_yield` (what two processes on one core must do), or sleep in a
//!   futex.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use kernel_ipc::sys::futex::{self, Wait};
use kernel_ipc::sys::segment::{SegmentReader, SegmentWriter};
use serde::{Deserialize, Serialize};

use super::host::{Host, Task, TaskKind, thread_cpu};
use super::{Place, sample};
use crate::report::Row;

/// The word that ends the exchange.
pub(super) const STOP: u32 = u32::MAX;

/// Where the word stands.
pub(super) struct Line;

impl Line {
    pub const WORD: usize = 128;
    pub const SEGMENT_BYTES: usize = 4096;
}

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RawMode {
    Spin,
    Yield,
    Futex,
}

impl RawMode {
    pub fn name(self) -> &'static str {
        match self {
            RawMode::Spin => "spin",
            RawMode::Yield => "spin with yield",
            RawMode::Futex => "futex",
        }
    }

    pub fn wait_while(self, theirs: &SegmentReader, old: u32) -> u32 {
        loop {
            let new = theirs.load_u32(Line::WORD, Acquire);
            if new != old {
                return new;
            }
            match self {
                RawMode::Spin => std::hint::spin_loop(),
                RawMode::Yield => std::thread::yield_now(),
                RawMode::Futex => {
                    // Ends with an error only if nothing is mapped there, and then the loop finds the old word again.
                    let _ = futex::wait_any(&[Wait { word: theirs.word(Line::WORD), expected: old }], None);
                }
            }
        }
    }

    pub fn wake(self, mine: &SegmentWriter) {
        if self == RawMode::Futex {
            futex::wake(mine.word(Line::WORD), 1);
        }
    }
}

/// Measures the floor of `place`.
pub(super) fn measure(host: &Host, mode: RawMode, place: &Place, duration: Duration) -> io::Result<Row> {
    let mine = SegmentWriter::create("raw-client", Line::SEGMENT_BYTES)?;
    let task = Task { core: place.host, kind: TaskKind::Raw(mode) };
    let theirs = SegmentReader::open(host.begin(task, mine.fd())?, Line::SEGMENT_BYTES)?;
    let before = super::pin(place.client);
    let began = thread_cpu();
    let (mut seen, mut count) = (0, 0u64);
    let mut row = sample(&format!("raw ping-pong, {}, {}", mode.name(), place.name), duration, || {
        let next = (seen + 1) % STOP;
        mine.store_u32(Line::WORD, next, Release);
        mode.wake(&mine);
        mode.wait_while(&theirs, seen);
        seen = next;
        count += 1;
    });
    let cpu = thread_cpu() - began;
    mine.store_u32(Line::WORD, STOP, Release);
    mode.wake(&mine);
    super::unpin(before);
    let account = host.end()?;
    row.cpu_ns = Some((cpu + account.cpu_ns) as f64 / count.max(1) as f64);
    Ok(row)
}
