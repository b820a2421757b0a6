//! The host's side: answers what a client asks of the leases that it holds.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::super::frame::{self, HEADER_BYTES, PIECE_BYTES, PULL_BYTES, Pull, kind};
use super::super::greeting::{Unanswered, receive_frame};
use super::super::stream::Stream;
use crate::id::{Incarnation, RegionId};
use crate::lease::{Lender, ReaderSlice, RegionReader};

/// What a host can lend to clients beyond a socket. Clones are the same.
#[derive(Clone)]
pub struct Lending(Rc<Inner>);

struct Inner {
    lender: Rc<RefCell<Lender>>,
    regions: Box<dyn Fn(RegionId) -> Option<RegionReader>>,
}

impl Lending {
    /// Leases of `lender`, in these regions. What it lends of another region, a client beyond a socket finds gone.
    pub fn new(lender: Rc<RefCell<Lender>>, regions: impl IntoIterator<Item = RegionReader>) -> Lending {
        let regions: HashMap<_, _> = regions.into_iter().map(|region| (region.id(), region)).collect();
        Lending::by(lender, move |region| regions.get(&region).cloned())
    }

    /// The same, in the regions that `find` knows when one is asked for.
    pub fn by(lender: Rc<RefCell<Lender>>, find: impl Fn(RegionId) -> Option<RegionReader> + 'static) -> Lending {
        Lending(Rc::new(Inner { lender, regions: Box::new(find) }))
    }

    pub(in crate::link::socket) fn lender(&self) -> &Rc<RefCell<Lender>> {
        &self.0.lender
    }

    /// The bytes that a client asks for, if it holds them.
    fn find(&self, client: Incarnation, pull: &Pull) -> Option<(ReaderSlice, Rc<dyn Any>)> {
        let lender = self.0.lender.borrow();
        let kept = (lender.id() == pull.lender).then(|| lender.locate(client, pull.index, pull.generation).ok())??;
        let end = pull.offset.checked_add(pull.length.into()).filter(|end| *end <= kept.length)?;
        let begin = usize::try_from(kept.offset.checked_add(end)? - u64::from(pull.length)).ok()?;
        let bytes = (self.0.regions)(kept.region)?.slice(begin, pull.length as usize).ok()?;
        Some((bytes, kept.keep))
    }
}

/// Answers until the connection ends.
///
/// # Errors
/// Why it ended.
pub(in crate::link::socket) async fn serve(
    stream: &Stream,
    lending: &Lending,
    client: Incarnation,
) -> Result<(), Unanswered> {
    loop {
        // In one operation: nothing else comes here.
        let body: [u8; PULL_BYTES] = receive_frame::<{ HEADER_BYTES + PULL_BYTES }, _>(stream, kind::PULL).await?.1;
        let pull = Pull::check(&body)?;
        match lending.find(client, &pull) {
            Some((range, keep)) => {
                stream.send_all(head(&pull, true), true).await?;
                stream.send_leased(range, keep).await?;
            }
            None => stream.send_all(head(&pull, false), false).await?,
        }
    }
}

fn head(pull: &Pull, is_there: bool) -> Vec<u8> {
    let length = PIECE_BYTES + if is_there { pull.length as usize } else { 0 };
    let outcome = u32::from(!is_there);
    [&frame::header(kind::PIECE, length)[..], &pull.tag.to_le_bytes(), &outcome.to_le_bytes()].concat()
}
