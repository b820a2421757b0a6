//! Work whose every effect is known: files that are made, written, moved, removed and read back, beside a model of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kernel_ipc::component::Context;
use kernel_ipc::interface::Cap;
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::{CallError, Rights};
use protocol::fs::{self, CREATE, EXTENT_MAX, LOOKUP, Name, Node, REMOVE};

use super::plan::Numbers;
use crate::output::Failed;
use crate::why::why;

/// Files at a time of one worker.
const FILES: usize = 12;
/// Directories at a time of one worker.
const DIRECTORIES: usize = 4;
/// Longest piece that is written at a time: it travels in the call.
const PIECE: u64 = 3000;

/// What came of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// Calls that were answered.
    pub answered: Cell<u64>,
    /// Calls that were not, or with what nobody should have to see; and the first few of them.
    pub failed: Cell<u64>,
    pub failures: RefCell<Vec<String>>,
    /// Answers and contents that were not what they had to be.
    pub wrong: RefCell<Vec<String>>,
}

/// Failures that are kept in words.
const KEPT: usize = 8;

impl Tally {
    /// A call has ended.
    pub fn called(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.answered.set(self.answered.get() + 1),
            Err(why) => {
                self.failed.set(self.failed.get() + 1);
                let mut failures = self.failures.borrow_mut();
                if failures.len() < KEPT {
                    failures.push(why);
                }
            }
        }
    }
}

/// Workers, each with a directory of its own, and what they share.
pub struct Work {
    context: Context,
    client: fs::Client,
    tally: Rc<Tally>,
    over: Rc<Cell<bool>>,
    workers: Vec<JoinHandle<()>>,
    directory: String,
}

impl Work {
    /// Starts `workers` in a new directory of the volume.
    ///
    /// # Errors
    /// There is no file system, or it does not take the directory.
    pub async fn start(
        context: &Context,
        workers: u64,
        seed: u64,
        over: Rc<Cell<bool>>,
        tally: Rc<Tally>,
    ) -> Result<Work, Failed> {
        let client: fs::Client = crate::node::connect(context, "fs.root").await?;
        let directory = format!("chaos-{}", std::process::id());
        make(&client, client.root(), &directory).await?;
        let mut work = Work { context: context.clone(), client, tally, over, workers: Vec::new(), directory };
        let above = work.open(&work.directory).await?;
        for worker in 0..workers {
            let name = format!("w{worker}");
            make(&work.client, &above, &name).await?;
            let directory = work.open(&format!("{}/{name}", work.directory)).await?;
            let worker = Worker {
                context: work.context.clone(),
                client: work.client.clone(),
                tally: work.tally.clone(),
                directory,
                numbers: Numbers::new(seed.wrapping_add(worker << 32)),
                model: BTreeMap::new(),
                directories: BTreeSet::new(),
                made: 0,
                lost: false,
            };
            let over = work.over.clone();
            work.workers.push(runtime::spawn(worker.run(over)));
        }
        Ok(work)
    }

    async fn open(&self, path: &str) -> Result<Cap<Node>, Failed> {
        let at = fs::Path::new(path).expect("of our own making");
        let want = Rights::READ | Rights::WRITE | LOOKUP | CREATE | REMOVE;
        self.client.open(self.client.root(), at, want).await.map(|(node, _)| node).map_err(|error| why(&path, &error))
    }

    /// Waits for the workers, who look at everything once more and clear up. What their session saw of deaths.
    pub async fn end(mut self) -> kernel_ipc::session::Resumed {
        let workers = std::mem::take(&mut self.workers);
        let (mut index, resumed) = (0, self.client.root().session().resumed());
        for worker in workers {
            let _ = worker.await;
            if let Ok(above) = self.open(&self.directory).await {
                let name = format!("w{index}");
                let _ = self.client.rmdir(&above, Name::new(&name).expect("of our own making")).await;
            }
            index += 1;
        }
        // What is left of a worker that went wrong stays to be looked at.
        let _ = self.client.rmdir(self.client.root(), Name::new(&self.directory).expect("of our own making")).await;
        resumed
    }
}

async fn make(client: &fs::Client, parent: &Cap<Node>, name: &str) -> Result<(), Failed> {
    let made = client.mkdir(parent, Name::new(name).expect("of our own making")).await;
    made.map(drop).map_err(|error| why(&name, &error))
}

struct Worker {
    context: Context,
    client: fs::Client,
    tally: Rc<Tally>,
    directory: Cap<Node>,
    numbers: Numbers,
    /// What every file has to hold.
    model: BTreeMap<String, (Rc<Cap<Node>>, Vec<u8>)>,
    /// The directories that are there; nothing is in them.
    directories: BTreeSet<String>,
    made: u64,
    /// Nobody knows any more what has to be there: a call failed.
    lost: bool,
}

impl Worker {
    async fn run(mut self, over: Rc<Cell<bool>>) {
        while !over.get() && !self.lost {
            match self.numbers.below(9) {
                _ if self.model.is_empty() => self.create().await,
                0 | 1 if self.model.len() < FILES => self.create().await,
                0..=3 => self.append().await,
                4 => self.rename().await,
                5 => self.remove().await,
                6 => self.directory().await,
                _ => self.read().await,
            }
        }
        let names: Vec<String> = self.model.keys().cloned().collect();
        for name in &names {
            if !self.lost {
                self.compare(name).await;
            }
        }
        if !self.lost {
            self.list().await;
        }
        while !self.lost && !self.model.is_empty() {
            self.remove().await;
        }
        while !self.lost && !self.directories.is_empty() {
            self.remove_directory().await;
        }
    }

    /// What a call came to. After one that failed the worker stops: the model is not to be trusted.
    fn answered<T, E: std::fmt::Debug + std::fmt::Display>(
        &mut self,
        what: &str,
        result: Result<T, CallError<E>>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.tally.called(Ok(()));
                Some(value)
            }
            Err(CallError::Operation(error)) => {
                self.wrong(format!("{what}: {error}"));
                None
            }
            Err(error) => {
                self.tally.called(Err(format!("{what}: {error}")));
                self.lost = true;
                None
            }
        }
    }

    fn wrong(&mut self, what: String) {
        self.tally.wrong.borrow_mut().push(what);
        self.lost = true;
    }

    fn any(&mut self) -> String {
        let at = self.numbers.below(self.model.len() as u64) as usize;
        self.model.keys().nth(at).expect("below the length").clone()
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("f{}", self.made)
    }

    async fn create(&mut self) {
        let name = self.fresh();
        let checked = Name::new(&name).expect("of our own making");
        let made = self.client.create(&self.directory, checked, Rights::READ | Rights::WRITE).await;
        if let Some((node, _)) = self.answered(&format!("create {name}"), made) {
            self.model.insert(name, (Rc::new(node), Vec::new()));
        }
    }

    /// Appends, which done twice would show.
    async fn append(&mut self) {
        let name = self.any();
        let length = 1 + self.numbers.below(PIECE) as usize;
        let piece = self.numbers.bytes(length);
        let (node, content) = self.model.get(&name).expect("it was chosen of these");
        let (node, expected) = (node.clone(), content.len() as u64);
        let appended = self.client.append(&node, &piece).await;
        let Some(at) = self.answered(&format!("append to {name}"), appended) else { return };
        if at != expected {
            return self.wrong(format!("append to {name}: at {at}, not at {expected}"));
        }
        self.model.get_mut(&name).expect("still there").1.extend(piece);
    }

    async fn rename(&mut self) {
        let (from, to) = (self.any(), self.fresh());
        let names = [&from, &to].map(|name| Name::new(name).expect("of our own making"));
        let moved = self.client.rename(&self.directory, names[0], &self.directory, names[1], false).await;
        if self.answered(&format!("rename {from} to {to}"), moved).is_some()
            && let Some(file) = self.model.remove(&from)
        {
            self.model.insert(to, file);
        }
    }

    async fn remove(&mut self) {
        let name = self.any();
        let removed = self.client.unlink(&self.directory, Name::new(&name).expect("of our own making")).await;
        if self.answered(&format!("unlink {name}"), removed).is_some() {
            self.model.remove(&name);
        }
    }

    /// Makes one more directory, or removes one.
    async fn directory(&mut self) {
        if self.directories.len() >= DIRECTORIES {
            return self.remove_directory().await;
        }
        let name = self.fresh();
        let made = self.client.mkdir(&self.directory, Name::new(&name).expect("of our own making")).await;
        if self.answered(&format!("mkdir {name}"), made).is_some() {
            self.directories.insert(name);
        }
    }

    async fn remove_directory(&mut self) {
        let Some(name) = self.directories.first().cloned() else { return };
        let removed = self.client.rmdir(&self.directory, Name::new(&name).expect("of our own making")).await;
        if self.answered(&format!("rmdir {name}"), removed).is_some() {
            self.directories.remove(&name);
        }
    }

    async fn read(&mut self) {
        let name = self.any();
        self.compare(&name).await;
    }

    async fn compare(&mut self, name: &str) {
        let (node, content) = self.model.get(name).expect("it was chosen of these");
        let (node, expected) = (node.clone(), content.clone());
        let mut found = Vec::with_capacity(expected.len());
        loop {
            let read = self.client.read(&node, found.len() as u64, EXTENT_MAX).await;
            let Some(read) = self.answered(&format!("read {name}"), read) else { return };
            let Some(lease) = read else { break };
            let mut bytes = vec![0; usize::try_from(lease.len()).unwrap_or(0)];
            let copied = self.context.holder().borrow().read(&lease.name(), 0, &mut bytes);
            // A lease that ended between its answer and its use is asked for again.
            if copied.is_ok() {
                found.extend(bytes);
            }
        }
        if found != expected {
            let at = found.iter().zip(&expected).take_while(|(one, other)| one == other).count();
            self.wrong(format!("read {name}: {} bytes, not {}, or others from {at} on", found.len(), expected.len()));
        }
    }

    /// The directory holds these names and no other.
    async fn list(&mut self) {
        let (mut names, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let page = self.client.readdir(&self.directory, at, u32::MAX).await;
            let Some(page) = self.answered("list", page) else { return };
            let entries = page.entries().filter_map(Result::ok);
            names.extend(entries.map(|entry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned()));
            cursor = page.next;
        }
        names.sort();
        let mut expected: Vec<&String> = self.model.keys().chain(&self.directories).collect();
        expected.sort();
        if !names.iter().eq(expected.iter().copied()) {
            let what = format!("list: {names:?}, not {expected:?}");
            self.wrong(what);
        }
    }
}
