//! Named steps of the protocols, at which a test lets a process die.
//!
//! - A step lies between two things of which others can see the first without the second: [`reach`] says that this process has
//!   come there.
//! - A test puts [`Steps`] into the state directory before it starts the node. It has a row for each process and step: at which
//!   passing from now on the process kills itself, how often it has passed, how often it has died. A node without that file,
//!   and a step without a row, costs a look that finds nothing.
//! - A simulation, whose processes are threads' turns, [hears](hear) of the steps of its own thread instead.
//! - Only builds with debug assertions have any of this, as `cargo test` makes them. In others both functions are empty.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The file's name in the state directory.
const FILE: &str = "steps";

/// A row: `process step`, filled up with zeros, then three numbers.
const ROW: usize = 64;
const NAME: usize = 40;
/// It dies at this passing from now on; 0: at none.
const DIES: u64 = 40;
const PASSED: u64 = 48;
const DIED: u64 = 56;

/// What this process walks through, if anything.
static WALKED: OnceLock<Walked> = OnceLock::new();

/// Hears of steps.
pub type Hears = Rc<dyn Fn(&'static str)>;

thread_local! {
    static HEARS: RefCell<Option<Hears>> = const { RefCell::new(None) };
}

/// Whether this build has steps.
pub const ARE_THERE: bool = cfg!(debug_assertions);

/// From now on `hears` hears of each step that this thread reaches, before anything comes of it; it may unwind.
pub fn hear(hears: Option<Hears>) {
    HEARS.replace(hears);
}

#[cold]
fn tell(step: &'static str) {
    let hears = HEARS.with_borrow(Clone::clone);
    if let Some(hears) = hears {
        hears(step);
    }
}

/// From now on the steps that this process reaches are those of `process`, in the node of this state directory. Once.
pub fn walk(state: &Path, process: &str) {
    if cfg!(debug_assertions)
        && let Ok(walked) = Walked::open(state, process)
    {
        // A second name would change nothing.
        let _ = WALKED.set(walked);
    }
}

/// This process has come to a step. If a test wants it so, it does not come further.
#[inline(always)]
pub fn reach(step: &'static str) {
    if ARE_THERE {
        tell(step);
        if let Some(walked) = WALKED.get() {
            walked.reach(step);
        }
    }
}

/// The rows of one process.
struct Walked {
    file: File,
    rows: Vec<(String, u64)>,
}

impl Walked {
    fn open(state: &Path, process: &str) -> io::Result<Walked> {
        let file = OpenOptions::new().read(true).write(true).open(state.join(FILE))?;
        let mut rows = Vec::new();
        let mut row = [0; ROW];
        for at in (0..file.metadata()?.len()).step_by(ROW) {
            file.read_exact_at(&mut row, at)?;
            let name = String::from_utf8_lossy(&row[..NAME]);
            if let Some((of, step)) = name.trim_end_matches('\0').split_once(' ')
                && of == process
            {
                rows.push((step.to_owned(), at));
            }
        }
        Ok(Walked { file, rows })
    }

    #[cold]
    fn reach(&self, step: &str) {
        if self.passes(step).expect("the test keeps its file") {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }

    /// Counts a passing; whether this process ends by it.
    fn passes(&self, step: &str) -> io::Result<bool> {
        let Some((_, row)) = self.rows.iter().find(|(known, _)| known == step) else { return Ok(false) };
        add(&self.file, row + PASSED)?;
        let left = read(&self.file, row + DIES)?;
        if left > 0 {
            self.file.write_all_at(&(left - 1).to_le_bytes(), row + DIES)?;
        }
        if left == 1 {
            add(&self.file, row + DIED)?;
        }
        Ok(left == 1)
    }
}

/// The test's side: decides who dies where. Each row has one process at a time, which alone writes what it counts.
#[derive(Debug)]
pub struct Steps {
    file: File,
}

impl Steps {
    /// Makes the rows for these processes and steps; they are numbered in this order.
    ///
    /// # Errors
    /// Of making the file; `InvalidInput` for a name that is too long.
    pub fn create<'a>(state: &Path, rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> io::Result<Steps> {
        let mut bytes = Vec::new();
        for (process, step) in rows {
            let name = format!("{process} {step}");
            if name.len() > NAME {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, name));
            }
            let end = bytes.len() + ROW;
            bytes.extend(name.as_bytes());
            bytes.resize(end, 0);
        }
        std::fs::write(state.join(FILE), bytes)?;
        Ok(Steps { file: OpenOptions::new().read(true).write(true).open(state.join(FILE))? })
    }

    /// The process of this row dies at the `n`-th passing from now on; 0: at none.
    ///
    /// # Errors
    /// Of the file.
    pub fn dies(&self, row: usize, n: u64) -> io::Result<()> {
        self.file.write_all_at(&n.to_le_bytes(), (row * ROW) as u64 + DIES)
    }

    /// How often the step was passed, and how often the process died there.
    ///
    /// # Errors
    /// Of the file.
    pub fn count(&self, row: usize) -> io::Result<(u64, u64)> {
        let row = (row * ROW) as u64;
        Ok((read(&self.file, row + PASSED)?, read(&self.file, row + DIED)?))
    }
}

fn read(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

fn add(file: &File, at: u64) -> io::Result<()> {
    file.write_all_at(&(read(file, at)? + 1).to_le_bytes(), at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_dies_at_the_passing_that_was_wanted_and_at_no_other() {
        let state = tempfile::tempdir().unwrap();
        let rows = [("fs", "call/begun"), ("net", "call/begun"), ("fs", "call/served")];
        let steps = Steps::create(state.path(), rows).unwrap();
        let walked = Walked::open(state.path(), "fs").unwrap();
        assert_eq!(walked.rows.len(), 2);
        assert!(!walked.passes("call/begun").unwrap());
        steps.dies(0, 2).unwrap();
        steps.dies(1, 1).unwrap();
        assert!(!walked.passes("call/served").unwrap(), "another step");
        assert!(!walked.passes("call/unknown").unwrap());
        assert!(!walked.passes("call/begun").unwrap());
        // The run that is killed here is followed by another one, which goes on with the count.
        assert!(walked.passes("call/begun").unwrap());
        let next = Walked::open(state.path(), "fs").unwrap();
        assert!(!next.passes("call/begun").unwrap(), "once");
        assert_eq!([0, 1, 2].map(|row| steps.count(row).unwrap()), [(4, 1), (0, 0), (1, 0)]);
    }

    #[test]
    fn a_node_without_the_file_has_no_steps() {
        let state = tempfile::tempdir().unwrap();
        assert!(Walked::open(state.path(), "fs").is_err());
        assert!(Steps::create(state.path(), [("fs", "a/name-that-is-longer-than-a-row-has-room-for")]).is_err());
    }
}
