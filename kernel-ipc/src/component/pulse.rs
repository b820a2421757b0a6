//! What the supervisor can know of a component that does nothing: whether it has nothing to do, or is stuck.
//!
//! - It is asked for its pulse about once a second while it is awake, and answers within one turn unless it is stuck.
//! - When it falls asleep after that it says so, once, and is not asked any more; when it then wakes it says that first. So
//!   nothing is asked or told at rest, and whoever gets stuck after a rest is asked again.
//! - Between the two it costs a sleep two loads.

use std::cell::Cell;
use std::rc::Rc;

use super::Context;
use crate::broker::{Channel, ToSupervisor};
use crate::runtime::Rest;

/// A component's side of it.
pub(super) struct Pulse {
    channel: Rc<Channel>,
    /// The supervisor wants to hear of the next sleep.
    wanted: Cell<bool>,
    /// It has heard of it.
    said: Cell<bool>,
}

impl Pulse {
    pub(super) fn new(channel: Rc<Channel>) -> Pulse {
        Pulse { channel, wanted: Cell::new(false), said: Cell::new(false) }
    }

    /// Answers the supervisor.
    pub(super) fn asked(&self, cx: &Context, request: u64) {
        cx.send(&ToSupervisor::Pulse { request }, &[]);
        self.wanted.set(true);
    }

    /// Not by way of the outbox, which may make a task ready. What does not fit is not said.
    fn say(&self, message: &ToSupervisor) -> bool {
        self.channel.send(message, &[]).is_ok()
    }
}

impl Rest for Pulse {
    fn begins(&self) {
        if self.wanted.get() {
            self.said.set(self.say(&ToSupervisor::Rests));
            self.wanted.set(!self.said.get());
        }
    }

    fn ends(&self) {
        if self.said.get() {
            // If there is no room for it now there will be at the next sleep's end.
            self.said.set(!self.say(&ToSupervisor::Wakes));
        }
    }
}
