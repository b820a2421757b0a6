//! What a call did to the volume, in words that another run of the server can repeat.
//!
//! Effects are kept in memory that outlives the process, until a checkpoint makes them durable. Each is one byte of kind,
//! fixed fields, then names or data to its end; decoding believes nothing.
//!
//! ```text
//! node: inode u64 | generation u64        name: length u16 | bytes        all little-endian
//! 1 make      directory node | node | kind u8 | time u64 | name
//! 2 remove    directory node | kind u8 | time u64 | name
//! 3 rename    from node | to node | replace u8 | time u64 | from name | to name
//! 4 write     node | offset u64 | time u64 | data
//! 5 truncate  node | size u64 | time u64
//! ```

use crate::NodeId;
use crate::format::items::{FileKind, check_name};

/// See the module's drawing. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// An empty file or directory was made.
    Make {
        /// Where.
        directory: NodeId,
        /// Its name.
        name: &'a [u8],
        /// What it is.
        kind: FileKind,
        /// Who it is.
        node: NodeId,
        /// When.
        now_ns: u64,
    },
    /// A name was removed.
    Remove {
        /// Where.
        directory: NodeId,
        /// Which.
        name: &'a [u8],
        /// Of a file or a directory.
        kind: FileKind,
        /// When.
        now_ns: u64,
    },
    /// Something was moved.
    Rename {
        /// From which directory.
        from: NodeId,
        /// Its name there.
        from_name: &'a [u8],
        /// To which directory.
        to: NodeId,
        /// Its name there.
        to_name: &'a [u8],
        /// It may take another's place.
        replace: bool,
        /// When.
        now_ns: u64,
    },
    /// Bytes were written.
    Write {
        /// To which file.
        node: NodeId,
        /// Where.
        offset: u64,
        /// When.
        now_ns: u64,
        /// Which.
        data: &'a [u8],
    },
    /// The size was set.
    Truncate {
        /// Of which file.
        node: NodeId,
        /// To what.
        size: u64,
        /// When.
        now_ns: u64,
    },
}

/// Bytes that are no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

const MAKE: u8 = 1;
const REMOVE: u8 = 2;
const RENAME: u8 = 3;
const WRITE: u8 = 4;
const TRUNCATE: u8 = 5;

/// Bytes before the data of a write.
const WRITE_HEAD: usize = 1 + 16 + 8 + 8;

/// A write's effect that is being made: its data first, where it went when that is known.
pub struct WriteEffect(Vec<u8>);

impl WriteEffect {
    /// Of so many bytes, which `fill` provides.
    ///
    /// # Errors
    /// That of `fill`.
    pub fn new<E>(length: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut bytes = vec![0; WRITE_HEAD + length];
        fill(&mut bytes[WRITE_HEAD..])?;
        Ok(Self(bytes))
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.0[WRITE_HEAD..]
    }

    /// The effect's bytes.
    #[must_use]
    pub fn encode(mut self, node: NodeId, offset: u64, now_ns: u64) -> Vec<u8> {
        let head = Effect::Write { node, offset, now_ns, data: &[] }.encode();
        self.0[..WRITE_HEAD].copy_from_slice(&head);
        self.0
    }
}

impl<'a> Effect<'a> {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_into(Vec::new())
    }

    /// Its bytes, in a buffer that is empty.
    #[must_use]
    pub fn encode_into(&self, mut to: Vec<u8>) -> Vec<u8> {
        let node = |to: &mut Vec<u8>, node: &NodeId| {
            to.extend(node.inode.to_le_bytes());
            to.extend(node.generation.to_le_bytes());
        };
        let named = |to: &mut Vec<u8>, name: &[u8]| {
            to.extend((name.len() as u16).to_le_bytes());
            to.extend(name);
        };
        match self {
            Effect::Make { directory, name, kind, node: made, now_ns } => {
                to.push(MAKE);
                node(&mut to, directory);
                node(&mut to, made);
                to.push(number(*kind));
                to.extend(now_ns.to_le_bytes());
                named(&mut to, name);
            }
            Effect::Remove { directory, name, kind, now_ns } => {
                to.push(REMOVE);
                node(&mut to, directory);
                to.push(number(*kind));
                to.extend(now_ns.to_le_bytes());
                named(&mut to, name);
            }
            Effect::Rename { from, from_name, to: target, to_name, replace, now_ns } => {
                to.push(RENAME);
                node(&mut to, from);
                node(&mut to, target);
                to.push(u8::from(*replace));
                to.extend(now_ns.to_le_bytes());
                named(&mut to, from_name);
                named(&mut to, to_name);
            }
            Effect::Write { node: of, offset, now_ns, data } => {
                to.reserve(data.len() + 40);
                to.push(WRITE);
                node(&mut to, of);
                to.extend(offset.to_le_bytes());
                to.extend(now_ns.to_le_bytes());
                to.extend(*data);
            }
            Effect::Truncate { node: of, size, now_ns } => {
                to.push(TRUNCATE);
                node(&mut to, of);
                to.extend(size.to_le_bytes());
                to.extend(now_ns.to_le_bytes());
            }
        }
        to
    }

    /// The effect in these bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Effect<'a>, Malformed> {
        let mut from = Reader(bytes);
        let effect = match from.byte()? {
            MAKE => {
                let (directory, node, kind, now_ns) = (from.node()?, from.node()?, from.kind()?, from.word()?);
                Effect::Make { directory, name: from.name()?, kind, node, now_ns }
            }
            REMOVE => {
                let (directory, kind, now_ns) = (from.node()?, from.kind()?, from.word()?);
                Effect::Remove { directory, name: from.name()?, kind, now_ns }
            }
            RENAME => {
                let (old, new, replace, now_ns) = (from.node()?, from.node()?, from.byte()?, from.word()?);
                let (from_name, to_name) = (from.name()?, from.name()?);
                Effect::Rename { from: old, from_name, to: new, to_name, replace: replace == 1, now_ns }
            }
            WRITE => {
                let (node, offset, now_ns) = (from.node()?, from.word()?, from.word()?);
                Effect::Write { node, offset, now_ns, data: std::mem::take(&mut from.0) }
            }
            TRUNCATE => Effect::Truncate { node: from.node()?, size: from.word()?, now_ns: from.word()? },
            _ => return Err(Malformed),
        };
        if from.0.is_empty() { Ok(effect) } else { Err(Malformed) }
    }

    /// When it happened.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        match self {
            Effect::Make { now_ns, .. }
            | Effect::Remove { now_ns, .. }
            | Effect::Rename { now_ns, .. }
            | Effect::Write { now_ns, .. }
            | Effect::Truncate { now_ns, .. } => *now_ns,
        }
    }
}

fn number(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn word(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        bytes.try_into().map(u64::from_le_bytes).map_err(|_| Malformed)
    }

    fn node(&mut self) -> Result<NodeId, Malformed> {
        Ok(NodeId { inode: self.word()?, generation: self.word()? })
    }

    fn kind(&mut self) -> Result<FileKind, Malformed> {
        match self.byte()? {
            1 => Ok(FileKind::File),
            2 => Ok(FileKind::Directory),
            _ => Err(Malformed),
        }
    }

    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.take(2)?;
        let length = u16::from_le_bytes(length.try_into().map_err(|_| Malformed)?);
        let name = self.take(length.into())?;
        check_name(name).map_err(|_| Malformed)?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: NodeId = NodeId { inode: 3, generation: u64::MAX };
    const B: NodeId = NodeId { inode: 1 << 40, generation: 7 };

    #[test]
    fn every_effect_survives_its_encoding_and_no_part_of_one_is_one() {
        let effects = [
            Effect::Make { directory: A, name: b"new", kind: FileKind::File, node: B, now_ns: 5 },
            Effect::Remove { directory: A, name: &[b'x'; 255], kind: FileKind::Directory, now_ns: 6 },
            Effect::Rename { from: A, from_name: b"a", to: B, to_name: b"b", replace: true, now_ns: 7 },
            Effect::Truncate { node: B, size: 99, now_ns: 9 },
        ];
        for effect in effects {
            let bytes = effect.encode();
            assert_eq!(Effect::decode(&bytes), Ok(effect));
            for length in 0..bytes.len() {
                assert_eq!(Effect::decode(&bytes[..length]), Err(Malformed));
            }
            assert_eq!(Effect::decode(&[&bytes[..], &[0]].concat()), Err(Malformed));
        }
        let write = Effect::Write { node: A, offset: 4096, now_ns: 8, data: b"bytes" };
        assert_eq!(Effect::decode(&write.encode()), Ok(write));
        let fill = |data: &mut [u8]| -> Result<(), ()> {
            data.copy_from_slice(b"bytes");
            Ok(())
        };
        let made = WriteEffect::new(5, fill).unwrap();
        assert_eq!(made.data(), b"bytes");
        assert_eq!(made.encode(A, 4096, 8), write.encode());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(effect) = Effect::decode(&bytes) {
                let again = effect.encode();
                prop_assert_eq!(Effect::decode(&again), Ok(effect));
            }
        }
    }
}
