//! A lab for a test: `atoll lab up` with two nodes, in namespaces where this user may have them, else on addresses of the loopback.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use super::network::enter;
use super::{Reply, System, get, signal};

/// A lab that runs.
pub struct Lab {
    process: Child,
    said: BufReader<ChildStdout>,
    /// What it said when it was up.
    pub facts: Value,
    pub a: System,
    pub b: System,
    directory: tempfile::TempDir,
}

/// `atoll lab …` on a state directory, not yet started.
pub fn command(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.arg("lab").args(arguments).env("ATOLL_STATE", state).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

impl Lab {
    /// With these arguments of `up`; panics if it does not come up.
    pub fn start(arguments: &[&str]) -> Lab {
        Lab::start_on(tempfile::tempdir().expect("a directory"), arguments)
    }

    /// The same on a directory that had one before.
    pub fn start_on(directory: tempfile::TempDir, arguments: &[&str]) -> Lab {
        let mut command = command(directory.path(), &["up", "--json"]);
        command.args(arguments).args(["--set", "httpd.listen=127.0.0.1:0"]).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the binary runs");
        let said = BufReader::new(process.stdout.take().expect("it is piped"));
        let [a, b] = ["a", "b"].map(|name| System::on(directory.path().join("lab").join(name)));
        let mut lab = Lab { process, said, facts: Value::Null, a, b, directory };
        lab.facts = lab.hear().expect("it says what there is");
        lab
    }

    /// The next thing that it says.
    fn hear(&mut self) -> serde_json::Result<Value> {
        Value::deserialize(&mut serde_json::Deserializer::from_reader(&mut self.said))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a pid")
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        self.directory.path()
    }

    /// The name of the namespace of a node (0, 1).
    pub fn namespace(&self, node: usize) -> Option<&str> {
        self.facts["nodes"][node]["namespace"].as_str()
    }

    /// Does this in the network of a node (0, 1).
    pub fn inside<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(node).map(|name| File::open(Path::new("/run/netns").join(name)));
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                if let Some(namespace) = namespace {
                    enter(&namespace.expect("it is there"));
                }
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line on a node (0, 1), in its network; it must succeed. What it printed.
    pub fn ok(&self, node: usize, arguments: &[&str]) -> String {
        self.inside(node, || [&self.a, &self.b][node].ok(arguments))
    }

    /// GET of a path from httpd, by somebody on its node.
    pub fn get(&self, path: &str) -> Reply {
        let listen = self.b.listen();
        self.inside(1, || get(&listen, path)).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Interrupts it as Ctrl-C does, and waits for its end. Also what it said last: of its relay, if it has one.
    pub fn end(&mut self) -> (ExitStatus, Value) {
        signal(self.pid(), Signal::SIGINT);
        let status = self.process.wait().expect("it is ours");
        let last = self.hear().unwrap_or(Value::Null);
        (status, last)
    }

    /// Waits for an end that somebody else has asked for.
    pub fn end_by_itself(mut self) -> ExitStatus {
        self.process.wait().expect("it is ours")
    }

    /// Kills it as nobody expects it. Its directory stays.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is ours");
        std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a directory"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            signal(self.pid(), Signal::SIGTERM);
            let _ = self.process.wait();
        }
    }
}
