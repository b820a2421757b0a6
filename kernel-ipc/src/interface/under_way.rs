//! A generated client's call while it is awaited.
//!
//! - Nearly always the session is open and has a free slot: the call is published by the first poll, and what follows is
//!   one answer in one place. That way neither allocates nor copies more than the answer.
//! - Whatever has to wait first, or is tried again, is an ordinary `async fn` in a box.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::pending::{Arguments, Start, decoded};
use super::{Ahead, Operation, OperationError};
use crate::codec::Decode;
use crate::session::{Begun, ClientSession, Reply, Sent};
use crate::{CallError, Failure};

/// A call that begins when it is polled: what [`Pending`](super::Pending) starts for a generated client.
pub struct Begin<'a, R, E> {
    arguments: Arguments<'a>,
    operation: &'static Operation,
    result: PhantomData<fn() -> (R, E)>,
}

impl<'a, R, E> Begin<'a, R, E> {
    pub(super) fn new(arguments: Arguments<'a>, operation: &'static Operation) -> Self {
        Begin { arguments, operation, result: PhantomData }
    }
}

impl<'a, R, E> Start for Begin<'a, R, E>
where
    R: for<'p> Decode<'p>,
    E: OperationError,
{
    type Output = Result<R, CallError<E>>;
    type Future = UnderWay<'a, R, E>;

    fn start(self, deadline: Option<Duration>) -> Self::Future {
        let Begin { arguments, operation, result } = self;
        UnderWay { arguments: Some(arguments), operation, deadline, stage: Stage::Begin, result }
    }

    async fn ahead(self, deadline: Option<Duration>) -> Result<Ahead<Self::Output>, Failure> {
        Ok(Ahead::new(self.arguments.ahead(self.operation, deadline).await?))
    }

    async fn post(mut self, deadline: Option<Duration>) -> Result<(), Failure> {
        match self.arguments.begin(self.operation, deadline)? {
            Some(sent) => {
                sent.post();
                Ok(())
            }
            None => self.arguments.post(self.operation, deadline).await,
        }
    }
}

/// See the module's contract.
pub struct UnderWay<'a, R, E> {
    /// Kept for another try until there is an answer.
    arguments: Option<Arguments<'a>>,
    operation: &'static Operation,
    deadline: Option<Duration>,
    stage: Stage<'a>,
    result: PhantomData<fn() -> (R, E)>,
}

/// The long way.
type Slow<'a> = Pin<Box<dyn Future<Output = Result<(ClientSession, Reply), Failure>> + 'a>>;

enum Stage<'a> {
    Begin,
    Sent(Sent),
    Slow(Slow<'a>),
    Done,
}

impl<R, E> Future for UnderWay<'_, R, E>
where
    R: for<'p> Decode<'p>,
    E: OperationError,
{
    type Output = Result<R, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Stage::Begin = this.stage {
            let arguments = this.arguments.as_mut().expect("they leave with this stage");
            let ended =
                |session: &ClientSession, error, payload: &[u8]| decoded(session, error, payload, (&[], &[]), None);
            match arguments.begin_with(this.operation, this.deadline, ended) {
                Ok(Begun::Ended(result)) => {
                    this.stage = Stage::Done;
                    return Poll::Ready(result);
                }
                Ok(Begun::Sent(sent)) => this.stage = Stage::Sent(sent),
                Ok(Begun::Waits) => this.slowly(None),
                Err(failure) => {
                    if let Some(failed) = this.failed(failure) {
                        return Poll::Ready(failed);
                    }
                }
            }
        }
        if let Stage::Sent(sent) = &mut this.stage {
            let taken = sent.poll_with(
                cx,
                |session, error, payload| Ok(decoded(session, error, payload, (&[], &[]), None)),
                |session, reply| reply.map(|reply| decoded_reply(session, &reply)),
            );
            match taken {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(result)) => {
                    this.stage = Stage::Done;
                    return Poll::Ready(result);
                }
                Poll::Ready(Err(failure)) => {
                    this.deadline = sent.left();
                    if let Some(failed) = this.failed(failure) {
                        return Poll::Ready(failed);
                    }
                }
            }
        }
        let Stage::Slow(slow) = &mut this.stage else { panic!("a call was polled after it had ended") };
        slow.as_mut().poll(cx).map(|ended| {
            this.stage = Stage::Done;
            let (session, reply) = ended?;
            decoded_reply(&session, &reply)
        })
    }
}

impl<R, E: OperationError> UnderWay<'_, R, E> {
    /// The first try has failed: what the caller hears, if it is not tried again.
    fn failed(&mut self, failure: Failure) -> Option<Result<R, CallError<E>>> {
        let again = self.arguments.as_ref().is_some_and(|of| of.may_repeat(self.operation, failure));
        if again {
            self.slowly(Some(failure));
            return None;
        }
        self.stage = Stage::Done;
        Some(Err(failure.into()))
    }
}

impl<R, E> UnderWay<'_, R, E> {
    /// Goes the long way, after `first` if there was a try already.
    fn slowly(&mut self, first: Option<Failure>) {
        if let Some(arguments) = self.arguments.take() {
            self.stage = Stage::Slow(Box::pin(arguments.send(self.operation, self.deadline, first)));
        }
    }
}

fn decoded_reply<R, E>(session: &ClientSession, reply: &Reply) -> Result<R, CallError<E>>
where
    R: for<'p> Decode<'p>,
    E: OperationError,
{
    decoded(session, reply.operation_error, &reply.payload, (&reply.capabilities, &reply.leases), None)
}
