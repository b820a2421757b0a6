//! What a program can go on from: the versions of everything that one run leaves to the next, or shares with those who stay.
//!
//! Memory that a run leaves begins with a magic number and a version, as do the segments of its sessions. A program that is to go on
//! with them is asked first ([`fits`]), while the run before it serves.

use crate::wire;

/// Bytes of memory by which it is known what it is, and in which version.
pub const HEADER: usize = 16;

/// What is kept by whom. Each of them is drawn where it is made.
const KNOWN: [(&str, [u64; 2]); 4] = [
    ("the ledger of a session", crate::ledger::SESSION_FORMAT),
    ("the ledger of the component", crate::ledger::RECORDS_FORMAT),
    ("the ledger of leases", crate::lease::LEDGER_FORMAT),
    ("the lease table", crate::lease::TABLE_FORMAT),
];

/// The version of the segments of sessions over shared memory.
pub const SEGMENT: u32 = wire::VERSION;

/// Whether this program can go on with what begins with these bytes. What it does not know is a component's own, who looks at it
/// himself.
///
/// # Errors
/// What is in another version, for people.
pub fn fits(name: &str, header: &[u8; HEADER]) -> Result<(), String> {
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (magic, version) = (word(0), word(8));
    match KNOWN.iter().find(|(_, [known, _])| *known == magic) {
        Some((what, [_, ours])) if *ours != version => {
            Err(format!("{what} ({name}) is in version {version}, and this program takes version {ours}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header([magic, version]: [u64; 2]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&magic.to_le_bytes());
        bytes[8..].copy_from_slice(&version.to_le_bytes());
        bytes
    }

    #[test]
    fn another_version_of_anything_is_refused_by_its_name() {
        for (what, [magic, version]) in KNOWN {
            fits("x", &header([magic, version])).unwrap();
            for other in [version - 1, version + 1, u64::MAX] {
                let why = fits("x", &header([magic, other])).unwrap_err();
                assert!(why.contains(what) && why.contains(&format!("version {other},")), "{why}");
            }
        }
        fits("a component's own", &header([7, 9])).unwrap();
        fits("fresh", &[0; HEADER]).unwrap();
    }
}
