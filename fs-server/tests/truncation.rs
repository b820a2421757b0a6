//! What is cut off a file does not come back, wherever the cutting fails; and what a lost source left in memory never
//! becomes part of a file.

mod support;

use fs_server::device::{Source, SourceLost, Staging};
use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, NodeId};
use std::rc::Rc;
use support::{Disk, format, mount, pattern, read_file};

const BLOCK: usize = 4096;
/// Extents of the file, each a block with a hole after it: several steps to cut them off, in several nodes.
const EXTENTS: usize = 700;
const KEPT: usize = 3 * BLOCK;

/// A volume with such a file, and the file's content.
fn fragmented() -> (Rc<SimulatedEnvironment>, SimulatedDevice, Vec<u8>) {
    let environment = SimulatedEnvironment::new(5);
    let device = SimulatedDevice::new(4096, 5, Behaviour::default());
    let volume = format(&environment, &device, FormatOptions::default());
    let mut content = vec![0; EXTENTS * 2 * BLOCK];
    environment.run(async {
        let file = volume.create(volume.root(), b"file").await.unwrap().id;
        for index in 0..EXTENTS {
            let at = index * 2 * BLOCK;
            let bytes = pattern(BLOCK, index as u8);
            volume.write(file, at as u64, bytes.as_slice()).await.unwrap();
            content[at..at + BLOCK].copy_from_slice(&bytes);
        }
        volume.truncate(file, content.len() as u64).await.unwrap();
        volume.sync().await.unwrap();
    });
    (environment, device, content)
}

fn find(environment: &SimulatedEnvironment, volume: &Disk) -> NodeId {
    environment.run(volume.lookup(volume.root(), b"file")).unwrap().id
}

fn working(left: u64) -> Behaviour {
    Behaviour { left, ..Behaviour::default() }
}

/// How a file grows again.
#[derive(Clone, Copy, Debug)]
enum Growth {
    Write,
    Append,
    Truncate,
}

/// The file grows to its old length.
fn grow(
    environment: &SimulatedEnvironment,
    volume: &Disk,
    file: NodeId,
    how: Growth,
    length: u64,
) -> Result<(), Error> {
    match how {
        Growth::Write => environment.run(volume.write(file, length - 5, b"after".as_slice())),
        Growth::Append => {
            environment.run(volume.append(file, b"after".as_slice()))?;
            environment.run(volume.truncate(file, length))
        }
        Growth::Truncate => environment.run(volume.truncate(file, length)),
    }
}

#[test]
fn what_a_failed_truncation_cut_off_does_not_come_back() {
    let (environment, device, content) = fragmented();
    let length = content.len() as u64;
    let mut halfway = 0;
    for how in [Growth::Write, Growth::Append, Growth::Truncate] {
        // The device stays broken for the first attempt to grow, or not.
        for retried in [false, true] {
            for left in 0.. {
                let device = device.copy();
                let volume = mount(&environment, &device).unwrap();
                let file = find(&environment, &volume);
                device.behave(working(left));
                let result = environment.run(volume.truncate(file, KEPT as u64));
                if retried && result.is_err() {
                    let _ = grow(&environment, &volume, file, how, length);
                }
                device.behave(working(u64::MAX));
                let size = environment.run(volume.stat(file)).unwrap().size;
                let mut expected = content.clone();
                match (size == length, &result) {
                    // What was tried to grow meanwhile may have succeeded.
                    (true, Err(_)) if retried => {
                        let now = environment.run(read_file(&volume, file)).unwrap();
                        assert!(now == content || now[KEPT + 5..length as usize - 5].iter().all(|&byte| byte == 0));
                        expected = now;
                    }
                    (true, Err(_)) => {}
                    (false, _) => {
                        halfway += u64::from(result.is_err());
                        assert!(size == KEPT as u64 || (retried && size == KEPT as u64 + 5), "{size}");
                        if size == KEPT as u64 {
                            expected.truncate(KEPT);
                        } else {
                            expected = environment.run(read_file(&volume, file)).unwrap();
                        }
                    }
                    (true, Ok(())) => panic!("nothing was cut off"),
                }
                grow(&environment, &volume, file, how, length).unwrap();
                match how {
                    Growth::Write => {
                        expected.resize(length as usize, 0);
                        expected[length as usize - 5..].copy_from_slice(b"after");
                    }
                    Growth::Append => {
                        expected.extend(b"after");
                        expected.resize(length as usize, 0);
                    }
                    Growth::Truncate => expected.resize(length as usize, 0),
                }
                assert!(environment.run(read_file(&volume, file)).unwrap() == expected, "{how:?} {left}");
                environment.run(volume.sync()).unwrap();
                let report = environment.run(volume.check(&mut |_| ())).unwrap();
                assert!(report.is_clean(), "{how:?} {left}: {:?}", report.lines());
                drop(volume);
                environment.crash();
                let volume = mount(&environment, &device).unwrap();
                let file = find(&environment, &volume);
                assert!(
                    environment.run(read_file(&volume, file)).unwrap() == expected,
                    "{how:?} {left}, mounted again"
                );
                drop(volume);
                environment.crash();
                if result.is_ok() {
                    break;
                }
            }
        }
    }
    assert!(halfway > 10, "only {halfway} truncations failed after their first step");
}

#[test]
fn an_open_file_without_a_name_keeps_what_is_not_cut_off() {
    let (environment, device, content) = fragmented();
    let volume = mount(&environment, &device).unwrap();
    let file = find(&environment, &volume);
    volume.hold(file);
    environment.run(volume.unlink(volume.root(), b"file")).unwrap();
    for kept in [KEPT, 0] {
        environment.run(volume.truncate(file, kept as u64)).unwrap();
        assert!(environment.run(read_file(&volume, file)).unwrap() == content[..kept]);
        grow(&environment, &volume, file, Growth::Write, 10 * BLOCK as u64).unwrap();
        let mut expected = content[..kept].to_vec();
        expected.resize(10 * BLOCK - 5, 0);
        expected.extend(b"after");
        assert!(environment.run(read_file(&volume, file)).unwrap() == expected);
    }
    volume.release(file);
    environment.run(volume.sync()).unwrap();
    assert_eq!(environment.run(volume.stat(file)), Err(Error::Stale));
    let report = environment.run(volume.check(&mut |_| ())).unwrap();
    assert!(report.is_clean() && report.files == 0, "{:?}", report.lines());
}

/// Bytes of which only the first so many can still be read; what comes of the rest is arbitrary.
struct Fleeting {
    bytes: Vec<u8>,
    readable: usize,
}

impl<S: Staging> Source<S> for Fleeting {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn copy_to(
        &self,
        from: u64,
        staging: &mut S,
        at: usize,
        length: usize,
        crcs: &mut [u32],
    ) -> Result<(), SourceLost> {
        if from as usize + length <= self.readable {
            return self.bytes.as_slice().copy_to(from, staging, at, length, crcs);
        }
        staging.copy_in(at, &vec![0x77; length]);
        Err(SourceLost)
    }
}

#[test]
fn a_lost_source_changes_nothing_of_its_piece() {
    // Beyond the end, across it, in blocks that are in memory, on disk, and in holes; with whole blocks and without.
    let starts = [0, 10, 4000, BLOCK, 2 * BLOCK - 1, 5 * BLOCK, 5 * BLOCK + 77, 9 * BLOCK];
    let lengths = [1, 100, BLOCK, 2 * BLOCK + 5, 3 * BLOCK];
    for written in [0, 50, BLOCK, 2 * BLOCK + 100, 6 * BLOCK] {
        for on_disk in [false, true] {
            for start in starts {
                for length in lengths {
                    let environment = SimulatedEnvironment::new(5);
                    let device = SimulatedDevice::new(512, 5, Behaviour::default());
                    let volume = format(&environment, &device, FormatOptions::default());
                    let mut expected = pattern(written, 3);
                    let file = environment.run(volume.create(volume.root(), b"file")).unwrap().id;
                    environment.run(volume.write(file, 0, expected.as_slice())).unwrap();
                    if on_disk {
                        environment.run(volume.sync()).unwrap();
                    }
                    let before = environment.run(volume.stat(file)).unwrap();
                    let source = Fleeting { bytes: pattern(length, 9), readable: length - 1 };
                    let result = environment.run(volume.write(file, start as u64, &source));
                    assert_eq!(result, Err(Error::SourceLost));
                    let case = format!("{written} bytes (on disk: {on_disk}), then {length} at {start}");
                    assert_eq!(environment.run(volume.stat(file)).unwrap(), before, "{case}");
                    // What is written next to it shows what lies around.
                    let end = expected.len();
                    environment.run(volume.write(file, end as u64 + 10, b"x".as_slice())).unwrap();
                    expected.resize(end + 10, 0);
                    expected.push(b'x');
                    assert!(environment.run(read_file(&volume, file)).unwrap() == expected, "{case}");
                    environment.run(volume.sync()).unwrap();
                    let report = environment.run(volume.check(&mut |_| ())).unwrap();
                    assert!(report.is_clean(), "{case}: {:?}", report.lines());
                }
            }
        }
    }
}
