//! How a component or a guest comes to its [`Context`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::beyond::Beyond;
use super::heritage::{Left, Pins, Survival};
use super::introductions::Introductions;
use super::pulse::Pulse;
use super::reactors::{self, Places, Threads};
use super::waits::Event;
use super::{Context, ContextError, Counters, Error, Inner, control, hand_over};
use crate::SessionId;
use crate::broker::{Channel, ChannelError, EXPORT, Outbox, PROTOCOL, SESSION, ToComponent, ToSupervisor, Welcome};
use crate::lease::StatusReader;
use crate::logbook::Logbook;
use crate::runtime::{Options, Runtime, spawn, tell_of_rest};
use crate::steps;
use crate::sys::descriptors;

/// Runs a component's program: takes the control socket, makes the runtime (with this run's fence), runs `serve`, and
/// tells the supervisor if it fails. The whole of a component's `main`. SIGTERM asks it to end in order.
pub fn run<F, R>(serve: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), Error>>,
{
    match start(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start<F, R>(serve: F) -> Result<(), Error>
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), Error>>,
{
    let socket = descriptors::control_socket().ok_or(ContextError::NotAComponent)?;
    // Before any thread exists, so that none of them takes the signal.
    let mut terminate = SigSet::empty();
    terminate.add(Signal::SIGTERM);
    terminate.thread_block()?;
    let terminate = SignalFd::with_flags(&terminate, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let Greeting { channel, welcome, status, fence, logbook } = greet(socket, "")?;
    steps::walk(Path::new(&welcome.state_dir), &welcome.name);
    steps::reach("restart/greeted");
    let mut left = inherit(&channel, welcome.heritage)?;
    let exports = left.held.extract_if(.., |(name, _)| name.starts_with(EXPORT));
    let exports = exports.map(|(name, socket)| (name[EXPORT.len()..].to_owned(), socket)).collect();
    let sessions = left.held.extract_if(.., |(name, _)| name.starts_with(SESSION));
    let sessions = sessions.filter_map(|(name, memory)| Some((SessionId(name[SESSION.len()..].parse().ok()?), memory)));
    left.beyond = sessions.collect();
    let beyond = Beyond::new(&welcome, exports);
    steps::reach("restart/inherited");
    let mut name = welcome.name.clone();
    name.truncate(15);
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let places = match welcome.reactors {
        0 | 1 => None,
        count => {
            let refuse_after = welcome.refuse_after_ms.map(|limit| Duration::from_millis(limit.into()));
            Some(Places::new(Threads::start(&welcome.name, count, refuse_after, fence.as_fd(), channel.as_fd())?))
        }
    };
    let runtime = Runtime::new(Options { fence: Some(fence), ..Options::default() })?;
    // Without it nobody sees what this run does, which is no reason not to do it.
    let logbook = logbook.and_then(|memory| match Logbook::open(memory, welcome.epoch) {
        Ok(logbook) => Some(logbook),
        Err(error) => {
            tracing::warn!("the logbook cannot be used: {error}");
            None
        }
    });
    let words = last_words();
    let context = Context::new(channel, welcome, status, logbook, places, beyond);
    context.0.left.replace(left);
    let program = async {
        context.attend();
        if !reactors::begin(&context) {
            tell_of_rest(context.0.pulse.clone());
        }
        spawn(control::terminate(context.clone(), terminate));
        until_stopped_early(&context, serve(context.clone())).await
    };
    // A panic ends the process; caught only to say so first.
    let result = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(program)));
    if let Some(places) = &context.0.places {
        places.stop();
    }
    let reason = match &result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => words.lock().map(|words| words.clone()).unwrap_or_default(),
    };
    context.send(&ToSupervisor::Failed { reason: shortened(reason) }, &[]);
    // Blocking is right for last words: the supervisor always reads.
    let _ = context.0.outbox.write_blocking();
    if context.survives() {
        // Here, with everything as it stands: sessions that were closed in order would take back what the next run goes on with.
        if let Ok(Err(error)) = &result {
            eprintln!("error: {error}");
        }
        std::process::exit(if result.is_err() { PANICKED } else { FAILED });
    }
    result.unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// What the process of a component that failed ends with, and that of one that panicked: as Rust ends them.
const FAILED: i32 = 1;
const PANICKED: i32 = 101;

/// Runs `serve`. Until it is ready it has promised nothing to anybody, so it is dropped when the component is asked to
/// end: it may be waiting for a host that does not come back. From then on it hears of it by [`Context::stopped`]. It is
/// dropped too when another reactor has failed.
async fn until_stopped_early(cx: &Context, serve: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let (mut serve, mut stopped, mut failed) = (pin!(serve), pin!(cx.stopped()), pin!(cx.0.failed.wait()));
    std::future::poll_fn(|task| {
        if failed.as_mut().poll(task).is_ready() {
            return Poll::Ready(Err(cx.0.failure.take().unwrap_or_default().into()));
        }
        if let Poll::Ready(result) = serve.as_mut().poll(task) {
            return Poll::Ready(result);
        }
        if !cx.0.ready.get() && stopped.as_mut().poll(task).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// Where the message of a panic will be, beside the process's standard error.
fn last_words() -> Arc<Mutex<String>> {
    let words = Arc::new(Mutex::new(String::new()));
    let (written, before) = (words.clone(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        if let Ok(mut words) = written.lock() {
            *words = info.to_string();
        }
        before(info);
    }));
    words
}

/// At most a page of a reason.
fn shortened(mut reason: String) -> String {
    let mut end = 4096.min(reason.len());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}

/// See [`Context::guest`].
pub(super) fn guest(state: &Path, program: &str) -> Result<Context, ContextError> {
    fn nothing(error: impl Into<std::io::Error>) -> ContextError {
        use std::io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
        let error = error.into();
        match error.kind() {
            NotFound | NotADirectory | ConnectionRefused => ContextError::NothingRunning,
            _ => ContextError::Io(error),
        }
    }
    // Through a descriptor: a socket's path may have 107 bytes only, a directory's 4095.
    let directory = std::fs::File::open(state).map_err(nothing)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), crate::broker::GUEST_SOCKET);
    let address = UnixAddr::new(path.as_str()).map_err(std::io::Error::from)?;
    let until = Instant::now() + GREETED_WITHIN;
    let Greeting { channel, welcome, status, fence, .. } = loop {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .map_err(std::io::Error::from)?;
        connect(socket.as_raw_fd(), &address).map_err(nothing)?;
        match greet(socket, program) {
            // The supervisor died before it had let us in, and another one is about to come; or the node is ending.
            Err(ContextError::NothingRunning) if Instant::now() < until => std::thread::sleep(AGAIN),
            greeted => break greeted?,
        }
    };
    steps::walk(state, "guest");
    // The fence is held until this process ends: a guest gives nobody else's pages to the kernel.
    let context = Context::new(channel, welcome, status, None, None, Beyond::default());
    *context.0.fence.borrow_mut() = Some(fence);
    context.attend();
    Ok(context)
}

/// How long a guest tries to be let in, and the pause between two tries.
const GREETED_WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(20);

/// What comes with a greeting.
struct Greeting {
    channel: Channel,
    welcome: Welcome,
    status: StatusReader,
    fence: OwnedFd,
    logbook: Option<OwnedFd>,
}

/// The first words, of both sides.
fn greet(socket: OwnedFd, program: &str) -> Result<Greeting, ContextError> {
    let channel = Channel::new(socket);
    let lost = |error| match error {
        // A dead supervisor's socket may be connected to until the kernel has taken down its ring.
        ChannelError::Closed => ContextError::NothingRunning,
        error => ContextError::Supervisor(error.to_string()),
    };
    let hello = ToSupervisor::Hello { protocol: PROTOCOL, program: program.to_owned() };
    channel.send_blocking(&hello, &[]).map_err(lost)?;
    let (mut message, mut given) = channel.receive_blocking().map_err(lost)?;
    if let ToComponent::Examine { name, state_dir, segment, left } = &message {
        steps::walk(Path::new(state_dir), name);
        steps::reach("upgrade/examined");
        let answer = hand_over::examine(*segment, left).map_or_else(
            |reason| (ToSupervisor::Failed { reason: reason.clone() }, Err(ContextError::Supervisor(reason))),
            |()| (ToSupervisor::Fits, Ok(())),
        );
        channel.send_blocking(&answer.0, &[]).map_err(lost)?;
        answer.1?;
        // As long as it takes until it is wanted, if it ever is.
        (message, given) = channel.receive_blocking().map_err(lost)?;
    }
    match message {
        ToComponent::Welcome(welcome) => {
            let mut given = given.into_iter();
            let (Some(status), Some(fence)) = (given.next(), given.next()) else {
                return Err(ContextError::Supervisor("a greeting without descriptors".into()));
            };
            let status = StatusReader::open(status)?;
            Ok(Greeting { channel, welcome: *welcome, status, fence, logbook: given.next() })
        }
        ToComponent::Rejected { reason } => Err(ContextError::Rejected(reason)),
        // Another supervisor, which knows as little of us as we of it.
        ToComponent::Adopt { .. } => Err(ContextError::NothingRunning),
        _ => Err(ContextError::Supervisor("it did not greet".into())),
    }
}

/// What the last run left, which comes right behind the greeting.
fn inherit(channel: &Channel, messages: u32) -> Result<Left, ContextError> {
    let mut left = Left::default();
    for _ in 0..messages {
        let (message, given) =
            channel.receive_blocking().map_err(|error| ContextError::Supervisor(error.to_string()))?;
        // The channel has checked the number of descriptors.
        let memory = given.into_iter().next();
        match (message, memory) {
            (ToComponent::Heritage { name }, Some(memory)) => drop(left.memory.insert(name, memory)),
            (ToComponent::Held { name }, Some(held)) => left.held.push((name, held)),
            (ToComponent::Recovers(serve), Some(memory)) => left.sessions.push((*serve, memory)),
            (ToComponent::AttachPins { mapper, epoch, status_entry }, Some(memory)) => {
                left.pins.push(Pins { mapper, epoch, status_entry, memory });
            }
            _ => return Err(ContextError::Supervisor("it does not say what the last run left".into())),
        }
    }
    Ok(left)
}

impl Context {
    fn new(
        channel: Channel,
        welcome: Welcome,
        status: StatusReader,
        logbook: Option<Rc<Logbook>>,
        places: Option<Places>,
        beyond: Beyond,
    ) -> Context {
        let channel = Rc::new(channel);
        let pulse = Rc::new(Pulse::new(channel.clone()));
        Context(Rc::new(Inner {
            pulse,
            outbox: Rc::new(Outbox::new(channel.clone())),
            channel,
            status,
            counters: Rc::new(Counters::default()),
            stop: Event::default(),
            endpoints: RefCell::new(HashMap::new()),
            serving: RefCell::default(),
            hosted: RefCell::new(HashMap::new()),
            used: RefCell::new(HashMap::new()),
            asked: RefCell::new(HashMap::new()),
            publishing: RefCell::new(HashMap::new()),
            reported: RefCell::default(),
            left: RefCell::default(),
            survival: Survival::default(),
            keeping: RefCell::default(),
            next_request: Cell::new(1),
            next_region: Cell::new(0),
            lender: RefCell::new(None),
            introductions: Introductions::new(welcome.incarnation, welcome.epoch),
            ready: Cell::new(false),
            lost: Event::default(),
            places,
            failed: Event::default(),
            failure: RefCell::default(),
            beyond,
            fence: RefCell::new(None),
            books: RefCell::default(),
            sessions_asked: RefCell::default(),
            tracing: RefCell::default(),
            logbook,
            welcome,
        }))
    }

    /// Reads and writes the control socket from now on.
    fn attend(&self) {
        spawn(control::listen(Rc::downgrade(&self.0), self.0.channel.clone()));
        spawn(self.0.outbox.clone().write());
    }

    /// Tells the supervisor something, without blocking: it may be busy, and this thread has clients. If it is gone, the
    /// keeper starts another one, which asks what it has missed; nothing is to be done about it here.
    pub(super) fn send(&self, message: &ToSupervisor, given: &[std::os::fd::BorrowedFd<'_>]) {
        if let Err(error) = self.0.outbox.send(message, given) {
            tracing::debug!("the supervisor did not get a message: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        assert!(shortened("ü".repeat(5000)).len() <= 4096);
    }
}
