//! A full volume, and a full host under a sparse image: the write that finds no room says so, everything else goes on,
//! and what is removed comes back after the next checkpoint.

mod support;

use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, Journal, MountOptions, NodeId, Volume};
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use support::{Disk, format, mount, pattern, read_file};

const MIB: usize = 1 << 20;

struct Rig {
    environment: Rc<SimulatedEnvironment>,
    device: SimulatedDevice,
    volume: Disk,
}

impl Rig {
    /// A volume of so many blocks, with a file of 1 MiB in it that everybody can read.
    fn new(blocks: u64) -> (Rig, NodeId) {
        let environment = SimulatedEnvironment::new(11);
        let device = SimulatedDevice::new(blocks, 11, Behaviour { yields: true, ..Behaviour::default() });
        let volume = format(&environment, &device, FormatOptions::default());
        let rig = Rig { environment, device, volume };
        let old = rig.create("old").unwrap();
        rig.write(old, 0, &pattern(MIB, 1)).unwrap();
        rig.sync().unwrap();
        (rig, old)
    }

    fn create(&self, name: &str) -> Result<NodeId, Error> {
        self.environment.run(self.volume.create(self.volume.root(), name.as_bytes())).map(|stat| stat.id)
    }

    fn write(&self, id: NodeId, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.environment.run(self.volume.write(id, offset, bytes))
    }

    fn unlink(&self, name: &str) -> Result<(), Error> {
        self.environment.run(self.volume.unlink(self.volume.root(), name.as_bytes()))
    }

    fn sync(&self) -> Result<(), Error> {
        self.environment.run(self.volume.sync())
    }

    fn is_old(&self, old: NodeId) -> bool {
        self.environment.run(read_file(&self.volume, old)).unwrap() == pattern(MIB, 1)
    }

    /// Writes files of 1 MiB until there is no room; returns them, without the one that failed.
    fn fill(&self, prefix: &str) -> Vec<(String, NodeId)> {
        let mut files = Vec::new();
        loop {
            let name = format!("{prefix}-{}", files.len());
            let written =
                self.create(&name).and_then(|id| self.write(id, 0, &pattern(MIB, files.len() as u8)).map(|()| id));
            match written {
                Ok(id) => files.push((name, id)),
                Err(error) => {
                    assert_eq!(error, Error::NoSpace);
                    // As `atoll fs put` does with a copy that fails.
                    match self.unlink(&name) {
                        Ok(()) | Err(Error::NotFound) => return files,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert!(files.len() < 10_000, "there is no end to it");
        }
    }

    fn all_are_right(&self, files: &[(String, NodeId)]) {
        for (index, (name, id)) in files.iter().enumerate() {
            assert!(self.environment.run(read_file(&self.volume, *id)).unwrap() == pattern(MIB, index as u8), "{name}");
        }
    }

    /// What the device has now is a clean volume.
    fn check_after_remount(self, old: NodeId) {
        let Rig { environment, device, volume } = self;
        drop(volume);
        environment.crash();
        device.behave(Behaviour::default());
        let volume = mount(&environment, &device).unwrap();
        assert!(environment.run(read_file(&volume, old)).unwrap() == pattern(MIB, 1));
        let report = environment.run(volume.check(&mut |_| ())).unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
}

#[test]
fn a_full_volume_fails_the_write_and_takes_others_after_a_removal() {
    let (rig, old) = Rig::new(8192);
    let files = rig.fill("file");
    assert!(files.len() > 20, "{} MiB fit into 32", files.len());
    rig.sync().unwrap();
    assert!(rig.is_old(old));
    rig.all_are_right(&files);
    for round in 0..5 {
        for (name, _) in &files[..5] {
            rig.unlink(name).unwrap();
        }
        rig.sync().unwrap();
        for index in 0..5 {
            let id = rig.create(&format!("file-{index}")).unwrap();
            rig.write(id, 0, &pattern(MIB, index)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        rig.sync().unwrap();
    }
    assert!(rig.is_old(old));
    rig.check_after_remount(old);
}

#[test]
fn a_full_volume_can_be_emptied() {
    let (rig, old) = Rig::new(4096);
    let files = rig.fill("file");
    // Also what is smaller than a block of data.
    let mut small = 0;
    while rig.create(&format!("small-{small}")).is_ok() {
        small += 1;
        assert!(small < 100_000, "there is no end to it");
    }
    rig.sync().unwrap();
    for (name, _) in &files {
        rig.unlink(name).unwrap();
    }
    for index in 0..small {
        rig.unlink(&format!("small-{index}")).unwrap();
    }
    rig.sync().unwrap();
    assert_eq!(rig.fill("again").len(), files.len());
    assert!(rig.is_old(old));
    rig.check_after_remount(old);
}

#[test]
fn a_full_host_fails_the_write_and_nothing_else() {
    let (rig, old) = Rig::new(65_536);
    let has = rig.device.written_blocks().len() as u64;
    // Room for some more: the volume believes that it has 256 MiB.
    rig.device.behave(Behaviour { yields: true, capacity_blocks: has + 3000, ..Behaviour::default() });
    let files = rig.fill("file");
    assert!((5..12).contains(&files.len()), "{} files of 1 MiB into 3000 blocks", files.len());
    assert!(rig.is_old(old));
    rig.all_are_right(&files);
    for (name, _) in &files[1..] {
        rig.unlink(name).unwrap();
    }
    rig.sync().unwrap();
    rig.all_are_right(&files[..1]);
    let again = rig.fill("again");
    assert!(again.len() + 2 >= files.len() - 1, "{} files where {} were", again.len(), files.len() - 1);
    rig.all_are_right(&again);
    assert!(rig.is_old(old));
    rig.check_after_remount(old);
}

#[test]
fn what_was_acknowledged_waits_for_room_that_a_removal_makes() {
    let (rig, old) = Rig::new(65_536);
    let large = rig.create("large").unwrap();
    rig.write(large, 0, &pattern(MIB, 2)).unwrap();
    rig.sync().unwrap();
    let has = rig.device.written_blocks().len() as u64;
    rig.device.behave(Behaviour { yields: true, capacity_blocks: has, ..Behaviour::default() });
    // Waits in memory, so it is acknowledged.
    let waiting = rig.create("waiting").unwrap();
    rig.write(waiting, 0, &pattern(300_000, 3)).unwrap();
    assert_eq!(rig.sync(), Err(Error::NoSpace));
    assert!(rig.is_old(old), "reads go on");
    rig.unlink("large").unwrap();
    rig.sync().expect("the removal has made room for what waits");
    assert!(rig.environment.run(read_file(&rig.volume, waiting)).unwrap() == pattern(300_000, 3));
    let Rig { environment, device, volume } = rig;
    drop(volume);
    environment.crash();
    let volume = mount(&environment, &device).unwrap();
    let waiting = environment.run(volume.lookup(volume.root(), b"waiting")).unwrap().id;
    assert!(environment.run(read_file(&volume, waiting)).unwrap() == pattern(300_000, 3));
    assert!(environment.run(volume.check(&mut |_| ())).unwrap().is_clean());
}

/// A journal that goes on or does not, and what it was told is durable.
struct Told {
    keeps: bool,
    position: Cell<u64>,
    kept: Cell<usize>,
    durable: Cell<u64>,
}

impl Journal for Told {
    fn id(&self) -> u64 {
        7
    }

    fn position(&self) -> u64 {
        self.position.get()
    }

    fn durable(&self, position: u64) {
        self.durable.set(position);
    }

    fn keep(&self, _: &[u8]) -> bool {
        self.kept.set(self.kept.get() + 1);
        self.keeps
    }
}

/// A file's effect up to position 100 finds no room on the disk. Up to where the checkpoint and the journal are then.
fn effects_held_where_data_waits(keeps: bool) -> (u64, u64) {
    let (rig, _) = Rig::new(65_536);
    let journal = Rc::new(Told { keeps, position: Cell::new(1), kept: Cell::default(), durable: Cell::default() });
    rig.volume.set_journal(journal.clone());
    let waiting = rig.create("waiting").unwrap();
    rig.sync().unwrap();
    let has = rig.device.written_blocks().len() as u64;
    // Room for the checkpoint, not for the data.
    rig.device.behave(Behaviour { yields: true, capacity_blocks: has + 40, ..Behaviour::default() });
    rig.write(waiting, 0, &pattern(300_000, 3)).unwrap();
    rig.create("another").unwrap();
    journal.position.set(100);
    assert_eq!(rig.sync(), Err(Error::NoSpace));
    assert!(journal.kept.get() > 0);
    let Rig { environment, device, volume } = rig;
    drop(volume);
    environment.crash();
    device.behave(Behaviour::default());
    let volume = mount(&environment, &device).unwrap();
    (volume.holds_effects_of(7), journal.durable.get())
}

#[test]
fn a_checkpoint_goes_beyond_what_waits_only_where_that_is_kept() {
    assert_eq!(effects_held_where_data_waits(true), (100, 100));
    assert_eq!(effects_held_where_data_waits(false), (1, 1), "what waits would be in no checkpoint and in no journal");
}

#[test]
fn who_writes_without_a_handle_while_a_file_is_freed_leaves_nothing_behind() {
    let (rig, old) = Rig::new(8192);
    let file = rig.create("file").unwrap();
    for block in 0..1000 {
        // Each an extent of its own: the tree's nodes have to be read one after the other to free them.
        rig.write(file, block * 8192, &[1; 4096]).unwrap();
    }
    rig.sync().unwrap();
    for steps in 0..100 {
        let (environment, device) = (SimulatedEnvironment::new(12), rig.device.copy());
        let volume = mount(&environment, &device).unwrap();
        let rig = Rig { environment, device, volume };
        rig.unlink("file").unwrap();
        rig.environment.run_for(steps, pending::<()>());
        let result = rig.write(file, 0, &pattern(10_000, 2));
        assert!(matches!(result, Ok(()) | Err(Error::Stale | Error::NotFound)), "after {steps} steps: {result:?}");
        rig.sync().unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        rig.check_after_remount(old);
    }
}

#[test]
fn what_was_written_to_a_file_without_a_name_goes_with_it() {
    let (rig, old) = Rig::new(8192);
    let file = rig.create("file").unwrap();
    rig.volume.hold(file);
    rig.unlink("file").unwrap();
    rig.sync().unwrap();
    let Rig { environment, device, volume } = rig;
    drop(volume);
    environment.crash();
    // As the next run of a server does that did not hold it any more, and had written to it before.
    let mounted = Volume::mount_to_read(device.clone(), environment.clone(), MountOptions::default());
    let volume = environment.run(mounted).unwrap();
    environment.run(async {
        volume.flush_mounted().await.unwrap();
        volume.write(file, 0, &pattern(10_000, 3)[..]).await.unwrap();
        volume.reap().await.unwrap();
    });
    let rig = Rig { environment, device, volume };
    rig.sync().unwrap();
    rig.check_after_remount(old);
}
