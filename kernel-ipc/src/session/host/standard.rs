//! The operations on capabilities that every host serves by itself. No handler sees them; what they look like on the wire is in
//! [`session::capability`](crate::session::capability).

use std::time::Duration;

use super::dependent::Rest;
use super::names::Names;
use super::tickets::LASTS_MAX;
use super::{Inner, Service};
use crate::capability::Terms;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::error::{Cause, Failure};
use crate::ledger::Tag;
use crate::rights::Rights;
use crate::runtime;
use crate::session::capability::{self, operation};
use crate::session::now;
use crate::wire::{Handle, Status, Submission, Violation};

impl From<Malformed> for Cause {
    fn from(_: Malformed) -> Self {
        Cause::BadArguments
    }
}

/// What such a call gives.
enum Given {
    Payload(Encoder),
    Capability(Handle),
    /// Nothing yet.
    Later,
}

impl<S: Service> Inner<S> {
    /// Serves a call of one of these operations, if it is one.
    pub(super) fn standard(&self, call: &Submission, rest: Rest<'_>) -> Result<(), Violation> {
        let mut payload = self.scratch.take();
        self.read_payload(call, rest, &mut payload);
        let given = self.serve_standard(call, &payload);
        self.scratch.replace(payload);
        match given {
            Ok(Given::Later) => Ok(()),
            Ok(Given::Payload(payload)) => self.answer(call, Status::Done, &[], &[], payload.payload()),
            Ok(Given::Capability(handle)) => self.answer_with(call, handle),
            Err(cause) => self.answer(call, Status::Failed(Failure::not_executed(cause)), &[], &[], &[]),
        }
    }

    fn serve_standard(&self, call: &Submission, payload: &[u8]) -> Result<Given, Cause> {
        let retry = capability::retry(call.operation).ok_or(Cause::UnknownOperation)?;
        self.begun(call, retry);
        if call.deadline != 0 && call.deadline <= now() {
            return Err(Cause::Deadline);
        }
        if call.extent.capabilities != 0 || call.extent.leases != 0 {
            return Err(Cause::BadArguments);
        }
        match call.operation {
            operation::MINT => {
                let terms = terms(Decoder::whole(payload)?)?;
                self.usable(call, Rights::empty())?;
                let tag = Tag::Call { slot: call.slot, seq: call.seq };
                let minted = self.shared.realm.borrow_mut().mint(self.member, call.handle.index, terms, tag)?;
                Ok(Given::Capability(minted))
            }
            operation::INSPECT => {
                let () = Decoder::whole(payload)?;
                let found = self.shared.realm.borrow().inspect(self.member, call.handle)?;
                Ok(Given::Payload(capability::encode_inspection(&found, now())))
            }
            operation::REVOKE => {
                let (derived_only, grace): (u32, u64) = Decoder::whole(payload)?;
                self.revoke(call, derived_only != 0, Duration::from_nanos(grace));
                Ok(Given::Later)
            }
            operation::PROVIDE => {
                let (terms_, lasts, to): (capability::WireTerms, u64, &str) = Decoder::whole(payload)?;
                self.usable(call, Rights::GRANT)?;
                if self.shared.is_spread {
                    return Err(Cause::Refused);
                }
                let now = now();
                let times = (now, now.saturating_add(lasts.min(LASTS_MAX)));
                let words = self.shared.provide(self.member, call.handle.index, terms(terms_)?, to, times)?;
                Ok(Given::Payload(Encoder::of(&(words[0], words[1]))))
            }
            operation::REDEEM => {
                let (first, second, kind): (u64, u64, u32) = Decoder::whole(payload)?;
                self.usable(call, Rights::empty())?;
                let kind = u8::try_from(kind).map_err(|_| Cause::BadArguments)?;
                let tag = Tag::Call { slot: call.slot, seq: call.seq };
                let given = self.shared.redeem(self.member, &self.info, [first, second], kind, now(), tag)?;
                Ok(Given::Capability(given))
            }
            _ => Err(Cause::UnknownOperation),
        }
    }

    /// Refuses a handle by which nothing can be called.
    fn usable(&self, call: &Submission, requires: Rights) -> Result<(), Cause> {
        self.shared.realm.borrow().lookup(self.member, call.handle, 0, requires, now).map(drop)
    }

    /// Answers with one capability, which is entered; it counts when this is known, and not before.
    fn answer_with(&self, call: &Submission, handle: Handle) -> Result<(), Violation> {
        let mut names = Names::default();
        names.push_handle(handle);
        match self.commit(call, call.handle, &Default::default(), (names.leases(), names.handles()), &[]) {
            Ok(()) => self.answer(call, Status::Done, &[], names.handles(), &[]),
            Err(failure) => {
                self.unname(&names);
                self.answer(call, Status::Failed(failure), &[], &[], &[])
            }
        }
    }

    fn revoke(&self, call: &Submission, derived_only: bool, grace: Duration) {
        let Some(this) = self.this.upgrade() else { return };
        let call = *call;
        runtime::spawn(async move {
            let shared = this.shared.clone();
            let (report, marked) = shared.clone().revoke(this.member, call.handle, derived_only, grace).await;
            let payload = capability::encode_report(&report);
            if let Err(violation) = this.answer(&call, Status::Done, &[], &[], payload.payload()) {
                this.end(Some(violation));
            }
            drop(this);
            if let Some(marked) = marked {
                shared.sweep(marked).await;
            }
        });
    }
}

/// The terms of a capability that is asked for.
fn terms((rights, badge, lasts, limit): capability::WireTerms) -> Result<Terms, Cause> {
    let expires = match lasts {
        None => 0,
        Some(lasts) => now().saturating_add(lasts).max(1),
    };
    Ok(Terms { rights: Rights::from_bits_retain(rights), badge, expires, limit })
}
