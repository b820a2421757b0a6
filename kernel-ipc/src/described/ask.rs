//! The operation that every host answers: what its interface is.
//!
//! ```text
//! operation 0, on the root, without rights          idempotent
//!   offset u32                                      request: where in the JSON to go on
//!   length u32 | count u32 | count bytes            reply: how long all of it is, and the next part
//! ```
//!
//! It is answered by the host's end of a session from what the program was built with, and never reaches a handler.

use std::cell::OnceCell;
use std::time::Duration;

use super::{Checked, Fault, Interface};
use crate::codec::{Decoder, Encoder};
use crate::interface::{Description, Retry};
use crate::session::{ClientSession, Request};
use crate::wire::MIN_PAYLOAD_BYTES;
use crate::{Cause, Failure};

/// The operation's number: that of no operation of an interface.
pub const DESCRIBE: u16 = 0;

/// Bytes of JSON in one reply.
const PART: usize = MIN_PAYLOAD_BYTES - 2 * size_of::<u32>();
/// Longest description that is read, in bytes of JSON: that of a large interface is a tenth of it.
const MAX_BYTES: u32 = 1 << 20;
/// How long each part may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a host's description is not known.
#[derive(Debug)]
pub enum AskError {
    /// The call failed.
    Failed(Failure),
    /// The host answered something that is no part of a description.
    Malformed,
    /// The description is not one that can be used.
    Fault(Fault),
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AskError::Failed(failure) => write!(f, "it did not say what its interface is: {failure}"),
            AskError::Malformed => f.write_str("it answered something that is no part of a description"),
            AskError::Fault(fault) => write!(f, "its description of its interface is wrong: {fault}"),
        }
    }
}

impl std::error::Error for AskError {}

/// Asks a host what its interface is.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(session: &ClientSession) -> Result<Checked, AskError> {
    let mut json = Vec::new();
    loop {
        let offset = u32::try_from(json.len()).map_err(|_| AskError::Malformed)?;
        let request = Request {
            operation: DESCRIBE,
            handle: session.root(),
            payload: &offset.to_le_bytes(),
            capabilities: &[],
            leases: &[],
            deadline: Some(PATIENCE),
            retry: Retry::Idempotent,
        };
        let reply = session.call(request).await.map_err(AskError::Failed)?;
        let (length, part) = Decoder::whole::<(u32, &[u8])>(&reply.payload).map_err(|_| AskError::Malformed)?;
        json.extend_from_slice(part);
        let is_sound = reply.operation_error.is_none() && length <= MAX_BYTES && json.len() <= length as usize;
        if !is_sound || part.is_empty() {
            return Err(AskError::Malformed);
        }
        if json.len() == length as usize {
            return Interface::from_json(&json).map_err(AskError::Fault);
        }
    }
}

/// What a host answers to a request with this payload; `json` keeps the description for the next part.
///
/// # Errors
/// Why it does not.
pub(crate) fn page(
    interface: &'static Description,
    json: &OnceCell<Box<str>>,
    payload: &[u8],
) -> Result<Encoder, Cause> {
    let offset: u32 = Decoder::whole(payload).map_err(|_| Cause::BadArguments)?;
    let json = json.get_or_init(|| {
        serde_json::to_string(&Interface::of(interface)).expect("names and numbers are JSON").into_boxed_str()
    });
    let rest = json.as_bytes().get(offset as usize..).ok_or(Cause::BadArguments)?;
    let part = rest.get(..PART).unwrap_or(rest);
    Ok(Encoder::of(&(u32::try_from(json.len()).map_err(|_| Cause::ReplyTooLarge)?, part)))
}
