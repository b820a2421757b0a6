//! What control calls ask for, and leases that go back.

use super::Inner;
use super::dependent::Rest;
use super::names::long_entries;
use crate::error::Cause;
use crate::lease::{Ended, reclaim_later};
use crate::session::Service;
use crate::steps;
use crate::wire::{Handle, LeaseName, Submission, Violation, control};

impl<S: Service> Inner<S> {
    /// Obeys a control call. What it names may be gone already: control calls are idempotent.
    pub(super) fn control(&self, call: &Submission) -> Result<(), Violation> {
        if call.extent.capabilities != 0 || call.extent.leases != 0 {
            return Err(Violation::Reserved);
        }
        let mut payload = self.scratch.take();
        self.read_payload(call, Rest::Window, &mut payload);
        match call.operation {
            control::CANCEL => {
                for [slot, seq] in long_entries(&payload)? {
                    let slot = u16::try_from(slot).ok().filter(|slot| !self.shape.is_control(*slot));
                    if let Some(slot) = slot.filter(|slot| self.slots.borrow().in_progress(*slot) == Some(seq)) {
                        match self.dependents.take(slot) {
                            Some(dependent) => self.refuse_dependent(&dependent, Cause::Cancelled)?,
                            None => self.cells[slot].cancel.set(),
                        }
                    }
                }
            }
            control::RELEASE_HANDLES => {
                let (handles, []) = payload.as_chunks::<{ Handle::BYTES }>() else { return Err(Violation::Length) };
                for handle in handles {
                    let handle = Handle::from_word(u64::from_le_bytes(*handle));
                    let gone = self.shared.realm.borrow_mut().release(self.member, handle);
                    if let Ok(Some(gone)) = gone {
                        self.shared.dropped(&[gone]);
                    }
                }
            }
            control::RELEASE_LEASES => {
                steps::reach("release/read");
                for [lender, name] in long_entries(&payload)? {
                    let (index, generation) = (name as u32, (name >> 32) as u32);
                    let name = LeaseName { lender: crate::id::LenderId(lender), index, generation, length: 0 };
                    self.take_back(&[name]).for_each(drop);
                }
                steps::reach("release/done");
            }
            control::PING if payload.is_empty() => {}
            _ => return Err(Violation::Reserved),
        }
        self.scratch.replace(payload);
        Ok(())
    }

    /// Takes leases back that this session was lent, as this is asked for each; names of others do nothing.
    pub(super) fn take_back(&self, names: &[LeaseName]) -> impl Iterator<Item = Ended> {
        names.iter().filter_map(|name| self.take_one_back(name))
    }

    fn take_one_back(&self, name: &LeaseName) -> Option<Ended> {
        let lender = self.lender.as_ref().filter(|lender| lender.borrow().id() == name.lender)?;
        let lent = match self.lent.borrow_mut().get_mut(name.index as usize) {
            Some(lent) if lent.generation != 0 && lent.generation == name.generation => std::mem::take(lent),
            _ => return None,
        };
        let ended = lender.borrow_mut().release(self.info.client, name.index, name.generation).ok();
        if let Some(by) = lent.by() {
            self.shared.realm.borrow_mut().came_back(self.member, by);
        }
        if ended == Some(Ended::Dying) {
            reclaim_later(lender);
        }
        ended
    }
}
