//! `block-file` over real files.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use common::{Guest, conformance, file_driver, file_driver_with, run};
use drivers::block::{Image, ImageConfig, ImageError};
use kernel_ipc::rights::Rights;
use kernel_ipc::{CallError, Cause, Executed};
use protocol::block::{BLOCK_SIZE, WriteError};

const MIB: u64 = 1 << 20;

/// A directory on a file system with direct I/O, if the machine has one where the tests are built.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn config(path: &Path) -> ImageConfig {
    ImageConfig { path: path.to_owned(), size: Some(16 * MIB), create: true, read_only: false }
}

#[test]
fn a_file_behaves_as_every_block_device_does() {
    run(async {
        let directory = directory();
        let (_host, _service, guest) = file_driver(&directory.path().join("disk.img"), Some(16 * MIB)).await;
        let info = guest.device.info(guest.device.root()).await.expect("described");
        println!("direct I/O: {}", info.direct);
        assert_eq!(info.blocks, 16 * MIB / u64::from(BLOCK_SIZE));
        conformance::run(&guest).await;
    });
}

#[test]
fn a_file_without_direct_io_behaves_the_same() {
    run(async {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let (_host, _service, guest) = file_driver(&directory.path().join("disk.img"), Some(16 * MIB)).await;
        let info = guest.device.info(guest.device.root()).await.expect("described");
        println!("direct I/O: {}", info.direct);
        conformance::run(&guest).await;
    });
}

#[test]
fn a_new_file_gets_its_size_and_an_old_one_keeps_its_own() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        let image = Image::open(&config(&path)).await.expect("a new file");
        assert_eq!(image.blocks, 4096);
        drop(image);
        assert_eq!(fs::metadata(&path).expect("it was made").len(), 16 * MIB);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1, "the unfinished name is gone");
        fs::write(&path, vec![9; 3 * BLOCK_SIZE as usize + 5]).expect("writable");
        let image = Image::open(&config(&path)).await.expect("an old file");
        assert_eq!(image.blocks, 3);
        assert!(fs::read(&path).expect("readable") == vec![9; 3 * BLOCK_SIZE as usize + 5]);
    });
}

#[test]
fn nothing_is_made_that_was_not_asked_for() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        let absent = ImageConfig { create: false, ..config(&path) };
        assert!(matches!(Image::open(&absent).await, Err(ImageError::Missing(_))));
        let unsized_file = ImageConfig { size: None, ..config(&path) };
        assert!(matches!(Image::open(&unsized_file).await, Err(ImageError::NoSize)));
        let odd = ImageConfig { size: Some(4097), ..config(&path) };
        assert!(matches!(Image::open(&odd).await, Err(ImageError::NoSize)));
        let read_only = ImageConfig { read_only: true, ..config(&path) };
        assert!(matches!(Image::open(&read_only).await, Err(ImageError::Missing(_))));
        assert!(matches!(
            Image::open(&config(directory.path())).await,
            Err(ImageError::Io { .. } | ImageError::NotADevice(_))
        ));
        let nowhere = config(&directory.path().join("no/such/place"));
        assert!(matches!(Image::open(&nowhere).await, Err(ImageError::Io { .. })));
        fs::write(&path, "short").expect("writable");
        assert!(matches!(Image::open(&config(&path)).await, Err(ImageError::NotADevice(_))));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    });
}

#[test]
fn a_file_has_one_driver_at_a_time() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        let first = Image::open(&config(&path)).await.expect("a new file");
        let second = Image::open_within(&config(&path), Duration::ZERO).await;
        assert!(matches!(second, Err(ImageError::InUse(_))), "{second:?}");
        let waiting = kernel_ipc::runtime::spawn({
            let config = config(&path);
            async move { Image::open(&config).await }
        });
        kernel_ipc::runtime::sleep(Duration::from_millis(30)).await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.expect("nobody cancels it").expect("free now");
    });
}

#[test]
fn rights_are_checked_before_the_device_is_touched() {
    run(async {
        let directory = directory();
        let (host, service, everything) = file_driver(&directory.path().join("disk.img"), Some(16 * MIB)).await;
        let reader = Guest::connect(&host, &service, 2, Rights::READ);
        let (device, root) = (&reader.device, reader.device.root());
        drop(device.read(root, 0, 1).await.expect("it may read"));
        let part = reader.stage(&vec![1; BLOCK_SIZE as usize]);
        let missing = CallError::Failed { cause: Cause::RightsMissing, executed: Executed::No };
        assert_eq!(device.write(root, 0, part).await, Err(missing));
        assert!(matches!(device.flush(root).await, Err(CallError::Failed { cause: Cause::RightsMissing, .. })));
        assert!(matches!(device.discard(root, 0, 1).await, Err(CallError::Failed { cause: Cause::RightsMissing, .. })));
        drop(everything);
    });
}

#[test]
fn a_read_only_device_takes_no_writes() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        fs::write(&path, vec![3; 1 << 20]).expect("writable");
        let config = ImageConfig { read_only: true, create: false, ..config(&path) };
        let (_host, _service, guest) = file_driver_with(&config, 4).await;
        let (device, root) = (&guest.device, guest.device.root());
        assert!(device.info(root).await.expect("described").read_only);
        let part = guest.stage(&vec![1; BLOCK_SIZE as usize]);
        let refused = Err(CallError::Operation(WriteError::ReadOnly));
        assert_eq!(device.write(root, 0, part).await, refused);
        assert_eq!(device.discard(root, 0, 1).await, refused);
        assert_eq!(device.write_zeroes(root, 0, 1).await, refused);
        let lease = device.read(root, 1, 2).await.expect("readable");
        assert!(guest.bytes(&lease).iter().all(|byte| *byte == 3));
    });
}

#[test]
fn a_file_that_became_shorter_fails_the_calls_that_need_the_rest_and_no_other() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        let (_host, _service, guest) = file_driver(&path, Some(16 * MIB)).await;
        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(8 * MIB)).expect("writable");
        let (device, root) = (&guest.device, guest.device.root());
        let error = device.read(root, 2040, 16).await.expect_err("half of it is gone");
        assert!(matches!(error, CallError::Operation(protocol::block::ReadError::Io { block: 2048, .. })), "{error:?}");
        drop(device.read(root, 0, 16).await.expect("the rest is there"));
    });
}

#[test]
fn discarded_blocks_go_back_to_the_host() {
    run(async {
        let directory = directory();
        let path = directory.path().join("disk.img");
        let (_host, _service, guest) = file_driver(&path, Some(16 * MIB)).await;
        let (device, root) = (&guest.device, guest.device.root());
        let part = guest.stage(&vec![1; 1 << 20]);
        device.write(root, 0, part).await.expect("writable");
        device.flush(root).await.expect("flushable");
        let blocks = |path| fs::metadata(path).expect("there").blocks();
        let before = blocks(&path);
        assert!(before >= 2048, "a mebibyte has 2048 sectors, not {before}");
        device.discard(root, 0, 256).await.expect("discardable");
        assert!(blocks(&path) < before);
    });
}

#[test]
fn reads_use_registered_memory_as_far_as_it_goes() {
    run(async {
        let directory = directory();
        let (_host, service, guest) = file_driver(&directory.path().join("disk.img"), Some(16 * MIB)).await;
        let (device, root) = (&guest.device, guest.device.root());
        for block in 0..64 {
            drop(device.read(root, block, 1).await.expect("readable"));
        }
        let statistics = service.0.statistics();
        println!("{statistics:?}");
        assert_eq!(statistics.fixed_reads + statistics.plain_reads, 64);
        // One chunk serves small reads that are given back, so at most one was touched.
        assert!(statistics.chunks_registered <= 1, "{statistics:?}");
        if statistics.chunks_refused == 0 {
            assert_eq!(statistics.fixed_reads, 64);
        }
    });
}

#[test]
fn a_host_without_room_fails_that_write_and_no_other() {
    let Some(directory) = small_file_system() else { return };
    run(async {
        let (_host, _service, guest) = file_driver(&directory.path().join("disk.img"), Some(64 * MIB)).await;
        let (device, root) = (&guest.device, guest.device.root());
        let part = guest.stage(&vec![7; 1 << 20]);
        let mut full = None;
        for block in (0..).step_by(256).take(64) {
            if let Err(error) = device.write(root, block, part).await {
                full = Some(error);
                break;
            }
        }
        assert_eq!(full, Some(CallError::Operation(WriteError::NoSpace)));
        device.write(root, 0, part).await.expect("a block that has its place already");
        device.flush(root).await.expect("flushable");
        device.discard(root, 0, 256).await.expect("discardable");
        let small = guest.stage(&vec![8; 4 * BLOCK_SIZE as usize]);
        device.write(root, 8192, small).await.expect("there is room again");
    });
}

/// A file system of a few MiB in memory; needs the privilege to mount.
fn small_file_system() -> Option<Mounted> {
    let directory = directory();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "atoll-test"])
        .arg(directory.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: no privilege to mount a small file system");
        return None;
    }
    Some(Mounted(directory))
}

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn the_driver_survives_its_clients() {
    run(async {
        let directory = directory();
        let (host, service, first) = file_driver(&directory.path().join("disk.img"), Some(16 * MIB)).await;
        let lease = first.device.read(first.device.root(), 0, 256).await.expect("readable");
        // A session that ends gives back what it was lent.
        std::mem::forget(lease);
        drop(first);
        let second = Guest::connect(&host, &service, 2, Rights::all());
        assert_eq!(host.lender.borrow().lent_count(), 0);
        conformance::run(&second).await;
        assert_eq!(Rc::strong_count(&host.lender), 2);
    });
}
