//! The manifest: which components exist, who may call whom with which rights.
//!
//! * [`Manifest::load`] reads, applies `--set`, checks all of it, and reports every problem at once.
//! * Nothing here starts, opens or creates anything: a [`Checked`] system is plain data that can be stored.
//! * Names become data only after their check: component, use and endpoint names are short lower-case words.

use std::path::{Path, PathBuf};

use kernel_ipc::rights::Rights;
use serde::{Deserialize, Serialize};

use crate::keeper::wire::ARGUMENT;
use crate::report::{Fact, Report};
use crate::ties::Restart;

/// The system that runs when no manifest is named.
pub const EMBEDDED: &str = include_str!("../../systems/web.toml");

/// Where a manifest comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// A file. Programs are looked for from its directory on.
    Path(&'a Path),
    /// The one in this binary, `systems/web.toml`.
    Embedded,
    /// A text, shown in errors under this name.
    Text {
        /// What errors call it.
        name: &'a str,
        /// The TOML.
        text: &'a str,
    },
}

/// A system whose every name, right, interface and value has been checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The system's name.
    pub system: String,
    /// Nodes whose operators may do on each node what that one's own may.
    #[serde(default)]
    pub operators: Vec<String>,
    /// The components, each after all those that it uses.
    pub components: Vec<Component>,
}

/// One component, ready to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its name in the manifest.
    pub name: String,
    /// What it runs.
    pub run: Run,
    /// Its configuration: an object, sizes as numbers of bytes, defaults filled in.
    pub config: serde_json::Value,
    /// What it may connect to.
    pub uses: Vec<Use>,
    /// The endpoints that it serves.
    pub provides: Vec<Provide>,
    /// Who is restarted with it.
    pub restart: Restart,
    /// The group that is restarted together, if it is in one.
    pub group: Option<String>,
    /// So many seconds without a sign of life, of its processor time or of waiting, make it count as hung.
    pub hung_after_seconds: u32,
    /// Calls that have waited unread for so many milliseconds are refused as busy. `None`: however long they wait.
    pub refuse_after_ms: Option<u32>,
    /// Its sessions are spread over so many threads.
    pub reactors: u32,
    /// The node that it runs on; `None`: where the system is started. Either all components of a system have one, or none.
    pub node: Option<String>,
}

/// What a component runs; as text, what a manifest says: `builtin:NAME` or `program:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Run {
    /// A part of the `atoll` binary (`atoll serve NAME`), for example `block-file`.
    Builtin(String),
    /// Any other program that takes its control socket ([`kernel_ipc::component::run`]), by its absolute path.
    Program(PathBuf),
}

impl Run {
    /// Its name, if it is a part of the `atoll` binary.
    pub fn builtin(&self) -> Option<&str> {
        match self {
            Run::Builtin(name) => Some(name),
            Run::Program(_) => None,
        }
    }

    /// What its process is started with.
    pub fn arguments(&self) -> Vec<&str> {
        match self {
            Run::Builtin(name) => vec!["atoll", SERVE, name],
            Run::Program(path) => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                vec![if name.len() < ARGUMENT { name } else { "program" }]
            }
        }
    }
}

/// The word that tells an `atoll` which component to be.
pub const SERVE: &str = "serve";

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Run::Builtin(name) => write!(f, "builtin:{name}"),
            Run::Program(path) => write!(f, "program:{}", path.display()),
        }
    }
}

impl From<Run> for String {
    fn from(run: Run) -> String {
        run.to_string()
    }
}

impl TryFrom<String> for Run {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Run, Self::Error> {
        match text.split_once(':') {
            Some(("builtin", name)) => Ok(Run::Builtin(name.into())),
            Some(("program", path)) => Ok(Run::Program(path.into())),
            _ => Err("neither builtin:NAME nor program:PATH"),
        }
    }
}

impl Checked {
    /// The node on which a component runs.
    pub fn node_of(&self, component: &str) -> Option<&str> {
        self.components.iter().find(|known| known.name == component)?.node.as_deref()
    }
}

/// Permission to connect to one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Use {
    /// What the component calls it (`cx.connect(name)`).
    pub name: String,
    /// The component that serves it.
    pub component: String,
    /// The endpoint's name there.
    pub endpoint: String,
    /// Its interface with version, for example `atoll.fs/1`.
    pub interface: String,
    /// The granted rights.
    pub rights: Rights,
    /// What narrows the root capability: `{"path": "/www"}`, `{"tcp": "127.0.0.1:8080"}` or `{}`.
    pub attenuation: serde_json::Value,
}

/// One served endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provide {
    /// The endpoint's name (`cx.provide(name, …)`).
    pub name: String,
    /// Its interface with version.
    pub interface: String,
}

/// The entry point to reading manifests.
#[derive(Debug)]
pub struct Manifest;

impl Manifest {
    /// Reads the manifest at `origin`, applies each `component.key=VALUE` of `sets` to it, and checks all of it.
    ///
    /// Blocks for reading the file; opens nothing that the manifest names.
    ///
    /// # Errors
    /// Every problem found, each with its place.
    pub fn load(origin: Origin<'_>, sets: &[String]) -> Result<Checked, Report> {
        crate::check::check(crate::parse::parse(origin, sets)?)
    }

    /// What would be wrong with a manifest if a component of it were on another node, and is not now: a line each.
    ///
    /// Blocks as [`load`](Manifest::load).
    pub fn problems_if_moved(origin: Origin<'_>, sets: &[String], component: &str, node: &str) -> Vec<String> {
        let problems = |place: Option<String>| -> Vec<String> {
            let checked = crate::parse::parse(origin, sets).and_then(|mut raw| {
                let moved = raw.components.iter_mut().find(|raw| raw.name.text == component);
                if let (Some(place), Some(word)) = (place, moved.and_then(|raw| raw.place.as_mut())) {
                    word.text = place;
                }
                crate::check::check(raw)
            });
            let line = |fact: Fact| match fact.label {
                Some(label) => format!("{}: {label}", fact.message),
                None => fact.message,
            };
            checked.err().map_or_else(Vec::new, |report| report.facts().into_iter().map(line).collect())
        };
        let now = problems(None);
        let mut then = problems(Some(format!("node:{node}")));
        then.retain(|problem| !now.contains(problem));
        then
    }
}
