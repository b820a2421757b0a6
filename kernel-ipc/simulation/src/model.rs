//! The oracle: what each call was, how it ended for its caller, and what that allows to have happened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use kernel_ipc::{Cause, Executed, Failure};

use crate::plan::Carrier;
use crate::service::{ADD, AGAIN, ONCE, OPEN, READ, Truth};

/// How a call ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer: for an `ADD`, where in the list the effect stands.
    Answered(u64),
    /// With a failure.
    Failed(Failure),
    /// The caller went away.
    GivenUp,
    /// Nobody ever waited; it was sent.
    Posted,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Record {
    pub client: usize,
    pub carrier: Carrier,
    pub operation: u16,
    pub has_deadline: bool,
    pub outcome: Option<Outcome>,
}

/// What befell a run, as far as it excuses failures.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    pub host_deaths: u64,
    /// Links may be given up.
    pub is_impatient: bool,
    /// The host refuses what has waited too long over memory.
    pub refuses: bool,
    /// By client.
    pub is_dead: Vec<bool>,
}

/// All calls of a run.
#[derive(Default)]
pub struct Model {
    calls: RefCell<BTreeMap<u64, Record>>,
    last: Cell<u64>,
    violation: RefCell<Option<String>>,
}

impl Model {
    /// A call is about to be made. Gives its number.
    pub fn begins(&self, client: usize, carrier: Carrier, operation: u16, has_deadline: bool) -> u64 {
        let number = self.last.get() + 1;
        self.last.set(number);
        let record = Record { client, carrier, operation, has_deadline, outcome: None };
        self.calls.borrow_mut().insert(number, record);
        number
    }

    /// It has ended.
    pub fn ended(&self, number: u64, outcome: Outcome) {
        if let Some(record) = self.calls.borrow_mut().get_mut(&number) {
            record.outcome = Some(outcome);
        }
    }

    /// Something is wrong; the first thing counts.
    pub fn violated(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(what);
    }

    /// What was wrong.
    pub fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    /// How many calls there were, and how many were answered.
    pub fn counts(&self) -> (u64, u64) {
        let calls = self.calls.borrow();
        let answered = calls.values().filter(|call| matches!(call.outcome, Some(Outcome::Answered(_)))).count();
        (calls.len() as u64, answered as u64)
    }

    /// The calls that have not ended, of clients that live.
    pub fn unended(&self, of: &Circumstances) -> Vec<u64> {
        let calls = self.calls.borrow();
        calls.iter().filter(|(_, call)| call.outcome.is_none() && !of.is_dead[call.client]).map(|(n, _)| *n).collect()
    }

    /// Compares how calls ended with what happened. `list`: what the host says of its own effects.
    pub fn check(&self, truth: &Truth, list: &[u64], of: &Circumstances) {
        for (n, call) in &*self.calls.borrow() {
            if let Err(what) = Self::check_one(*n, call, truth, list, of) {
                self.violated(format!("call {n} ({call:?}): {what}"));
            }
        }
        let calls = self.calls.borrow();
        if let Some(stranger) = list.iter().find(|n| !calls.contains_key(n)) {
            self.violated(format!("the list has {stranger}, which nobody has added"));
        }
    }

    fn check_one(n: u64, call: &Record, truth: &Truth, list: &[u64], of: &Circumstances) -> Result<(), String> {
        let of_map = |map: &RefCell<BTreeMap<u64, u32>>| map.borrow().get(&n).copied().unwrap_or(0);
        let had = match (call.carrier, call.operation) {
            (kept, ADD) if kept.is_kept() => list.iter().filter(|at| **at == n).count() as u32,
            (_, ADD | ONCE | AGAIN) => of_map(&truth.effects),
            (_, OPEN) => of_map(&truth.granted),
            _ => 0,
        };
        let by_ledger = call.carrier.is_kept() && of.host_deaths > 0;
        // What may be begun anew: an idempotent call, and a grant that was not committed when its host died.
        let most = if by_ledger && matches!(call.operation, AGAIN | OPEN) { u32::MAX } else { 1 };
        if had > most {
            return Err(format!("happened {had} times"));
        }
        if of_map(&truth.dropped) > of_map(&truth.granted) {
            return Err("its grant was dropped more often than granted".into());
        }
        let is_dead = of.is_dead[call.client];
        match call.outcome {
            None if is_dead => Ok(()),
            None => Err("never ended".into()),
            Some(Outcome::Answered(_)) if had == 0 && call.operation != READ => {
                Err("was answered, and did not happen".into())
            }
            Some(Outcome::Answered(at)) if call.carrier.is_kept() && call.operation == ADD => {
                match list.get(at as usize) {
                    Some(there) if *there == n => Ok(()),
                    there => Err(format!("its answer says that it is at {at}, where {there:?} is")),
                }
            }
            Some(Outcome::Posted) if had != 1 && !is_dead && !Self::may_fail(call, of) => {
                Err(format!("was posted on a session that lives, and happened {had} times"))
            }
            Some(Outcome::Answered(_) | Outcome::GivenUp | Outcome::Posted) => Ok(()),
            Some(Outcome::Failed(failure)) => {
                match failure.executed {
                    // A grant that was not committed is none.
                    Executed::No if had > 0 && !(by_ledger && call.operation == OPEN) => {
                        return Err("failed as not executed, and happened".into());
                    }
                    Executed::Yes if had == 0 => return Err("failed as executed, and did not happen".into()),
                    _ => {}
                }
                if failure.cause == Cause::PeerDied && truth.published.borrow().contains(&n) {
                    return Err("its answer stood where its client could see it".into());
                }
                match Self::is_excused(call, failure, of) {
                    true => Ok(()),
                    false => Err("failed for no reason".into()),
                }
            }
        }
    }

    /// Whether a session can have ended under a call, or refused it.
    fn may_fail(call: &Record, of: &Circumstances) -> bool {
        match call.carrier {
            Carrier::Socket => of.host_deaths > 0 || of.is_impatient,
            // By its link: the next host, or its client, did not wait long enough.
            Carrier::Kept => of.is_impatient,
            Carrier::Memory => of.refuses,
        }
    }

    fn is_excused(call: &Record, failure: Failure, of: &Circumstances) -> bool {
        match failure.cause {
            Cause::Deadline => call.has_deadline && failure.executed != Executed::Yes,
            Cause::PeerDied | Cause::StaleEpoch if call.carrier != Carrier::Memory && Self::may_fail(call, of) => true,
            // Of one that a dead run may have begun nobody knows.
            Cause::Busy { .. } => call.carrier == Carrier::Memory && of.refuses && failure.executed != Executed::Yes,
            Cause::LinkLost => call.carrier != Carrier::Memory && of.is_impatient,
            // With a ledger only what may not run twice ends so, and nobody knows whether it ran.
            Cause::PeerDied => {
                call.carrier.is_kept()
                    && of.host_deaths > 0
                    && call.operation == ONCE
                    && failure.executed == Executed::Unknown
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the oracle says of one call on which this much is true.
    fn verdict(carrier: Carrier, operation: u16, outcome: Outcome, happened: u32, host_deaths: u64) -> Option<String> {
        let (model, truth) = (Model::default(), Truth::default());
        let n = model.begins(0, carrier, operation, false);
        model.ended(n, outcome);
        let list = vec![n; if carrier.is_kept() && operation == ADD { happened as usize } else { 0 }];
        truth.effects.borrow_mut().insert(n, happened);
        model.check(&truth, &list, &Circumstances { host_deaths, is_dead: vec![false], ..Circumstances::default() });
        model.violation()
    }

    #[test]
    fn what_happened_has_to_be_what_the_caller_was_told() {
        use Carrier::{Kept, Memory, Socket};
        let (no, yes) =
            (Failure::not_executed(Cause::PeerDied), Failure { cause: Cause::PeerDied, executed: Executed::Yes });
        let unknown = Failure::unknown(Cause::PeerDied);
        for (carrier, operation, outcome, happened, deaths, is_right) in [
            (Socket, ONCE, Outcome::Answered(0), 1, 0, true),
            (Socket, ONCE, Outcome::Answered(0), 0, 0, false),
            (Socket, AGAIN, Outcome::Answered(0), 2, 1, false),
            (Socket, ADD, Outcome::Failed(no), 1, 1, false),
            (Socket, ADD, Outcome::Failed(no), 0, 1, true),
            (Socket, ADD, Outcome::Failed(yes), 0, 1, false),
            (Socket, ADD, Outcome::Failed(unknown), 1, 1, true),
            (Socket, ADD, Outcome::Failed(unknown), 1, 0, false),
            (Socket, ADD, Outcome::Posted, 0, 0, false),
            (Memory, ADD, Outcome::Answered(0), 1, 3, true),
            (Memory, ADD, Outcome::Answered(1), 1, 3, false),
            (Memory, ADD, Outcome::Answered(0), 2, 3, false),
            (Memory, ADD, Outcome::Failed(unknown), 1, 3, false),
            (Memory, ADD, Outcome::Posted, 0, 3, false),
            (Memory, ONCE, Outcome::Failed(unknown), 1, 3, true),
            (Memory, ONCE, Outcome::Failed(unknown), 2, 3, false),
            (Kept, ADD, Outcome::Answered(0), 1, 3, true),
            (Kept, ADD, Outcome::Answered(0), 2, 3, false),
            (Kept, ADD, Outcome::Failed(unknown), 1, 3, false),
            (Kept, ONCE, Outcome::Failed(unknown), 1, 3, true),
            (Kept, ONCE, Outcome::Failed(unknown), 1, 0, false),
            (Kept, AGAIN, Outcome::Answered(0), 2, 3, true),
            (Memory, AGAIN, Outcome::Answered(0), 2, 3, true),
            (Memory, AGAIN, Outcome::Answered(0), 2, 0, false),
        ] {
            let said = verdict(carrier, operation, outcome, happened, deaths);
            assert_eq!(said.is_none(), is_right, "{carrier:?} {operation} {outcome:?} {happened} {deaths}: {said:?}");
        }
    }
}
