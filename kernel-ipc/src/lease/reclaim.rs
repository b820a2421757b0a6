//! Seeing to it that what was taken back becomes free.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::Lender;
use crate::runtime;

/// How often leases that a mapper still pins are looked at again.
const INTERVAL: Duration = Duration::from_millis(1);

/// Has a task of this thread ask again for what is dying, until no mapper pins anything that was taken back. One at a time does.
pub(crate) fn reclaim_later(lender: &Rc<RefCell<Lender>>) {
    if lender.borrow().dying() == 0 || std::mem::replace(&mut lender.borrow_mut().is_reclaimed, true) {
        return;
    }
    let lender = lender.clone();
    runtime::spawn(async move {
        while lender.borrow().dying() > 0 {
            runtime::sleep(INTERVAL).await;
            lender.borrow_mut().reclaim();
        }
        lender.borrow_mut().is_reclaimed = false;
    });
}
