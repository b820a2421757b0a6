//! A guest that writes garbage over its own half of its sessions with a running system.
//!
//! It goes through the supervisor's broker to the real fs-server and net-host as any guest does, writes into the mapping
//! that the broker's session gave it, and opens its session again: when the host has ended it, after dropping it, or while
//! others that it attacked stay open until the guest goes. Meanwhile an honest guest's every answer is checked to the byte,
//! the processes stay the same ones, and at the end each of them holds what it held before.
//!
//! The seed is printed; `SEED=123` replays it. `SESSIONS=n` sets how many are opened (default 400). The campaign that
//! `docs/numbers.md` tells of: `SESSIONS=100000 cargo test --release -p atoll --test hostile -- --nocapture`.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use common::{Random, System, number};
use kernel_ipc::CallError;
use kernel_ipc::component::{Client as _, Connection, Context};
use kernel_ipc::runtime::{self, Options, Runtime, WordAddress};
use kernel_ipc::sys::futex;
use kernel_ipc::wire::{Extent, Handle, Shape, Submission, header, state};
use protocol::{fs, net};

/// Stands in the honest guest's file name and calls, and nowhere in a segment that the hostile one can read.
const SECRET: &str = "5ec2e75ec2e75ec3";

/// How often the hostile guest opens a session before it goes and comes back as another one.
const SESSIONS_OF_A_GUEST: u64 = 50;

/// How much more memory a process may have at the end. A leak in each session would make more of it in a campaign.
const MOST_GROWTH: u64 = 48 << 20;

/// This process's memory as the kernel lets it write it: no reference, no unsafe code.
struct Memory(File);

impl Memory {
    fn open() -> Memory {
        Memory(File::options().read(true).write(true).open("/proc/self/mem").expect("own memory"))
    }

    /// The mappings of clients' segments and those of hosts': first byte and length.
    fn segments() -> [Vec<(u64, usize)>; 2] {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        ["/memfd:atoll-c ", "/memfd:atoll-s "].map(|name| {
            let ours = maps.lines().filter(|line| line.contains(name));
            ours.map(|line| {
                let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
                let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hexadecimal"));
                (start, (end - start) as usize)
            })
            .collect()
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, address).expect("mapped and writable");
    }

    fn read(&self, address: u64, bytes: &mut [u8]) {
        self.0.read_exact_at(bytes, address).expect("mapped");
    }

    fn word(&self, segment: (u64, usize), offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(segment.0 + offset as u64, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn holds(&self, (address, length): (u64, usize), secret: &[u8]) -> bool {
        let mut bytes = vec![0; length];
        self.read(address, &mut bytes);
        bytes.windows(secret.len()).any(|window| window == secret)
    }
}

/// The hostile guest's half of one session.
struct Attack<'a> {
    memory: &'a Memory,
    segment: (u64, usize),
    /// The host's, which it can only read.
    theirs: (u64, usize),
    shape: Shape,
    position: u64,
    /// Every descriptor is one that a client may write; what it names and carries is garbage.
    subtle: bool,
}

impl Attack<'_> {
    fn store(&self, offset: usize, bytes: &[u8]) {
        if offset + bytes.len() <= self.segment.1 {
            self.memory.write(self.segment.0 + offset as u64, bytes);
        }
    }

    fn act(&mut self, random: &mut Random) {
        match if self.subtle { 12 } else { random.below(12) } {
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
        let slots = u64::from(if self.subtle { self.shape.slots } else { self.shape.all_slots() });
        let slot = if !self.subtle && random.below(30) == 0 {
            random.pick(&[slots as u16, 255])
        } else {
            (self.position % slots) as u16
        };
        let any = random.next();
        let mut submission = Submission {
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
        if self.subtle {
            submission.seq = self.position / slots + 1;
            let length = random.pick(&[0, 8, 12, 16, 24, 64, 3000]);
            let leases = if length == 3000 { 0 } else { random.pick(&[0, 0, 1, 8]) };
            submission.extent = Extent { length, capabilities: random.pick(&[0, 0, 1]), leases };
        }
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

    /// Gives the host a moment to look. Nothing else of this thread runs meanwhile: not its own end of the session either,
    /// which would notice that it was written over.
    fn let_the_host_look(&self) {
        for _ in 0..200 {
            if self.is_refused() || self.memory.word(self.theirs, header::HEAD) == self.position {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// The host has ended the session.
    fn is_refused(&self) -> bool {
        self.memory.word(self.theirs, header::STATE) as u32 == state::CLOSED
    }

    /// How many calls the host has answered.
    fn answers(&self) -> u64 {
        // Above them is the mark of a closed session.
        self.memory.word(self.theirs, header::TAIL) & 0x7fff_ffff
    }
}

/// The honest guest: opens and reads its file, and looks for one that is not there, until it is told to stop; how often.
fn honest(state: &Path, content: &[u8], served: &AtomicBool, stop: &AtomicBool) -> u64 {
    let runtime = Runtime::new(Options::default()).expect("a ring");
    runtime.block_on(async {
        let context = Context::guest(state, "honest").expect("a guest");
        let fs: fs::Client = context.connect("fs.root").await.expect("a session");
        let (name, absent) = (format!("www/{SECRET}"), format!("www/{SECRET}-not"));
        let mut bytes = vec![0; content.len()];
        let mut calls = 0;
        while !stop.load(Acquire) {
            let path = fs::Path::new(name.as_bytes()).expect("a path");
            let (node, stat) = fs.open(fs.root(), path, fs::READ).await.expect("the honest guest is served");
            assert_eq!(stat.size, content.len() as u64, "its answer is right");
            let lease = fs.read(&node, 0, 4096).await.expect("read").expect("not empty");
            assert_eq!(lease.len(), content.len() as u64, "all of it");
            bytes.fill(0);
            context.holder().borrow().read(&lease.name(), 0, &mut bytes).expect("a lease that lives");
            assert!(bytes == content, "the bytes are the file's");
            let path = fs::Path::new(absent.as_bytes()).expect("a path");
            let error = fs.open(fs.root(), path, fs::READ).await.expect_err("there is no such file");
            assert!(matches!(error, CallError::Operation(fs::LookupError::NotFound)), "{error:?}");
            served.store(true, Release);
            calls += 3;
            runtime::sleep(Duration::from_millis(1)).await;
        }
        calls
    })
}

/// What happened to the hostile guest's sessions.
#[derive(Default)]
struct Tally {
    sessions: u64,
    attacks: u64,
    /// The host ended the session for what was written.
    refused: u64,
    /// The host answered calls, and the session lived on.
    accepted: u64,
    /// How many calls were answered.
    answers: u64,
    /// A session was opened again through the connection whose last one the host had ended.
    reopened: u64,
}

/// The hostile guest.
struct Hostile<'a> {
    system: &'a System,
    memory: Memory,
    random: Random,
    tally: Tally,
}

impl Hostile<'_> {
    /// One life of the guest: opens so many sessions, attacks each, and goes without a word.
    async fn live(&mut self, sessions: u64) {
        let context = Context::guest(self.system.state(), "hostile").expect("whatever it did before, it is let in");
        let (mut kept, mut ended) = (Vec::new(), None::<Connection>);
        for _ in 0..sessions {
            let known = Memory::segments();
            let connection = match ended.take() {
                Some(connection) => {
                    self.tally.reopened += 1;
                    connection
                }
                None if self.random.below(3) == 0 => {
                    context.connection("net.net", net::Client::INTERFACE).await.expect("it is let in")
                }
                None => context.connection("fs.root", fs::Client::INTERFACE).await.expect("it is let in"),
            };
            let session = connection.session().await.expect("it is let in again");
            let now = Memory::segments();
            let [segment, theirs] = [0, 1].map(|of| {
                let fresh = now[of].iter().find(|segment| !known[of].contains(segment));
                *fresh.expect("an open session has both segments")
            });
            let refused = self.attack(segment, theirs).await;
            self.tally.sessions += 1;
            let secret = self.memory.holds(theirs, SECRET.as_bytes());
            assert!(!secret, "session {} can read what it was not given", self.tally.sessions);
            match self.random.below(4) {
                // Our own end notices, and the next call of the same connection would find a new session.
                0 | 1 if refused => {
                    while session.is_open() {
                        runtime::sleep(Duration::from_micros(50)).await;
                    }
                    ended = Some(connection);
                }
                2 => kept.push(connection),
                _ => drop(connection),
            }
        }
    }

    /// Writes over one session. Whether its host has ended it for that.
    async fn attack(&mut self, segment: (u64, usize), theirs: (u64, usize)) -> bool {
        let subtle = self.random.below(3) == 0;
        let mut attack = Attack { memory: &self.memory, segment, theirs, shape: Shape::default(), position: 0, subtle };
        for _ in 0..self.random.below(4) + 1 {
            for _ in 0..self.random.below(6) + 1 {
                attack.act(&mut self.random);
                self.tally.attacks += 1;
            }
            attack.ring();
            attack.let_the_host_look();
            if self.random.below(4) == 0 {
                // Our own end looks at what came back, too, and may end the session for it.
                runtime::yield_now().await;
            }
        }
        let refused = attack.is_refused();
        self.tally.refused += u64::from(refused);
        self.tally.accepted += u64::from(!refused && attack.answers() > 0);
        self.tally.answers += attack.answers();
        refused
    }
}

/// The keeper and everything that it has started, by number.
fn processes(keeper: i32) -> Vec<i32> {
    let mut all = common::children(keeper);
    all.push(keeper);
    all.sort_unstable();
    all
}

/// Open descriptors and resident bytes of a process.
fn held(pid: i32) -> (usize, u64) {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let resident = common::field(pid, "VmRSS");
    let kibibytes: u64 = resident.split(' ').next().and_then(|number| number.parse().ok()).expect("a living process");
    (descriptors, kibibytes << 10)
}

#[test]
fn a_guest_that_writes_garbage_stops_no_server_and_reads_nothing_that_it_was_not_given() {
    let seed = number("SEED", u64::from(std::process::id()) << 20);
    let count = number("SESSIONS", 400);
    println!("SEED={seed}");
    let system = System::start(&[]);
    let content = SECRET.repeat(100);
    let file = system.file("content");
    std::fs::write(&file, &content).expect("written");
    system.ok(&["fs", "put", file.to_str().expect("text"), &format!("/www/{SECRET}")]);
    let serves = || assert_eq!(system.get(&format!("/{SECRET}")).body, content.as_bytes(), "what is served is right");
    serves();
    let keeper = system.keeper();
    let before = processes(keeper);

    let (served, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let start = Instant::now();
    let (tally, calls, first) = std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(system.state(), content.as_bytes(), &served, &stop));
        // Both guests are this process: a segment that appears later is the hostile one's, and only that may be attacked.
        common::wait_for("the honest guest's session", || served.load(Acquire) || honest.is_finished());
        // Also when an assertion fails, or the scope would wait for the honest guest for ever.
        let _stop = Stop(&stop);
        let mut hostile =
            Hostile { system: &system, memory: Memory::open(), random: Random(seed), tally: Tally::default() };
        let (mut first, mut shown) = (None, 0);
        while hostile.tally.sessions < count {
            let runtime = Runtime::new(Options::default()).expect("a ring");
            runtime.block_on(hostile.live(SESSIONS_OF_A_GUEST.min(count - hostile.tally.sessions)));
            drop(runtime);
            assert_eq!(processes(keeper), before, "a process was stopped");
            assert!(!honest.is_finished(), "the honest guest has failed");
            // What is allocated once is there by now.
            first.get_or_insert_with(|| before.iter().map(|&pid| (pid, held(pid))).collect::<Vec<_>>());
            if hostile.tally.sessions / 500 > shown {
                shown = hostile.tally.sessions / 500;
                serves();
            }
        }
        stop.store(true, Release);
        (hostile.tally, honest.join().expect("the honest guest's every answer was right"), first.expect("a session"))
    });
    let Tally { sessions, attacks, refused, accepted, answers, reopened } = tally;
    println!(
        "{sessions} sessions in {:.0} s, {attacks} attacks: {refused} sessions were ended for it, {accepted} were served and \
         lived, with {answers} answers in all; {reopened} were opened again at once; the honest guest made {calls} calls",
        start.elapsed().as_secs_f64()
    );
    assert!(calls > 0 && attacks > count && refused > 0 && accepted > 0 && reopened > 0, "something did not happen");
    serves();
    for (pid, (descriptors, resident)) in first {
        common::wait_for("the descriptors of ended sessions to be closed", || held(pid).0 <= descriptors);
        let (now, memory) = (held(pid).0, held(pid).1);
        println!(
            "{}: {descriptors} descriptors before, {now} after; {} KiB resident before, {} after",
            common::field(pid, "Name"),
            resident >> 10,
            memory >> 10
        );
        assert!(memory <= resident + MOST_GROWTH, "what sessions took was not given back");
    }
    assert_eq!(processes(keeper), before, "a process was stopped");
    system.ok(&["fs", "check"]);
    system.ok(&["down"]);
}

/// Stops the honest guest when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Release);
    }
}
