//! The keeper: the parent of every process of a node. Holds what must outlive them, and has no policy.
//!
//! - It starts the supervisor, and whatever the supervisor asks for by fixed-size [`wire`] records: nothing is parsed.
//! - It notices deaths (before anybody else acts on one, the status page says it), holds the read end of each process's
//!   fence, and tells the supervisor of both.
//! - It holds pin segments until their mapper is fenced, and whatever else the supervisor puts into its [`store`].
//! - If it dies, the kernel kills every process of the node. If the supervisor dies, it ends the node in order: last
//!   started, first stopped.
//! - It never waits for the supervisor: what that one has not read waits in a queue of fixed size. Asked to end by a signal, it
//!   passes the wish on; if the supervisor does not take it up in time, it ends the node in order without it.
//! - Its memory is allocated at the start; its loop allocates nothing but what receiving descriptors takes.

mod end;
mod slots;
mod store;
pub mod wire;

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kernel_ipc::Epoch;
use kernel_ipc::lease::StatusPage;
use kernel_ipc::sys::descriptors;
use kernel_ipc::sys::{futex, segment};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use crate::sys::process::{self, Program};
pub(crate) use slots::MAX_DEAD;
use slots::Slots;
use store::{MAX_RECORDS, Record, Store};
use wire::{ARGUMENTS, Ask, Key, Notice, Request, SLOTS, SUPERVISOR_SLOT, Tell};

/// How the keeper was started.
#[derive(Debug)]
pub struct Options {
    /// The arguments of the supervisor, passed on as they are; without the program's name.
    pub supervisor_arguments: Vec<String>,
    /// End the node in order when this process dies, which has started the keeper.
    pub end_with_parent: Option<i32>,
}

struct Keeper {
    supervisor: OwnedFd,
    signals: SignalFd,
    null: OwnedFd,
    status: StatusPage,
    slots: Slots,
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

/// Runs the keeper until the node has ended. Working directory: the state directory. Descriptor 3, if open, goes to the
/// supervisor (it is where the supervisor reports how the start went).
///
/// Blocks. Needs a single-threaded process.
pub fn run(options: Options) -> ExitCode {
    let report = process::inherited(process::FIRST_INHERITED);
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
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut keeper = Keeper {
            supervisor: ours,
            signals,
            null,
            status: StatusPage::create(SLOTS)?,
            slots: Slots::new(),
            environment: environment(),
            store: Store::new(MAX_RECORDS),
            untold: VecDeque::with_capacity(MAX_UNTOLD),
            heard_by: None,
        };
        keeper.start_supervisor(&options.supervisor_arguments, theirs, report)?;
        Ok(keeper)
    }

    fn start_supervisor(&mut self, arguments: &[String], socket: OwnedFd, report: Option<OwnedFd>) -> io::Result<()> {
        let executable = nix::fcntl::open(
            "/proc/self/exe",
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )?;
        let strings: Vec<CString> = ["atoll", "supervisor"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str))
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        let arguments: Vec<&CStr> = strings.iter().map(CString::as_c_str).collect();
        let environment: Vec<&CStr> = self.environment.iter().map(CString::as_c_str).collect();
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let mut given = vec![self.null.as_fd(), stdout.as_fd(), stderr.as_fd(), socket.as_fd()];
        given.extend(report.as_ref().map(AsFd::as_fd));
        let child = process::spawn(&Program {
            executable: executable.as_fd(),
            arguments: &arguments,
            environment: &environment,
            descriptors: &given,
        })?;
        self.slots.started(SUPERVISOR_SLOT, 1, child, None);
        self.lives(SUPERVISOR_SLOT, 1);
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
            if ready.signals && self.signals_came() {
                return self.end_in_order(1);
            }
            if ready.fences {
                self.fences_ended();
            }
            if self.heard_by.is_some_and(|by| by <= Instant::now()) {
                eprintln!("keeper: the supervisor does not end the node; ending it in order without it");
                return self.end_in_order(1);
            }
            self.tell_untold();
            if self.untold.len() >= MAX_UNTOLD {
                eprintln!("keeper: the supervisor asks and does not read; ending the node in order");
                return self.end_in_order(1);
            }
            if ready.supervisor {
                match self.receive() {
                    Ok(Some((Ask::End, request, _))) => return self.end_now(request.a as u8),
                    Ok(Some((ask @ (Ask::Put | Ask::Take), request, descriptors))) => {
                        self.keep(ask, &request, descriptors);
                    }
                    Ok(Some((ask, request, descriptors))) => self.answer(ask, &request, descriptors),
                    Ok(None) => {}
                    Err(error) => {
                        eprintln!("keeper: the supervisor is gone: {error}");
                        self.reap();
                        return self.end_in_order(1);
                    }
                }
            }
        }
    }

    /// Sleeps until something happens or the time is up.
    fn wait(&self, timeout: PollTimeout) -> io::Result<Ready> {
        // A fixed array: two descriptors and a fence per slot.
        let mut set: [PollFd<'_>; SLOTS as usize + 2] =
            std::array::from_fn(|_| PollFd::new(self.signals.as_fd(), PollFlags::empty()));
        let wants_room = if self.untold.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        set[0] = PollFd::new(self.supervisor.as_fd(), PollFlags::POLLIN | wants_room);
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
        // A millisecond is added because a poll's time is rounded down.
        let left = |by: Instant| by.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        self.heard_by.map_or(PollTimeout::NONE, |by| PollTimeout::try_from(left(by)).unwrap_or(PollTimeout::MAX))
    }

    /// Reads the signals that came and reaps whoever died. True when the supervisor did.
    fn signals_came(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            // One wish at a time, however often it is uttered.
            if signal.ssi_signo != libc::SIGCHLD as u32 && self.heard_by.is_none() {
                self.heard_by = Some(Instant::now() + HEARD_WITHIN);
                self.tell(Notice::new(Tell::Terminate, 0, signal.ssi_signo.into(), 0), None);
            }
        }
        self.reap()
    }

    /// Reaps whoever died: first the status page says it, then the supervisor hears it.
    fn reap(&mut self) -> bool {
        let mut supervisor_died = false;
        while let Some((pid, wait_status)) = process::reap() {
            let Some((slot, epoch)) = self.slots.exited(pid) else {
                continue; // An orphan that we adopted.
            };
            self.died(slot);
            if slot == SUPERVISOR_SLOT {
                eprintln!("keeper: the supervisor died (wait status {wait_status:#x}); ending the node");
                supervisor_died = true;
            }
            self.tell(Notice::new(Tell::Exited, slot, epoch, wait_status as u32 as u64), None);
        }
        supervisor_died
    }

    /// Looks which fences ended: the kernel has let go of everything which those processes gave it.
    fn fences_ended(&mut self) {
        for slot in 0..SLOTS {
            while let Some(epoch) = self.slots.take_ended_fence(slot) {
                self.status.fenced(slot, Epoch(epoch));
                self.tell(Notice::new(Tell::Fenced, slot, epoch, 0), None);
            }
        }
    }

    fn receive(&self) -> io::Result<Option<(Ask, Request, Vec<OwnedFd>)>> {
        let mut bytes = [0; size_of::<Request>()];
        let packet = match descriptors::receive(self.supervisor.as_fd(), &mut bytes, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            packet => packet?,
        };
        let request =
            Request::read_from_bytes(&bytes).ok().filter(|_| packet.length == bytes.len() && !packet.truncated);
        let (ask, request) = request
            .and_then(|request| Some((request.ask()?, request)))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "end of file or no request"))?;
        Ok(Some((ask, request, packet.descriptors)))
    }

    /// Does what was asked, and replies exactly once.
    fn answer(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) {
        let slot = request.slot;
        let outcome = if slot >= SLOTS { Err(Errno::EINVAL.into()) } else { self.carry_out(ask, request, descriptors) };
        match outcome {
            Ok(Reply { notice, descriptor }) => self.tell(notice, descriptor),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                self.tell(Notice::new(Tell::Failed, slot, errno as u64, 0), None);
            }
        }
    }

    /// Puts a record or takes it away.
    fn keep(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) {
        let kept = match (ask, request.key()) {
            (_, None) => Err(Errno::EINVAL),
            (Ask::Take, Some(key)) => {
                self.store.take(&key);
                Ok(())
            }
            (_, Some(key)) => {
                let descriptor = descriptors.into_iter().next();
                self.store.put(Record { key, tag: request.tag(), descriptor })
            }
        };
        if let Err(errno) = kept {
            eprintln!("keeper: a record of the supervisor is not kept: {errno}");
        }
    }

    fn carry_out(&mut self, ask: Ask, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<Reply> {
        let Request { slot, a, b, .. } = *request;
        let done = |a, descriptor| Ok(Reply { notice: Notice::new(Tell::Done, slot, a, 0), descriptor });
        match ask {
            Ask::Spawn => {
                if !self.slots.is_free(slot, MAX_DEAD) {
                    return Err(Errno::EBUSY.into());
                }
                let (fence, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                let child = self.spawn(request, &descriptors)?;
                let pid = child.pid as u64;
                self.slots.started(slot, a, child, Some(fence));
                done(pid, Some(end))
            }
            Ask::Guest => {
                if !self.slots.is_free(slot, 0) {
                    return Err(Errno::EBUSY.into());
                }
                let (fence, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                self.slots.guest(slot, a, fence);
                self.lives(slot, a);
                done(0, Some(end))
            }
            Ask::GuestGone => {
                self.slots.guest_gone(slot);
                self.died(slot);
                done(0, None)
            }
            Ask::Lives => {
                // Not for one that died while the request was on its way.
                if self.slots.lives(slot, a) {
                    self.lives(slot, a);
                }
                done(0, None)
            }
            Ask::Signal => {
                let signal = i32::try_from(a).map_err(|_| Errno::EINVAL)?;
                process::signal(self.slots.pidfd(slot).ok_or(Errno::ESRCH)?, signal)?;
                done(0, None)
            }
            Ask::Memory => {
                let memory = segment::memfd("pins")?;
                segment::set_len(&memory, usize::try_from(a).map_err(|_| Errno::EINVAL)?)?;
                self.slots.keep(slot, b, memory.try_clone()?)?;
                done(0, Some(memory))
            }
            Ask::ReaderGone => {
                self.slots.reader_gone(slot, b);
                done(0, None)
            }
            Ask::List => {
                let (record, next) = self.store.next(a).ok_or(Errno::ENOENT)?;
                let Key { kind, slot, number } = record.key;
                let mut notice = Notice::new(Tell::Done, slot, number, kind.into());
                (notice.c, notice.tag) = (next, record.tag);
                Ok(Reply { notice, descriptor: record.descriptor.as_ref().map(OwnedFd::try_clone).transpose()? })
            }
            Ask::Ending => {
                self.heard_by = None;
                done(0, None)
            }
            Ask::Status => done(0, Some(self.status.fd().try_clone_to_owned()?)),
            // Handled in the loop.
            Ask::Put | Ask::Take | Ask::End => Err(Errno::EINVAL.into()),
        }
    }

    fn spawn(&self, request: &Request, descriptors: &[OwnedFd]) -> io::Result<process::Child> {
        let [executable, control, stdout, stderr] = descriptors else {
            return Err(Errno::EINVAL.into());
        };
        let mut arguments = [c""; ARGUMENTS];
        let used = (request.arguments as usize).min(ARGUMENTS);
        for (to, from) in arguments.iter_mut().zip(&request.strings) {
            *to = CStr::from_bytes_until_nul(from).map_err(|_| Errno::EINVAL)?;
        }
        let mut environment = [c""; process::MAX_STRINGS];
        for (to, from) in environment.iter_mut().zip(&self.environment) {
            *to = from;
        }
        process::spawn(&Program {
            executable: executable.as_fd(),
            arguments: &arguments[..used],
            environment: &environment[..self.environment.len()],
            descriptors: &[self.null.as_fd(), stdout.as_fd(), stderr.as_fd(), control.as_fd()],
        })
    }

    /// Tells the supervisor, now or when its socket has room. If it is gone, the loop or SIGCHLD finds out.
    fn tell(&mut self, notice: Notice, descriptor: Option<OwnedFd>) {
        self.untold.push_back((notice, descriptor));
        self.tell_untold();
    }

    fn tell_untold(&mut self) {
        while let Some((notice, descriptor)) = self.untold.front() {
            let given = descriptor.as_ref().map(AsFd::as_fd);
            match descriptors::send(self.supervisor.as_fd(), notice.as_bytes(), given.as_slice(), false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => eprintln!("keeper: cannot tell the supervisor: {error}"),
                Ok(()) => {}
            }
            self.untold.pop_front();
        }
    }

    fn lives(&self, slot: u32, epoch: u64) {
        self.status.lives(slot, Epoch(epoch));
    }

    /// The status page says that nothing lives in `slot`, and whoever sleeps on its word is woken.
    fn died(&self, slot: u32) {
        self.status.died(slot);
        if let Some(word) = self.status.word(slot) {
            futex::wake(word, i32::MAX);
        }
    }
}

/// What a request is answered with.
struct Reply {
    notice: Notice,
    descriptor: Option<OwnedFd>,
}

struct Ready {
    supervisor: bool,
    signals: bool,
    fences: bool,
}

/// What components see of this process's environment.
fn environment() -> Vec<CString> {
    ["ATOLL_LOG", "RUST_BACKTRACE", "NO_COLOR"]
        .into_iter()
        .filter_map(|name| CString::new(format!("{name}={}", std::env::var(name).ok()?)).ok())
        .collect()
}
