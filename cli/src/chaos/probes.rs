//! Users of the running system, who note how long everything takes.
//!
//! * One reads the disk, one looks up the root of the file system, one asks the web server: each one call after the other.
//! * A call that takes long is a stall of whoever made it; one that fails is what a user was to be spared.

use std::cell::RefCell;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernel_ipc::component::Context;
use kernel_ipc::runtime;
use protocol::{block, fs};

use super::work::Tally;

/// Pause between two calls of one user.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a request to the web server may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A call that some user made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub begin: Instant,
    pub end: Instant,
}

/// The calls of one user, in their order.
pub type Calls = Rc<RefCell<Vec<Call>>>;

/// How long whoever called next, or had called already, waited from `from` on. Only calls that began before `until` count.
pub fn stall(calls: &[Call], from: Instant, until: Instant) -> Duration {
    // They are in order, so those that matter are at the end of what ended before `from`.
    let first = calls.partition_point(|call| call.end < from);
    let waited = calls[first..].iter().take_while(|call| call.begin < until);
    waited.map(|call| call.end - call.begin.max(from)).max().unwrap_or_default()
}

/// Calls the endpoints that are there, until `over`.
pub async fn start(context: &Context, over: Rc<std::cell::Cell<bool>>, tally: Rc<Tally>) -> Vec<Calls> {
    let mut all = Vec::new();
    if let Ok(disk) = context.connect::<block::Client>("disk.disk").await {
        let read = move || {
            let disk = disk.clone();
            async move { disk.read(disk.root(), 0, 1).await.map(drop).map_err(|error| error.to_string()) }
        };
        all.push(repeat(over.clone(), tally.clone(), "disk", read));
    }
    if let Ok(files) = context.connect::<fs::Client>("fs.root").await {
        let path = fs::Path::new(b"").expect("the root's path");
        let look = move || {
            let files = files.clone();
            async move { files.lookup(files.root(), path).await.map(drop).map_err(|error| error.to_string()) }
        };
        all.push(repeat(over, tally, "fs", look));
    }
    all
}

fn repeat<F>(
    over: Rc<std::cell::Cell<bool>>,
    tally: Rc<Tally>,
    who: &'static str,
    call: impl Fn() -> F + 'static,
) -> Calls
where
    F: Future<Output = Result<(), String>> + 'static,
{
    let calls = Calls::default();
    let kept = calls.clone();
    drop(runtime::spawn(async move {
        while !over.get() {
            let begin = Instant::now();
            tally.called(call().await.map_err(|error| format!("{who}: {error}")));
            kept.borrow_mut().push(Call { begin, end: Instant::now() });
            runtime::sleep(PAUSE).await;
        }
    }));
    calls
}

/// A user of the web server, on a thread of its own, as any browser is.
pub struct Browser {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

/// What a browser saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub calls: Vec<Call>,
    /// Requests whose connection was refused or cut off, or that had no answer in time.
    pub broken: u64,
}

impl Browser {
    /// Asks for `/` again and again.
    pub fn start(address: SocketAddr) -> Browser {
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicBool::new(false)));
        let (kept, ended) = (seen.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            // Relaxed: a flag, nothing is told by it.
            while !ended.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let answered = ask(address);
                let mut seen = kept.lock().expect("nobody panics with it");
                seen.broken += u64::from(!answered);
                seen.calls.push(Call { begin, end: Instant::now() });
                drop(seen);
                std::thread::sleep(PAUSE);
            }
        });
        Browser { seen, over, thread }
    }

    /// Ends it.
    pub fn end(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        std::mem::take(&mut *self.seen.lock().expect("its thread has ended"))
    }
}

/// One request; whether it had a whole answer.
fn ask(address: SocketAddr) -> bool {
    let answer = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    answer().is_ok_and(|answer| is_whole(&answer))
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    head.starts_with("http/1.1 ") && !head.starts_with("http/1.1 5") && length == Some(answer.len() - end - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_the_longest_wait_that_a_disturbance_saw() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let call = |begin, end| Call { begin: at(begin), end: at(end) };
        let calls = [call(0, 1), call(2, 50), call(51, 52), call(60, 99), call(101, 400)];
        assert_eq!(stall(&calls, at(10), at(55)), Duration::from_millis(40), "from the disturbance on");
        assert_eq!(stall(&calls, at(10), at(100)), Duration::from_millis(40));
        assert_eq!(stall(&calls, at(55), at(100)), Duration::from_millis(39), "the next one's stall is not this one's");
        assert_eq!(stall(&calls, at(500), at(600)), Duration::ZERO);
    }

    #[test]
    fn a_cut_or_broken_answer_is_not_whole() {
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"));
        for bad in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
            b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n",
            b"",
        ] {
            assert!(!is_whole(bad), "{}", String::from_utf8_lossy(bad));
        }
    }
}
