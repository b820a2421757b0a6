//! Cuts of power: what is left of a disk whose driver has kept a record, as the disk of another system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use drivers::block::{Left, Replay, Step};

use super::{Random, System, is_alive, kill_now, wait_for};

/// Has the driver keep a record, in this file of the state directory.
pub const RECORDED: [&str; 2] = ["--set", "disk.record=disk.record"];
/// The record.
pub const RECORD: &str = "disk.record";

/// How far the record of a system has come. What was seen before this was asked has happened before there.
pub fn position(system: &System) -> u64 {
    length(&system.file(RECORD))
}

/// How far a record has come.
pub fn length(record: &Path) -> u64 {
    record.metadata().map_or(0, |record| record.len())
}

/// Ends every process of a system at once, as nobody expects it.
pub fn cut_off(system: &System) {
    let processes = system.processes();
    kill_now(system.keeper());
    wait_for("the kernel to have killed what the keeper leaves", || !processes.iter().any(|pid| is_alive(*pid)));
}

/// Goes on to the first step that ends at `position` or behind it; `false`: the record ends before.
pub fn go_to(replay: &mut Replay, position: u64) -> bool {
    while replay.position() < position {
        if step(replay).is_none() {
            return false;
        }
    }
    true
}

/// The next step of a good record.
pub fn step(replay: &mut Replay) -> Option<Step> {
    replay.step().unwrap_or_else(|error| panic!("the record, at {}: {error}", replay.position()))
}

/// What a cut of power leaves now.
pub fn cut(replay: &Replay, random: &mut Random) -> Left {
    replay.cut(|end| random.below(end))
}

/// A system that starts, with these arguments, on what a cut of power has left.
pub fn start_on(left: &Left, blocks: u64, arguments: &[&str]) -> System {
    let system = System::empty();
    write_image(left, blocks, &system.file("disk.img"));
    system.up(arguments);
    system
}

fn write_image(left: &Left, blocks: u64, path: &Path) {
    let image = File::create(path).expect("a file");
    let bytes = left.values().next().map_or(4096, |block| block.len() as u64);
    image.set_len(blocks * bytes).expect("room for an image");
    for (at, block) in left {
        image.write_all_at(&block[..], at * bytes).expect("room for an image");
    }
}
