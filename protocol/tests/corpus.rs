//! Foreign bytes through the functions that the fuzzers call, without a fuzzer: what they found worth keeping, and some of it
//! changed at random. The seed is printed; `SEED=123` replays it, `ROUNDS=n` changes how many inputs are made for each target,
//! `ONLY=ledger` leaves out the others.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// A few of the things that a fuzzer does.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'$'][self.below(8)],
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.below(256) as u8),
                _ => {
                    let part = bytes[at..(at + self.below(32)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
            }
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds, and what was released for those who read descriptions.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![here.join("fuzz/corpus").join(name)];
    if name == "description" {
        directories.push(here.join("released"));
    }
    let mut seeds = Vec::new();
    for directory in directories {
        let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("the directory can be read").path()).collect();
        paths.sort();
        seeds.extend(paths.iter().map(|path| std::fs::read(path).expect("the file can be read")));
    }
    assert!(!seeds.is_empty(), "{name} has no corpus");
    seeds
}

#[test]
fn foreign_bytes_are_survived_by_each_target() {
    let seed = from_environment("SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    let rounds = from_environment("ROUNDS").unwrap_or(300);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let only = std::env::var("ONLY").ok();
    for (name, target) in targets::TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut seeds = corpus(name);
        seeds.push(Vec::new());
        println!("{name}: the corpus");
        seeds.iter().for_each(|seed| target(seed));
        for round in 0..rounds {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            random.change(&mut bytes);
            let escaped = bytes.escape_ascii().to_string();
            let failed = std::panic::catch_unwind(|| target(&bytes)).is_err();
            assert!(!failed, "{name}, round {round}: b\"{escaped}\"");
        }
    }
}
