//! A record of what a driver did: what may a cut of power leave, over one run of the driver and over many?

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Guest, Host, driver_over, run};
use drivers::block::{Block, Image, ImageConfig, Left, Recorder, Replay};
use protocol::block::BLOCK_SIZE;

const SIZE: usize = BLOCK_SIZE as usize;
const SECTOR: usize = 512;
const BLOCKS: u64 = 64;

struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        Disk { directory: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory") }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn record(&self) -> PathBuf {
        self.directory.path().join("record")
    }

    fn position(&self) -> u64 {
        self.record().metadata().expect("a record is kept").len()
    }

    async fn open(&self) -> (Image, std::io::Result<Recorder>) {
        let image = open(&self.image(), BLOCKS).await;
        let record = Recorder::open(&self.record(), &image).await;
        (image, record)
    }

    /// The next run of the driver.
    async fn start(&self) -> (Host, Guest) {
        let (image, record) = self.open().await;
        let (host, _, guest) = driver_over(image, Some(record.expect("a good record")), 4);
        (host, guest)
    }

    fn replay(&self) -> Replay {
        Replay::open(&self.record()).expect("a record")
    }

    /// What may be left of the whole record, often.
    fn cuts(&self) -> Vec<Left> {
        let mut replay = self.replay();
        while replay.step().expect("a good record").is_some() {}
        let mut random = Random(99);
        (0..200).map(|_| replay.cut(|end| random.below(end))).collect()
    }
}

async fn open(path: &Path, blocks: u64) -> Image {
    let config =
        ImageConfig { path: path.to_owned(), size: Some(blocks * SIZE as u64), create: true, read_only: false };
    Image::open(&config).await.expect("an image")
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A block whose sectors all say `tag`.
fn block(tag: u64) -> Block {
    let mut block = [0; SIZE];
    block.chunks_mut(8).for_each(|word| word.copy_from_slice(&tag.to_le_bytes()));
    block
}

/// What the sectors of a block say.
fn tags(left: &Left, at: u64) -> Vec<u64> {
    let zeros = block(0);
    let found = left.get(&at).map_or(&zeros, |found| &**found);
    let tag = |sector: &[u8]| {
        let (words, _) = sector.as_chunks::<8>();
        assert!(words.iter().all(|word| *word == words[0]), "a sector is whole");
        u64::from_le_bytes(words[0])
    };
    found.chunks(SECTOR).map(tag).collect()
}

async fn write(guest: &Guest, at: u64, content: &[Block]) {
    let part = guest.stage(&content.concat());
    guest.device.write(guest.device.root(), at, part).await.expect("it is written");
    guest.take_back(&part);
}

async fn flush(guest: &Guest) {
    guest.device.flush(guest.device.root()).await.expect("it is flushed");
}

/// A change of one block.
struct Written {
    tag: u64,
    began: u64,
    /// Where the record was when a flush was over that covers it.
    durable: Option<u64>,
}

#[test]
fn what_was_flushed_is_in_every_cut_and_what_was_not_may_be_there_or_not() {
    run(async {
        let (disk, mut random) = (Disk::new(), Random(7));
        let mut history: BTreeMap<u64, Vec<Written>> = BTreeMap::new();
        let (mut _host, mut guest) = disk.start().await;
        for tag in 1..400 {
            let (at, began) = (random.below(BLOCKS - 4), disk.position());
            let count = 1 + random.below(4);
            let mut changed = |tag| {
                for at in at..at + count {
                    history.entry(at).or_default().push(Written { tag, began, durable: None });
                }
            };
            match random.below(12) {
                0..6 => {
                    changed(tag);
                    write(&guest, at, &vec![block(tag); count as usize]).await;
                }
                6 => {
                    changed(0);
                    guest.device.write_zeroes(guest.device.root(), at, count as u32).await.expect("zeros");
                }
                7 => {
                    changed(0);
                    guest.device.discard(guest.device.root(), at, count as u32).await.expect("discarded");
                }
                8 => {
                    drop((_host, guest));
                    (_host, guest) = disk.start().await;
                }
                _ => {
                    flush(&guest).await;
                    let (over, all) = (disk.position(), history.values_mut().flatten());
                    all.filter(|written| written.durable.is_none()).for_each(|written| written.durable = Some(over));
                }
            }
        }
        let (mut replay, mut lost, mut kept, mut torn) = (disk.replay(), 0, 0, 0);
        while replay.step().expect("a good record").is_some() {
            let at = replay.position();
            let left = replay.cut(|end| random.below(end));
            for (block, history) in &history {
                let durable = history.iter().rposition(|written| written.durable.is_some_and(|over| over <= at));
                let known = durable.map_or(0, |durable| history[durable].tag);
                let later = &history[durable.map_or(0, |durable| durable + 1)..];
                let may: Vec<u64> = later.iter().filter(|one| one.began < at).map(|one| one.tag).collect();
                let found = tags(&left, *block);
                let is_right = |tag: &u64| *tag == known || may.contains(tag);
                assert!(found.iter().all(is_right), "block {block} at {at}: {found:?}, not {known} or of {may:?}");
                match may.last() {
                    None => {}
                    _ if found.iter().any(|tag| *tag != found[0]) => torn += 1,
                    Some(_) if found[0] == known => lost += 1,
                    Some(_) => kept += 1,
                }
            }
        }
        assert!(lost > 100 && kept > 100 && torn > 100, "{lost} lost, {kept} kept, {torn} torn");
    });
}

/// A disk with block 7 at 1, flushed; and the record of a write of 2 to it, which ends where that had begun, as if the driver had
/// been killed then.
async fn killed_while_it_wrote(torn: u64) -> Disk {
    let disk = Disk::new();
    let (host, guest) = disk.start().await;
    write(&guest, 7, &[block(1)]).await;
    flush(&guest).await;
    let before = disk.position();
    write(&guest, 7, &[block(2)]).await;
    drop((host, guest));
    let mut replay = disk.replay();
    while replay.position() <= before {
        replay.step().expect("a good record");
    }
    let record = OpenOptions::new().write(true).open(disk.record()).expect("it is there");
    record.set_len(replay.position() - torn).expect("it is cut");
    disk
}

fn put(disk: &Disk, at: u64, content: &Block) {
    let image = OpenOptions::new().write(true).open(disk.image()).expect("it is there");
    image.write_all_at(content, at * SIZE as u64).expect("it is written");
    image.sync_all().expect("it is written");
}

#[test]
fn what_a_dead_run_had_under_way_is_either_until_the_next_run_has_looked() {
    run(async {
        let mut half = block(1);
        half[..SECTOR].copy_from_slice(&block(2)[..SECTOR]);
        for landed in [block(1), block(2), half] {
            let disk = killed_while_it_wrote(0).await;
            put(&disk, 7, &landed);
            let found: Vec<Vec<u64>> = disk.cuts().iter().map(|left| tags(left, 7)).collect();
            for tag in [1, 2] {
                assert!(found.contains(&vec![tag; SIZE / SECTOR]), "either may be there");
            }
            let (host, guest) = disk.start().await;
            flush(&guest).await;
            for left in disk.cuts() {
                assert!(left[&7][..] == landed, "what was there when nothing could land any more");
            }
            write(&guest, 7, &[block(3)]).await;
            flush(&guest).await;
            drop((host, guest));
            assert!(disk.cuts().iter().all(|left| left[&7][..] == block(3)));
        }
    });
}

#[test]
fn an_entry_that_was_cut_short_never_happened() {
    run(async {
        for torn in [1, 100, SIZE as u64, SIZE as u64 + 1, SIZE as u64 + 31] {
            let disk = killed_while_it_wrote(torn).await;
            put(&disk, 7, &block(1));
            assert!(disk.cuts().iter().all(|left| left[&7][..] == block(1)));
            let (_host, guest) = disk.start().await;
            write(&guest, 8, &[block(4)]).await;
            flush(&guest).await;
            assert!(disk.cuts().iter().all(|left| left[&7][..] == block(1) && left[&8][..] == block(4)));
        }
    });
}

#[test]
fn after_a_write_that_failed_the_record_says_what_is_there() {
    run(async {
        let disk = Disk::new();
        let (_host, guest) = disk.start().await;
        write(&guest, 7, &[block(1), block(1)]).await;
        if !guest.device.info(guest.device.root()).await.expect("described").direct {
            println!("skipped: without direct I/O this write does not fail");
            return;
        }
        let crooked = guest.lend(7, 2 * SIZE as u64, guest.me);
        guest.device.write(guest.device.root(), 7, crooked).await.expect_err("it is not aligned");
        flush(&guest).await;
        for left in disk.cuts() {
            assert!(left[&7][..] == block(1) && left[&8][..] == block(1));
        }
    });
}

#[test]
fn a_device_that_does_not_flush_may_lose_all() {
    run(async {
        let disk = Disk::new();
        let (_host, guest) = disk.start().await;
        write(&guest, 7, &[block(1)]).await;
        flush(&guest).await;
        let mut replay = disk.replay();
        replay.ignore_flushes(true);
        while replay.step().expect("a good record").is_some() {}
        let mut random = Random(5);
        assert!((0..100).any(|_| !replay.cut(|end| random.below(end)).contains_key(&7)));
    });
}

#[test]
fn only_a_record_of_this_device_from_its_beginning_is_gone_on_with() {
    run(async {
        let refused = |record: std::io::Result<Recorder>| record.err().map(|error| error.kind());
        let disk = Disk::new();
        let (host, guest) = disk.start().await;
        write(&guest, 0, &[block(1)]).await;
        drop((host, guest));
        assert!(disk.open().await.1.is_ok());
        let other = open(&disk.directory.path().join("other.img"), BLOCKS + 1).await;
        assert_eq!(refused(Recorder::open(&disk.record(), &other).await), Some(ErrorKind::InvalidData));
        // Where the header says that the last run begins: nowhere, inside the header, and at a write.
        let good = std::fs::read(disk.record()).expect("a record");
        for at in [0, 16, 25, 24 + 32, good.len() as u64, u64::MAX] {
            let bad = [&good[..16], &at.to_le_bytes(), &good[24..]].concat();
            std::fs::write(disk.record(), bad).expect("writable");
            assert_eq!(refused(disk.open().await.1), Some(ErrorKind::InvalidData), "{at}");
            assert!(Replay::open(&disk.record()).is_err(), "{at}");
        }
        std::fs::write(disk.record(), [b'x'; 100]).expect("writable");
        assert_eq!(refused(disk.open().await.1), Some(ErrorKind::InvalidData));
        std::fs::remove_file(disk.record()).expect("it is there");
        assert_eq!(refused(disk.open().await.1), Some(ErrorKind::InvalidData), "the device is not blank");
        assert!(Replay::open(&disk.image()).is_err(), "it is no record");
    });
}

#[test]
fn a_blank_device_has_no_record_with_bytes() {
    run(async {
        let disk = Disk::new();
        let (host, guest) = disk.start().await;
        guest.device.write_zeroes(guest.device.root(), 3, 2).await.expect("zeros");
        drop((host, guest));
        std::fs::remove_file(disk.image()).expect("it is there");
        let (host, guest) = disk.start().await;
        write(&guest, 7, &[block(1)]).await;
        guest.device.write_zeroes(guest.device.root(), 7, 1).await.expect("zeros");
        drop((host, guest));
        std::fs::remove_file(disk.image()).expect("it is there");
        let (host, guest) = disk.start().await;
        write(&guest, 7, &[block(1)]).await;
        drop((host, guest));
        std::fs::remove_file(disk.image()).expect("it is there");
        let refused = disk.open().await.1.err().expect("the device has lost what it had");
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
        assert!(refused.to_string().contains("blank"), "{refused}");
    });
}

#[test]
fn after_a_flush_that_failed_nothing_more_happens() {
    run(async {
        let disk = Disk::new();
        let (image, record) = disk.open().await;
        let (record, device) = (record.expect("a good record"), image.descriptor().expect("a descriptor").into());
        record.flush(&device).await.expect("it is flushed");
        let (_, pipe) = std::io::pipe().expect("a pipe");
        // What cannot be flushed at all.
        record.flush(&std::os::fd::OwnedFd::from(pipe).into()).await.expect_err("a pipe");
        let before = disk.position();
        record.flush(&device).await.expect_err("what was lost is not known");
        record.zero(&device, 0..SIZE as u64, async { unreachable!("refused") }).await.expect_err("refused");
        assert_eq!(disk.position(), before);
        drop(record);
        let record = Recorder::open(&disk.record(), &image).await.expect("a good record");
        record.flush(&device).await.expect("the next run begins with what it finds");
    });
}
