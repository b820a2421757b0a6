//! What the supervisor keeps with the keeper, for the supervisor after it.
//!
//! - A [`Kept`] is a record at the keeper as long as it lives; dropping it takes the record away, that of a region a little
//!   later. A supervisor that dies or is replaced drops nothing: the next one finds all of it.
//! - A record counts from the call that puts it, whatever happens to this process then. So what others are told is put first.
//! - A tag has a fixed form for each kind and is drawn here. It is checked on its way back as if it came from a disk.
//!
//! ```text
//! kind        slot        number        tag                                   descriptor
//! Lock        0           0                                                   the locked file
//! Listener    0           0                                                   STATE/atoll.sock
//! Up          0           0                                                   (none; the start is done)
//! Ending      0           0             text: why the start has failed         (none; the node ends)
//! Down        0           0                                                   (none; an operator wants the node to end)
//! Component   component's 0             ComponentTag                          (none)
//! Peer        its own     incarnation   PeerTag                               the supervisor's end of its control socket
//! Output      component's epoch                                               read end of what it prints
//! Table       lender's    incarnation   NumbersTag: capacity                  its lease table
//! Region      owner's     region        NumbersTag: owner's incarnation       the region
//! Pins        mapper's    of its own    NumbersTag: mapper's incarnation, its epoch, lender, 1 once adopted    the pin segment
//! Session     host's      session       NumbersTag: client's incarnation, endpoint, use                its ledger
//! Memory      component's hash of name  NamedTag: bytes, name                 the memory
//! Ancestor    component's incarnation                                         (none)
//! Fact        component's hash of key   FactTag: key, value as JSON           (none)
//! Held        component's hash of name  NamedTag: 0, name                     what is held
//! Logbook     component's 0                                                   its logbook
//! NodeListener 0          0                                                   where other nodes call
//! Program     component's 0             NamedTag: 0, path                     the program of its runs
//! Program     component's 1, 2          NamedTag: epoch of the run on trial, path    that on trial, and that of the run before it
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::runtime::sleep;
use nix::sys::resource::{Resource, getrlimit};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::link::Link;
use super::waits::Changes;
use crate::keeper::wire::{Key, TAG};

/// What a record is about. Stable: the next supervisor may be another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// See the module's table.
    Lock = 1,
    /// See the module's table.
    Listener = 2,
    /// See the module's table.
    Up = 4,
    /// See the module's table.
    Ending = 5,
    /// See the module's table.
    Component = 6,
    /// See the module's table.
    Peer = 7,
    /// See the module's table.
    Output = 8,
    /// See the module's table.
    Table = 9,
    /// See the module's table.
    Region = 10,
    /// See the module's table.
    Pins = 11,
    /// See the module's table.
    Session = 12,
    /// See the module's table.
    Memory = 13,
    /// See the module's table.
    Ancestor = 14,
    /// See the module's table.
    Fact = 15,
    /// See the module's table.
    Held = 16,
    /// See the module's table.
    Logbook = 17,
    /// See the module's table.
    NodeListener = 18,
    /// See the module's table.
    Program = 19,
    /// See the module's table.
    Down = 20,
}

/// Most records: as many as the keeper has room for, and half as many as it may have descriptors.
fn most_records() -> usize {
    // The keeper has raised its limit to the same as ours.
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX).min(crate::keeper::MAX_RECORDS)
}

impl Kind {
    /// Of so many records others can cause any number: a quarter of the room is left for what the node cannot do without.
    fn share(self, most: usize) -> usize {
        match self {
            Kind::Session | Kind::Region | Kind::Table => most - most / 4,
            _ => most,
        }
    }
}

/// How long a region that nobody needs any more stays at the keeper: longer than a restart takes; and how many do.
const LATE: Duration = Duration::from_millis(100);
const MOST_LATE: usize = 64;

/// Bytes of the texts in tags.
pub const NAME: usize = 200;

/// A component, over all its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ComponentTag {
    /// Of the last run that was begun.
    pub epoch: u64,
    /// 0: none.
    pub lender: u64,
    /// When its last run was ready, by the monotonic clock, in ns.
    pub ready_at: u64,
    /// Bit n: sessions of endpoint n survive.
    pub endpoints: u64,
    /// When it died of its own making, likewise; 0: never.
    pub deaths: [u64; 5],
    /// The number of the crash that ended its last run that was ready, and one more; 0: none.
    pub crash: u64,
    /// Times that it was started again.
    pub starts: u32,
    /// See `Phase`.
    pub phase: u32,
    /// Deaths in a row.
    pub row: u32,
    /// Bit 0: it did not end in order; the others: see `Hold`.
    pub marks: u32,
    /// The last thing that went wrong, cut.
    pub trouble: [u8; NAME - 12],
    /// The index of the component with which it is being restarted, and one more; 0: none.
    pub restarts_with: u32,
}

/// A run of a component, or a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PeerTag {
    /// Of its slot.
    pub epoch: u64,
    /// Dealt to it.
    pub lender: u64,
    /// Dealt to it.
    pub first_region: u64,
    /// Its process; 0 for a guest.
    pub pid: u32,
    /// It was greeted.
    pub greeted: u32,
    /// A guest's name.
    pub name: [u8; NAME],
}

/// Some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NumbersTag(pub [u64; 4]);

/// A name and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamedTag {
    /// How much of it.
    pub number: u64,
    /// The name.
    pub name: [u8; NAME],
}

/// A fact about a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FactTag {
    /// Its key.
    pub key: [u8; 64],
    /// Its value, as JSON.
    pub value: [u8; NAME],
}

const _: () = assert!(size_of::<ComponentTag>() <= TAG && size_of::<PeerTag>() <= TAG && size_of::<FactTag>() <= TAG);

/// A text in a tag, which must fit.
pub fn text<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    (!text.contains('\0')).then_some(bytes)
}

/// A text in a tag, cut if it is too long.
pub fn cut<const N: usize>(long: &str) -> [u8; N] {
    let mut end = N.min(long.len());
    while !long.is_char_boundary(end) {
        end -= 1;
    }
    text(&long[..end].replace('\0', " ")).unwrap_or([0; N])
}

/// The text in a tag.
pub fn read(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8(bytes[..end].to_vec()).ok()
}

/// What stands at the beginning of a tag.
pub fn tag<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8; TAG]) -> T {
    T::read_from_prefix(bytes).expect("every tag is smaller than the room for it").0
}

/// A number for a name, the same in every supervisor (FNV-1a).
pub fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// All records of this supervisor.
pub struct Records {
    link: Rc<Link>,
    /// Who put the record last: only its [`Kept`] takes it away.
    known: RefCell<HashMap<Key, u64>>,
    puts: Cell<u64>,
    most: usize,
    /// Of regions that nobody needs any more, and that are not taken away yet.
    late: RefCell<Vec<Key>>,
    lately: Changes,
}

/// A record at the keeper.
pub struct Kept {
    records: Rc<Records>,
    key: Key,
    put: u64,
    descriptor: Option<OwnedFd>,
}

impl Records {
    /// With nothing known of what is there.
    pub fn new(link: Rc<Link>) -> Records {
        let (known, late) = (RefCell::default(), RefCell::default());
        Records { link, known, puts: Cell::new(0), most: most_records(), late, lately: Changes::default() }
    }

    /// Takes regions away that nobody needs any more, when the keeper has time: it closes the memory that a dead run leaves, page
    /// by page, and the next run does not wait for that.
    pub async fn tidy(&self) {
        loop {
            let lately = self.lately.next();
            if self.late.borrow().is_empty() {
                lately.await;
            }
            sleep(LATE).await;
            for key in self.late.take() {
                if !self.known.borrow().contains_key(&key) {
                    self.take(key);
                }
            }
        }
    }

    fn take(&self, key: Key) {
        if let Err(error) = self.link.take(key) {
            eprintln!("supervisor: the keeper: {error}");
        }
    }

    /// For tests of what is kept: whoever reads it forgets it.
    #[cfg(test)]
    pub fn to_nobody() -> Records {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let kind = SockType::SeqPacket;
        let (nobody, ours) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a socket");
        std::thread::spawn(move || {
            let mut bytes = [0; size_of::<crate::keeper::wire::Request>()];
            let receive = kernel_ipc::sys::descriptors::receive;
            while receive(nobody.as_fd(), &mut bytes, true).is_ok_and(|packet| packet.length > 0) {}
        });
        Records::new(Rc::new(Link::new(ours)))
    }

    /// Puts a record, instead of another one under this key. Its descriptor is only at the keeper then.
    ///
    /// # Errors
    /// There are too many, or of the keeper's socket.
    pub fn put(
        self: &Rc<Self>,
        kind: Kind,
        slot: u32,
        number: u64,
        tag: &(impl IntoBytes + Immutable),
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<Kept> {
        let key = Key { kind: kind as u32, slot, number };
        let kept = self.known.borrow().len() + self.late.borrow().len();
        if kept >= kind.share(self.most) && !self.known.borrow().contains_key(&key) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let kept = self.know(key, None);
        kept.say(tag, descriptor)?;
        Ok(kept)
    }

    /// The same with a descriptor that is of use here too.
    ///
    /// # Errors
    /// As [`put`](Records::put).
    pub fn hold(
        self: &Rc<Self>,
        kind: Kind,
        slot: u32,
        number: u64,
        tag: &(impl IntoBytes + Immutable),
        descriptor: OwnedFd,
    ) -> io::Result<Kept> {
        let mut kept = self.put(kind, slot, number, tag, Some(descriptor.as_fd()))?;
        kept.descriptor = Some(descriptor);
        Ok(kept)
    }

    /// A record that is there already.
    pub fn know(self: &Rc<Self>, key: Key, descriptor: Option<OwnedFd>) -> Kept {
        let put = self.puts.get() + 1;
        self.puts.set(put);
        self.known.borrow_mut().insert(key, put);
        Kept { records: self.clone(), key, put, descriptor }
    }
}

impl Kept {
    /// What is kept.
    ///
    /// # Errors
    /// The record is one without a descriptor, or it cannot be duplicated.
    pub fn again(&self) -> io::Result<OwnedFd> {
        self.descriptor.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.try_clone()
    }

    /// Says something else of what is kept.
    ///
    /// # Errors
    /// Of the keeper's socket.
    pub fn tell(&self, tag: &(impl IntoBytes + Immutable)) -> io::Result<()> {
        self.say(tag, None)
    }

    fn say(&self, tag: &(impl IntoBytes + Immutable), descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut bytes = [0; TAG];
        let tag = tag.as_bytes();
        bytes[..tag.len()].copy_from_slice(tag);
        self.records.link.put(self.key, &bytes, descriptor)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut known = self.records.known.borrow_mut();
        if known.get(&self.key) == Some(&self.put) {
            known.remove(&self.key);
            let late = &mut *self.records.late.borrow_mut();
            if self.key.kind == Kind::Region as u32 && late.len() < MOST_LATE {
                late.push(self.key);
                self.records.lately.happen();
            } else {
                self.records.take(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::runtime::{Options, Runtime, spawn};
    use kernel_ipc::sys::descriptors;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use crate::keeper::wire::{Ask, Request};

    fn said(keeper: &OwnedFd) -> Option<(Option<Ask>, u64)> {
        let mut bytes = [0; size_of::<Request>()];
        descriptors::receive(keeper.as_fd(), &mut bytes, false).ok()?;
        let request = Request::read_from_bytes(&bytes).unwrap();
        Some((request.ask(), request.a))
    }

    fn records() -> (OwnedFd, Rc<Records>) {
        let kind = SockType::SeqPacket;
        let (keeper, ours) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (keeper, Rc::new(Records::new(Rc::new(Link::new(ours)))))
    }

    #[test]
    fn a_record_is_taken_away_by_the_last_who_put_it_and_nobody_else() {
        let (keeper, records) = records();
        let first = records.put(Kind::Pins, 1, 7, &NumbersTag::default(), None).unwrap();
        let second = records.put(Kind::Pins, 1, 7, &NumbersTag::default(), None).unwrap();
        assert_eq!([said(&keeper), said(&keeper)], [Some((Some(Ask::Put), 7)); 2]);
        drop(first);
        assert_eq!(said(&keeper), None);
        second.tell(&NumbersTag([1, 2, 3, 4])).unwrap();
        assert_eq!(said(&keeper), Some((Some(Ask::Put), 7)));
        drop(second);
        assert_eq!(said(&keeper), Some((Some(Ask::Take), 7)));
    }

    #[test]
    fn a_region_is_taken_away_later_unless_there_are_many_or_it_is_put_again() {
        let (keeper, records) = records();
        let put = |number| records.put(Kind::Region, 1, number, &NumbersTag::default(), None).unwrap();
        let regions: Vec<Kept> = (0..MOST_LATE as u64 + 1).map(put).collect();
        while said(&keeper).is_some() {}
        drop(regions);
        assert_eq!(said(&keeper), Some((Some(Ask::Take), MOST_LATE as u64)));
        assert_eq!(said(&keeper), None);
        let again = put(3);
        let runtime = Runtime::new(Options::default()).expect("io_uring");
        runtime.block_on(async {
            spawn({
                let records = records.clone();
                async move { records.tidy().await }
            });
            while !records.late.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        assert_eq!(said(&keeper), Some((Some(Ask::Put), 3)));
        let taken: Vec<_> = std::iter::from_fn(|| said(&keeper)).collect();
        let expected = (0..MOST_LATE as u64).filter(|&number| number != 3);
        assert_eq!(taken, expected.map(|number| (Some(Ask::Take), number)).collect::<Vec<_>>());
        drop(again);
    }

    #[test]
    fn what_others_can_cause_leaves_room_for_what_the_node_needs() {
        let mut records = Records::to_nobody();
        records.most = 8;
        let records = Rc::new(records);
        let put = |kind, number| records.put(kind, 1, number, &NumbersTag::default(), None);
        let sessions: Vec<Kept> = (0..6).map(|number| put(Kind::Session, number).unwrap()).collect();
        assert!(put(Kind::Session, 6).is_err());
        let pins: Vec<Kept> = (0..2).map(|number| put(Kind::Pins, number).unwrap()).collect();
        assert!(put(Kind::Pins, 2).is_err());
        drop((pins, sessions));
        put(Kind::Session, 6).unwrap();
    }

    #[test]
    fn texts_fit_or_are_refused_or_are_cut_between_characters() {
        assert_eq!(text::<4>("abcd").and_then(|bytes| read(&bytes)).as_deref(), Some("abcd"));
        assert_eq!(text::<4>("abcde"), None);
        assert_eq!(text::<4>("a\0"), None);
        assert_eq!(read(&cut::<4>("aüüü")).as_deref(), Some("aü"));
        assert_eq!(read(&[0xff, 0]), None);
    }
}
