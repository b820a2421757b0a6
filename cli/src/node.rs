//! Being a guest of the node on a state directory.

use std::path::Path;

use kernel_ipc::component::{Client, ConnectError, Context, ContextError};
use kernel_ipc::runtime::{Options, Runtime};

use crate::args::Common;
use crate::output::{Failed, NOTHING_RUNNING};

/// Runs `work` as a guest of the node, with a runtime of its own.
///
/// # Errors
/// Exit code 3 if nothing runs there, or what `work` says.
pub fn visit<T>(common: &Common, work: impl AsyncFnOnce(Context) -> Result<T, Failed>) -> Result<T, Failed> {
    let runtime = Runtime::new(Options::default()).map_err(|error| no_runtime(&error))?;
    runtime.block_on(async {
        let context = Context::guest(&common.state, "atoll").map_err(|error| refused(&common.state, &error))?;
        work(context).await
    })
}

/// Opens a session with `component.endpoint`, or with `control`.
///
/// # Errors
/// The endpoint's name and why not.
pub async fn connect<C: Client>(context: &Context, endpoint: &str) -> Result<C, Failed> {
    context.connect(endpoint).await.map_err(|error| match error {
        ConnectError::Refused { name, error } => {
            Failed::new(format!("{name}: {error}")).help("`atoll ps` shows what runs, `atoll logs` what it said")
        }
        ConnectError::Io(error) => Failed::new(format!("{endpoint}: {error}")),
    })
}

/// Locked in the state directory as long as the node lives.
pub const LOCK: &str = "lock";

/// Whether a node holds the state directory, also one that takes no visitors (yet, or any more).
pub fn is_held(state: &Path) -> bool {
    let lock = std::fs::File::open(state.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// What `atoll` says when a node cannot be visited.
fn refused(state: &Path, error: &ContextError) -> Failed {
    let held = is_held(state);
    let state = state.display();
    match error {
        ContextError::NothingRunning if held => {
            Failed::new(format!("the system on {state} is starting or ending")).help("try again in a moment")
        }
        ContextError::NothingRunning => {
            Failed { code: NOTHING_RUNNING, ..Failed::new(format!("nothing runs on {state}")) }
                .help("start it with `atoll up`, or name its directory with --state DIR")
        }
        ContextError::Rejected(reason) => Failed::new(format!("the system on {state} refused: {reason}")),
        ContextError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Failed::new(format!("{state} is another user's")).help("only the user who runs a system may talk to it")
        }
        other => Failed::new(format!("cannot talk to the system on {state}: {}", other)),
    }
}

/// What `atoll` says when there is no runtime.
pub fn no_runtime(error: &std::io::Error) -> Failed {
    let failed = Failed::new(format!("cannot set up io_uring: {error}"));
    match error.raw_os_error() {
        Some(libc_errno::EPERM | libc_errno::ENOSYS) => {
            failed.help("this kernel or container forbids it: see /proc/sys/kernel/io_uring_disabled")
        }
        _ => failed,
    }
}

/// The two error numbers that are told apart here.
mod libc_errno {
    pub const EPERM: i32 = 1;
    pub const ENOSYS: i32 = 38;
}
