//! A device with too little memory for what is read: the cache makes way, readers keep what they have, and who cannot
//! be served hears so.

mod support;

use fs_server::device::{Device, DeviceError, Extent};
use fs_server::image::Bytes;
use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, Held, MountOptions, NodeId, Volume};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use support::pattern;

/// What a driver lends from: ranges in a row, aligned as a buddy allocator does it, so that small ones are in the way of
/// large ones. And no more than so many of them.
struct Memory {
    taken: RefCell<Vec<bool>>,
    left: Cell<usize>,
    refused: Cell<u64>,
}

impl Memory {
    fn take(&self, count: usize) -> Option<usize> {
        let mut taken = self.taken.borrow_mut();
        let step = count.next_power_of_two();
        let fits = |at: &usize| taken[*at..].len() >= count && taken[*at..*at + count].iter().all(|taken| !taken);
        let found = (0..taken.len()).step_by(step).find(fits).filter(|_| self.left.get() > 0);
        match found {
            Some(at) => {
                taken[at..at + count].fill(true);
                self.left.set(self.left.get() - 1);
            }
            None => self.refused.set(self.refused.get() + 1),
        }
        found
    }
}

#[derive(Clone)]
struct Cramped {
    device: SimulatedDevice,
    memory: Rc<Memory>,
}

struct Lent {
    bytes: Bytes,
    at: usize,
    memory: Rc<Memory>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let count = self.bytes.0.len() / 4096;
        self.memory.taken.borrow_mut()[self.at..self.at + count].fill(false);
        self.memory.left.set(self.memory.left.get() + 1);
    }
}

impl Extent for Lent {
    fn blocks(&self) -> u32 {
        Extent::blocks(&self.bytes)
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        Extent::copy_out(&self.bytes, offset, into);
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        Extent::crc32c(&self.bytes, offset, length)
    }
}

impl Device for Cramped {
    type Extent = Lent;
    type Staging = Bytes;

    fn blocks(&self) -> u64 {
        self.device.blocks()
    }

    async fn read(&self, block: u64, count: u32) -> Result<Lent, DeviceError> {
        let at = self.memory.take(count as usize).ok_or(DeviceError::Busy)?;
        let lent = |bytes| Lent { bytes, at, memory: Rc::clone(&self.memory) };
        // Taken while it is read, and given back if the read fails.
        let mut lent = lent(Bytes(vec![0; count as usize * 4096]));
        lent.bytes = self.device.read(block, count).await?;
        Ok(lent)
    }

    async fn stage(&self, count: u32) -> Bytes {
        self.device.stage(count).await
    }

    async fn write(&self, block: u64, staged: &Bytes, first: u32, count: u32) -> Result<(), DeviceError> {
        self.device.write(block, staged, first, count).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush().await
    }

    async fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.device.discard(block, count).await
    }
}

/// A volume on a device that can lend `blocks` in at most `leases` ranges; its cache believes that it may have 4 MiB.
struct Rig {
    environment: Rc<SimulatedEnvironment>,
    volume: Volume<Cramped>,
    memory: Rc<Memory>,
    files: Vec<(NodeId, Vec<u8>)>,
}

impl Rig {
    fn new(blocks: usize, leases: usize, sizes: &[usize]) -> Rig {
        let environment = SimulatedEnvironment::new(7);
        let memory =
            Memory { taken: RefCell::new(vec![false; blocks]), left: Cell::new(leases), refused: Cell::default() };
        let memory = Rc::new(memory);
        let device = SimulatedDevice::new(32_768, 7, Behaviour { yields: true, ..Behaviour::default() });
        let device = Cramped { device, memory: Rc::clone(&memory) };
        let options = MountOptions { cache_bytes: 4 << 20, ..support::small_options() };
        let format = FormatOptions::default();
        let volume = environment.run(Volume::format(device, environment.clone(), &format, options)).unwrap();
        let files = sizes.iter().enumerate().map(|(index, &size)| {
            let bytes = pattern(size, index as u8);
            let id = environment.run(volume.create(volume.root(), format!("file-{index}").as_bytes())).unwrap().id;
            environment.run(volume.write(id, 0, bytes.as_slice())).unwrap();
            (id, bytes)
        });
        let files = files.collect();
        environment.run(volume.sync()).unwrap();
        Rig { environment, volume, memory, files }
    }

    fn read(&self, file: usize, offset: u64) -> Result<Held<Lent>, Error> {
        let (id, _) = self.files[file];
        let read = self.volume.read(id, offset, 1 << 20);
        self.environment.run(read).map(|held| held.expect("not at the end"))
    }

    fn is_right(&self, file: usize, offset: usize, held: &Held<Lent>) -> bool {
        held.to_vec() == self.files[file].1[offset..offset + held.length]
    }

    fn whole_file_is_right(&self, file: usize) {
        let mut offset = 0;
        while offset < self.files[file].1.len() {
            let held = self.read(file, offset as u64).unwrap();
            assert!(self.is_right(file, offset, &held), "file {file} at {offset}");
            offset += held.length;
        }
    }
}

#[test]
fn a_cache_of_small_files_makes_way_for_a_large_one() {
    let mut sizes: Vec<usize> = (0..100).map(|index| (index % 7 + 1) * 5000).collect();
    sizes.push(1 << 20);
    // 1.5 MiB: less than the cache may have, and 256 blocks in a row at one place only.
    let rig = Rig::new(384, usize::MAX, &sizes);
    for _ in 0..3 {
        for file in 0..sizes.len() {
            rig.whole_file_is_right(file);
        }
    }
    assert!(rig.memory.refused.get() > 0, "there was memory for everything");
    assert!(rig.volume.held_bytes() <= 384 * 4096);
}

#[test]
fn a_limit_on_the_number_of_leases_is_kept_to() {
    let rig = Rig::new(4096, 10, &[3000; 40]);
    for _ in 0..2 {
        for file in 0..40 {
            rig.whole_file_is_right(file);
        }
    }
    assert!(rig.memory.refused.get() > 0, "there were enough leases");
}

#[test]
fn readers_keep_what_they_have_while_others_find_room() {
    let rig = Rig::new(384, usize::MAX, &[100_000; 60]);
    // 25 blocks each; 12 are read for ever, the others come and go around them.
    let kept: Vec<_> = (0..12).map(|file| rig.read(file, 0).unwrap()).collect();
    for file in 12..60 {
        rig.whole_file_is_right(file);
    }
    for (file, held) in kept.iter().enumerate() {
        assert!(rig.is_right(file, 0, held), "file {file}");
    }
}

#[test]
fn what_does_not_fit_in_one_piece_comes_in_several() {
    let rig = Rig::new(256, usize::MAX, &[4096, 1 << 20]);
    let small = rig.read(0, 0).unwrap();
    let large = rig.read(1, 0).unwrap();
    assert!(large.length < 1 << 20 && rig.is_right(1, 0, &large));
    drop(large);
    rig.whole_file_is_right(1);
    assert!(rig.is_right(0, 0, &small));
}

#[test]
fn who_cannot_be_served_hears_that_it_is_busy_and_is_served_later() {
    let rig = Rig::new(64, usize::MAX, &[64 * 4096, 4096]);
    let mut all = vec![rig.read(0, 0).unwrap()];
    while all.iter().map(|held| held.length).sum::<usize>() < 64 * 4096 {
        let offset = all.iter().map(|held| held.length).sum::<usize>() as u64;
        all.push(rig.read(0, offset).unwrap());
    }
    assert_eq!(rig.read(1, 0).map(drop), Err(Error::Busy));
    assert_eq!(rig.read(1, 0).map(drop), Err(Error::Busy), "again, not for ever");
    drop(all.pop());
    rig.whole_file_is_right(1);
}

#[test]
fn one_who_waits_is_served_when_a_slow_reader_ends() {
    let rig = Rig::new(64, usize::MAX, &[64 * 4096, 4096]);
    let mut all = Vec::new();
    let mut offset = 0;
    while offset < 64 * 4096 {
        all.push(rig.read(0, offset).unwrap());
        offset += all.last().unwrap().length as u64;
    }
    let all = RefCell::new(all);
    let slow = async {
        for _ in 0..20 {
            fs_server::device::Environment::sleep(&*rig.environment, std::time::Duration::from_millis(50)).await;
        }
        all.borrow_mut().clear();
    };
    let reading = rig.volume.read(rig.files[1].0, 0, 4096);
    let (mut slow, mut reading) = (std::pin::pin!(slow), std::pin::pin!(reading));
    let held = rig.environment.run(std::future::poll_fn(|cx| {
        if !all.borrow().is_empty() {
            let _ = slow.as_mut().poll(cx);
        }
        reading.as_mut().poll(cx)
    }));
    assert!(rig.is_right(1, 0, &held.unwrap().unwrap()));
}

#[test]
fn what_was_freed_and_is_still_read_counts() {
    let rig = Rig::new(1024, usize::MAX, &[1 << 20, 4096]);
    let held = rig.read(0, 0).unwrap();
    rig.environment.run(rig.volume.unlink(rig.volume.root(), b"file-0")).unwrap();
    rig.environment.run(rig.volume.sync()).unwrap();
    assert_eq!(rig.volume.held_bytes(), 1 << 20);
    assert!(rig.is_right(0, 0, &held));
    drop(held);
    assert_eq!(rig.volume.held_bytes(), 0);
}
