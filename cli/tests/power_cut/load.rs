//! Load on a running system, of which is known what was answered and what was synced, and when.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::component::Context;
use kernel_ipc::interface::Cap;
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::{CallError, Rights};
use protocol::fs::{self, CREATE, LOOKUP, Name, Node, REMOVE};

use crate::common::Random;
use crate::common::power::length;
use crate::history::{Entry, History, Synced, Tree};

/// Where the workers' directories are.
pub const DIRECTORY: &str = "load";
pub const WORKERS: u64 = 4;
/// Names of a worker, and bytes of one of its files.
const NAMES: usize = 10;
const MOST: usize = 20_000;
/// Bytes of one change: they travel in the call.
const PIECE: u64 = 3000;

/// Workers, and one who syncs.
pub struct Load {
    _context: Context,
    client: fs::Client,
    over: Rc<Cell<bool>>,
    tasks: Vec<JoinHandle<()>>,
    history: Rc<RefCell<History>>,
    record: PathBuf,
}

impl Load {
    /// Makes the workers' directories, syncs them, and begins.
    pub async fn start(context: Context, record: PathBuf, seed: u64) -> Load {
        let client: fs::Client = context.connect("fs.root").await.expect("the file system serves");
        let (history, over) = <(Rc<RefCell<History>>, Rc<Cell<bool>>)>::default();
        let mut load = Load { _context: context, client, over, tasks: Vec::new(), history, record };
        let root = load.client.root();
        let above = load.make(root, DIRECTORY).await;
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let directory = load.make(&above, &format!("w{worker}")).await;
            load.history.borrow_mut().workers.push(Vec::new());
            workers.push(Worker {
                client: load.client.clone(),
                history: load.history.clone(),
                record: load.record.clone(),
                number: worker as usize,
                directory,
                random: Random(seed * 100 + worker + 1),
                files: BTreeMap::new(),
                tree: Tree::new(),
                made: 0,
            });
        }
        load.client.sync(load.client.root()).await.expect("it is synced");
        for worker in workers {
            load.tasks.push(runtime::spawn(worker.run(load.over.clone())));
        }
        load.tasks.push(load.keep_syncing(seed));
        load
    }

    async fn make(&self, above: &Cap<Node>, name: &str) -> Cap<Node> {
        self.client.mkdir(above, Name::new(name).expect("a name")).await.expect("a new directory");
        let want = Rights::READ | Rights::WRITE | LOOKUP | CREATE | REMOVE;
        let path = fs::Path::new(name).expect("a name is a path");
        self.client.open(above, path, want).await.expect("it was made").0
    }

    fn keep_syncing(&self, seed: u64) -> JoinHandle<()> {
        let (client, history, over) = (self.client.clone(), self.history.clone(), self.over.clone());
        let (record, mut random) = (self.record.clone(), Random(seed * 100 + 99));
        runtime::spawn(async move {
            while !over.get() {
                runtime::sleep(Duration::from_millis(random.below(80))).await;
                let (asked, began) = (history.borrow_mut().tick(), length(&record));
                let result = client.sync(client.root()).await;
                let synced = Synced { asked, began, position: length(&record) };
                match result {
                    Ok(()) => history.borrow_mut().syncs.push(synced),
                    Err(error) => history.borrow_mut().wrong.push(format!("sync: {error}")),
                }
            }
        })
    }

    /// Everybody ends, in the middle of it.
    pub async fn end(self) -> History {
        self.over.set(true);
        for task in self.tasks {
            let _ = task.await;
        }
        self.history.take()
    }
}

struct Worker {
    client: fs::Client,
    history: Rc<RefCell<History>>,
    record: PathBuf,
    number: usize,
    directory: Cap<Node>,
    random: Random,
    files: BTreeMap<String, Rc<Cap<Node>>>,
    tree: Tree,
    made: u64,
}

impl Worker {
    async fn run(mut self, over: Rc<Cell<bool>>) {
        while !over.get() {
            runtime::sleep(Duration::from_micros(self.random.below(12_000))).await;
            if let Err(wrong) = self.change().await {
                return self.history.borrow_mut().wrong.push(format!("worker {}: {wrong}", self.number));
            }
        }
    }

    /// One change, which this directory can bear.
    async fn change(&mut self) -> Result<(), String> {
        let chosen = self.random.below(16);
        if self.files.is_empty() || (chosen < 4 && self.tree.len() < NAMES) {
            return self.create().await;
        }
        let at = self.random.below(self.files.len() as u64) as usize;
        let (name, node) = self.files.iter().nth(at).map(|(name, node)| (name.clone(), node.clone())).expect("below");
        let bytes = self.tree[&name].clone().expect("a file");
        match chosen {
            _ if bytes.len() > MOST => self.truncate(&name, &node, &bytes, 0).await,
            0..8 => self.write(&name, &node, &bytes).await,
            8 | 9 => {
                let length = [0, bytes.len() + self.random.below(9000) as usize][self.random.below(2) as usize];
                self.truncate(&name, &node, &bytes, length).await
            }
            10 | 11 => self.rename(&name).await,
            12 | 13 => self.remove(&name).await,
            _ => self.directory().await,
        }
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("n{}", self.made)
    }

    /// It is asked for from now on.
    fn ask(&mut self, what: String) {
        let mut history = self.history.borrow_mut();
        let (asked, position) = (history.tick(), length(&self.record));
        let entry = Entry { what, asked, position, answered: None, after: self.tree.clone() };
        history.workers[self.number].push(entry);
    }

    /// It has been answered.
    fn answered<T, E: std::fmt::Display + std::fmt::Debug>(
        &mut self,
        result: Result<T, CallError<E>>,
    ) -> Result<T, String> {
        let mut history = self.history.borrow_mut();
        let tick = history.tick();
        let entry = history.workers[self.number].last_mut().expect("it was asked for");
        let value = result.map_err(|error| format!("{}: {error}", entry.what))?;
        entry.answered = Some(tick);
        Ok(value)
    }

    async fn create(&mut self) -> Result<(), String> {
        let name = self.fresh();
        self.tree.insert(name.clone(), Some(Rc::default()));
        self.ask(format!("create {name}"));
        let made = self.client.create(&self.directory, Name::new(&name).expect("a name"), Rights::WRITE).await;
        let (node, _) = self.answered(made)?;
        self.files.insert(name, Rc::new(node));
        Ok(())
    }

    /// Appends, or writes over what is there.
    async fn write(&mut self, name: &str, node: &Cap<Node>, before: &[u8]) -> Result<(), String> {
        let length = 1 + self.random.below(PIECE) as usize;
        let piece = self.random.bytes(length);
        let appends = self.random.below(3) > 0;
        let at = if appends { before.len() } else { self.random.below(before.len() as u64 + 1) as usize };
        let mut after = before.to_vec();
        after.resize(before.len().max(at + length), 0);
        after[at..at + length].copy_from_slice(&piece);
        self.tree.insert(name.to_owned(), Some(Rc::new(after)));
        self.ask(format!("write {length} bytes to {name} at {at}"));
        if !appends {
            let written = self.client.write(node, at as u64, &piece).await;
            return self.answered(written);
        }
        let appended = self.client.append(node, &piece).await;
        match self.answered(appended)? {
            place if place == at as u64 => Ok(()),
            place => Err(format!("append to {name}: at {place}, not at {at}")),
        }
    }

    async fn truncate(&mut self, name: &str, node: &Cap<Node>, before: &[u8], size: usize) -> Result<(), String> {
        let mut after = before.to_vec();
        after.resize(size, 0);
        self.tree.insert(name.to_owned(), Some(Rc::new(after)));
        self.ask(format!("truncate {name} to {size}"));
        let cut = self.client.truncate(node, size as u64).await;
        self.answered(cut)
    }

    async fn rename(&mut self, from: &str) -> Result<(), String> {
        let to = self.fresh();
        let content = self.tree.remove(from).expect("it is there");
        self.tree.insert(to.clone(), content);
        self.ask(format!("rename {from} to {to}"));
        let names = [from, &to].map(|name| Name::new(name).expect("a name"));
        let moved = self.client.rename(&self.directory, names[0], &self.directory, names[1], false).await;
        self.answered(moved)?;
        let node = self.files.remove(from).expect("it is there");
        self.files.insert(to, node);
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> Result<(), String> {
        self.tree.remove(name);
        self.ask(format!("unlink {name}"));
        let removed = self.client.unlink(&self.directory, Name::new(name).expect("a name")).await;
        self.answered(removed)?;
        self.files.remove(name);
        Ok(())
    }

    /// Removes a directory, or makes one if there is none.
    async fn directory(&mut self) -> Result<(), String> {
        let there = self.tree.iter().find(|(_, content)| content.is_none()).map(|(name, _)| name.clone());
        if let Some(name) = there {
            self.tree.remove(&name);
            self.ask(format!("rmdir {name}"));
            let removed = self.client.rmdir(&self.directory, Name::new(&name).expect("a name")).await;
            return self.answered(removed);
        }
        let name = self.fresh();
        self.tree.insert(name.clone(), None);
        self.ask(format!("mkdir {name}"));
        let made = self.client.mkdir(&self.directory, Name::new(&name).expect("a name")).await;
        self.answered(made).map(drop)
    }
}
