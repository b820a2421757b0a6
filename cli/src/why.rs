//! Why a call failed, in words for people.

use std::fmt::Display;

use kernel_ipc::{CallError, Cause, Executed};
use protocol::fs::{
    CheckError, CreateError, LookupError, ReadError, ReaddirError, RemoveError, RenameError, StatError, SyncError,
    WriteError,
};

use crate::output::Failed;

/// What a host may say, as words for people and what to do about it.
pub trait Words {
    /// The words.
    fn words(&self) -> (String, Option<&'static str>);
}

/// `what: why not`.
pub fn why<E: Words>(what: &impl Display, error: &CallError<E>) -> Failed {
    match error {
        CallError::Operation(error) => {
            let (words, help) = error.words();
            Failed { help: help.map(str::to_string), ..Failed::new(format!("{what}: {words}")) }
        }
        CallError::Failed { cause, executed } => lost(what, *cause, *executed),
    }
}

/// A call that got no answer of its operation.
pub fn lost(what: &impl Display, cause: Cause, executed: Executed) -> Failed {
    let ran = match executed {
        Executed::No => "nothing was done",
        Executed::Yes => "it was done",
        Executed::Unknown => "it may have been done",
    };
    let (words, help) = match cause {
        Cause::RightsMissing => ("this is not allowed here".to_string(), None),
        Cause::PeerDied | Cause::SessionClosed | Cause::NotConnected | Cause::StaleEpoch => {
            ("its server was restarted meanwhile".to_string(), Some("try again; `atoll logs` says why"))
        }
        Cause::Busy { .. } => ("its server has too much to do".to_string(), Some("try again a little later")),
        Cause::Deadline => ("there was no answer in time".to_string(), Some("`atoll ps` shows how it is")),
        Cause::Poisoned { crash } => {
            let help = match crash {
                0 => "`atoll crash list` has them".to_string(),
                crash => format!("`atoll crash show {crash}` says what is known of the last one"),
            };
            let words = format!("{what}: its server crashed on it twice, so it does not run again; {ran}");
            return Failed::new(words).help(help);
        }
        other => (format!("the call failed ({other:?})"), None),
    };
    Failed { help: help.map(str::to_string), ..Failed::new(format!("{what}: {words}; {ran}")) }
}

/// Whether something on the volume is damaged: what is next to it may be good.
pub fn is_damage(failed: &Failed) -> bool {
    failed.help.as_deref() == Some(DAMAGED)
}

const FULL: &str = "`atoll fs df` shows the room; `atoll fs rm` makes some";
const DAMAGED: &str = "`atoll fs check` says what is damaged";

fn no_such() -> (String, Option<&'static str>) {
    ("no such file or directory".into(), None)
}

fn no_directory() -> (String, Option<&'static str>) {
    ("not a directory".into(), None)
}

fn directory() -> (String, Option<&'static str>) {
    ("it is a directory".into(), None)
}

fn full() -> (String, Option<&'static str>) {
    ("no room left on the volume or on the disk under it".into(), Some(FULL))
}

fn damaged(block: u64) -> (String, Option<&'static str>) {
    (format!("block {block} of the volume is damaged"), Some(DAMAGED))
}

fn device() -> (String, Option<&'static str>) {
    ("the disk failed".into(), Some("`atoll logs disk` says how"))
}

impl Words for LookupError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::NotADirectory => no_directory(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
        }
    }
}

impl Words for CreateError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotADirectory => no_directory(),
            Self::Exists => ("it exists already".into(), None),
            Self::NoSpace => full(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
            Self::NotFound => no_such(),
        }
    }
}

impl Words for RemoveError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::NotADirectory => no_directory(),
            Self::IsADirectory => ("it is a directory".into(), Some("use -r to remove it with all that is in it")),
            Self::NotEmpty => ("the directory is not empty".into(), None),
            Self::NoSpace => full(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
        }
    }
}

impl Words for RenameError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::NotADirectory => ("a directory cannot replace a file".into(), None),
            Self::IsADirectory => ("a file cannot replace a directory".into(), None),
            Self::Exists => ("it exists already".into(), None),
            Self::NotEmpty => ("the directory that would be replaced is not empty".into(), None),
            Self::NoSpace => full(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
            Self::IntoItself => ("a directory cannot be moved into itself".into(), None),
        }
    }
}

impl Words for StatError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
        }
    }
}

impl Words for ReadError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::IsADirectory => directory(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
        }
    }
}

impl Words for WriteError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::IsADirectory => directory(),
            Self::NoSpace => full(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
            Self::TooLarge => ("a file has at most 1 TiB".into(), None),
        }
    }
}

impl Words for ReaddirError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NotFound => no_such(),
            Self::NotADirectory => no_directory(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => device(),
            Self::BadCursor => ("the listing could not be continued".into(), Some("try again")),
        }
    }
}

impl Words for CheckError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::Io => device(),
            Self::BadCursor => ("the check could not be continued".into(), Some("try again")),
        }
    }
}

impl Words for SyncError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSpace => full(),
            Self::Corrupt { block } => damaged(*block),
            Self::Io => (
                "the disk failed; what was written since the last sync may be lost".into(),
                Some("`atoll logs disk` says how"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_made_a_poisoned_request_is_told_where_to_look() {
        let failed = lost(&"/www/a", Cause::Poisoned { crash: 3 }, Executed::No);
        assert_eq!(
            failed.message,
            "/www/a: its server crashed on it twice, so it does not run again; nothing was done"
        );
        assert!(failed.help.is_some_and(|help| help.starts_with("`atoll crash show 3`")));
        let unknown = lost(&"/www/a", Cause::Poisoned { crash: 0 }, Executed::Unknown);
        assert!(unknown.help.is_some_and(|help| help.starts_with("`atoll crash list`")));
    }
}
