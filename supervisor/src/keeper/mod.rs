//! The keeper: the parent of every process of a node. Holds what must outlive them, and has no policy.
//!
//! - It starts the supervisor, and whatever the supervisor asks for by fixed-size [`wire`] records: nothing is parsed.
//! - It notices deaths (before anybody else acts on one, the status page says it), holds the read end of each process's
//!   fence, and tells the supervisor of both.
//! - It holds whatever the supervisor puts into its [`store`].
//! - If it dies, the kernel kills every process of the node. If the supervisor dies, it does all that this one had still asked
//!   for and starts another one, which finds everything running. One that dies again and again by its own making is given up:
//!   then the keeper ends the node in order, last started, first stopped.
//! - It never waits for the supervisor: what that one has not read waits in a queue of fixed size. Asked to end by a signal, it
//!   passes the wish on; if the supervisor does not take it up in time, it ends the node in order without it.
//! - Its memory is allocated at the start; its loop allocates nothing but what receiving descriptors takes.

mod deaths;
mod end;
mod requests;
pub mod seat;
mod slots;
mod spare;
mod store;
pub mod wire;

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kernel_ipc::lease::StatusPage;
use kernel_ipc::sys::descriptors;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use zerocopy::IntoBytes;

use crate::sys::process;
use seat::Seat;
pub(crate) use slots::MAX_DEAD;
use slots::Slots;
pub use store::MAX_RECORDS;
use store::{Record, Store};
use wire::{Ask, Notice, SLOTS, SUPERVISOR_SLOT, Tell};

/// How the keeper was started.
#[derive(Debug)]
pub struct Options {
    /// The arguments of the supervisor, passed on as they are; without the program's name.
    pub supervisor_arguments: Vec<String>,
    /// End the node in order when this process dies, which has started the keeper.
    pub end_with_parent: Option<i32>,
}

struct Keeper {
    seat: Seat,
    signals: SignalFd,
    null: OwnedFd,
    status: StatusPage,
    slots: Slots,
    standby: spare::Standby,
    environment: Vec<CString>,
    store: Store,
    /// What the supervisor's socket has no room for.
    untold: VecDeque<(Notice, Option<OwnedFd>)>,
    /// When it is too late for the supervisor to take up the wish to end.
    heard_by: Option<Instant>,
}

/// How long the supervisor may take to say that it ends the node.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Most notices that the supervisor can be behind with: the replies to all that it may ask before it reads one, two events
/// for each slot, and the wish to end.
const MAX_UNTOLD: usize = 64 + 2 * SLOTS as usize + 1;

/// Runs the keeper until the node has ended. Working directory: the state directory. Descriptor 3, if open, is put into
/// the store (it is where the supervisor reports how the start went).
///
/// Blocks. Needs a single-threaded process.
pub fn run(options: Options) -> ExitCode {
    let report = process::inherited();
    match Keeper::start(options, report) {
        Ok(keeper) => keeper.serve(),
        Err(error) => {
            eprintln!("keeper: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Keeper {
    fn start(options: Options, report: Option<OwnedFd>) -> io::Result<Keeper> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        process::adopt_orphans()?;
        process::raise_descriptors();
        if let Some(parent) = options.end_with_parent {
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            // It may have died before that: then no signal comes.
            if nix::unistd::getppid().as_raw() != parent {
                return Err(io::Error::other("whoever started the node is gone"));
            }
        }
        let _ = nix::sys::prctl::set_name(c"atoll-keeper");

        let null: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
        let mut keeper = Keeper {
            seat: Seat::new(&options.supervisor_arguments)?,
            signals,
            null,
            status: StatusPage::create(SLOTS)?,
            slots: Slots::new(),
            standby: spare::Standby::default(),
            environment: environment(),
            store: Store::new(MAX_RECORDS),
            untold: VecDeque::with_capacity(MAX_UNTOLD),
            heard_by: None,
        };
        if report.is_some() {
            keeper.store.put(Record { key: wire::REPORT, tag: [0; wire::TAG], descriptor: report })?;
        }
        keeper.start_supervisor()?;
        Ok(keeper)
    }

    fn start_supervisor(&mut self) -> io::Result<()> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let environment = &strings(&self.environment)[..self.environment.len()];
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let given = [self.null.as_fd(), stdout.as_fd(), stderr.as_fd(), theirs.as_fd()];
        let child = self.seat.start(environment, &given)?;
        self.seat.link = Some(ours);
        let epoch = self.slots.epoch(SUPERVISOR_SLOT) + 1;
        self.slots.started(SUPERVISOR_SLOT, epoch, child, None);
        self.lives(SUPERVISOR_SLOT, epoch);
        if self.heard_by.is_some() {
            // The wish to end was told to one that is no more.
            self.tell(Notice::new(Tell::Terminate, 0, 0, 0), None);
        }
        Ok(())
    }

    fn serve(mut self) -> ExitCode {
        loop {
            let ready = match self.wait(self.patience()) {
                Ok(ready) => ready,
                Err(error) => {
                    eprintln!("keeper: poll: {error}");
                    return self.end_in_order(1);
                }
            };
            if ready.signals
                && let Some(wait_status) = self.signals_came()
                && let Some(end) = self.supervisor_died(wait_status)
            {
                return self.end(end);
            }
            if ready.fences {
                self.fences_ended();
            }
            if self.heard_by.is_some_and(|by| by <= Instant::now()) {
                eprintln!("keeper: the supervisor does not end the node; ending it in order without it");
                return self.end_in_order(1);
            }
            if self.seat.patience().is_some_and(|left| left.is_zero())
                && let Err(error) = self.start_supervisor()
            {
                eprintln!("keeper: cannot start a supervisor: {error}");
                if self.seat.not_started().is_none() {
                    return self.end(End::GivenUp);
                }
            }
            if let Err(error) =
                self.standby.make_if_due(&strings(&self.environment)[..self.environment.len()], self.null.as_fd())
            {
                eprintln!("keeper: cannot start a spare process: {error}");
            }
            self.tell_untold();
            if self.untold.len() >= MAX_UNTOLD {
                self.supervisor_failed("it asks and does not read");
            }
            if ready.supervisor
                && let Some(end) = self.hear()
            {
                return self.end(end);
            }
        }
    }

    /// Receives one request and does what it asks.
    fn hear(&mut self) -> Option<End> {
        match self.receive() {
            Ok(Some((Ask::End, request, _))) => return Some(End::Wanted(request.a as u8)),
            Ok(Some((Ask::Serving, ..))) => self.seat.serves(),
            Ok(Some((ask @ (Ask::Put | Ask::Take), request, descriptors))) => self.keep(ask, &request, descriptors),
            Ok(Some((ask, request, descriptors))) => self.answer(ask, &request, descriptors),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // It is dying, and if not, of no use.
                self.seat.link = None;
                self.kill(SUPERVISOR_SLOT);
            }
            Err(error) => self.supervisor_failed(&error.to_string()),
        }
        None
    }

    /// The supervisor does what it must not: another one may do better.
    fn supervisor_failed(&mut self, why: &str) {
        eprintln!("keeper: the supervisor is ended: {why}");
        self.seat.at_fault = true;
        self.seat.link = None;
        self.untold.clear();
        self.kill(SUPERVISOR_SLOT);
    }

    /// It is dead. What it had asked for is done; then the next one comes, or the node ends.
    fn supervisor_died(&mut self, wait_status: i32) -> Option<End> {
        while self.seat.link.is_some() && self.readable() {
            if let Some(end) = self.hear() {
                return Some(end);
            }
        }
        self.seat.link = None;
        // Of no interest to the next one, which asks what there is.
        self.untold.clear();
        eprintln!("keeper: the supervisor ended (wait status {wait_status:#x})");
        if self.seat.ended(wait_status).is_none() {
            return Some(End::GivenUp);
        }
        None
    }

    /// Whether the supervisor's socket has something for us, its end included.
    fn readable(&self) -> bool {
        let Some(link) = &self.seat.link else { return false };
        let mut set = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn end(self, end: End) -> ExitCode {
        match end {
            End::Wanted(code) => self.end_now(code),
            End::GivenUp => {
                let trouble = "the supervisor died too often of its own making and was given up";
                eprintln!("keeper: {trouble}; ending the node in order");
                // The last word of this node, for whoever has started it or asks for its end.
                let _ = crate::ended::Ended { troubles: vec![trouble.into()] }.write(std::path::Path::new("."));
                self.end_in_order(1)
            }
        }
    }

    /// Sleeps until something happens or the time is up.
    fn wait(&self, timeout: PollTimeout) -> io::Result<Ready> {
        // A fixed array: two descriptors and a fence per slot.
        let mut set: [PollFd<'_>; SLOTS as usize + 2] =
            std::array::from_fn(|_| PollFd::new(self.signals.as_fd(), PollFlags::empty()));
        let wants_room = if self.untold.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        if let Some(link) = &self.seat.link {
            set[0] = PollFd::new(link.as_fd(), PollFlags::POLLIN | wants_room);
        }
        set[1] = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let mut used = 2;
        for fence in self.slots.fences() {
            // A pipe's read end reports end of file as POLLHUP, whatever is asked for.
            set[used] = PollFd::new(fence, PollFlags::POLLIN);
            used += 1;
        }
        match poll(&mut set[..used], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(Ready {
            supervisor: happened(&set[0]),
            signals: happened(&set[1]),
            fences: set[2..used].iter().any(happened),
        })
    }

    /// How long nothing may happen.
    fn patience(&self) -> PollTimeout {
        let heard = self.heard_by.map(|by| by.saturating_duration_since(Instant::now()));
        let left = [heard, self.seat.patience(), self.standby.patience()].into_iter().flatten().min();
        // A millisecond is added because a poll's time is rounded down.
        let timeout =
            |left: Duration| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match left {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => PollTimeout::ZERO,
            Some(left) => timeout(left),
        }
    }

    /// Tells the supervisor, now or when its socket has room. If it is gone, the loop or SIGCHLD finds out.
    fn tell(&mut self, notice: Notice, descriptor: Option<OwnedFd>) {
        self.untold.push_back((notice, descriptor));
        self.tell_untold();
    }

    fn tell_untold(&mut self) {
        let Some(link) = &self.seat.link else { return self.untold.clear() };
        while let Some((notice, descriptor)) = self.untold.front() {
            let given = descriptor.as_ref().map(AsFd::as_fd);
            match descriptors::send(link.as_fd(), notice.as_bytes(), given.as_slice(), false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is dead: SIGCHLD says so as well.
                Err(_) | Ok(()) => {}
            }
            self.untold.pop_front();
        }
    }
}

/// Why the node ends.
enum End {
    /// The supervisor says so, with this code.
    Wanted(u8),
    /// There is no supervisor.
    GivenUp,
}

struct Ready {
    supervisor: bool,
    signals: bool,
    fences: bool,
}

/// What a program is started with, at most [`process::MAX_STRINGS`].
fn strings(from: &[CString]) -> [&CStr; process::MAX_STRINGS] {
    let mut strings = [c""; process::MAX_STRINGS];
    strings.iter_mut().zip(from).for_each(|(to, from)| *to = from);
    strings
}

/// What components see of this process's environment.
fn environment() -> Vec<CString> {
    ["ATOLL_LOG", "RUST_BACKTRACE", "NO_COLOR"]
        .into_iter()
        .filter_map(|name| CString::new(format!("{name}={}", std::env::var(name).ok()?)).ok())
        .collect()
}
