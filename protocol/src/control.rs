//! `atoll.control/1`: what an operator asks the supervisor of a node.
//!
//! Planned client methods (the trait follows as soon as the macro is in):
//! ```text
//! rights: OBSERVE = bit 8, OPERATE = 9                              object: System
//! 1 ps(system, cursor: u32) -> ComponentPage | PsError                      OBSERVE idempotent
//! 2 logs(system, component: &str ("" = all), cursor: u64, max: u32) -> LogPage | LogsError  OBSERVE idempotent
//! 3 down(system) -> () | DownError                                          OPERATE cached
//! 4 restart(system, component: &str) -> () | RestartError                   OPERATE cached
//! ```

/// State of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    Stopped = 5,
    /// Died; will be started again after its back-off.
    Restarting = 6,
    /// Died too often of its own making; stays down until an operator restarts it.
    Quarantined = 7,
}

/// One component as `atoll ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentPage {
    /// Cursor of the next page; `None` after the last.
    pub next: Option<u32>,
    /// The components.
    pub components: Vec<ComponentStatus>,
}

/// Some lines of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// Cursor that continues here.
    pub next: u64,
    /// The log ends here for now.
    pub end: bool,
    /// Whole lines.
    pub text: Vec<u8>,
}

/// Why there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsError {
    /// 1: No page ended with this cursor.
    BadCursor,
}

/// Why there is no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogsError {
    /// 1: The log does not reach this cursor.
    BadCursor,
    /// 2: No component of this name.
    NoSuchComponent,
    /// 3: The log file cannot be read.
    Io,
}

/// Why the system does not go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownError {
    /// 4: It is going down already.
    Stopping,
}

/// Why a component was not restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartError {
    /// 2: No component of this name.
    NoSuchComponent,
    /// 4: The system is going down.
    Stopping,
}
