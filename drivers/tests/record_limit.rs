//! A record, and a device, that a file size limit keeps from growing. It is the whole process's, so these tests have a process
//! of their own and follow one another.

mod common;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use common::{Guest, Host, driver_over, run};
use drivers::block::{Image, ImageConfig, Recorder, Replay};
use kernel_ipc::lease::Pinned;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use protocol::block::BLOCK_SIZE;

const SIZE: usize = BLOCK_SIZE as usize;
const BLOCKS: u64 = 64;

/// The one test that runs now. Others would meet its limit, too.
struct Alone(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Alone {
    fn new() -> Alone {
        static ONE: Mutex<()> = Mutex::new(());
        // The limit is an error then, as in a driver.
        SigSet::from_iter([Signal::SIGXFSZ]).thread_block().expect("a mask");
        // Left by a test that failed, it is free all the same.
        Alone(ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// No file of this process can be written beyond so many bytes.
    fn limit(&self, bytes: u64) -> Limit {
        let (before, most) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
        setrlimit(Resource::RLIMIT_FSIZE, bytes, most).expect("below what is allowed");
        Limit(before)
    }
}

/// Until this is dropped.
struct Limit(u64);

impl Drop for Limit {
    fn drop(&mut self) {
        let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
        setrlimit(Resource::RLIMIT_FSIZE, self.0, most).expect("what it was before");
    }
}

async fn opened(directory: &Path) -> (Image, Recorder) {
    let path = directory.join("disk.img");
    let config = ImageConfig { path, size: Some(BLOCKS * SIZE as u64), create: true, read_only: false };
    let image = Image::open(&config).await.expect("an image");
    let record = Recorder::open(&directory.join("record"), &image).await.expect("a record");
    (image, record)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// So many blocks of a guest, as a driver writes from them.
fn pinned(host: &Host, guest: &Guest, blocks: usize) -> Pinned {
    let part = guest.stage(&vec![7; blocks * SIZE]);
    host.mapper.borrow().pin(&part.name, guest.me, part.offset..part.offset + part.length).expect("it is lent")
}

#[test]
fn after_an_entry_that_could_not_be_written_nothing_more_happens() {
    let alone = Alone::new();
    run(async {
        let directory = directory();
        let (image, record) = opened(directory.path()).await;
        let (_host, _, guest) = driver_over(image, Some(record), 4);
        let write = async |at| {
            let part = guest.stage(&[7; SIZE]);
            guest.device.write(guest.device.root(), at, part).await
        };
        write(0).await.expect("there is room");
        let length = || directory.path().join("record").metadata().expect("a record").len();
        let before = length();
        let limit = alone.limit(before + 100);
        write(1).await.expect_err("there is no room for its bytes");
        drop(limit);
        write(2).await.expect_err("it would be recorded behind a gap");
        guest.device.flush(guest.device.root()).await.expect_err("so would this");
        assert_eq!(length(), before);
        let mut image = vec![0; 3 * SIZE];
        let file = std::fs::File::open(directory.path().join("disk.img")).expect("an image");
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut image, 0).expect("three blocks");
        assert_eq!((image[0], &image[SIZE..]), (7, &[0; 2 * SIZE][..]), "the device got nothing of either");
    });
}

#[test]
fn a_short_write_counts_in_whole_blocks() {
    let alone = Alone::new();
    run(async {
        let directory = directory();
        let (image, record) = opened(directory.path()).await;
        let other = self::directory();
        let (host, _, guest) = driver_over(opened(other.path()).await.0, None, 4);
        // Through the page cache, where a part of a block can be written.
        let device = OpenOptions::new().read(true).write(true).open(directory.path().join("disk.img"));
        let device = OwnedFd::from(device.expect("an image")).into();
        let first = 32 * SIZE as u64;
        let limit = alone.limit(first + 2 * SIZE as u64 + 100);
        let short = record.write(&device, pinned(&host, &guest, 4), first).await;
        drop(limit);
        assert_eq!(short.expect("two blocks and a part of the third"), 2 * SIZE);
        let rest = record.write(&device, pinned(&host, &guest, 2), first + 2 * SIZE as u64).await;
        assert_eq!(rest.expect("the rest"), 2 * SIZE);
        record.flush(&device).await.expect("it is flushed");
        let mut replay = Replay::open(&directory.path().join("record")).expect("a record");
        while replay.step().expect("whole blocks").is_some() {}
        let left = replay.cut(|_| 0);
        assert!((32..36).all(|block| left[&block][..] == [7; SIZE]), "{:?}", left.keys());
        drop(image);
    });
}
