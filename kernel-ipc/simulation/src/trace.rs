//! What happened in a run: a number that two runs of a seed have in common, and, for whoever wants to read it, lines.

use std::cell::{Cell, RefCell};
use std::fmt::Arguments;
use std::rc::Rc;

/// Clones are the same.
#[derive(Clone)]
pub struct Trace(Rc<Inner>);

struct Inner {
    now: Cell<u64>,
    who: Cell<&'static str>,
    hash: Cell<u64>,
    lines: Option<RefCell<Vec<String>>>,
}

impl Trace {
    /// Nothing has happened yet. Lines are kept only if somebody will read them.
    pub fn new(is_read: bool) -> Trace {
        let (now, who, hash) = (Cell::new(0), Cell::new("world"), Cell::new(0xcbf2_9ce4_8422_2325));
        Trace(Rc::new(Inner { now, who, hash, lines: is_read.then(RefCell::default) }))
    }

    /// It is so late, and this process's turn.
    pub fn turn(&self, now: u64, who: &'static str) {
        self.0.now.set(now);
        self.0.who.set(who);
        self.mix(now);
    }

    /// Something that another run of the seed has to have too.
    pub fn mix(&self, what: u64) {
        self.0.hash.set((self.0.hash.get() ^ what).wrapping_mul(0x0100_0000_01b3));
    }

    /// What a reader should know.
    pub fn note(&self, what: Arguments<'_>) {
        if let Some(lines) = &self.0.lines {
            let ms = self.0.now.get() as f64 / 1e6;
            lines.borrow_mut().push(format!("{ms:>12.3} ms  {:<9} {what}", self.0.who.get()));
        }
    }

    /// What two runs have in common.
    pub fn hash(&self) -> u64 {
        self.0.hash.get()
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> Vec<String> {
        self.0.lines.as_ref().map(|lines| lines.borrow().clone()).unwrap_or_default()
    }
}
