//! Starting a node: what `atoll up`, `atoll keeper` and `atoll supervisor` are made of.
//!
//! - [`start`] runs `atoll keeper` in the state directory; the keeper runs `atoll supervisor` with the arguments it was
//!   given; the supervisor reports on a pipe how the start goes, until everything is ready or the start has failed.
//! - The keeper process is the node: it exits when the node has ended, 0 after an orderly end. SIGTERM asks it for one.

use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::keeper;
use crate::sys::process;

/// What to start.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The manifest; without one the embedded.
    pub manifest: Option<&'a Path>,
    /// The state directory; made if it does not exist.
    pub state: &'a Path,
    /// `component.key=VALUE`, applied to the manifest.
    pub sets: &'a [String],
    /// The node ends in order when this process dies (`atoll up` in the foreground).
    pub end_with_parent: bool,
}

/// How the start goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "kebab-case")]
pub enum Progress {
    /// A component is being started.
    Starting {
        /// Its name.
        component: String,
    },
    /// A component serves.
    Ready {
        /// Its name.
        component: String,
    },
    /// Everything serves. Nothing comes after it.
    Up,
    /// The node does not come up; it is ending. Nothing comes after it.
    Failed {
        /// For people: what went wrong, and the last lines of the log of the component that did.
        reason: String,
    },
}

/// A node that is being started.
#[derive(Debug)]
pub struct Starting {
    keeper: Child,
    report: BufReader<PipeReader>,
}

/// Runs the keeper. It goes on without this process unless [`Options::end_with_parent`].
///
/// # Errors
/// The state directory cannot be made, or the process cannot be started.
pub fn start(options: &Options<'_>) -> io::Result<Starting> {
    std::fs::create_dir_all(options.state.join("logs"))?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(options.state.join("logs/supervisor.log"))?;
    let (report, reporter) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("atoll").arg("keeper").current_dir(options.state);
    if options.end_with_parent {
        command.arg("--end-with-parent").arg(std::process::id().to_string());
    }
    command.arg("--");
    if let Some(manifest) = options.manifest {
        command.arg("--manifest").arg(std::path::absolute(manifest)?);
    }
    for set in options.sets {
        command.arg("--set").arg(set);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    process::pass_on(&mut command, vec![reporter.into()]);
    let keeper = command.spawn()?;
    // The command holds the pipe's other end: without dropping it, the end of the report would never be seen.
    drop(command);
    Ok(Starting { keeper, report: BufReader::new(report) })
}

impl Starting {
    /// Waits for the next step. A keeper that dies without a word is a failed start.
    pub fn next_step(&mut self) -> Progress {
        let mut line = String::new();
        match self.report.read_line(&mut line) {
            Ok(length) if length > 0 => {
                serde_json::from_str(&line).unwrap_or(Progress::Failed { reason: format!("unreadable report: {line}") })
            }
            _ => Progress::Failed { reason: "the node ended while it started; see logs/supervisor.log".into() },
        }
    }

    /// The keeper's process id: SIGTERM ends the node in order, also while it starts.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// The keeper's process: it exits when the node has ended.
    pub fn into_keeper(self) -> Child {
        self.keeper
    }
}

/// `atoll keeper [--end-with-parent PID] -- ARGUMENTS OF THE SUPERVISOR`: the whole of its `main`. `arguments` comes without
/// the program's name and the verb.
pub fn keeper_main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let mut end_with_parent = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--end-with-parent" => match arguments.next().and_then(|pid| pid.parse().ok()) {
                Some(parent) => end_with_parent = Some(parent),
                None => {
                    eprintln!("keeper: --end-with-parent wants a process id");
                    return ExitCode::from(2);
                }
            },
            "--" => break,
            other => {
                eprintln!("keeper: unknown argument {other}");
                return ExitCode::from(2);
            }
        }
    }
    keeper::run(keeper::Options { supervisor_arguments: arguments.collect(), end_with_parent })
}

/// `atoll supervisor [--manifest FILE] [--set COMPONENT.KEY=VALUE]…`: the whole of its `main`, in the state directory.
pub fn supervisor_main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let (mut manifest, mut sets) = (None, Vec::new());
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--manifest", Some(path)) => manifest = Some(PathBuf::from(path)),
            ("--set", Some(set)) => sets.push(set),
            (other, _) => {
                eprintln!("supervisor: unknown argument {other}");
                return ExitCode::from(2);
            }
        }
    }
    crate::node::run(manifest.as_deref(), &sets)
}
