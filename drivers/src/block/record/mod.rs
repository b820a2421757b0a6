//! A record of all that a driver does to its device, from which a test makes what a cut of power would have left.
//!
//! - A change is written down, with its bytes, before the device gets it; that it is done, before its caller hears of it. So is
//!   a flush. A record that cannot be written lets nothing happen, then or later; nor does one of a device that could not be
//!   flushed, or read back: nobody knows any more what is there. The next run begins with what it finds.
//! - It is a file that grows, and outlives the driver at any moment; not the machine. An entry that was cut short never
//!   happened: the device got nothing of it.
//! - What a dead run had under way may have landed or not. The next run, when nothing can land any more, reads what is there
//!   and writes that down: from then on the record knows what everybody can see. The same after a change that failed, or
//!   whose bytes their owner changed meanwhile. A short write counts in whole blocks; its rest is another change.
//! - A record goes on with its own device only: one of another size, or a blank one where the record has bytes, is refused.
//! - Nothing of it is done when no record is kept.

mod entry;
mod replay;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kernel_ipc::RegionId;
use kernel_ipc::lease::{Pinned, Region};
use kernel_ipc::runtime::io::{self as ring, File};
use protocol::block::BLOCK_SIZE;

use super::image::Image;
use entry::{BEGIN, Entry, Kind, LAST_RUN, MAGIC};

pub use replay::{Block, Left, Replay, Step};

/// Bytes that are read back at a time.
const PIECE: u64 = 1 << 20;

/// A record that is being kept.
pub struct Recorder {
    record: std::fs::File,
    end: Cell<u64>,
    /// What is here is not what has happened, or nobody knows: nothing more may happen.
    is_broken: Cell<bool>,
}

impl Recorder {
    /// Begins the record of a new device at `path`, or goes on with that of the last run. Nothing of an earlier run may be under
    /// way any more.
    ///
    /// # Errors
    /// The file is not to be had or no record of this device, or there is none and the device has been written to.
    pub async fn open(path: &Path, image: &Image) -> io::Result<Recorder> {
        let record = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut length = record.metadata()?.len();
        if length < BEGIN {
            if !image.blank {
                return Err(invalid("it would begin with a device that is not blank"));
            }
            let words = [u64::from_le_bytes(MAGIC), image.blocks, BEGIN];
            record.write_all_at(&words.map(u64::to_le_bytes).concat(), 0)?;
            length = BEGIN;
        }
        let [blocks, mut at] = header(&record)?;
        if blocks != image.blocks {
            return Err(invalid("it is of a device of another size"));
        }
        if image.blank && Replay::open(path)?.leaves_bytes()? {
            return Err(invalid("it has bytes of a device, and this device is blank"));
        }
        let mut unknown = BTreeMap::new();
        while let Some(entry) = Entry::read(&record, at, length)? {
            match entry.kind {
                Kind::Write | Kind::Zeroes => drop(unknown.insert(at, entry.offset..entry.offset + entry.length)),
                Kind::Done => drop(unknown.remove(&entry.of)),
                _ => {}
            }
            at = entry.bytes(at).end;
        }
        record.set_len(at)?;
        let recorder = Recorder { record, end: Cell::new(at), is_broken: Cell::new(false) };
        let device = image.descriptor()?.into();
        for (change, range) in unknown {
            recorder.found(change, range, &device).await?;
        }
        let run = recorder.append(Kind::Run, None, 0..0, &[])?;
        recorder.record.write_all_at(&run.to_le_bytes(), LAST_RUN)?;
        Ok(recorder)
    }

    /// Writes `from` to the device at `offset`, as one `write_at`. Gives how many bytes of it were written, in whole blocks.
    ///
    /// # Errors
    /// The device's, or the record's.
    pub async fn write(&self, device: &File, from: Pinned, offset: u64) -> io::Result<usize> {
        let bytes = from.to_vec();
        let range = offset..offset + bytes.len() as u64;
        let change = self.append(Kind::Write, None, range.clone(), &bytes)?;
        let (result, from) = ring::write_at(device, from, offset).await;
        let is_so = matches!(result, Ok(count) if count == bytes.len()) && from.to_vec() == bytes;
        self.end(change, range, is_so, device).await?;
        // The rest of a block that was written in part is written with that block.
        result.map(|count| count - count % BLOCK_SIZE as usize)
    }

    /// Lets `zeroing` make zeros of a range of the device.
    ///
    /// # Errors
    /// The device's, or the record's.
    pub async fn zero(
        &self,
        device: &File,
        range: Range<u64>,
        zeroing: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let change = self.append(Kind::Zeroes, None, range.clone(), &[])?;
        let result = zeroing.await;
        self.end(change, range, result.is_ok(), device).await?;
        result
    }

    /// Flushes the device.
    ///
    /// # Errors
    /// The device's, or the record's.
    pub async fn flush(&self, device: &File) -> io::Result<()> {
        let flush = self.append(Kind::Flush, None, 0..0, &[])?;
        // The kernel says once that it has lost something, and then forgets it.
        ring::fdatasync(device).await.inspect_err(|_| self.is_broken.set(true))?;
        self.append(Kind::Flushed, Some(flush), 0..0, &[]).map(drop)
    }

    async fn end(&self, change: u64, range: Range<u64>, is_so: bool, device: &File) -> io::Result<()> {
        if is_so {
            self.append(Kind::Done, Some(change), 0..0, &[]).map(drop)
        } else {
            self.found(change, range, device).await
        }
    }

    /// Writes down what is where a change may have happened.
    async fn found(&self, change: u64, range: Range<u64>, device: &File) -> io::Result<()> {
        for start in range.clone().step_by(PIECE as usize) {
            let piece = start..range.end.min(start + PIECE);
            let bytes = read(device, piece.clone()).await.inspect_err(|_| self.is_broken.set(true))?;
            self.append(Kind::Found, Some(change), piece, &bytes)?;
        }
        self.append(Kind::Done, Some(change), 0..0, &[]).map(drop)
    }

    /// Adds an entry; its place.
    fn append(&self, kind: Kind, of: Option<u64>, range: Range<u64>, bytes: &[u8]) -> io::Result<u64> {
        if self.is_broken.get() {
            return Err(io::Error::other("an earlier change or flush could not be recorded: start the driver again"));
        }
        let at = self.end.get();
        let entry = Entry { kind, of: of.unwrap_or(at), offset: range.start, length: range.end - range.start };
        if let Err(error) = self.record.write_all_at(&entry.encode(bytes), at) {
            // What there is of it is no entry. If it stays, the next run finds that it was cut short.
            let _ = self.record.set_len(at);
            self.is_broken.set(true);
            return Err(error);
        }
        self.end.set(entry.bytes(at).end);
        Ok(at)
    }
}

/// Blocks of the device, and where the last run begins: at an entry that says so, or with the record.
fn header(record: &std::fs::File) -> io::Result<[u64; 2]> {
    let mut bytes = [0; BEGIN as usize];
    record.read_exact_at(&mut bytes, 0)?;
    let (words, _) = bytes.as_chunks::<8>();
    if words[0] != MAGIC {
        return Err(invalid("it is no record"));
    }
    let [blocks, at] = [words[1], words[2]].map(u64::from_le_bytes);
    let length = record.metadata()?.len();
    let is_run = || Ok::<_, io::Error>(Entry::read(record, at, length)?.is_some_and(|entry| entry.kind == Kind::Run));
    match at == BEGIN || at > BEGIN && is_run()? {
        true => Ok([blocks, at]),
        false => Err(invalid("its header names a run of the driver that is not there")),
    }
}

/// Reads from the device, into memory that is aligned for it.
async fn read(device: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let length = (range.end - range.start) as usize;
    let region = Region::create("record", RegionId(0), length.next_multiple_of(BLOCK_SIZE as usize))?;
    let outside = |_| invalid("it names bytes that the device does not have");
    let mut done = 0;
    while done < length {
        let rest = region.slice(done, length - done).map_err(outside)?;
        match ring::read_at(device, rest, range.start + done as u64).await.0? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    let mut bytes = vec![0; length];
    region.copy_out(0, &mut bytes).map_err(outside)?;
    Ok(bytes)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
