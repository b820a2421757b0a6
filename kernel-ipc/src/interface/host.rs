//! What a handler sees and gives.

use super::{Kind, OperationError};
use crate::codec::{Encode, Encoder, Layout};
use crate::described::{Type, Types};
use crate::lease::Lend;
use crate::rights::Rights;
use crate::session::{Brief, Grant, Payload, Response};
use crate::{CallError, Cause, Failure};

/// What the host keeps in its table for one of its objects: two words, plain data, because the table will outlive the
/// process.
pub trait Object: Sized + 'static {
    /// Which of the interface's kinds it is.
    type Kind: Kind;

    /// The words for the table.
    fn to_words(&self) -> [u64; 2];

    /// The object for these words, which came from [`to_words`](Object::to_words).
    fn from_words(words: [u64; 2]) -> Self;
}

/// An object that the caller's capability names: rights, kind and generation are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted<T> {
    /// The object.
    pub object: T,
    /// What the caller may do with it: at least what the operation requires.
    pub rights: Rights,
    /// The word that whoever minted the capability chose.
    pub badge: u64,
}

impl<T: Object> Granted<T> {
    /// Reads the table's entry.
    pub fn new(entry: &Grant) -> Granted<T> {
        Granted { object: T::from_words(entry.object), rights: entry.rights, badge: entry.badge }
    }
}

/// A capability that a handler gives to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCap<T> {
    /// The object.
    pub object: T,
    /// What the caller may do with it.
    pub rights: Rights,
    /// A word that the host sees on every call made with it.
    pub badge: u64,
}

impl<T: Object> NewCap<T> {
    /// A capability with badge 0.
    pub fn new(object: T, rights: Rights) -> NewCap<T> {
        NewCap { object, rights, badge: 0 }
    }

    /// The same with a badge.
    pub fn with_badge(self, badge: u64) -> NewCap<T> {
        NewCap { badge, ..self }
    }

    /// As an entry for the table; also how the root of a session is given.
    pub fn to_grant(&self) -> Grant {
        Grant { object: self.object.to_words(), kind: T::Kind::NUMBER, rights: self.rights, badge: self.badge }
    }
}

impl<T: Object> Layout for NewCap<T> {
    const FIXED_BYTES: usize = 0;

    fn describe(types: &mut Types) -> Type {
        Type::Capability { kind: types.kind(T::Kind::NUMBER) }
    }
}

impl<T: Object> Encode for NewCap<T> {
    fn encode(&self, to: &mut Encoder) {
        to.grant(self.to_grant());
    }

    fn encode_elements(elements: &[Self], to: &mut Encoder) {
        elements.iter().for_each(|element| element.encode(to));
    }
}

impl Layout for Lend {
    const FIXED_BYTES: usize = 0;

    fn describe(_: &mut Types) -> Type {
        Type::Lease
    }
}

impl Encode for Lend {
    fn encode(&self, to: &mut Encoder) {
        to.lend(self.clone());
    }

    fn encode_elements(elements: &[Self], to: &mut Encoder) {
        elements.iter().for_each(|element| element.encode(to));
    }
}

/// What a handler gave, as the session's host end sends it.
pub fn answer<T: Encode, E: OperationError>(result: Result<T, CallError<E>>) -> Response {
    match result {
        Ok(value) => {
            // Most results are of constant size, some of none: such a one never leaves the stack.
            if size_of::<T>() == 0 {
                return Response::default();
            }
            let mut encoder = Encoder::of(&value);
            let (grants, lends) = encoder.take_given();
            Response { payload: Payload::from(encoder.payload()), grants, lends, ..Response::default() }
        }
        Err(CallError::Operation(error)) => {
            let payload = Payload::from(error.encode().payload());
            Response { operation_error: Some(error.number()), payload, ..Response::default() }
        }
        Err(CallError::Failed { cause, executed }) => {
            Response { failure: Some(Failure { cause, executed }), ..Response::default() }
        }
    }
}

/// The same of a handler that answers at once: its result brings nothing beside its payload.
///
/// # Errors
/// The handler's failure of the call itself.
#[inline]
pub fn answer_at_once<T: Encode, E: OperationError>(result: Result<T, CallError<E>>) -> Result<Brief, Failure> {
    match result {
        Ok(_) if size_of::<T>() == 0 => Ok(Brief::default()),
        Ok(value) => Ok(Brief { operation_error: None, payload: Payload::from(Encoder::of(&value).payload()) }),
        Err(CallError::Operation(error)) => {
            Ok(Brief { operation_error: Some(error.number()), payload: Payload::from(error.encode().payload()) })
        }
        Err(CallError::Failed { cause, executed }) => Err(Failure { cause, executed }),
    }
}

/// The answer to a call that no handler sees.
pub fn refuse<A: From<Result<Brief, Failure>>>(cause: Cause) -> A {
    Err(Failure::not_executed(cause)).into()
}
