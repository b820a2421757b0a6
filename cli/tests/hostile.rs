//! A guest that writes garbage over its own half of its sessions with a running system.
//!
//! It goes through the supervisor's broker to the real fs-server and net-host as any guest does, and then writes into the
//! mapping that the broker's session gave it. Meanwhile an honest guest's every answer is checked. The seed is printed;
//! `SEED=123` replays it. `SESSIONS=n` sets how many are opened (default 200). The campaign that `docs/numbers.md` tells
//! of: `SESSIONS=100000 cargo test --release -p atoll --test hostile -- --nocapture`.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use common::System;
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{self, Options, Runtime, WordAddress};
use kernel_ipc::sys::futex;
use kernel_ipc::wire::{Extent, Handle, Shape, Submission, header, state};
use protocol::{fs, net};

/// Stands in the honest guest's file name and calls, and nowhere in a segment that the hostile one can read.
const SECRET: &str = "5ec2e75ec2e75ec3";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// This process's memory as the kernel lets it write it: no reference, no unsafe code.
struct Memory(File);

impl Memory {
    fn open() -> Memory {
        Memory(File::options().read(true).write(true).open("/proc/self/mem").expect("own memory"))
    }

    /// The mappings of segments with this name: first byte and length.
    fn segments(name: &str) -> Vec<(u64, usize)> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let ours = maps.lines().filter(|line| line.contains(&format!("/memfd:{name} ")));
        ours.map(|line| {
            let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hexadecimal"));
            (start, (end - start) as usize)
        })
        .collect()
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, address).expect("mapped and writable");
    }

    fn holds(&self, (address, length): (u64, usize), secret: &[u8]) -> bool {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, address).expect("mapped");
        bytes.windows(secret.len()).any(|window| window == secret)
    }
}

/// The hostile guest's half of one session.
struct Attack<'a> {
    memory: &'a Memory,
    segment: (u64, usize),
    shape: Shape,
    position: u64,
}

impl Attack<'_> {
    fn store(&self, offset: usize, bytes: &[u8]) {
        if offset + bytes.len() <= self.segment.1 {
            self.memory.write(self.segment.0 + offset as u64, bytes);
        }
    }

    fn act(&mut self, random: &mut Random) {
        match random.below(12) {
            0 => {
                let fields = [header::TAIL, header::HEAD, header::WANTS_WAKE, header::SLOTS, header::EPOCH];
                let any = random.next();
                let value = random.pick(&[0, 1, u64::MAX, 1 << 31, any]);
                self.store(random.pick(&fields) & !7, &value.to_le_bytes());
            }
            1 => self.store(header::STATE, &random.pick(&[0, 1, state::CLOSED, 3, u32::MAX]).to_le_bytes()),
            2 => {
                for _ in 0..random.below(32) {
                    let offset = random.below(self.segment.1 as u64 / 8) as usize * 8;
                    self.store(offset, &random.next().to_le_bytes());
                }
            }
            3 => {
                let mut line = [0; 8].map(|_: u64| random.next());
                line[0] = line[0] & !0xffff | u64::from(self.shape.lap(self.position));
                self.publish(line);
            }
            _ => self.call(random),
        }
    }

    /// A call that only reads, right but for some of its fields.
    fn call(&mut self, random: &mut Random) {
        let slots = u64::from(self.shape.all_slots());
        let slot =
            if random.below(30) == 0 { random.pick(&[slots as u16, 255]) } else { (self.position % slots) as u16 };
        let any = random.next();
        let submission = Submission {
            slot,
            // open, stat, read, readdir, statfs of atoll.fs/1, whatever they are in atoll.net/1; and numbers that are none.
            operation: random.pick(&[1, 1, 7, 8, 9, 9, 14, 15, 0, 200, u16::MAX]),
            seq: random.pick(&[self.position / slots + 1, self.position / slots + 1, 0, u64::MAX]),
            extent: Extent {
                length: random.pick(&[0, 8, 12, 16, 24, 64, 4000, 4097, u32::MAX]),
                capabilities: random.pick(&[0, 0, 0, 1, 16, 255]),
                leases: random.pick(&[0, 0, 0, 1, 8, 255]),
            },
            handle: Handle {
                index: random.pick(&[0, 0, 1, 2, u32::MAX]),
                generation: random.pick(&[1, 1, 0, u32::MAX]),
            },
            deadline: random.pick(&[0, 0, 1, u64::MAX]),
            trace: any,
            inline: [random.pick(&[0, 1, 3, any]), random.pick(&[0, 1, 4096, any])],
        };
        if slot < self.shape.all_slots() {
            let window: Vec<u8> = (0..16).flat_map(|_| random.pick(&[0, 1, 3, any, u64::MAX]).to_le_bytes()).collect();
            self.store(self.shape.window_offset(slot), &window);
        }
        let mut line = submission.to_raw().0;
        line[0] = line[0] & !0xffff | u64::from(self.shape.lap(self.position));
        self.publish(line);
    }

    fn publish(&mut self, line: [u64; 8]) {
        let offset = self.shape.entry_offset(self.position);
        for (index, word) in line.iter().enumerate().rev() {
            self.store(offset + 8 * index, &word.to_le_bytes());
        }
        self.position += 1;
        self.store(header::TAIL, &self.position.to_le_bytes());
    }

    /// Wakes the host, should it sleep.
    fn ring(&self) {
        let tail = std::ptr::without_provenance((self.segment.0 as usize) + header::TAIL);
        futex::wake(WordAddress::new(tail).expect("aligned"), i32::MAX);
    }
}

/// The honest guest: opens and stats its file until it is told to stop; how often.
fn honest(state: &std::path::Path, length: u64, served: &AtomicBool, stop: &AtomicBool) -> u64 {
    let runtime = Runtime::new(Options::default()).expect("a ring");
    runtime.block_on(async {
        let context = Context::guest(state, "honest").expect("a guest");
        let fs: fs::Client = context.connect("fs.root").await.expect("a session");
        let name = format!("www/{SECRET}");
        let mut calls = 0;
        while !stop.load(Acquire) {
            let path = fs::Path::new(name.as_bytes()).expect("a path");
            let (node, stat) = fs.open(fs.root(), path, fs::READ).await.expect("the honest guest is served");
            assert_eq!(stat.size, length, "its answer is right");
            let lease = fs.read(&node, 0, 4096).await.expect("read").expect("not empty");
            assert_eq!(lease.len(), length, "all of it");
            served.store(true, Release);
            calls += 2;
            runtime::sleep(Duration::from_millis(1)).await;
        }
        calls
    })
}

#[test]
fn a_guest_that_writes_garbage_stops_no_server_and_reads_nothing_that_it_was_not_given() {
    let seed = from_environment("SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    let count = from_environment("SESSIONS").unwrap_or(200);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let system = System::start(&[]);
    let content = SECRET.repeat(100);
    let file = system.file("content");
    std::fs::write(&file, &content).expect("written");
    system.ok(&["fs", "put", file.to_str().expect("text"), &format!("/www/{SECRET}")]);
    let before: Vec<i32> = ["disk", "fs", "net", "httpd"].map(|name| system.pid(name)).to_vec();

    let (served, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let honest = std::thread::spawn({
        let (state, length) = (system.state().to_owned(), content.len() as u64);
        let (served, stop) = (served.clone(), stop.clone());
        move || honest(&state, length, &served, &stop)
    });
    // Both guests are this process: a segment that appears later is the hostile one's, and only that may be attacked.
    common::wait_for("the honest guest's session", || served.load(Acquire) || honest.is_finished());
    let runtime = Runtime::new(Options::default()).expect("a ring");
    let attacks = runtime.block_on(async {
        let (memory, mut attacks) = (Memory::open(), 0u64);
        // A guest of its own for each thousand: one that is shown out comes back.
        let mut context = Context::guest(system.state(), "hostile").expect("a guest");
        for session in 0..count {
            if session % 1000 == 999 {
                context = Context::guest(system.state(), "hostile").expect("a guest");
                assert_eq!(system.get(&format!("/{SECRET}")).body, content.as_bytes(), "what is served is right");
            }
            let known = (Memory::segments("atoll-c"), Memory::segments("atoll-s"));
            let opened = match random.below(3) {
                0 => context
                    .connect::<net::Client>("net.net")
                    .await
                    .map(|client| Box::new(client) as Box<dyn std::any::Any>),
                _ => context
                    .connect::<fs::Client>("fs.root")
                    .await
                    .map(|client| Box::new(client) as Box<dyn std::any::Any>),
            };
            let client = opened.expect("whatever it did before, it is let in");
            let fresh = |name: &str, known: &[(u64, usize)]| {
                Memory::segments(name).into_iter().find(|segment| !known.contains(segment))
            };
            let (Some(segment), Some(theirs)) = (fresh("atoll-c", &known.0), fresh("atoll-s", &known.1)) else {
                continue;
            };
            let mut attack = Attack { memory: &memory, segment, shape: Shape::default(), position: 0 };
            for _ in 0..random.below(4) + 1 {
                for _ in 0..random.below(6) + 1 {
                    attack.act(&mut random);
                    attacks += 1;
                }
                attack.ring();
                if random.below(2) == 0 {
                    // Our own end looks at what came back, too.
                    runtime::yield_now().await;
                }
            }
            if random.below(8) == 0 {
                runtime::sleep(Duration::from_millis(1)).await;
            }
            assert!(!memory.holds(theirs, SECRET.as_bytes()), "session {session} can read what it was not given");
            drop(client);
        }
        attacks
    });
    stop.store(true, Release);
    let calls = honest.join().expect("the honest guest's every answer was right");
    println!("{count} sessions, {attacks} attacks; the honest guest made {calls} calls");
    assert!(calls > 0 && attacks > count, "nobody did anything");
    let after: Vec<i32> = ["disk", "fs", "net", "httpd"].map(|name| system.pid(name)).to_vec();
    assert_eq!(before, after, "a server was stopped");
    assert_eq!(system.get(&format!("/{SECRET}")).body, content.as_bytes());
    system.ok(&["fs", "check"]);
}
