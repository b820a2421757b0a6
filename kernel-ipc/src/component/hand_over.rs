//! Handing over to the next run of this component: the one may be of another program.
//!
//! - Before: a process that is to be the next run is asked whether it can go on with what this one will leave ([`examine`]).
//! - Then this one holds the calls of all its sessions: they stay unread, in their clients' memory. Those that are under way end,
//!   within a time; and it ends as if it were killed, because an orderly end would close sessions that go on. What the next run goes on
//!   from is what it goes on from after any death, with less to do again.
//! - Calls that can be made again are waited for a moment and no longer, standing ones not at all. One that cannot be keeps the run from
//!   ending: then it reads calls again, and says so.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Context;
use crate::broker::ToSupervisor;
use crate::formats::{self, HEADER};
use crate::runtime::sleep;
use crate::session::UnderWay;
use crate::steps;

/// How long calls that the next run can make again are waited for.
const GRACE: Duration = Duration::from_millis(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(200);

/// What this process answers that is to be a component's next run.
///
/// # Errors
/// What it cannot go on with, for people.
pub(super) fn examine(segment: u32, left: &[(String, [u8; HEADER])]) -> Result<(), String> {
    if segment != formats::SEGMENT {
        return Err(format!(
            "its clients' segments are in version {segment}, and this program takes {}",
            formats::SEGMENT
        ));
    }
    left.iter().try_for_each(|(name, header)| formats::fits(name, header))
}

/// Ends this process when nothing is under way that the next run could not do again; or says that it stays.
pub(super) async fn end_with_nothing_begun(cx: Context, within_ms: u32) {
    let begun = Instant::now();
    steps::reach("upgrade/asked");
    loop {
        cx.hold_calls(true);
        let UnderWay { calls, once } = cx.under_way();
        if calls == 0 || (once == 0 && begun.elapsed() >= GRACE) {
            steps::reach("upgrade/drained");
            // Nothing is dropped by it: not a session, not a lease.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
        if begun.elapsed() >= Duration::from_millis(within_ms.into()) {
            cx.hold_calls(false);
            let calls = u32::try_from(once).unwrap_or(u32::MAX);
            return cx.send(&ToSupervisor::Stays { calls }, &[]);
        }
        sleep(PAUSE).await;
    }
}

impl Context {
    /// Reads no more calls, and waits until those under way have ended; standing ones are not waited for. For who makes all that
    /// it has answered durable before it ends: nothing is answered behind that.
    pub async fn finish_calls(&self) {
        self.hold_calls(true);
        while self.under_way().calls > 0 {
            sleep(PAUSE).await;
            // Also those of endpoints that were not there before.
            self.hold_calls(true);
        }
    }

    fn hold_calls(&self, held: bool) {
        self.0.endpoints.borrow().values().for_each(|endpoint| endpoint.hold(held));
    }

    fn under_way(&self) -> UnderWay {
        let mut sum = UnderWay::default();
        self.0.endpoints.borrow().values().for_each(|endpoint| sum += endpoint.under_way());
        sum
    }
}
