//! What components print: captured line by line into `STATE/logs/NAME.log`, with time stamps.
//!
//! - A component's standard output and error are one pipe; the supervisor reads it, so a component that prints never
//!   waits for a disk, only for the supervisor.
//! - At most [`RATE`] lines a second after a burst of [`BURST`] are kept; how many were dropped is a line of its own.
//! - Every line is also in `STATE/system.log`, after its component's name: what `atoll logs` shows of all together.
//! - A line is cut at [`LONGEST_LINE`] bytes. A log that reaches [`LONGEST_LOG`] is renamed to `NAME.log.1`, replacing
//!   an older one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kernel_ipc::runtime::io::{File as Readable, poll_readable};

/// Lines a second that a component may go on printing.
pub const RATE: f64 = 200.0;

/// Lines that it may print at once.
pub const BURST: f64 = 1000.0;

/// Bytes of a line, without its time stamp.
pub const LONGEST_LINE: usize = 4096;

/// Bytes of a log file.
pub const LONGEST_LOG: u64 = 16 << 20;

/// Lines that are kept in memory, for the reason of a failed start.
const LAST_LINES: usize = 10;

/// One component's log.
#[derive(Debug)]
pub struct Log {
    name: String,
    path: PathBuf,
    /// Where its lines are repeated.
    system: Option<Rc<Log>>,
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    length: u64,
    limit: Limit,
    last: VecDeque<String>,
}

impl Log {
    /// The log of all components together.
    pub fn of_system(state: &Path) -> Log {
        Log::at(state.join("system.log"), String::new(), None)
    }

    /// The log of the component `name`, in `STATE/logs`. Opened when the first line comes.
    pub fn new(state: &Path, name: &str, system: &Rc<Log>) -> Log {
        Log::at(state.join("logs").join(format!("{name}.log")), name.to_owned(), Some(system.clone()))
    }

    fn at(path: PathBuf, name: String, system: Option<Rc<Log>>) -> Log {
        let inner = Inner { file: None, length: 0, limit: Limit::new(), last: VecDeque::new() };
        Log { name, path, system, inner: RefCell::new(inner) }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the pipe's lines until all its writers are gone.
    pub async fn capture(&self, pipe: OwnedFd) {
        let readable = match pipe.try_clone() {
            Ok(copy) => Readable::from(copy),
            Err(error) => return self.write(&format!("(not captured: {error})")),
        };
        let mut pipe = File::from(pipe);
        let mut lines = Lines::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            // The pipe is read only when something is in it, so that this never blocks.
            if poll_readable(&readable).await.is_err() {
                break;
            }
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => lines.feed(&buffer[..length], |line| self.limited(line)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.write(&format!("(not captured: {error})"));
                    break;
                }
            }
        }
        lines.end(|line| self.limited(line));
        let dropped = self.inner.borrow_mut().limit.take_dropped();
        self.dropped(dropped);
    }

    /// Writes a line of the supervisor's own.
    pub fn note(&self, line: &str) {
        self.write(&format!("atoll: {line}"));
    }

    /// The last lines, oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        self.inner.borrow().last.iter().cloned().collect()
    }

    /// Forgets the last lines: a new run begins.
    pub fn forget_last_lines(&self) {
        self.inner.borrow_mut().last.clear();
    }

    fn limited(&self, line: &str) {
        let admitted = self.inner.borrow_mut().limit.admit(Instant::now());
        if let Some(dropped) = admitted {
            self.dropped(dropped);
            self.write(line);
        }
    }

    fn dropped(&self, lines: u64) {
        if lines > 0 {
            self.write(&format!("atoll: {lines} lines dropped: more than {RATE} a second"));
        }
    }

    fn write(&self, line: &str) {
        if let Some(system) = &self.system {
            system.write(&format!("{}: {line}", self.name));
        }
        let mut inner = self.inner.borrow_mut();
        inner.last.push_back(line.to_owned());
        if inner.last.len() > LAST_LINES {
            inner.last.pop_front();
        }
        if let Err(error) = inner.append(&self.path, line) {
            eprintln!("supervisor: {}: {error}", self.path.display());
            inner.file = None;
        }
    }
}

impl Inner {
    fn append(&mut self, path: &Path, line: &str) -> io::Result<()> {
        if self.length >= LONGEST_LOG {
            self.file = None;
            std::fs::rename(path, path.with_extension("log.1"))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                self.length = file.metadata()?.len();
                none.insert(file)
            }
        };
        let line = format!("{} {line}\n", timestamp(SystemTime::now()));
        file.write_all(line.as_bytes())?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LONGEST_LINE.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.end(&mut line);
            }
        }
    }

    fn end(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            line(&String::from_utf8_lossy(&self.partial));
            self.partial.clear();
        }
    }
}

/// A token bucket that counts what it refuses.
#[derive(Debug)]
struct Limit {
    tokens: f64,
    at: Option<Instant>,
    dropped: u64,
}

impl Limit {
    fn new() -> Limit {
        Limit { tokens: BURST, at: None, dropped: 0 }
    }

    /// Whether a line at `now` is kept; then how many were dropped before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * RATE).min(BURST);
        if self.tokens < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(self.take_dropped())
    }

    fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// `2026-11-22T11:31:30.123Z`.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date, after Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_millis(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_795_347_090_123), "2026-11-22T11:31:30.123Z");
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_their_limit() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        lines.feed(b"one\ntw", |line| seen.push(line.to_owned()));
        lines.feed(b"o\n\xff\n", |line| seen.push(line.to_owned()));
        lines.feed(&vec![b'x'; 3 * LONGEST_LINE], |line| seen.push(line.to_owned()));
        lines.feed(b"\n", |line| seen.push(line.to_owned()));
        lines.feed(b"end", |line| seen.push(line.to_owned()));
        lines.end(|line| seen.push(line.to_owned()));
        assert_eq!(&seen[..3], ["one", "two", "\u{fffd}"]);
        assert_eq!(seen[3].len(), LONGEST_LINE);
        assert_eq!(seen[4], "end");
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let kept = (0..5000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(kept, BURST as usize);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(5000 - BURST as u64));
    }

    #[test]
    fn a_full_log_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("logs")).unwrap();
        let log = Log::new(directory.path(), "disk", &Rc::new(Log::of_system(directory.path())));
        log.note("first");
        log.inner.borrow_mut().length = LONGEST_LOG;
        log.note("second");
        let read = |name: &str| std::fs::read_to_string(directory.path().join("logs").join(name)).unwrap();
        assert!(read("disk.log.1").contains("first"));
        assert!(read("disk.log").contains("second") && !read("disk.log").contains("first"));
        assert_eq!(log.last_lines(), ["atoll: first", "atoll: second"]);
        let system = std::fs::read_to_string(directory.path().join("system.log")).unwrap();
        assert!(system.contains("disk: atoll: first") && system.contains("disk: atoll: second"));
    }
}
