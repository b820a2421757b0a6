//! A call by a description.

use std::time::Duration;

use serde_json::Value;

use super::{Book, Checked, Message, Operation, Wrong};
use crate::codec::Malformed;
use crate::session::{ClientSession, Reply, Request};
use crate::wire::{MAX_CAPABILITIES, MAX_LEASES};
use crate::{Cause, Executed, Failure};

/// Why a call gave no result.
#[derive(Clone, Debug, PartialEq)]
pub enum NoResult {
    /// The arguments are not the operation's: nothing was sent.
    Wrong(Wrong),
    /// The operation's own error.
    Error {
        /// Its number on the wire.
        number: u16,
        /// Its name.
        name: String,
        /// What it says.
        about: String,
        /// Its fields as JSON.
        fields: Value,
    },
    /// The call itself failed.
    Failed(Failure),
}

impl Checked {
    /// Calls an operation with arguments in JSON, and gives its result in JSON. Capabilities and leases are those in `book`, and
    /// are entered there; they are released when the session ends.
    ///
    /// # Errors
    /// See [`NoResult`].
    pub async fn call(
        &self,
        session: &ClientSession,
        operation: &Operation,
        arguments: &Value,
        deadline: Option<Duration>,
        book: &mut Book,
    ) -> Result<Value, NoResult> {
        let message = self.encode_arguments(operation, arguments, book).map_err(NoResult::Wrong)?;
        let request = Request {
            operation: operation.number,
            handle: message.target.unwrap_or_else(|| session.root()),
            payload: &message.payload,
            capabilities: &message.capabilities,
            leases: &message.leases,
            deadline,
            retry: operation.retry,
        };
        session.extent(&request).map_err(|window_bytes| NoResult::Wrong(too_large(window_bytes, &message)))?;
        let reply = session.call(request).await.map_err(NoResult::Failed)?;
        self.answer(session, operation, reply, book).unwrap_or_else(|Malformed| {
            // As the generated client does: no correct host answers what its interface does not know.
            session.close();
            Err(NoResult::Failed(Failure { cause: Cause::ProtocolViolation, executed: Executed::Yes }))
        })
    }

    fn answer(
        &self,
        session: &ClientSession,
        operation: &Operation,
        reply: Reply,
        book: &mut Book,
    ) -> Result<Result<Value, NoResult>, Malformed> {
        let Reply { operation_error, payload, capabilities, leases } = reply;
        let Some(number) = operation_error else {
            let message = Message { target: None, payload: payload.to_vec(), capabilities, leases };
            return self.decode(&operation.result, &message, book).map(Ok);
        };
        capabilities.iter().for_each(|handle| session.release_handle(*handle));
        leases.iter().for_each(|lease| session.release_lease(*lease));
        let error = self.error(&operation.error, number).ok_or(Malformed)?;
        let fields = self.decode_fields(&error.fields, &payload)?;
        Ok(Err(NoResult::Error { number, name: error.name.clone(), about: error.about.clone(), fields }))
    }
}

fn too_large(window_bytes: u32, message: &Message) -> Wrong {
    let Message { payload, capabilities, leases, .. } = message;
    let (most_leases, most_capabilities) = (MAX_LEASES, MAX_CAPABILITIES);
    Wrong {
        place: String::new(),
        expected: format!(
            "at most {most_leases} leases and {most_capabilities} capabilities, and all in {window_bytes} bytes"
        ),
        found: Some(format!("{}, {} and {} bytes", leases.len(), capabilities.len(), payload.len())),
    }
}
