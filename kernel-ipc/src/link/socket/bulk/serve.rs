//! The host's side of what replies lend: answers what a client asks of the leases that it holds.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use super::super::frame::{self, HEADER_BYTES, PIECE_BYTES, PULL_BYTES, Pull, kind};
use super::super::greeting::{Unanswered, receive_frame};
use super::super::stream::Stream;
use super::arrive::Intake;
use crate::id::{Incarnation, RegionId};
use crate::lease::{Lender, ReaderSlice, RegionReader};

/// What a process can lend to others beyond a socket; of a host also where it takes in what they lend. Clones are the same.
#[derive(Clone)]
pub struct Lending(Rc<Inner>, Option<Intake>);

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
        Lending(Rc::new(Inner { lender, regions: Box::new(find) }), None)
    }

    /// And what clients lend arrives there. Without that, each of their calls that names leases fails with
    /// [`StaleLease`](crate::Cause::StaleLease), not executed.
    pub fn with_intake(self, intake: Intake) -> Lending {
        Lending(self.0, Some(intake))
    }

    pub(in crate::link::socket) fn intake(&self) -> Option<&Intake> {
        self.1.as_ref()
    }

    pub(in crate::link::socket) fn lender(&self) -> &Rc<RefCell<Lender>> {
        &self.0.lender
    }

    /// The bytes that are asked for, if `holder` has them.
    pub(super) fn find(&self, holder: Incarnation, pull: &Pull) -> Option<Found> {
        let lender = self.0.lender.borrow();
        let kept = (lender.id() == pull.lender).then(|| lender.locate(holder, pull.index, pull.generation).ok())??;
        let end = pull.offset.checked_add(pull.length.into()).filter(|end| *end <= kept.length)?;
        let begin = usize::try_from(kept.offset.checked_add(end)? - u64::from(pull.length)).ok()?;
        let bytes = (self.0.regions)(kept.region)?.slice(begin, pull.length as usize).ok()?;
        Some(Found::Leased(bytes, kept.keep))
    }
}

/// Bytes that were asked for.
pub(super) enum Found {
    /// Where they are, and what keeps them there.
    Leased(ReaderSlice, Rc<dyn Any>),
    /// A copy of them.
    Copied(Vec<u8>),
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
        let pull = question(stream).await?;
        answer(stream, &pull, lending.find(client, &pull)).await?;
    }
}

/// The next question on a connection.
///
/// # Errors
/// There is none.
pub(super) async fn question(stream: &Stream) -> Result<Pull, Unanswered> {
    // In one operation: nothing else comes here.
    let body: [u8; PULL_BYTES] = receive_frame::<{ HEADER_BYTES + PULL_BYTES }, _>(stream, kind::PULL).await?.1;
    Ok(Pull::check(&body)?)
}

/// Answers one.
///
/// # Errors
/// The connection is lost.
pub(super) async fn answer(stream: &Stream, pull: &Pull, found: Option<Found>) -> io::Result<()> {
    let head = head(pull, found.is_some());
    match found {
        Some(Found::Leased(range, keep)) => {
            stream.send_all(head, true).await?;
            stream.send_leased(range, keep).await
        }
        Some(Found::Copied(bytes)) => {
            stream.send_all(head, true).await?;
            stream.send_all(bytes, false).await
        }
        None => stream.send_all(head, false).await,
    }
}

fn head(pull: &Pull, is_there: bool) -> Vec<u8> {
    let length = PIECE_BYTES + if is_there { pull.length as usize } else { 0 };
    let outcome = u32::from(!is_there);
    [&frame::header(kind::PIECE, length)[..], &pull.tag.to_le_bytes(), &outcome.to_le_bytes()].concat()
}
