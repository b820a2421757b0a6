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
use crate::session::{ClientSession, Reply, Request};
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
    let mut gathered = Vec::new();
    loop {
        let offset = u32::try_from(gathered.len()).map_err(|_| AskError::Malformed)?;
        let reply = part(session, offset).await.map_err(AskError::Failed)?;
        if reply.operation_error.is_some() {
            return Err(AskError::Malformed);
        }
        if gather(&mut gathered, &reply.payload)? {
            return Interface::from_json(&gathered).map_err(AskError::Fault);
        }
    }
}

/// One call that every host answers, whatever it serves: its end of the session does.
///
/// # Errors
/// Of the call.
pub async fn knock(session: &ClientSession) -> Result<(), Failure> {
    part(session, 0).await.map(drop)
}

async fn part(session: &ClientSession, offset: u32) -> Result<Reply, Failure> {
    let request = Request {
        operation: DESCRIBE,
        handle: session.root(),
        payload: &offset.to_le_bytes(),
        capabilities: &[],
        leases: &[],
        deadline: Some(PATIENCE),
        retry: Retry::Idempotent,
    };
    session.call(request).await
}

/// Adds a reply's part; says whether it was the last.
fn gather(gathered: &mut Vec<u8>, reply: &[u8]) -> Result<bool, AskError> {
    let (length, part) = Decoder::whole::<(u32, &[u8])>(reply).map_err(|_| AskError::Malformed)?;
    gathered.extend_from_slice(part);
    // Each part is something, so that a host cannot keep its client asking for ever.
    if part.is_empty() || length > MAX_BYTES || gathered.len() > length as usize {
        return Err(AskError::Malformed);
    }
    Ok(gathered.len() == length as usize)
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

#[cfg(test)]
mod tests {
    use super::super::{Details, testing};
    use super::*;

    /// The shop, with more said of it than there is room for in one part.
    static LONG: Description = Description {
        name: testing::DESCRIPTION.name,
        kinds: testing::DESCRIPTION.kinds,
        rights: testing::DESCRIPTION.rights,
        operations: testing::DESCRIPTION.operations,
        details: |types| Details { about: include_str!("ask.rs"), ..(testing::DESCRIPTION.details)(types) },
    };

    fn reply(length: u32, part: &[u8]) -> Vec<u8> {
        Encoder::of(&(length, part)).payload().to_vec()
    }

    #[test]
    fn the_parts_of_a_description_are_all_of_it() {
        let (kept, mut gathered) = (OnceCell::new(), Vec::new());
        let mut parts = 0;
        loop {
            let offset = (gathered.len() as u32).to_le_bytes();
            let page = page(&LONG, &kept, &offset).expect("there is more");
            parts += 1;
            if gather(&mut gathered, page.payload()).expect("the host is honest") {
                break;
            }
        }
        assert!(parts > 1, "it is longer than a part");
        assert_eq!(*Interface::from_json(&gathered).expect("sound"), Interface::of(&LONG));
    }

    #[test]
    fn a_host_that_lies_about_its_parts_is_not_asked_again() {
        for (gathered, lie) in [
            (&b"{"[..], reply(10, b"")),
            (b"", reply(0, b"")),
            (b"{", reply(2, b"abc")),
            (b"{}", reply(1, b"}")),
            (b"", reply(MAX_BYTES + 1, b"{")),
            (b"", b"{}".to_vec()),
            (b"", [reply(9, b"{"), b"}".to_vec()].concat()),
        ] {
            let refused = gather(&mut gathered.to_vec(), &lie);
            assert!(matches!(refused, Err(AskError::Malformed)), "{lie:?}");
        }
    }
}
