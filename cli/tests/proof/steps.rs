//! Each process, killed at each step of each protocol.
//!
//! - A step is a place in the sources that says `reach("call/begun")` (`kernel_ipc::steps`). [`LOAD`] are those that a process
//!   comes to while it works, [`DEATH`] those to which it comes because somebody has died.
//! - Under load each process is killed at each of its steps, when it passes it for the first time, for the second, and so on as
//!   `PASSINGS` says. One that is never come to fails the test, and so does one in the sources that nobody walks through.
//! - Meanwhile the models of the proof watch: every effect, every byte; and files are put, read, renamed and removed by
//!   programs of their own.
//! - `STEP=reply/` walks only through steps whose name (`fs reply/kept`) has that in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kernel_ipc::steps::Steps;
use nix::sys::signal::Signal;

use crate::common::network::{self, Network};
use crate::common::{Over, Random, System, WATCHDOG, said, wait_for};
use crate::readers::{self, Seen};
use crate::{check, judge, reported, sets, start, told};

/// What a process comes to while it works.
const LOAD: &[(&str, &[&str])] = &[
    ("open/heard", &["supervisor"]),
    ("open/known", &["supervisor"]),
    ("open/begun", &["fs"]),
    ("open/made", &["fs"]),
    ("open/said", &["fs"]),
    ("open/served", &["supervisor"]),
    ("open/kept", &["supervisor"]),
    ("open/introduced", &["supervisor"]),
    ("open/told", &["supervisor"]),
    ("call/published", &["fs", "httpd"]),
    ("call/read", &["disk", "fs", "net"]),
    ("call/begun", &["disk", "fs", "net"]),
    ("call/served", &["disk", "fs", "net"]),
    ("reply/named", &["disk", "fs", "net"]),
    ("reply/kept", &["fs"]),
    ("reply/recorded", &["fs"]),
    ("reply/published", &["disk", "fs", "net"]),
    ("reply/applied", &["fs"]),
    ("reply/taken", &["fs", "httpd"]),
    ("lease/recorded", &["disk", "fs"]),
    ("lease/lent", &["disk", "fs"]),
    ("lease/dying", &["disk", "fs"]),
    ("lease/dead", &["disk", "fs"]),
    ("lease/free", &["disk", "fs"]),
    ("lease/returned", &["disk", "fs"]),
    ("pin/stored", &["disk", "net"]),
    ("pin/taken", &["disk", "net"]),
    ("pin/dropped", &["disk", "net"]),
    ("accept/accepted", &["net"]),
    ("accept/kept", &["net"]),
    ("accept/told", &["net"]),
    ("receive/kept", &["net"]),
    ("events/kept", &["net"]),
    ("events/consumed", &["net"]),
    ("send/kept", &["net"]),
    ("send/accepted", &["net"]),
    ("send/sent", &["net"]),
    ("send/notified", &["net"]),
    ("release/published", &["fs", "httpd"]),
    ("release/read", &["disk", "fs"]),
    ("release/done", &["disk", "fs"]),
    ("read/landed", &["disk"]),
    ("write/lent", &["fs"]),
    ("write/pinned", &["disk"]),
    ("write/landed", &["disk"]),
    ("write/answered", &["fs"]),
    ("checkpoint/frozen", &["fs"]),
    ("checkpoint/written", &["fs"]),
    ("sync/begun", &["disk"]),
    ("sync/landed", &["disk"]),
    ("checkpoint/flushed", &["fs"]),
    ("checkpoint/packed", &["fs"]),
    ("checkpoint/durable", &["fs"]),
    ("checkpoint/trimmed", &["fs"]),
    ("sync/durable", &["fs"]),
];

/// What a process comes to because somebody has died.
enum Because {
    /// This one, perhaps itself.
    Dies(&'static str),
    /// Any component.
    AnyDies,
    /// It died itself, and at this step.
    DiedAt(&'static str),
}

use Because::{AnyDies, DiedAt, Dies};

const DEATH: &[(&str, &str, Because)] = &[
    ("restart/heard", "supervisor", AnyDies),
    ("restart/told", "supervisor", AnyDies),
    ("restart/begun", "supervisor", AnyDies),
    ("restart/recorded", "supervisor", AnyDies),
    ("restart/spawned", "supervisor", AnyDies),
    ("restart/lives", "supervisor", AnyDies),
    ("restart/greeted", "supervisor", AnyDies),
    ("restart/ready", "supervisor", AnyDies),
    ("restart/greeted", "disk", Dies("disk")),
    ("restart/greeted", "fs", Dies("fs")),
    ("restart/greeted", "net", Dies("net")),
    ("restart/greeted", "httpd", Dies("httpd")),
    ("restart/inherited", "disk", Dies("disk")),
    ("restart/inherited", "fs", Dies("fs")),
    ("restart/inherited", "net", Dies("net")),
    ("restart/inherited", "httpd", Dies("httpd")),
    ("restart/recovered", "disk", Dies("disk")),
    ("restart/recovered", "fs", Dies("fs")),
    ("restart/recovered", "net", Dies("net")),
    ("restart/followed", "disk", Dies("disk")),
    ("restart/followed", "fs", Dies("fs")),
    ("restart/followed", "net", Dies("net")),
    ("restart/lends", "disk", Dies("disk")),
    ("restart/lends", "fs", Dies("fs")),
    ("restart/lends", "net", Dies("net")),
    ("restart/fenced", "disk", Dies("disk")),
    ("restart/held", "disk", Dies("disk")),
    ("restart/held", "fs", Dies("fs")),
    ("restart/mounted", "fs", Dies("fs")),
    ("restart/repeated", "fs", Dies("fs")),
    ("restart/restored", "net", Dies("net")),
    ("restart/serving", "disk", Dies("disk")),
    ("restart/serving", "fs", Dies("fs")),
    ("restart/serving", "net", Dies("net")),
    ("restart/serving", "httpd", Dies("httpd")),
    ("restart/ready", "disk", Dies("disk")),
    ("restart/ready", "fs", Dies("fs")),
    ("restart/ready", "net", Dies("net")),
    ("restart/ready", "httpd", Dies("httpd")),
    ("open/asked", "fs", Dies("fs")),
    ("open/asked", "httpd", Dies("httpd")),
    ("open/begun", "disk", Dies("fs")),
    ("open/begun", "net", Dies("httpd")),
    ("open/made", "disk", Dies("fs")),
    ("open/made", "net", Dies("httpd")),
    ("open/said", "disk", Dies("fs")),
    ("open/said", "net", Dies("httpd")),
    ("open/opened", "fs", Dies("fs")),
    ("open/opened", "httpd", Dies("httpd")),
    ("meet/pins-kept", "supervisor", Dies("net")),
    ("meet/pins-adopted", "supervisor", Dies("net")),
    ("meet/pins-attached", "supervisor", Dies("net")),
    ("meet/lender-met", "supervisor", Dies("net")),
    ("meet/region-met", "supervisor", Dies("net")),
    ("meet/pins-adopted", "disk", Dies("disk")),
    ("meet/pins-adopted", "fs", Dies("fs")),
    ("meet/pins-adopted", "net", Dies("net")),
    ("meet/pins-attached", "disk", Dies("fs")),
    ("meet/pins-attached", "fs", Dies("net")),
    ("meet/lender-met", "disk", Dies("fs")),
    ("meet/lender-met", "fs", Dies("disk")),
    ("meet/lender-met", "net", Dies("fs")),
    ("meet/region-met", "disk", Dies("fs")),
    ("meet/region-met", "fs", Dies("fs")),
    ("meet/region-met", "net", Dies("net")),
    ("reply/kept", "net", Dies("httpd")),
    ("reply/recorded", "net", Dies("httpd")),
    ("reply/applied", "net", Dies("httpd")),
    ("lease/pinned", "fs", Dies("httpd")),
    ("resume/suspended", "fs", Dies("disk")),
    ("resume/suspended", "httpd", Dies("fs")),
    ("resume/known", "supervisor", Dies("fs")),
    ("resume/inherited", "disk", Dies("disk")),
    ("resume/inherited", "fs", Dies("fs")),
    ("resume/inherited", "net", Dies("net")),
    ("resume/served", "supervisor", Dies("fs")),
    ("resume/offered", "fs", Dies("disk")),
    ("resume/offered", "httpd", Dies("net")),
    ("resume/answered", "disk", Dies("disk")),
    ("resume/answered", "fs", Dies("fs")),
    ("resume/answered", "net", Dies("net")),
    ("resume/repeated", "fs", DiedAt("reply/recorded")),
    ("resume/sent-again", "fs", Dies("disk")),
    ("resume/sent-again", "httpd", Dies("net")),
    ("adopt/attached", "supervisor", Dies("supervisor")),
    ("adopt/taken", "supervisor", Dies("supervisor")),
    ("adopt/asked", "supervisor", Dies("supervisor")),
    ("adopt/accounted", "disk", Dies("supervisor")),
    ("adopt/accounted", "fs", Dies("supervisor")),
    ("adopt/accounted", "net", Dies("supervisor")),
    ("adopt/accounted", "httpd", Dies("supervisor")),
    ("adopt/accounted", "supervisor", Dies("supervisor")),
    ("adopt/reconciled", "supervisor", Dies("supervisor")),
    ("adopt/serving", "supervisor", Dies("supervisor")),
];

/// How long a step may not be come to. Not a bound on how fast anything is.
const REACHED_WITHIN: Duration = WATCHDOG;
/// How long whoever was killed may take to have the step come to, before it is killed again.
const AGAIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

/// One process at one step.
struct Row {
    process: &'static str,
    step: &'static str,
    because: Option<&'static Because>,
}

fn rows() -> Vec<Row> {
    let under_load = LOAD
        .iter()
        .flat_map(|(step, processes)| processes.iter().map(move |process| Row { process, step, because: None }));
    let by_death = DEATH.iter().map(|(step, process, because)| Row { process, step, because: Some(because) });
    // The kernel charges what is sent without a copy to a limit which only root is free of, so nobody else does it here.
    let is_root = nix::unistd::geteuid().is_root();
    under_load.chain(by_death).filter(|row| is_root || row.step != "send/notified").collect()
}

impl Row {
    fn name(&self) -> String {
        format!("{} {}", self.process, self.step)
    }
}

/// The rows in whose name that is.
fn chosen(rows: &[Row], wanted: &str) -> Vec<usize> {
    let chosen: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].name().contains(wanted)).collect();
    assert!(!chosen.is_empty(), "no step has STEP={wanted} in its name");
    chosen
}

#[test]
fn whoever_dies_at_any_step() {
    walk(None);
}

#[test]
#[ignore = "the same behind a slow device; `-- --ignored`"]
fn whoever_dies_at_any_step_behind_an_ifb_device() {
    // A namespace belongs to a thread, and this one ends with the test.
    let network = Network::enter_server().unwrap_or_else(|error| panic!("no network: {error}"));
    walk(Some(&network));
}

fn walk(network: Option<&Network>) {
    if !cfg!(debug_assertions) {
        println!("skipped: a program without debug assertions has no steps");
        return;
    }
    let rows = rows();
    let chosen = chosen(&rows, &std::env::var("STEP").unwrap_or_default());
    let system = System::empty();
    let steps = Steps::create(system.state(), rows.iter().map(|row| (row.process, row.step))).expect("room for a file");
    let set = format!("httpd.listen={}:0", network.map_or("127.0.0.1", |_| network::SERVER));
    let set = ["--set", &set];
    system.up(&[&sets()[..], &set].concat());
    let synced = readers::put_files(&system);
    let (listen, over, seen) = (system.listen().parse().expect("an address"), AtomicBool::new(false), Seen::default());
    let walk = Walk {
        system: &system,
        steps,
        rows,
        chosen,
        seen: &seen,
        kills: AtomicU64::new(0),
        programs: Mutex::default(),
    };
    let begin = Instant::now();
    let (report, missed) = std::thread::scope(|scope| {
        let _over = Over(&over);
        seen.start(scope, listen, network.map(Network::client), 1, &over);
        scope.spawn(|| walk.programs(&over));
        let chaos = ["chaos", "--json", "--rate", "0", "--seconds", "86400"];
        let mut chaos = start(system.command(&chaos));
        let missed = walk.through_all(|| chaos.try_wait().expect("it is ours").is_none());
        (reported(chaos, || true), missed)
    });
    let kills = walk.kills.load(Relaxed);
    let programs = walk.programs.lock().expect("nobody panics with it").clone();
    println!("steps: {kills} kills in {:.0} s: {}", begin.elapsed().as_secs_f64(), told(&report, &seen));
    println!("steps: restarts {}", report["restarts"]);
    walk.print();
    // Who dies at `accept/accepted` resets what was being accepted: known.
    judge(&report, &seen, kills, 4 + kills / 100);
    assert!(programs.is_empty(), "VIOLATION after {kills} kills: {}", programs.join("\n"));
    assert!(missed.is_empty(), "nobody came to {}", missed.join(", "));
    check(&system, synced, &set);
}

struct Walk<'a> {
    system: &'a System,
    steps: Steps,
    rows: Vec<Row>,
    /// Those that are walked through.
    chosen: Vec<usize>,
    seen: &'a Seen,
    kills: AtomicU64,
    /// What programs of their own have found wrong.
    programs: Mutex<Vec<String>>,
}

impl Walk<'_> {
    /// Kills each process at each step; gives those that were not come to. Ends at the first violation.
    fn through_all(&self, mut chaos_goes_on: impl FnMut() -> bool) -> Vec<String> {
        let passings = std::env::var("PASSINGS").unwrap_or("1".into());
        let mut missed = Vec::new();
        for n in passings.split(',').map(|n| n.parse().expect("PASSINGS are numbers")) {
            for &row in &self.chosen {
                let name = self.rows[row].name();
                let broken = self.seen.broken();
                let was_reached = self.through(row, n, self.rows[row].because);
                if self.seen.broken() > broken {
                    println!("steps: a connection broke at {name}, passing {n}");
                }
                let is_wrong = !self.seen.wrong().is_empty()
                    || !chaos_goes_on()
                    || !self.programs.lock().expect("nobody panics with it").is_empty();
                if is_wrong {
                    println!("steps: the last was {name}, at passing {n}");
                    return missed;
                }
                if !was_reached {
                    println!("steps: nobody came to {name}, at passing {n}");
                    missed.push(format!("{name} ({n})"));
                }
            }
        }
        missed
    }

    /// Lets a process die at its `n`-th passing of a step; false if it does not come to it.
    fn through(&self, row: usize, n: u64, because: Option<&Because>) -> bool {
        let before = self.count(row);
        self.dies(row, n);
        let (begin, mut killed, mut passed) = (Instant::now(), None::<Instant>, before.0);
        while self.count(row).1 == before.1 {
            if begin.elapsed() > REACHED_WITHIN {
                self.dies(row, 0);
                return false;
            }
            let is_due = killed.is_none_or(|at| at.elapsed() > AGAIN) || self.count(row).0 > passed;
            if let (true, Some(because)) = (is_due, because) {
                passed = self.count(row).0;
                if self.let_happen(row, because) {
                    killed = Some(Instant::now());
                }
            }
            std::thread::sleep(PAUSE);
        }
        self.kills.fetch_add(1, Relaxed);
        true
    }

    /// Has somebody die; false if nobody was there to.
    fn let_happen(&self, row: usize, because: &Because) -> bool {
        match because {
            Dies(process) => self.kill(process),
            AnyDies => self.kill(["disk", "fs", "net", "httpd"][self.kills.load(Relaxed) as usize % 4]),
            DiedAt(step) => {
                let process = self.rows[row].process;
                let known = self.rows.iter().position(|row| row.process == process && row.step == *step);
                let known = known.expect("it is another row's step");
                let before = self.count(known).1;
                self.dies(known, 1);
                wait_for(step, || self.count(known).1 > before);
                self.kills.fetch_add(1, Relaxed);
                true
            }
        }
    }

    fn kill(&self, process: &str) -> bool {
        let Some(pid) = self.system.process(process) else { return false };
        let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).is_ok();
        self.kills.fetch_add(u64::from(killed), Relaxed);
        killed
    }

    fn dies(&self, row: usize, n: u64) {
        self.steps.dies(row, n).expect("a file of our own");
    }

    /// How often it has passed, and died.
    fn count(&self, row: usize) -> (u64, u64) {
        self.steps.count(row).expect("a file of our own")
    }

    /// Files are put, read, renamed, removed and made durable by programs of their own, each of which opens its sessions.
    fn programs(&self, over: &AtomicBool) {
        let mut numbers = Random(17);
        let source = self.system.file("program.bin");
        for round in 0.. {
            if over.load(Relaxed) {
                return;
            }
            let length = 1 + numbers.below(300_000) as usize;
            let content = numbers.bytes(length);
            std::fs::write(&source, &content).expect("room for a file");
            let (first, second) = (format!("/p{round}"), format!("/q{round}"));
            let put = ["fs", "put", source.to_str().expect("UTF-8"), &first];
            let result = self
                .run(&put)
                .and_then(|_| self.run(&["fs", "mv", &first, &second]))
                .and_then(|_| self.run(&["fs", "sync"]))
                .and_then(|_| self.run(&["fs", "cat", &second]))
                .and_then(|found| if found == content { Ok(()) } else { Err("another content".to_owned()) })
                .and_then(|()| self.run(&["fs", "rm", &second]));
            if let Err(what) = result {
                return self.programs.lock().expect("nobody panics with it").push(format!("round {round}: {what}"));
            }
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let output = self.system.command(arguments).stderr(Stdio::piped()).output().expect("the binary runs");
        if output.status.success() { Ok(output.stdout) } else { Err(format!("{arguments:?}: {}", said(&output))) }
    }

    /// How often each step was passed, and who died there.
    fn print(&self) {
        for (at, Row { process, step, .. }) in self.rows.iter().enumerate() {
            let (passed, died) = self.count(at);
            println!("steps: {process:10} {step:20} passed {passed:8}, died {died}");
        }
    }
}

#[test]
fn a_step_is_chosen_by_a_part_of_its_name() {
    let rows = rows();
    assert_eq!(chosen(&rows, "").len(), rows.len());
    let replies = chosen(&rows, "fs reply/kept");
    assert!(replies.len() == 1 && rows[replies[0]].step == "reply/kept" && rows[replies[0]].process == "fs");
}

#[test]
#[should_panic(expected = "no step has STEP=reply/lost in its name")]
fn a_step_that_is_none_is_no_walk() {
    chosen(&rows(), "reply/lost");
}

/// Steps that this system never comes to, and the test that dies at them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("move/begun", "supervisor/tests/reactors.rs"),
    ("move/left", "supervisor/tests/reactors.rs"),
    ("move/arrived", "supervisor/tests/reactors.rs"),
    ("upgrade/asked", "cli/tests/upgrade.rs"),
    ("upgrade/committed", "cli/tests/upgrade.rs"),
    ("upgrade/drained", "cli/tests/upgrade.rs"),
    ("upgrade/ended", "cli/tests/upgrade.rs"),
    ("upgrade/examined", "cli/tests/upgrade.rs"),
    ("upgrade/known", "cli/tests/upgrade.rs"),
    ("upgrade/promoted", "cli/tests/upgrade.rs"),
    ("upgrade/recorded", "cli/tests/upgrade.rs"),
    ("upgrade/started", "cli/tests/upgrade.rs"),
];

/// What the sources say is what is walked through.
#[test]
fn no_step_is_passed_by() {
    let mut found = BTreeSet::new();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in a workspace");
    for member in ["apps", "cli", "drivers", "fs-server", "kernel-ipc", "net-server", "supervisor"] {
        collect(&workspace.join(member).join("src"), &mut found);
    }
    for (step, test) in ELSEWHERE {
        let text = std::fs::read_to_string(workspace.join(test)).expect(test);
        assert!(text.contains(&format!("\"{step}\"")), "{test} does not walk through {step}");
    }
    let here = LOAD.iter().map(|row| row.0).chain(DEATH.iter().map(|row| row.0));
    let walked: BTreeSet<String> = here.chain(ELSEWHERE.iter().map(|(step, _)| *step)).map(str::to_owned).collect();
    assert_eq!(found, walked);
}

fn collect(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("text");
            let names = text.split("reach(\"").skip(1).filter_map(|rest| rest.split_once("\")"));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}
