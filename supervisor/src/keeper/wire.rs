//! What the supervisor and the keeper say to each other: fixed-size records over a `SOCK_SEQPACKET` pair.
//!
//! - A request is [`Request`], 320 bytes, with at most four descriptors; every request but `Put`, `Take`,
//!   `Serving` and `End` gets exactly one reply, in order.
//! - What was sent is carried out, also when the supervisor dies meanwhile: a record that was put is kept from then on.
//! - Replies and events are [`Notice`], 320 bytes. Events come when they come, between replies.
//! - Native byte order: both ends are the same binary on the same machine. Nothing in it is parsed: every field is a
//!   number or a NUL-padded string at a fixed place.
//!
//! ```text
//! Request  0 kind u32 | 4 slot u32 | 8 a u64 | 16 arguments u32 | 20 zero u32 | 24 b u64 | 32 four strings of 72 bytes, or a tag
//! Notice   0 kind u32 | 4 slot u32 | 8 a u64 | 16 b u64         | 24 c u64               | 32 tag
//! ```

use std::ffi::CStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots of a node: processes and guests that live at the same time. Also the lines of the status page.
pub const SLOTS: u32 = 192;

/// The supervisor's own slot.
pub const SUPERVISOR_SLOT: u32 = 0;

/// Components have slots `1..FIRST_GUEST_SLOT`.
pub const FIRST_GUEST_SLOT: u32 = 64;

/// Bytes of one argument of a program, its NUL included.
pub const ARGUMENT: usize = 72;

/// Most arguments of a program, its own name included.
pub const ARGUMENTS: usize = 4;

/// Version of this protocol: a supervisor of another program than the keeper's has to speak the same.
pub const VERSION: u64 = 3;

/// Most epochs of a slot that are not fenced: those of the dead, one that has just died, one that lives.
pub const UNFENCED: usize = super::slots::MAX_DEAD + 2;

/// What is said of a slot, in a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slotful {
    /// Its last epoch.
    pub epoch: u64,
    /// The last process in it.
    pub pid: u32,
    /// How that ended, if it has.
    pub wait_status: i32,
    /// 1: it lives.
    pub process: u32,
    /// 1: a guest lives in it.
    pub guest: u32,
    /// Epochs, the oldest first, of which the kernel has not let go of all that they gave it; then zeros.
    pub unfenced: [u64; UNFENCED],
}

const _: () = assert!(size_of::<Slotful>() <= TAG);

/// Bytes of a record's tag.
pub const TAG: usize = ARGUMENT * ARGUMENTS;

/// What a record is found by. The numbers mean what the supervisor wants them to mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind of thing.
    pub kind: u32,
    /// Whose it is.
    pub slot: u32,
    /// Which one.
    pub number: u64,
}

/// The one record that the keeper puts by itself: the descriptor that it was started with, where the start is reported.
pub const REPORT: Key = Key { kind: 0, slot: 0, number: 0 };

/// What the supervisor wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ask {
    /// Start a program in `slot` as epoch `a`. Descriptors: program, control socket, standard output, standard error.
    /// Reply: `a` = pid; descriptor: the fence's write end.
    Spawn = 1,
    /// Reserve `slot` for a guest as epoch `a`. Reply: descriptor: the fence's write end.
    Guest = 2,
    /// The guest in `slot` is gone: no epoch of it lives.
    GuestGone = 3,
    /// Epoch `a` of `slot` lives: its tables are published.
    Lives = 4,
    /// Send signal `a` to the process in `slot`.
    Signal = 5,
    /// Keep the record with kind `b`, `slot`, number `a` and the tag, instead of what was kept under that key. Descriptor:
    /// the record's, if it has one that is not kept already. No reply.
    Put = 7,
    /// Reply: descriptor: the status page.
    Status = 8,
    /// End the node: whatever still runs is killed; the keeper exits with code `a`. No reply.
    End = 9,
    /// The supervisor has heard `Terminate` and ends the node.
    Ending = 11,
    /// Forget the record with kind `b`, `slot` and number `a`, if there is one. No reply.
    Take = 12,
    /// Reply: the first record at cursor `a` or behind, or `ENOENT`. `a` = number, `b` = kind, `c` = the next cursor, with
    /// its slot, tag and descriptor.
    List = 13,
    /// First of all: a supervisor that speaks version `a` of this wants to begin. Reply: `a` = how many there have been with
    /// it, or `EPROTO`.
    Attach = 14,
    /// What is in `slot`. Reply: a [`Slotful`] in the tag.
    Slot = 15,
    /// The supervisor has taken over all that there is. No reply.
    Serving = 16,
    /// The process in slot `b`, which was started there, is epoch `a` of `slot` from now on. Reply: as for `Spawn`.
    Promote = 17,
}

/// What the keeper tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tell {
    /// Reply: done; `a` as the request says.
    Done = 1,
    /// Reply: not done; `a` is the errno.
    Failed = 2,
    /// Event: the process in `slot` died. `a` = epoch, `b` = wait status.
    Exited = 3,
    /// Event: the kernel has let go of all that epoch `a` of `slot` gave it.
    Fenced = 4,
    /// Event: someone asked the keeper by a signal to end the node in order.
    Terminate = 5,
}

/// A request. See the module's drawing.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// An [`Ask`].
    pub kind: u32,
    /// Which slot.
    pub slot: u32,
    /// Depends on the kind.
    pub a: u64,
    /// How many of `strings` are used.
    pub arguments: u32,
    /// Zero.
    pub reserved: u32,
    /// Depends on the kind.
    pub b: u64,
    /// A program's arguments, each ended by a NUL.
    pub strings: [[u8; ARGUMENT]; ARGUMENTS],
}

/// A reply or an event. See the module's drawing.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Notice {
    /// A [`Tell`].
    pub kind: u32,
    /// Which slot.
    pub slot: u32,
    /// Depends on the kind.
    pub a: u64,
    /// Depends on the kind.
    pub b: u64,
    /// Depends on the kind.
    pub c: u64,
    /// A record's tag.
    pub tag: [u8; TAG],
}

const _: () = assert!(size_of::<Request>() == 320);
const _: () = assert!(size_of::<Notice>() == 320);

impl Request {
    /// A request without arguments.
    pub fn new(ask: Ask, slot: u32, a: u64) -> Request {
        Request { kind: ask as u32, slot, a, arguments: 0, reserved: 0, b: 0, strings: [[0; ARGUMENT]; ARGUMENTS] }
    }

    /// For the record with this key.
    pub fn record(ask: Ask, key: Key) -> Request {
        Request::new(ask, key.slot, key.number).with_b(key.kind.into())
    }

    /// With a record's tag.
    pub fn with_tag(mut self, tag: &[u8; TAG]) -> Request {
        for (string, bytes) in self.strings.iter_mut().zip(tag.chunks_exact(ARGUMENT)) {
            string.copy_from_slice(bytes);
        }
        self
    }

    /// A record's tag.
    pub fn tag(&self) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(self.strings.as_flattened());
        tag
    }

    /// The key of the record that it is about, if that can be one.
    pub fn key(&self) -> Option<Key> {
        Some(Key { kind: u32::try_from(self.b).ok()?, slot: self.slot, number: self.a })
    }

    /// With its second number.
    pub fn with_b(self, b: u64) -> Request {
        Request { b, ..self }
    }

    /// With a program's arguments. `None` if there are too many, or one is too long or contains a NUL.
    pub fn with_arguments(mut self, arguments: &[&str]) -> Option<Request> {
        if arguments.len() > ARGUMENTS {
            return None;
        }
        for (string, argument) in self.strings.iter_mut().zip(arguments) {
            let bytes = argument.as_bytes();
            if bytes.len() >= ARGUMENT || bytes.contains(&0) {
                return None;
            }
            string[..bytes.len()].copy_from_slice(bytes);
        }
        self.arguments = arguments.len() as u32;
        Some(self)
    }

    /// A program's arguments, and how many they are. `None` if one does not end.
    pub fn arguments(&self) -> Option<([&CStr; ARGUMENTS], usize)> {
        let mut arguments = [c""; ARGUMENTS];
        for (to, from) in arguments.iter_mut().zip(&self.strings) {
            *to = CStr::from_bytes_until_nul(from).ok()?;
        }
        Some((arguments, (self.arguments as usize).min(ARGUMENTS)))
    }

    /// What it asks, if that exists.
    pub fn ask(&self) -> Option<Ask> {
        [
            Ask::Spawn,
            Ask::Guest,
            Ask::GuestGone,
            Ask::Lives,
            Ask::Signal,
            Ask::Put,
            Ask::Status,
            Ask::End,
            Ask::Ending,
            Ask::Take,
            Ask::List,
            Ask::Attach,
            Ask::Slot,
            Ask::Serving,
            Ask::Promote,
        ]
        .into_iter()
        .find(|&ask| ask as u32 == self.kind)
    }
}

impl Notice {
    /// A notice.
    pub fn new(tell: Tell, slot: u32, a: u64, b: u64) -> Notice {
        Notice { kind: tell as u32, slot, a, b, c: 0, tag: [0; TAG] }
    }

    /// What it tells, if that exists.
    pub fn tell(&self) -> Option<Tell> {
        [Tell::Done, Tell::Failed, Tell::Exited, Tell::Fenced, Tell::Terminate]
            .into_iter()
            .find(|&tell| tell as u32 == self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_encoding() {
        for ask in [
            Ask::Spawn,
            Ask::Guest,
            Ask::GuestGone,
            Ask::Lives,
            Ask::Signal,
            Ask::Put,
            Ask::Status,
            Ask::End,
            Ask::Ending,
            Ask::Take,
            Ask::List,
            Ask::Attach,
            Ask::Slot,
            Ask::Serving,
            Ask::Promote,
        ] {
            let request = Request::new(ask, 3, 9).with_b(8);
            let back = Request::read_from_bytes(request.as_bytes()).unwrap();
            assert_eq!((back.ask(), back.slot, back.a, back.b), (Some(ask), 3, 9, 8));
        }
        assert_eq!(Request::read_from_bytes(&[0xff; 320]).unwrap().ask(), None);
        assert_eq!(Notice::read_from_bytes(&[0xff; 320]).unwrap().tell(), None);
    }

    #[test]
    fn a_record_survives_its_encoding() {
        let key = Key { kind: 4, slot: 5, number: u64::MAX };
        let mut tag = [0; TAG];
        tag.iter_mut().zip(0..).for_each(|(to, from): (&mut u8, u16)| *to = from as u8);
        let request = Request::record(Ask::Put, key).with_tag(&tag);
        let back = Request::read_from_bytes(request.as_bytes()).unwrap();
        assert_eq!((back.key(), back.tag()), (Some(key), tag));
        assert_eq!(Request::new(Ask::Put, 5, 1).with_b(1 << 32).key(), None);
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let request = Request::new(Ask::Spawn, 1, 1);
        assert!(request.with_arguments(&["atoll", "serve", "disk"]).is_some());
        assert!(request.with_arguments(&["a"; ARGUMENTS + 1]).is_none());
        assert!(request.with_arguments(&["x".repeat(ARGUMENT).as_str()]).is_none());
        assert!(request.with_arguments(&["a\0b"]).is_none());
    }
}
