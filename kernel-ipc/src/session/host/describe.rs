//! The one operation that every host answers by itself: what its interface is.

use super::dependent::Rest;
use super::{Inner, Service};
use crate::described;
use crate::error::Failure;
use crate::rights::Rights;
use crate::session::now;
use crate::wire::{Status, Submission, Violation};

impl<S: Service> Inner<S> {
    /// Says what the interface is. Never reaches the service.
    pub(super) fn describe(&self, call: &Submission, rest: Rest<'_>) -> Result<(), Violation> {
        let mut payload = std::mem::take(&mut *self.scratch.borrow_mut());
        self.read_payload(call, rest, &mut payload);
        let is_root = self.shared.realm.borrow().lookup(self.member, call.handle, 1, Rights::empty(), now).map(drop);
        let page = is_root.and_then(|()| described::page(S::INTERFACE, &self.description, &payload));
        *self.scratch.borrow_mut() = payload;
        match page {
            Ok(page) => self.answer(call, Status::Done, &[], &[], page.payload()),
            Err(cause) => self.answer(call, Status::Failed(Failure::not_executed(cause)), &[], &[], &[]),
        }
    }
}
