//! The command line, as clap reads it. What a verb does is in the module of its name.

mod bench;
mod fs;
mod nodes;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::chaos::Kind;

pub use bench::{Bench, BenchOptions, BenchPlace};
pub use fs::Fs;
pub use nodes::{Lab, LabUp, Listen, Node};

/// Operating-system services as separate processes: storage and network that can be called, watched and restarted.
#[derive(Debug, Parser)]
#[command(name = "atoll", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing is running there.

Begin with `atoll up`, then open the address that it shows. `atoll init` writes the manifest of that system, to be changed; \
`atoll new component NAME` makes a component of your own.")]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Directory of the system's state: its disk image, logs and socket
    #[arg(
        long,
        global = true,
        env = "ATOLL_STATE",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "./atoll-state"
    )]
    #[arg(value_hint = ValueHint::DirPath)]
    pub state: PathBuf,
    /// Print facts as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a manifest to begin with
    Init {
        /// The directory in which it will be `atoll.toml`; made if it is not there
        #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// Make something to build upon
    #[command(subcommand)]
    New(New),
    /// Start a system; without MANIFEST that of ./atoll.toml, or the built-in one, which serves /www over HTTP
    Up(Up),
    /// Stop the system in order; the disk is left clean
    Down,
    /// List the components and what they do
    Ps {
        /// Add the bytes that each component leased, verified and copied
        #[arg(long)]
        io: bool,
    },
    /// Show who waits for whom, since when, and the cycle if there is one
    Stuck(Stuck),
    /// Show what was asked of each component, by client and operation, and how long it took
    Stat(Stat),
    /// Show who holds which capabilities on whom, and what they were derived from
    Capabilities(Capabilities),
    /// Show the way of calls through the components, with the time that each part of it took
    Trace(Trace),
    /// Let a component go on in a process of another program, while its clients go on calling
    Upgrade {
        /// Its name
        component: String,
        /// The program, which has this component built in as `atoll` has [default: this program]
        #[arg(value_hint = ValueHint::ExecutablePath)]
        program: Option<PathBuf>,
    },
    /// Say what stands against moving a component to another node, and what it would cost
    Move {
        /// Its name
        component: String,
        /// The node's name
        node: String,
        /// Only say it: nothing is moved by this version
        #[arg(long, required = true)]
        dry_run: bool,
    },
    /// Stop a component and start it again, also one that was given up
    Restart {
        /// Its name
        component: String,
    },
    /// Stop a component; it stays down until `atoll start`, and its clients wait
    Stop {
        /// Its name
        component: String,
    },
    /// Start a component that was stopped or given up
    Start {
        /// Its name
        component: String,
    },
    /// Freeze a component's process where it is, until `atoll thaw`
    Freeze {
        /// Its name
        component: String,
    },
    /// Let a frozen component go on
    Thaw {
        /// Its name
        component: String,
    },
    /// Look after the supervisor of the running system
    #[command(subcommand)]
    Supervisor(Supervisor),
    /// Make this state directory a node of a cluster, and look after its nodes
    #[command(subcommand)]
    Node(Node),
    /// Run two nodes on this machine, with a network between them that delays, is narrow, and is cut
    #[command(subcommand)]
    Lab(Lab),
    /// Kill, stop and slow down components of the running system, and say what its users felt
    Chaos(Chaos),
    /// Look at what is kept of crashes
    #[command(subcommand)]
    Crash(Crash),
    /// Show something, with a system of its own
    #[command(subcommand)]
    Demo(Demo),
    /// Print what the rules of the system come to
    #[command(subcommand)]
    Explain(Explain),
    /// Print what the components logged
    Logs {
        /// Only this component's lines
        component: Option<String>,
    },
    /// Check a manifest without starting anything
    Check {
        /// The manifest
        #[arg(value_hint = ValueHint::FilePath)]
        manifest: PathBuf,
        /// Override a configuration value, as for `up`
        #[arg(long = "set", value_name = "COMPONENT.KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Work with files of the running system
    #[command(subcommand)]
    Fs(Fs),
    /// Show interfaces, and compare them with what was released
    Interface {
        #[command(subcommand)]
        what: Option<Interface>,
    },
    /// Call an operation of any endpoint of the running system
    Call(Call),
    /// Measure, each time beside a floor in the same run
    #[command(subcommand)]
    Bench(Bench),
    /// Run sessions and ledgers in a simulation in which everything goes wrong
    Simulate(Simulate),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A seed decides who there is, in which order they have their turns, when connections are cut, held up and made, and when \
processes stop and die; calls must have happened as their callers were told. The same seed is the same run each time. \
Exit code 1: a seed violates the model; what happened in it is printed.

  atoll simulate --seeds 1000000 --state run.json   # Ctrl-C ends it; the same again goes on where it was
  atoll simulate --from 7 --seeds 1 --trace         # what happens in seed 7")]
pub struct Simulate {
    /// How many seeds in all
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub from: u64,
    /// Note in this file how far it has come, and go on from there
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
    /// Print what happens in the first seed
    #[arg(long)]
    pub trace: bool,
}

#[derive(Debug, Subcommand)]
pub enum New {
    /// A component of your own and a client of it: a Cargo project in a new directory, and a manifest that runs it
    Component {
        /// Its name: the directory's, the component's and its interface's
        name: String,
        /// The checkout of Atoll with whose kit it is built [default: the one from which this program was built]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        kit: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Up {
    /// The manifest [default: ./atoll.toml if it is there, or the built-in systems/web.toml]
    #[arg(value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,
    /// Override a configuration value, for example httpd.listen=127.0.0.1:0
    #[arg(long = "set", value_name = "COMPONENT.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Return when everything is ready, and leave the system running
    #[arg(long)]
    pub detach: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Nothing is asked of the component: it may hang, or be dead. The figures are those of all its runs since the system came up.

CALLS has all of them; of those, NOW are under way, ERRORS ended with the operation's own error, FAILED with a failure of \
the call, REFUSED were never given to a handler, LOST were under way when a run died. Times are from receiving to answering.")]
pub struct Stat {
    /// Only this one
    pub component: Option<String>,
    /// Each session by itself
    #[arg(long)]
    pub sessions: bool,
    /// Go on, and show what happens in each second
    #[arg(long)]
    pub watch: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Meanwhile workers change files in a directory of their own and compare everything with what it has to be, and users of
the disk, the file system and the web server note how long they wait. Exit code 1: a call failed, or something was wrong.")]
pub struct Chaos {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// End after so many disturbances instead, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub count: Option<u64>,
    /// Disturbances a second, on average; 0: none, users and workers go on alone
    #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = rate)]
    pub rate: f64,
    /// What decides what is done to whom and when
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// What may be done
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_value = "kill,stop,delay")]
    pub kinds: Vec<Kind>,
    /// Only to this component; may be given again
    #[arg(long, value_name = "COMPONENT")]
    pub only: Vec<String>,
    /// Workers, each with one call at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(0..=64))]
    pub workers: u64,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A wait is a call that is not answered: as its client's logbook says, or that of its host, if the client is a guest. Below the \
table each call stands under the one that it was made for.")]
pub struct Stuck {
    /// Leave out who has waited for less
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    pub older: u64,
    /// Show also who is meant to wait: calls without a deadline
    #[arg(long)]
    pub standing: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Read from the ledgers of sessions: nothing is asked of a host, which may hang or be dead. Below each capability stand those that \
were derived from it, on whatever session. OBJECT is in the host's own terms; HANDLE is the index and generation by which \
the holder names it; LIMIT is how many may be derived from it.")]
pub struct Capabilities {
    /// Only what it holds, and what is held on it
    pub component: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A trace begins with a request that comes over the network, with a call of a guest (such as this command line), and with what \
a component calls of itself; below each call stand those that were made for it. TOOK is from submitting a call to seeing its \
answer; of that THERE passed until its host read it, WAIT until its handler began, HANDLER until that ended, and BACK until \
the answer was seen.

With --json, or in FILE, all of it is in the format of Chrome's tracing: open it at https://ui.perfetto.dev.

  atoll trace -- curl -s http://127.0.0.1:8080/ -o /dev/null
  atoll trace --for 2s --every 100 fs")]
pub struct Trace {
    /// Only traces in which this component has a part
    pub component: Option<String>,
    /// How long, for example 2s or 500ms [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// Trace one in so many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub every: u32,
    /// Write all of it into this file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Show at most so many traces, those that took longest
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Show also traces of calls that are meant to wait
    #[arg(long)]
    pub standing: bool,
    /// Trace while this command runs
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "duration")]
    pub command: Vec<OsString>,
}

/// A time with its unit, from 1 ms to a day.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number and its unit: 500ms, 2s or 1m".to_owned();
    let unit = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(wrong()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms)).ok_or_else(wrong)?;
    if (1..=86_400_000).contains(&ms) {
        Ok(Duration::from_millis(ms))
    } else {
        Err("give a time from 1ms to 1440m".into())
    }
}

/// A number of times a second.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.01..=100.0).contains(&rate) => Ok(rate),
        _ => Err("give 0, or a number from 0.01 to 100".into()),
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum Interface {
    /// List the interfaces of this program
    List,
    /// Show an interface: kinds, rights, operations, types, errors
    Show {
        /// `fs`, `atoll.fs` or `atoll.fs/1`; or an endpoint of the running system, whose host is asked
        #[arg(value_name = "NAME|ENDPOINT")]
        name: String,
    },
    /// Say what has changed since an interface was released, and whom it breaks; exit code 1: somebody, without a new version
    Check {
        /// The interface; all, if none is given
        name: Option<String>,
        /// Compare with the description in this file, as `atoll interface show NAME --json` prints it
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        against: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The host says what its interface is; `atoll interface show ENDPOINT` shows it.

Capabilities and leases in a result are called $1, $2 and so on in the order in which they come. Later calls can name \
them, as arguments and as what the call is made on:

  atoll call fs 'open {\"path\": \"www\", \"want\": [\"read\"]}' \\
    --then 'readdir {\"dir\": \"$1\", \"cursor\": 0, \"max\": 9}'")]
pub struct Call {
    /// `component.endpoint`, or `control`; of a built-in component its name is enough
    pub endpoint: String,
    /// The operation's name, perhaps with its arguments behind it
    pub operation: String,
    /// Its arguments, a JSON object; `-` reads it from standard input
    #[arg(value_name = "JSON")]
    pub arguments: Option<String>,
    /// Make another call on the same session; may be given again
    #[arg(long, value_name = "OPERATION JSON")]
    pub then: Vec<String>,
    /// Wait at most so many seconds for each answer, and not as long as the interface says
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub deadline: Option<Duration>,
    /// Show the bytes of leases too, of each at most the first MiB
    #[arg(long)]
    pub data: bool,
}

/// A time of whole seconds, up to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if (1..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("give a number from 1 to 86400".into()),
    }
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Crash {
    /// List the crashes of this system that are kept
    List,
    /// Show what is known of one
    Show {
        /// Its number
        number: u64,
    },
    /// Make a call that was under way at a crash once more, on the running system
    Replay {
        /// The crash's number
        number: u64,
        /// Which of its calls
        #[arg(long, value_name = "N", default_value_t = 1)]
        call: usize,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Demo {
    /// A copy and a download with checksums, while every server dies once a second
    Crash {
        /// How long
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        /// MiB of the file that is copied and downloaded
        #[arg(long, value_name = "MIB", default_value = "256", value_parser = mebibytes)]
        size: u64,
    },
}

/// A size from 1 MiB to 16 GiB, in bytes.
fn mebibytes(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(size) if (1..=16 << 10).contains(&size) => Ok(size << 20),
        _ => Err("give a number from 1 to 16384".into()),
    }
}

#[derive(Debug, Subcommand)]
pub enum Explain {
    /// When a component that has died is started again
    Backoff,
    /// What an error's code means, and which operations end with it; without CODE all of them
    Error {
        /// As `atoll call` prints it, for example fs-5
        code: Option<String>,
    },
    /// Who may call whom by a manifest, with which rights, and what carries the calls
    Route {
        /// Only the uses of this component
        component: Option<String>,
        /// The manifest [default: ./atoll.toml if it is there, or the built-in systems/web.toml]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        manifest: Option<PathBuf>,
    },
    /// Where the components of a manifest run, and why there
    Place {
        /// The manifest [default: ./atoll.toml if it is there, or the built-in systems/web.toml]
        #[arg(value_hint = ValueHint::FilePath)]
        manifest: Option<PathBuf>,
    },
    /// Who is restarted when a component of a manifest is
    Restart {
        /// The manifest [default: ./atoll.toml if it is there, or the built-in systems/web.toml]
        #[arg(value_hint = ValueHint::FilePath)]
        manifest: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Supervisor {
    /// Put another supervisor in its place, upgraded if the program has changed; everything else goes on
    Restart,
}
