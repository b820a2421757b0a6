//! `atoll.control/1`: what an operator asks the supervisor of a node.
//!
//! Served by the supervisor on the endpoint `control`. Everything that is listed is a copy as of one moment.

use kernel_ipc::interface::{OperationError, Wire, interface};

/// What an operator asks the supervisor of a node.
#[interface("atoll.control/1")]
pub trait Control {
    /// The node's system of components.
    type System;

    /// Look at what runs.
    const OBSERVE: Rights = 8;
    /// Stop and restart it.
    const OPERATE: Rights = 9;

    /// Lists components in the manifest's order, from `cursor` on (0: the first).
    #[op(1, requires = OBSERVE, retry = idempotent, deadline = "5s")]
    fn ps(system: System, cursor: u32) -> Result<ComponentPage, PsError>;

    /// Gives whole lines of a component's log (empty name: of all) from `cursor` on (0: the oldest kept), at most `max`
    /// bytes.
    #[op(2, requires = OBSERVE, retry = idempotent, deadline = "5s")]
    fn logs(system: System, component: &str, cursor: u64, max: u32) -> Result<LogPage, LogsError>;

    /// Stops every component in order, then the node. Answered when that has begun; the session ends when it is done.
    #[op(3, requires = OPERATE, retry = cached, deadline = "5s")]
    fn down(system: System) -> Result<(), DownError>;

    /// Stops a component, if it runs, and starts it again; ends its quarantine. Answered when the new run has begun.
    #[op(4, requires = OPERATE, retry = cached, deadline = "30s")]
    fn restart(system: System, component: &str) -> Result<(), RestartError>;

    /// Sends a signal to the process that runs a component now, and says which epoch that is: for those who want to see
    /// what its death, or its silence, does to others.
    #[op(5, requires = OPERATE, retry = cached, deadline = "5s")]
    fn signal(system: System, component: &str, signal: Signal) -> Result<u64, SignalError>;

    /// Says which supervisor answers.
    #[op(6, requires = OBSERVE, retry = idempotent, deadline = "5s")]
    fn supervisor(system: System) -> Result<SupervisorStatus, SupervisorError>;

    /// Lets the supervisor leave its seat to another one, of the program that is found now where this one came from. Answered
    /// before it leaves, with who leaves; this session ends by it. The next one answers when it has taken over.
    #[op(7, requires = OPERATE, retry = cached, deadline = "5s")]
    fn replace_supervisor(system: System) -> Result<SupervisorStatus, SupervisorError>;

    /// Has a component go on in a process of the program at this absolute path, and all its later runs too. Answered when that
    /// serves, or it has turned out that it does not: then the program that has served goes on.
    #[op(8, requires = OPERATE, retry = cached, deadline = "120s")]
    fn upgrade(system: System, component: &str, program: &str) -> Result<Upgrade, UpgradeError>;

    /// Says what moving a component of this node to another one would take, from `cursor` on (0: the first), and changes nothing.
    #[op(9, requires = OBSERVE, retry = idempotent, deadline = "20s")]
    fn plan_move(system: System, component: &str, node: &str, cursor: u32) -> Result<MovePlan, PlanError>;

    /// Ends a component as a restart does, and does not start it again before that is asked for. Answered when it has ended.
    #[op(11, requires = OPERATE, retry = cached, deadline = "30s")]
    fn stop(system: System, component: &str) -> Result<(), StopError>;

    /// Starts a component that is down, whoever is to blame for that. Answered when its run has begun, or at once if it runs.
    #[op(12, requires = OPERATE, retry = cached, deadline = "30s")]
    fn start(system: System, component: &str) -> Result<(), RestartError>;

    /// Stops a component's process where it is, and says which epoch that is.
    #[op(13, requires = OPERATE, retry = cached, deadline = "5s")]
    fn freeze(system: System, component: &str) -> Result<u64, FreezeError>;

    /// Lets a frozen component's process go on, and says which epoch that is.
    #[op(14, requires = OPERATE, retry = cached, deadline = "5s")]
    fn thaw(system: System, component: &str) -> Result<u64, FreezeError>;
}

/// The supervisor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct SupervisorStatus {
    /// Its process id.
    pub pid: u32,
    /// Supervisors before it since the system came up.
    pub restarts: u32,
}

/// Why there is no other supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum SupervisorError {
    /// The system is going down.
    Stopping = 4,
}

/// What has become of an upgrade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum Outcome {
    /// The new program serves.
    #[default]
    Done = 1,
    /// The component does not serve, so there is nothing to be gone on with.
    NotReady = 2,
    /// Its runs leave nothing to the next one: its clients would feel it.
    KeepsNothing = 3,
    /// There is no such program, or it may not be executed.
    NoProgram = 4,
    /// The program cannot go on: it says so, or has ended in its self-check.
    Unfit = 5,
    /// Calls are under way that nobody could make again, and that do not end.
    Busy = 6,
    /// The new program has not come to serve; the one before it serves again.
    RolledBack = 7,
}

/// An upgrade that was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct Upgrade {
    /// What has become of it.
    pub outcome: Outcome,
    /// Why it is not done; empty if it is.
    pub why: String,
    /// Incarnation number of the component's endpoints now.
    pub epoch: u64,
    /// How long the program's start and self-check took, beside the run that served, in microseconds.
    pub checked_us: u64,
    /// How long that took to end what was under way, likewise.
    pub drained_us: u64,
    /// How long the new run took from then on until it served, likewise.
    pub restored_us: u64,
}

/// Why no upgrade was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum UpgradeError {
    /// No component of this name.
    NoSuchComponent = 2,
    /// The system is going down.
    Stopping = 4,
    /// Another upgrade of this component is under way.
    UnderWay = 6,
}

/// What stands against moving a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum StopKind {
    /// It does not serve.
    NotReady = 1,
    /// Its runs leave nothing to the next one.
    KeepsNothing = 2,
    /// It holds what only this machine's kernel knows.
    KernelSocket = 3,
    /// Its configuration names a file of this machine.
    Path = 4,
    /// No manifest could place it there.
    Manifest = 5,
    /// The other node does not answer.
    Unreachable = 6,
}

/// One thing that stands against moving a component.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Stop {
    /// What kind of thing.
    pub kind: StopKind,
    /// What it is, one sentence.
    pub what: String,
}

/// What carries sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum Carrier {
    /// Memory of one machine.
    SharedMemory = 1,
    /// A TLS connection between two.
    Socket = 2,
}

/// A component's right to use an endpoint, and what becomes of its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Edge {
    /// Who uses it.
    pub client: String,
    /// The endpoint, "component.endpoint".
    pub endpoint: String,
    /// Its interface.
    pub interface: String,
    /// How many sessions are open now, as far as this node knows.
    pub sessions: u32,
    /// What carries them now.
    pub now: Carrier,
    /// What would carry them then.
    pub then: Carrier,
}

/// What moving a component would take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct MovePlan {
    /// The node on which it runs.
    pub from: String,
    /// How long a call to the supervisor of the other node took just now, the shortest of some, in microseconds; 0: it did not
    /// answer.
    pub round_trip_us: u64,
    /// What stands against it.
    pub stops: Vec<Stop>,
    /// What becomes of each edge.
    pub edges: Vec<Edge>,
    /// Cursor of the next page; `None` after the last.
    pub next: Option<u32>,
}

/// Why it is not said what moving a component would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum PlanError {
    /// No page ended with this cursor.
    BadCursor = 1,
    /// No component of this name runs on this node.
    NoSuchComponent = 2,
    /// The system is going down.
    Stopping = 4,
    /// This state directory is no node of a cluster.
    NoCluster = 7,
    /// The cluster has no node of this name, as far as this one knows.
    NoSuchNode = 8,
    /// It runs on that node.
    SameNode = 9,
}

/// What a component can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum Signal {
    /// It dies at once, by somebody else's hand.
    Kill = 1,
    /// It stops where it is.
    Stop = 2,
    /// It goes on.
    Continue = 3,
    /// It dies as by a bug of its own.
    Abort = 4,
}

/// State of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum State {
    /// Waits for what it uses.
    Waiting = 1,
    /// Started, has not said that it is ready.
    Starting = 2,
    /// Serves.
    Ready = 3,
    /// Was asked to stop.
    Stopping = 4,
    /// Ended in order.
    Ended = 5,
    /// Died; will be started again after its back-off.
    Restarting = 6,
    /// Died too often of its own making; stays down until an operator restarts it.
    Quarantined = 7,
    /// Somebody has stopped its process (`kill -STOP`): it goes on when it is told to.
    Stopped = 8,
    /// Uses the processor and looks at nothing: it will be killed and started again if it goes on like that.
    Hung = 9,
    /// Waits for something that does not come, uses no processor and looks at nothing: likewise.
    Blocked = 10,
    /// An operator has stopped it; stays down until an operator starts it.
    Down = 11,
    /// An operator has frozen it: it goes on when an operator thaws it.
    Frozen = 12,
}

/// One component as `atoll ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct ComponentStatus {
    /// Its name in the manifest.
    pub name: String,
    /// Process id; 0 when none runs.
    pub pid: u32,
    /// What it is doing.
    pub state: State,
    /// Incarnation number of its endpoints.
    pub epoch: u64,
    /// Times that it was started again since the system came up.
    pub restarts: u32,
    /// Where it runs ("process").
    pub place: String,
    /// "host:port" where it listens; empty when nowhere.
    pub listen: String,
    /// Payload bytes that it lent.
    pub leased_bytes: u64,
    /// Payload bytes that it read to verify.
    pub verified_bytes: u64,
    /// Payload bytes that it copied.
    pub copied_bytes: u64,
    /// The last thing that went wrong, one sentence; empty when nothing did.
    pub trouble: String,
}

/// Some components, in the manifest's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct ComponentPage {
    /// Cursor of the next page; `None` after the last.
    pub next: Option<u32>,
    /// The components.
    pub components: Vec<ComponentStatus>,
}

/// Some lines of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct LogPage {
    /// Cursor that continues here.
    pub next: u64,
    /// The log ends here for now.
    pub end: bool,
    /// Whole lines.
    pub text: Vec<u8>,
}

/// Why there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum PsError {
    /// No page ended with this cursor.
    BadCursor = 1,
}

/// Why there is no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum LogsError {
    /// The log does not reach this cursor.
    BadCursor = 1,
    /// No component of this name.
    NoSuchComponent = 2,
    /// The log file cannot be read.
    Io = 3,
}

/// Why the system does not go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum DownError {
    /// It is going down already.
    Stopping = 4,
}

/// Why a component was not restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum RestartError {
    /// No component of this name.
    NoSuchComponent = 2,
    /// The system is going down.
    Stopping = 4,
}

/// Why a component was not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum StopError {
    /// No component of this name.
    NoSuchComponent = 2,
    /// The system is going down.
    Stopping = 4,
    /// The system is coming up: it needs each of its components for that.
    NotUp = 10,
}

/// Why a component is not frozen, or not thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum FreezeError {
    /// No component of this name.
    NoSuchComponent = 2,
    /// The system is going down.
    Stopping = 4,
    /// No run of it serves.
    NotRunning = 5,
}

/// Why a component was sent no signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum SignalError {
    /// No component of this name.
    NoSuchComponent = 2,
    /// No process of it lives.
    NotRunning = 5,
}
