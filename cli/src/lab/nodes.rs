//! The two nodes of a lab: made, joined, started and ended.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::RecvError;
use std::time::{Duration, SystemTime};

use kernel_ipc::link::socket::keys::NodeName;
use kernel_ipc::runtime::{Options, Runtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use supervisor::cluster::{Home, Listening, join};
use supervisor::up::{self, Progress};

use super::NAMES;
use super::network::Side;
use crate::control;
use crate::output::{self, Colour, Failed, paint, stderr_colours};
use crate::up::{Events, Reported, report};

/// What `a` runs while `b` joins: next to nothing.
const IDLE: &str = "atoll = 1\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";
/// How long `b` may take to join.
const TOKEN_FOR: Duration = Duration::from_secs(600);

/// What the lab waits for.
pub enum Event {
    /// Of the start of a node.
    Start(usize, Reported),
    Signal(Signal),
}

/// Both nodes. Dropped, they are ended in order, and waited for.
pub struct Nodes {
    nodes: [Node; 2],
    events: Events<Event>,
}

struct Node {
    state: PathBuf,
    /// Ends after the keeper, which ends with the thread that has started it.
    side: Side,
    running: Running,
}

/// Of a node's keeper.
enum Running {
    No,
    Starts(Pid),
    Yes(Child),
}

impl Running {
    /// Asks it to end. It may have ended by itself.
    fn ask(&self) {
        let pid = match self {
            Running::No => return,
            Running::Starts(pid) => *pid,
            Running::Yes(child) => pid(child.id()),
        };
        let _ = kill(pid, Signal::SIGTERM);
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

impl Nodes {
    /// Nodes that do not run yet, in state directories below this one.
    pub fn new(directory: &Path, sides: [Side; 2], events: Events<Event>) -> Nodes {
        let mut names = NAMES.iter();
        let nodes = sides.map(|side| {
            let state = directory.join(names.next().expect("there is one for each"));
            Node { state, side, running: Running::No }
        });
        Nodes { nodes, events }
    }

    /// Makes them the nodes of a new cluster.
    ///
    /// # Errors
    /// For people.
    pub fn join(&mut self, listening: [Listening; 2]) -> Result<(), Failed> {
        for node in &self.nodes {
            let cannot =
                |error: std::io::Error| Failed::new(format!("{}: {}", node.state.display(), output::reason(&error)));
            DirBuilder::new().recursive(true).mode(0o700).create(&node.state).map_err(cannot)?;
            match fs::remove_dir_all(node.state.join("node")) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot(error)),
                _ => {}
            }
        }
        let refused = |error: &dyn std::fmt::Display| Failed::new(format!("the nodes cannot be joined: {error}"));
        let [a, b] = [0, 1].map(|node| self.nodes[node].state.clone());
        let home = Home::init(&a, &node_name(0), listening[0]).map_err(|error| refused(&error))?;
        let idle = a.join("idle.toml");
        fs::write(&idle, IDLE)?;
        self.begin(0, &idle, &[])?;
        self.wait_until_up(1)?;
        let until = SystemTime::now() + TOKEN_FOR;
        let token = home.new_token(SystemTime::now(), until).map_err(|error| refused(&error))?.to_string();
        let address = listening[0].address;
        let joined = self.nodes[1].side.run(move || {
            let name = node_name(1);
            let runtime = Runtime::new(Options::default()).map_err(|error| error.to_string())?;
            let joined = runtime.block_on(join::join(&b, &name, listening[1], address, &token));
            joined.map(drop).map_err(|error| error.to_string())
        });
        joined.map_err(|error| refused(&error))?;
        self.end_one(0).map_or(Ok(()), |status| in_order(&self.nodes[0], status))
    }

    /// Starts what the manifest says on both.
    ///
    /// # Errors
    /// For people.
    pub fn start(&mut self, manifest: &Path, sets: &[String]) -> Result<(), Failed> {
        for node in 0..NAMES.len() {
            self.begin(node, manifest, sets)?;
        }
        self.wait_until_up(NAMES.len())
    }

    fn begin(&mut self, number: usize, manifest: &Path, sets: &[String]) -> Result<(), Failed> {
        let node = &mut self.nodes[number];
        let (manifest, state, sets) = (manifest.to_owned(), node.state.clone(), sets.to_vec());
        let started = node.side.run(move || {
            up::start(&up::Options { manifest: Some(&manifest), state: &state, sets: &sets, end_with_parent: true })
        });
        let starting = started.map_err(|error| {
            Failed::new(format!("cannot start in {}: {}", node.state.display(), output::reason(&error)))
        })?;
        node.running = Running::Starts(pid(starting.pid()));
        report(starting, self.events.sender.clone(), move |reported| Event::Start(number, reported));
        Ok(())
    }

    /// Waits until so many have started; if one does not, or the user wants an end, until all have ended.
    fn wait_until_up(&mut self, mut count: usize) -> Result<(), Failed> {
        let mut failed = None;
        while count > 0 {
            let why = match self.next_event()? {
                Event::Start(number, Reported::Ended(starting, last)) => {
                    count -= 1;
                    self.nodes[number].running = Running::Yes(starting.into_keeper());
                    match last {
                        Progress::Failed { reason } => format!("node {}: {}", NAMES[number], reason.trim_end()),
                        _ => continue,
                    }
                }
                Event::Start(..) | Event::Signal(Signal::SIGCHLD) => continue,
                Event::Signal(_) => "interrupted while starting".into(),
            };
            self.nodes.iter().for_each(|node| node.running.ask());
            failed.get_or_insert(why);
        }
        match failed {
            None => Ok(()),
            Some(why) => Err(Failed::new(why)),
        }
    }

    /// Waits until the user wants an end, or a node has ended by itself.
    ///
    /// # Errors
    /// That.
    pub fn run(&mut self) -> Result<(), Failed> {
        loop {
            match self.next_event()? {
                Event::Signal(Signal::SIGCHLD) => {}
                Event::Signal(_) => return Ok(()),
                Event::Start(..) => continue,
            }
            for (node, name) in self.nodes.iter_mut().zip(NAMES) {
                if let Running::Yes(keeper) = &mut node.running
                    && let Some(status) = keeper.try_wait()?
                {
                    return Err(Failed::new(format!("node {name} has ended by itself ({status})")));
                }
            }
        }
    }

    fn next_event(&self) -> Result<Event, Failed> {
        self.events.receiver.recv().map_err(|RecvError| Failed::new("no signals can be received any more"))
    }

    /// Ends both in order, first the one that uses the other in the built-in system.
    ///
    /// # Errors
    /// What was not in order.
    pub fn end(&mut self) -> Result<(), Failed> {
        output::message("stopping in order");
        let mut done = Ok(());
        for number in [1, 0] {
            if let Some(status) = self.end_one(number) {
                done = done.and(in_order(&self.nodes[number], status));
            }
        }
        if done.is_ok() {
            output::message(&paint("stopped, the disks are clean", Colour::Green, stderr_colours()));
        }
        done
    }

    fn end_one(&mut self, number: usize) -> Option<ExitStatus> {
        let running = std::mem::replace(&mut self.nodes[number].running, Running::No);
        running.ask();
        match running {
            Running::Yes(mut keeper) => keeper.wait().ok(),
            Running::No | Running::Starts(_) => None,
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // Those that run still: something has failed, and that is said.
        for number in [1, 0] {
            let _ = self.end_one(number);
        }
    }
}

fn node_name(node: usize) -> NodeName {
    NodeName::new(NAMES[node]).expect("it can be a name")
}

fn in_order(node: &Node, status: ExitStatus) -> Result<(), Failed> {
    match status.success() {
        true => Ok(()),
        false => Err(control::out_of_order(&node.state, &control::troubles(&node.state))),
    }
}
