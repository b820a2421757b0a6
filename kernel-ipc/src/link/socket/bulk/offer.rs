//! The client's side of what calls lend: answers what hosts ask of it.
//!
//! - A host can ask for what a call names that it has not answered yet, and for nothing else that this process lends or holds.
//! - What this process lends itself is sent from where it is, and not used again before it has left. Of what others have lent to it,
//!   a copy is sent that was looked at again afterwards.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use super::super::dial::{Options, Remote};
use super::super::frame::{Bulk, FrameError, Pull};
use super::super::greeting::Unanswered;
use super::super::stream::Stream;
use super::line::{Line, timed_out};
use super::serve::{Found, Lending, answer, question};
use crate::id::Incarnation;
use crate::lease::Holder;
use crate::runtime;
use crate::wire::LeaseName;

/// What a client can lend to a host beyond a socket.
#[derive(Clone)]
pub struct Offering {
    /// What it lends of its own.
    pub own: Lending,
    /// What others have lent to it, as far as it may read that.
    pub holder: Rc<RefCell<Holder>>,
    /// Itself, and the host: what of its own is held by others is not for this host.
    pub holders: [Incarnation; 2],
}

/// What the calls of one session lend.
pub(crate) struct Arguments {
    offering: Offering,
    /// What the call of each slot names, if it is not answered.
    named: RefCell<Vec<Vec<LeaseName>>>,
    line: Line,
}

impl Arguments {
    pub(in crate::link::socket) fn new(offering: Offering) -> Rc<Arguments> {
        Rc::new(Arguments { offering, named: RefCell::default(), line: Line::new(Rc::default()) })
    }

    /// The host at the other end, to which this process lends.
    pub(crate) fn host(&self) -> Incarnation {
        self.offering.holders[1]
    }

    /// A call on this slot names these.
    pub(crate) fn named(&self, slot: u16, leases: &[LeaseName]) {
        let (mut named, slot) = (self.named.borrow_mut(), usize::from(slot));
        if named.len() <= slot {
            named.resize(slot + 1, Vec::new());
        }
        named[slot].clear();
        named[slot].extend_from_slice(leases);
        if !leases.is_empty() {
            self.line.changed.raise();
        }
    }

    /// It has been answered.
    #[inline]
    pub(crate) fn answered(&self, slot: u16) {
        if let Some(named) = self.named.borrow_mut().get_mut(usize::from(slot)) {
            named.clear();
        }
    }

    fn are_some_named(&self) -> bool {
        self.named.borrow().iter().any(|named| !named.is_empty())
    }

    /// The session is over.
    pub(in crate::link::socket) fn end(&self) {
        self.named.take();
        self.line.end();
    }

    /// Answers until the session is over. A host that breaks a rule is `told` of.
    pub(in crate::link::socket) async fn offer(
        self: Rc<Self>,
        remote: Remote,
        hello: Bulk,
        options: Options,
        told: impl Fn(FrameError),
    ) {
        let carry = async |stream: &_| self.answer_over(stream, &options).await;
        self.line.keep((remote, hello, options), || self.are_some_named(), carry, told).await;
    }

    async fn answer_over(&self, stream: &Stream, options: &Options) -> Unanswered {
        loop {
            let mut asked = pin!(question(stream));
            let mut was_needed = false;
            let asked = loop {
                match runtime::timeout(options.dead_after, asked.as_mut()).await {
                    Ok(asked) => break asked,
                    // What was sent is acknowledged, or the kernel ends the connection. Only if nothing was, the host may have lost it
                    // without our knowing: then it is made anew while something is to be asked for.
                    Err(runtime::Elapsed) if was_needed && self.are_some_named() => return timed_out(),
                    Err(runtime::Elapsed) => was_needed = self.are_some_named(),
                }
            };
            let answered = match asked {
                Ok(pull) => answer(stream, &pull, self.find(&pull)).await,
                Err(why) => return why,
            };
            if let Err(error) = answered {
                return error.into();
            }
            self.line.is_of_use();
        }
    }

    /// The bytes that a host asks for, if a call lends them to it.
    fn find(&self, pull: &Pull) -> Option<Found> {
        let is_it =
            |name: &LeaseName| (name.lender, name.index, name.generation) == (pull.lender, pull.index, pull.generation);
        let name = self.named.borrow().iter().flatten().find(|name| is_it(name)).copied()?;
        let Offering { own, holder, holders } = &self.offering;
        if own.lender().borrow().id() == pull.lender {
            return holders.iter().find_map(|holder| own.find(*holder, pull));
        }
        let held = holder.borrow().hold(&name).ok()?;
        let mut bytes = vec![0; pull.length as usize];
        held.copy_out(usize::try_from(pull.offset).ok()?, &mut bytes).ok()?;
        Some(Found::Copied(bytes))
    }
}
