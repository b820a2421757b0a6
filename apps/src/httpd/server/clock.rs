//! The `Date` field, formatted once a second.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::date;

#[derive(Default)]
pub(super) struct Clock(RefCell<Option<(u64, Rc<str>)>>);

impl Clock {
    /// The time now.
    pub(super) fn date(&self) -> Rc<str> {
        // A clock before 1970 is no reason to serve nothing.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut last = self.0.borrow_mut();
        match &*last {
            Some((at, text)) if *at == seconds => text.clone(),
            _ => {
                let text: Rc<str> = date::format(seconds).into();
                *last = Some((seconds, text.clone()));
                text
            }
        }
    }
}
