//! Looking at a session's capabilities in its ledger, while its host goes on writing it, or is dead.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};

use super::session::Stands;
use super::{Legible, Poisoned, SessionLedger};
use crate::capability::{Grant, Standing};
use crate::id::SessionId;
use crate::wire::Handle;

/// Looks at one entry before it is left out: its host is using the index over and over.
const LOOKS: u32 = 8;

/// A capability that a session holds, or that stays for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// How its client names it.
    pub handle: Handle,
    /// What it names.
    pub grant: Grant,
    /// What it came from, and how it stands.
    pub standing: Standing,
}

/// What a session holds, each entry as it stood when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// In the order of their indices.
    pub capabilities: Vec<Capability>,
    /// Most that the session may hold.
    pub quota: u32,
    /// There are more from this index on.
    pub next: Option<u32>,
}

impl Holdings {
    /// Reads the ledger of a session from index `from` on, at most so many capabilities of it. Changes nothing.
    ///
    /// # Errors
    /// [`Poisoned`]: says what is impossible. Only a host that has gone wrong makes it so.
    pub fn look(memory: impl Legible, session: SessionId, from: u32, most: usize) -> Result<Holdings, Poisoned> {
        let (ledger, _, used) = SessionLedger::open(memory, session)?;
        // Before the entries: what one of them depends on is done by then, or not looked at yet.
        let mut cells = ledger.cells()?;
        let mut holdings = Holdings { capabilities: Vec::new(), quota: ledger.quota(), next: None };
        for index in from..used {
            if holdings.capabilities.len() == most {
                holdings.next = Some(index);
                break;
            }
            for _ in 0..LOOKS {
                let word = ledger.entry_word(index);
                // Pairs with the host's Release of the word: what is read behind it was stored before it, or is newer.
                fence(Ordering::Acquire);
                let stands = ledger.stands(index, &cells);
                fence(Ordering::Acquire);
                if ledger.entry_word(index) != word {
                    continue;
                }
                match stands? {
                    (generation, Stands::Entry(grant, standing)) => {
                        let handle = Handle { index, generation };
                        holdings.capabilities.push(Capability { handle, grant, standing });
                    }
                    // Granted since the cells were read, perhaps.
                    (_, Stands::Uncounted) => {
                        let now = ledger.cells()?;
                        if now != cells {
                            cells = now;
                            continue;
                        }
                    }
                    (_, Stands::Free) => {}
                }
                break;
            }
        }
        Ok(holdings)
    }
}
