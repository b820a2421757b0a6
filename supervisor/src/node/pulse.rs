//! Is a component stuck although it uses no processor? It is if it sleeps and does not answer.
//!
//! - A component that is awake is asked every [`PERIOD`]; when it has nothing to do it says so and is left alone, until it says
//!   that it wakes (`kernel_ipc::component`). At rest nothing is asked.
//! - One whose thread waits in its executor always answers, also if all that it could do waits for others: *their* hang is
//!   not its own. So one that is silent is in a handler.
//! - A second in which it is silent counts if the kernel says that it sleeps, and it used no processor: it waits in the handler for
//!   something. One that was stopped, waits for the processor, or is in an uninterruptible wait for the kernel begins anew; one
//!   that uses the processor is for the [watchdog](super::watchdog).
//! - At the [`SHOWN_AFTER`]th such second in a row it is shown as blocked, after as many as the manifest says it is killed: a
//!   death of its own making.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::broker::ToComponent;
use kernel_ipc::runtime::{sleep, timeout};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::Node;
use super::peer::Peer;
use super::waits::Changes;
use super::watchdog::{SHOWN_AFTER, state};

/// Between two questions, and between two looks at one who does not answer.
const PERIOD: Duration = Duration::from_secs(1);

/// What is known of one run.
#[derive(Default)]
pub struct Pulse {
    /// It sleeps, and will say so when it wakes.
    rests: Cell<bool>,
    changes: Changes,
    /// Seconds for which it has waited in a handler.
    blocked: Cell<u32>,
}

impl Pulse {
    /// It has said that it falls asleep, or wakes.
    pub fn rests(&self, rests: bool) {
        self.rests.set(rests);
        self.changes.happen();
    }

    /// Whether it has been silent and asleep for long.
    pub fn is_blocked(&self) -> bool {
        self.blocked.get() >= SHOWN_AFTER
    }

    async fn awake(&self) {
        loop {
            let next = self.changes.next();
            if !self.rests.get() {
                return;
            }
            next.await;
        }
    }
}

/// Watches a run that serves, until it has been blocked for `limit` seconds. To be dropped when it ends.
pub async fn attend(node: &Rc<Node>, run: &Rc<Peer>, limit: u32) {
    loop {
        run.pulse.awake().await;
        sleep(PERIOD).await;
        if run.pulse.rests.get() {
            continue;
        }
        let mut answer = pin!(answers(node, run));
        let mut silence = Silence::new(Look::at(run.pid));
        while timeout(PERIOD, answer.as_mut()).await.is_err() {
            run.pulse.blocked.set(silence.look(Look::at(run.pid)));
            if run.pulse.blocked.get() == SHOWN_AFTER {
                eprintln!("supervisor: {} waits for something, and answers nothing", run.name);
            }
            if run.pulse.blocked.get() >= limit {
                let how = format!("hung: it waited in a handler for {limit} s and answered nothing");
                return node.end_for_fault(run, &how);
            }
        }
        run.pulse.blocked.set(0);
    }
}

async fn answers(node: &Node, run: &Peer) {
    // One that was adopted has been asked for its account, and nothing else is said to it before that has come.
    loop {
        let next = node.accounted.next();
        if run.accounted.get() {
            break;
        }
        next.await;
    }
    let request = node.state.deal(1);
    // An answer, or its end.
    let _ = run.ask_until_gone(&run.asked.pulse, request, &ToComponent::AskPulse { request }, &[], || {}).await;
}

/// What the kernel says of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    sleeps: bool,
    /// Processor time.
    used: Option<Duration>,
}

impl Look {
    fn at(pid: u32) -> Look {
        let clock = i32::try_from(pid).ok().and_then(|pid| ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok());
        let used = clock.and_then(|clock| clock_gettime(clock).ok()).map(Duration::from);
        Look { sleeps: state(pid) == Some('S'), used }
    }
}

/// One that does not answer.
struct Silence {
    last: Look,
    seconds: u32,
}

impl Silence {
    fn new(first: Look) -> Silence {
        Silence { last: first, seconds: 0 }
    }

    /// A [`PERIOD`] later: for how many of them it has been asleep without a break.
    fn look(&mut self, now: Look) -> u32 {
        let waited = now.sleeps && now.used.is_some() && now == self.last;
        self.seconds = if waited { self.seconds + 1 } else { 0 };
        self.last = now;
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn look(sleeps: bool, used: u64) -> Look {
        Look { sleeps, used: Some(Duration::from_millis(used)) }
    }

    #[test]
    fn only_whoever_sleeps_and_uses_nothing_is_blocked() {
        let mut silence = Silence::new(look(true, 5));
        let looks = [
            (look(true, 5), 1),
            (look(true, 5), 2),
            // It ran meanwhile.
            (look(true, 6), 0),
            (look(true, 6), 1),
            // It was stopped, or waits for the processor; and goes on.
            (look(false, 6), 0),
            (look(true, 6), 0),
            (look(true, 6), 1),
            // Nothing is known of it.
            (Look { sleeps: true, used: None }, 0),
            (Look { sleeps: true, used: None }, 0),
        ];
        for (look, seconds) in looks {
            assert_eq!(silence.look(look), seconds, "{look:?}");
        }
    }

    #[test]
    fn a_process_that_sleeps_is_seen_to_until_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("a process");
        while !(Look::at(child.id()).sleeps && Look::at(child.id()) == Look::at(child.id())) {
            std::thread::yield_now();
        }
        child.kill().and_then(|()| child.wait()).expect("its end");
        assert_eq!(Look::at(child.id()), Look { sleeps: false, used: None });
    }
}
