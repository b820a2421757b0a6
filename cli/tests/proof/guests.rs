//! Guests, killed at each of their steps: nobody else notices.
//!
//! - The guests are command lines that put a file, print it, rename and remove it. Whoever is killed leaves its own file as it may be;
//!   what the others do has to succeed, and what was acknowledged has to be there.
//! - Meanwhile the proof's readers compare every byte that they are sent.
//! - When all have died everywhere, the keeper has nothing of theirs any more, and the volume is sound.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kernel_ipc::steps::Steps;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Over, Random, System, WATCHDOG, said, wait_for};
use crate::readers::{self, Seen};
use crate::{check, sets};

/// What a guest comes to, who has to die for that while it works, and how often it comes there at least.
const STEPS: &[(&str, Option<&str>, u64)] = &[
    ("open/asked", None, 1),
    ("open/opened", None, 1),
    ("meet/lender-met", None, 1),
    ("meet/region-met", None, 1),
    ("call/published", None, 3),
    ("reply/taken", None, 3),
    ("release/published", None, 1),
    ("resume/suspended", Some("fs"), 1),
    ("resume/offered", Some("fs"), 1),
    ("resume/sent-again", Some("fs"), 1),
    ("adopt/accounted", Some("supervisor"), 1),
];
/// How long a guest may be at work before somebody has to die for it.
const WORKS: Duration = Duration::from_millis(15);

#[test]
fn whichever_guest_dies_at_any_step() {
    if !cfg!(debug_assertions) {
        println!("skipped: a program without debug assertions has no steps");
        return;
    }
    let system = System::empty();
    let rows = STEPS.iter().map(|(step, ..)| ("guest", *step));
    let steps = Steps::create(system.state(), rows).expect("room for a file");
    let set = ["--set", "httpd.listen=127.0.0.1:0"];
    system.up(&[&sets()[..], &set].concat());
    let synced = readers::put_files(&system);
    let keeper = system.keeper();
    // Of the guests until now nothing is left either.
    std::thread::sleep(Duration::from_millis(300));
    let before = descriptors(keeper);
    let (listen, over, seen) = (system.listen().parse().expect("an address"), AtomicBool::new(false), Seen::default());
    let mut guests = Guests { system: &system, steps, numbers: Random(23), made: 0, deaths: 0 };
    std::thread::scope(|scope| {
        let _over = Over(&over);
        seen.start(scope, listen, None, 2, &over);
        for (row, (step, dies, passings)) in STEPS.iter().enumerate() {
            for n in 1..=*passings {
                guests.until_one_dies(row, step, *dies, n);
                assert!(seen.wrong().is_empty(), "VIOLATION after {step}: {}", seen.wrong().join("\n"));
            }
        }
    });
    println!("guests: {} killed, {} files", guests.deaths, guests.made);
    assert_eq!(seen.broken(), 0, "a connection was reset");
    wait_for("the keeper to have what it had", || descriptors(keeper) <= before);
    check(&system, synced, &set);
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the keeper lives").count()
}

struct Guests<'a> {
    system: &'a System,
    steps: Steps,
    numbers: Random,
    made: u64,
    deaths: u64,
}

impl Guests<'_> {
    /// Lets guests work until one has died at its `n`-th passing of a step.
    fn until_one_dies(&mut self, row: usize, step: &str, dies: Option<&str>, n: u64) {
        let died = |steps: &Steps| steps.count(row).expect("a file of our own").1;
        let (before, begin) = (died(&self.steps), Instant::now());
        while died(&self.steps) == before {
            assert!(begin.elapsed() < WATCHDOG, "no guest comes to {step} for the {n}th time");
            // Each guest has its own passings.
            self.one_works(|steps| steps.dies(row, n).expect("a file of our own"), dies);
        }
        self.steps.dies(row, 0).expect("a file of our own");
        self.deaths += 1;
    }

    /// One file, from beginning to end, or to the death of one of the guests.
    fn one_works(&mut self, arm: impl Fn(&Steps), dies: Option<&str>) {
        self.made += 1;
        let length = 1 + self.numbers.below(2_000_000) as usize;
        let content = self.numbers.bytes(length);
        let source = self.system.file("guest.bin");
        std::fs::write(&source, &content).expect("room for a file");
        let (first, second) = (format!("/g{}", self.made), format!("/h{}", self.made));
        let put = ["fs", "put", source.to_str().expect("UTF-8"), &first];
        let commands: [&[&str]; 4] =
            [&put, &["fs", "mv", &first, &second], &["fs", "cat", &second], &["fs", "rm", &second]];
        for arguments in commands {
            arm(&self.steps);
            match self.run(arguments, dies) {
                None => return,
                Some(printed) => assert!(arguments[1] != "cat" || printed == content, "{second} has another content"),
            }
        }
    }

    /// What a guest prints; nothing if it is killed.
    fn run(&self, arguments: &[&str], dies: Option<&str>) -> Option<Vec<u8>> {
        let mut command = self.system.command(arguments);
        let guest = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        if let Some(name) = dies {
            std::thread::sleep(WORKS);
            if let Some(pid) = self.system.process(name) {
                // It may be dead already.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let output = guest.wait_with_output().expect("it is ours");
        if output.status.signal() == Some(libc::SIGKILL) {
            return None;
        }
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        Some(output.stdout)
    }
}
