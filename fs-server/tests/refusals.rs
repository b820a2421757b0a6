//! What is no whole volume is refused with an error that says why; nothing is written to it.

mod support;

use fs_server::device::BLOCK_SIZE;
use fs_server::format::superblock::{Superblock, UNFINISHED};
use fs_server::simulated::{Behaviour, Random, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, Structure};
use std::io::Write;
use std::rc::Rc;
use support::surgery::Surgeon;
use support::{format, mount};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

const BLOCKS: u64 = 600;

fn volume() -> (Rc<SimulatedEnvironment>, SimulatedDevice) {
    let environment = SimulatedEnvironment::new(1);
    let device = SimulatedDevice::new(BLOCKS, 1, Behaviour::default());
    drop(format(&environment, &device, FormatOptions::default()));
    environment.crash();
    (environment, device)
}

/// The error of a mount and of both checks, which must be the same.
#[track_caller]
fn refused(environment: &Rc<SimulatedEnvironment>, device: &SimulatedDevice) -> Error {
    let (_, written, _) = device.counts();
    let error = mount(environment, device).unwrap_err();
    assert_eq!(environment.run(fs_server::check(device, &mut |_| ())).unwrap_err(), error);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for block in 0..fs_server::device::Device::blocks(device) {
        file.write_all(&device.block(block)).unwrap();
    }
    assert_eq!(fs_server::check_image(file.path(), &mut |_| ()).unwrap().unwrap_err(), error);
    assert_eq!(device.counts().1, written, "something was written");
    error
}

#[test]
fn a_truncated_image_is_refused_with_both_sizes() {
    let (environment, device) = volume();
    for blocks in [1, 2, 100, BLOCKS - 1] {
        let error = refused(&environment, &device.truncated(blocks));
        assert_eq!(error, Error::Truncated { expected_blocks: BLOCKS, device_blocks: blocks });
        assert!(error.to_string().contains("truncated"));
    }
    let error = refused(&environment, &device.truncated(0));
    assert_eq!(error, Error::NotAVolume("the device is empty"));
}

#[test]
fn what_is_no_volume_is_refused() {
    let environment = SimulatedEnvironment::new(1);
    let device = SimulatedDevice::new(BLOCKS, 1, Behaviour::default());
    assert_eq!(refused(&environment, &device), Error::NotAVolume("the first block is empty"));
    device.overwrite(0, &[0x41; BLOCK_SIZE]);
    assert_eq!(refused(&environment, &device), Error::NotAVolume("no superblock"));
    let mut random = Random::new(4);
    for block in 0..BLOCKS {
        let bytes: Vec<u8> = (0..BLOCK_SIZE / 8).flat_map(|_| random.word().to_le_bytes()).collect();
        device.overwrite(block, &bytes);
    }
    assert_eq!(refused(&environment, &device), Error::NotAVolume("no superblock"));
}

#[test]
fn newer_features_are_refused_by_their_bits() {
    type Change = fn(&mut Superblock);
    let cases: [(Change, Error); 3] = [
        (|superblock| superblock.incompat = U64::new(0b101), Error::Unsupported(5)),
        (|superblock| superblock.ro_compat = U64::new(1 << 40), Error::Unsupported(1 << 40)),
        (|superblock| superblock.version += 1, Error::NotAVolume("another version of the format")),
    ];
    for (change, expected) in cases {
        let (environment, device) = volume();
        let mut surgeon = Surgeon::new(&device);
        change(&mut surgeon.superblock);
        surgeon.put_superblock();
        assert_eq!(refused(&environment, &device), expected);
    }
    // Of these the format says that they may be ignored.
    let (environment, device) = volume();
    let mut surgeon = Surgeon::new(&device);
    surgeon.superblock.compat = U64::new(1 << 63);
    surgeon.put_superblock();
    assert!(mount(&environment, &device).is_ok());
}

#[test]
fn a_first_block_that_says_something_else_is_believed() {
    // There is a good copy at the end; but it is of a volume that somebody began to write over, or has made newer.
    let (environment, device) = volume();
    let mut unfinished = [0; BLOCK_SIZE];
    unfinished[..8].copy_from_slice(&UNFINISHED);
    device.overwrite(0, &unfinished);
    assert_eq!(refused(&environment, &device), Error::Unfinished);
    let (environment, device) = volume();
    let mut newer = Surgeon::new(&device).superblock;
    newer.version += 1;
    newer.seal();
    device.overwrite(0, newer.as_bytes());
    assert_eq!(refused(&environment, &device), Error::NotAVolume("another version of the format"));
}

#[test]
fn impossible_geometry_is_refused() {
    type Change = fn(&mut Superblock);
    let cases: [Change; 6] = [
        |superblock| superblock.blocks = U64::new(3),
        |superblock| superblock.blocks = U64::new(1 << 50),
        |superblock| superblock.groups += 1,
        |superblock| superblock.node_copies = 3,
        |superblock| superblock.data += 4,
        |superblock| superblock.packs[1][1] = U64::new(u64::MAX),
    ];
    for change in cases {
        let (environment, device) = volume();
        let mut surgeon = Surgeon::new(&device);
        change(&mut surgeon.superblock);
        surgeon.put_superblock();
        let error = refused(&environment, &device);
        assert!(matches!(error, Error::Corrupt { structure: Structure::Superblock, block: 0, .. }), "{error}");
    }
}

#[test]
fn a_volume_without_a_whole_pack_names_it() {
    let (environment, device) = volume();
    let packs = Surgeon::new(&device).superblock.packs;
    for block in packs.as_flattened() {
        device.flip(block.get(), 3000, 1);
    }
    let error = mount(&environment, &device).unwrap_err();
    assert!(matches!(error, Error::Corrupt { structure: Structure::CheckpointPack, .. }), "{error}");
}
