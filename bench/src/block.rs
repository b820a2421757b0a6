//! Block reads through a driver, over a session from another process, beside the same reads made directly.
//!
//! * Floor and driver take turns of a second, so that a disk that changes its mood is the same for both.
//! * A read through the driver ends with a lease; no byte is copied or looked at, as in the floor.
//! * The floor bypasses the driver's lock and reads the same blocks of the same file.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::runtime;
use protocol::block::{self, BLOCK_SIZE};

use crate::report::{Row, Run, histogram};
use crate::sys::raw_reads::RawReads;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For each row.
    pub duration: Duration,
}

/// One pattern of reads.
#[derive(Clone, Copy)]
struct Pattern {
    name: &'static str,
    blocks: u32,
    depth: usize,
    random: bool,
}

const PATTERNS: [Pattern; 3] = [
    Pattern { name: "4 KiB random, depth 32", blocks: 1, depth: 32, random: true },
    Pattern { name: "4 KiB random, depth 1", blocks: 1, depth: 1, random: true },
    Pattern { name: "1 MiB sequential, depth 4", blocks: 256, depth: 4, random: false },
];

/// Measures `device`, which serves the image at `path`, inside the runtime that its session belongs to.
///
/// # Errors
/// The floor's; or a read that the driver refused.
pub async fn run(device: &block::Client, path: &Path, options: &Options) -> io::Result<Run> {
    let mut run = Run::begin("block");
    let info = device.info(device.root()).await.map_err(io::Error::other)?;
    run.notes.push(format!("an image of {} MiB, read in turns of a second with the floor", info.blocks >> 8));
    if !info.direct {
        run.notes.push("no direct I/O on this file system: both read through the page cache".into());
    }
    let turn = Duration::from_secs(1).min(options.duration);
    let turns = (options.duration.as_secs_f64() / turn.as_secs_f64()).ceil() as u32;
    for pattern in PATTERNS {
        let length = pattern.blocks as usize * BLOCK_SIZE as usize;
        let mut floor = RawReads::new(open_direct(path, info.direct)?, length, pattern.depth)?;
        let mut places = Places::new(info.blocks, &pattern);
        let mut sides = [(histogram(), 0.0), (histogram(), 0.0)];
        for _ in 0..turns {
            let [(latencies, seconds), _] = &mut sides;
            *seconds += floor.run(turn, || places.next() * u64::from(BLOCK_SIZE), latencies)?;
            let [_, (latencies, seconds)] = &mut sides;
            *seconds += through_driver(device, &pattern, turn, &mut places, latencies).await?;
        }
        let row = |name: &str, (latencies, seconds): &(Histogram<u64>, f64)| {
            let bytes = latencies.len() * length as u64;
            Row::new(format!("{name} {}", pattern.name), latencies, *seconds, bytes)
        };
        let floor = row("direct", &sides[0]);
        let driver = row("driver", &sides[1]).rate_beside(&floor);
        run.rows.extend([floor, driver]);
    }
    Ok(run)
}

/// Writes every block of the image at `path`, so that reads go to the disk and not to holes. Not while a driver
/// serves it.
///
/// # Errors
/// No room, no right.
pub fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut chunk = vec![0u8; 1 << 20];
    for number in 0..bytes >> 20 {
        for (index, word) in chunk.chunks_exact_mut(8).enumerate() {
            // Anything that a disk or a host cannot guess or merge.
            let value = (number << 20 | index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn open_direct(path: &Path, direct: bool) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(if direct { libc::O_DIRECT } else { 0 }).open(path)
}

/// Where the next read goes.
struct Places {
    state: u64,
    slots: u64,
    blocks: u64,
    random: bool,
}

impl Places {
    fn new(blocks: u64, pattern: &Pattern) -> Places {
        let each = u64::from(pattern.blocks);
        Places { state: 0x2545_F491_4F6C_DD1D, slots: (blocks / each).max(1), blocks: each, random: pattern.random }
    }

    /// The first block of the next read.
    fn next(&mut self) -> u64 {
        if self.random {
            // xorshift64*: cheap, and the same places in every run.
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let high = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
            ((high * self.slots) >> 32) * self.blocks
        } else {
            self.state = (self.state + 1) % self.slots;
            self.state * self.blocks
        }
    }
}

async fn through_driver(
    device: &block::Client,
    pattern: &Pattern,
    duration: Duration,
    places: &mut Places,
    latencies: &mut Histogram<u64>,
) -> io::Result<f64> {
    let begin = Instant::now();
    let shared = Rc::new((RefCell::new(std::mem::replace(latencies, histogram())), Cell::new(places.state)));
    let readers: Vec<_> = (0..pattern.depth)
        .map(|_| {
            let (device, shared, pattern) = (device.clone(), Rc::clone(&shared), *pattern);
            let mut places = Places { state: 0, ..*places };
            runtime::spawn(async move {
                while begin.elapsed() < duration {
                    places.state = shared.1.get();
                    let block = places.next();
                    shared.1.set(places.state);
                    let submitted = Instant::now();
                    let lease = device.read(device.root(), block, pattern.blocks).await.map_err(io::Error::other)?;
                    drop(lease);
                    shared.0.borrow_mut().saturating_record(submitted.elapsed().as_nanos() as u64);
                }
                Ok::<(), io::Error>(())
            })
        })
        .collect();
    for reader in readers {
        reader.await.map_err(|_| io::Error::other("a reader was cancelled"))??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    places.state = shared.1.get();
    *latencies = shared.0.replace(histogram());
    Ok(seconds)
}
