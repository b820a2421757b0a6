//! How arguments and results become bytes.
//!
//! * A payload is a **fixed part**, whose size is a constant of the operation, and a **tail**. Scalars stand in the
//!   fixed part; a string, byte string or list has its count (`u32`) there and its content in the tail. Everything is
//!   little-endian and unaligned; there is no padding and only one way to write a value.
//! * An element of a list stands in the tail as its own fixed part followed by its own tail.
//! * Leases and capabilities travel beside the payload, in the order in which they occur.
//! * Decoding never trusts a length: it allocates no more than there are bytes, and whatever is cut off, left over or
//!   impossible is [`Malformed`].
//! * Encoding allocates nothing in the long run: buffers return to a pool of their thread.
//!
//! ```text
//! open(dir, path: Path, want: Rights)      rename(dir, from: Name, to_dir, to: Name, replace: bool)
//!  0  4  bytes in path                      0  4  bytes in from
//!  4  4  want                               4  4  bytes in to
//!  8  …  path                               8  1  replace
//!                                           9  …  from, then to
//! ```

mod values;

use std::cell::RefCell;

use crate::capability::Grant;
use crate::described::{Type, Types};
use crate::lease::Lend;
use crate::session::{ClientSession, Earlier};
use crate::wire::{Handle, LeaseName};

/// Bytes that are no value of the type they should be. Nothing of them was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes are not a value of the expected type")
    }
}

impl std::error::Error for Malformed {}

/// How much of a value stands in the fixed part, and how to say what the value is.
pub trait Layout {
    /// Bytes in the fixed part.
    const FIXED_BYTES: usize;

    /// The type as data. Its fixed part has [`FIXED_BYTES`](Layout::FIXED_BYTES).
    fn describe(types: &mut Types) -> Type;
}

/// A value that can be sent.
pub trait Encode: Layout {
    /// Writes exactly `FIXED_BYTES` to the fixed part, and whatever it needs to the tail.
    fn encode(&self, to: &mut Encoder);

    /// Writes a list's elements to the tail. Only byte strings have a faster way.
    fn encode_elements(elements: &[Self], to: &mut Encoder)
    where
        Self: Sized,
    {
        for element in elements {
            to.nested(Self::FIXED_BYTES, |to| element.encode(to));
        }
    }
}

/// A value that can be received. It may borrow from the bytes.
pub trait Decode<'a>: Layout + Sized {
    /// Reads exactly `FIXED_BYTES` from the fixed part, and what they announce from the tail.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are no such value.
    fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed>;

    /// Reads a list's elements from the tail. Only byte strings have a faster way.
    ///
    /// # Errors
    /// [`Malformed`] when the tail does not hold `count` such values.
    fn decode_elements(count: usize, from: &mut Decoder<'a>) -> Result<Vec<Self>, Malformed> {
        // A lying count cannot make us allocate: each element costs at least one byte of what was really received.
        const { assert!(Self::FIXED_BYTES > 0, "a list's elements need a fixed part") };
        if count > from.tail.len() / Self::FIXED_BYTES {
            return Err(Malformed);
        }
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(from.nested(Self::FIXED_BYTES, Self::decode)?);
        }
        Ok(elements)
    }
}

/// A message being written: payload, and what travels beside it. Its buffers return to the pool when it is dropped.
pub struct Encoder {
    /// Where the fixed part is written next.
    cursor: usize,
    /// Boxed, because an encoder moves from hand to hand before its call is sent. `None`: nothing was written.
    buffers: Option<Box<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    /// Fixed part and tail.
    payload: Vec<u8>,
    /// Requests: handle arguments.
    handles: Vec<Handle>,
    /// Requests: lease arguments.
    leases: Vec<LeaseName>,
    /// Replies: new capabilities.
    grants: Vec<Grant>,
    /// Replies: new leases.
    lends: Vec<Lend>,
}

impl Encoder {
    /// An empty message whose fixed part has `fixed_bytes`.
    pub fn new(fixed_bytes: usize) -> Encoder {
        let mut encoder = Encoder { cursor: 0, buffers: None };
        if fixed_bytes > 0 {
            encoder.buffers_mut().payload.resize(fixed_bytes, 0);
        }
        encoder
    }

    /// A message of one value.
    pub fn of<T: Encode>(value: &T) -> Encoder {
        let mut encoder = Encoder::new(T::FIXED_BYTES);
        value.encode(&mut encoder);
        encoder
    }

    /// Writes to the fixed part.
    ///
    /// # Panics
    /// When a type writes more than its `FIXED_BYTES`.
    pub fn fixed(&mut self, bytes: &[u8]) {
        let end = self.cursor + bytes.len();
        let cursor = self.cursor;
        let place = self.buffers_mut().payload.get_mut(cursor..end);
        place.expect("a type writes no more than its FIXED_BYTES").copy_from_slice(bytes);
        self.cursor = end;
    }

    /// Leaves zeros in the fixed part.
    pub fn skip(&mut self, bytes: usize) {
        self.cursor += bytes;
    }

    /// Appends to the tail.
    pub fn tail(&mut self, bytes: &[u8]) {
        self.buffers_mut().payload.extend_from_slice(bytes);
    }

    /// Adds a handle argument.
    pub fn handle(&mut self, handle: Handle) {
        self.buffers_mut().handles.push(handle);
    }

    /// Adds a lease argument.
    pub fn lease(&mut self, name: LeaseName) {
        self.buffers_mut().leases.push(name);
    }

    /// Adds a new capability to a reply.
    pub fn grant(&mut self, grant: Grant) {
        self.buffers_mut().grants.push(grant);
    }

    /// Adds a new lease to a reply.
    pub fn lend(&mut self, lend: Lend) {
        self.buffers_mut().lends.push(lend);
    }

    /// Writes a list's element: a fixed part of its own at the end of the tail.
    fn nested(&mut self, fixed_bytes: usize, write: impl FnOnce(&mut Encoder)) {
        let outer = self.begin_nested(fixed_bytes);
        write(self);
        self.end_nested(outer);
    }

    /// What is written from now on is a list's element; gives where the outer value goes on.
    pub(crate) fn begin_nested(&mut self, fixed_bytes: usize) -> usize {
        let end = self.payload().len();
        self.buffers_mut().payload.resize(end + fixed_bytes, 0);
        std::mem::replace(&mut self.cursor, end)
    }

    pub(crate) fn end_nested(&mut self, outer: usize) {
        self.cursor = outer;
    }

    pub(crate) fn count(&mut self, count: usize) {
        let count = u32::try_from(count).expect("a message is far smaller than 4 GiB");
        self.fixed(&count.to_le_bytes());
    }

    /// Writes a byte string: its count, then the bytes.
    pub(crate) fn counted(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.tail(bytes);
    }

    /// The payload so far.
    pub fn payload(&self) -> &[u8] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.payload)
    }

    /// The handle arguments so far.
    pub fn handles(&self) -> &[Handle] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.handles)
    }

    pub(crate) fn handles_mut(&mut self) -> &mut [Handle] {
        self.buffers.as_mut().map_or(&mut [], |buffers| &mut buffers.handles)
    }

    /// The lease arguments so far.
    pub fn leases(&self) -> &[LeaseName] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.leases)
    }

    /// What a reply gives beside its payload: new capabilities, new leases.
    pub(crate) fn take_given(&mut self) -> (Vec<Grant>, Vec<Lend>) {
        let Some(buffers) = &mut self.buffers else { return (Vec::new(), Vec::new()) };
        (std::mem::take(&mut buffers.grants), std::mem::take(&mut buffers.lends))
    }

    #[inline]
    fn buffers_mut(&mut self) -> &mut Buffers {
        self.buffers
            .get_or_insert_with(|| POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default())
    }
}

impl Drop for Encoder {
    #[inline]
    fn drop(&mut self) {
        if let Some(buffers) = self.buffers.take() {
            buffers.give_back();
        }
    }
}

impl Buffers {
    fn give_back(self: Box<Self>) {
        let mut buffers = self;
        if buffers.payload.capacity() > MAX_POOLED_BYTES {
            return;
        }
        buffers.payload.clear();
        buffers.handles.clear();
        buffers.leases.clear();
        buffers.grants.clear();
        // Dropping a lend runs its owner's code, which may encode: the pool is not borrowed yet.
        buffers.lends.clear();
        // A thread that is ending has no pool any more.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < MAX_POOLED {
                pool.push(buffers);
            }
        });
    }
}

/// Messages whose buffers a thread keeps.
const MAX_POOLED: usize = 64;
/// A payload buffer that grew beyond the largest window is not kept.
const MAX_POOLED_BYTES: usize = crate::wire::MAX_WINDOW_BYTES as usize;

thread_local! {
    #[expect(clippy::vec_box, reason = "a message takes one pointer from here, and not its five vectors")]
    static POOL: RefCell<Vec<Box<Buffers>>> = const { RefCell::new(Vec::new()) };
}

/// Appends one element of a list that is kept as bytes (a page of directory entries, a batch of events).
pub fn push_element<T: Encode>(list: &mut Vec<u8>, element: &T) {
    let mut encoder = Encoder::of(element);
    list.append(&mut encoder.buffers_mut().payload);
}

/// Bytes that an element adds to a list that is kept as bytes.
pub fn element_bytes<T: Encode>(element: &T) -> usize {
    Encoder::of(element).payload().len()
}

/// The elements of a list that is kept as bytes, checked one by one. Ends after the first that is malformed.
pub fn elements<'a, T: Decode<'a>>(list: &'a [u8]) -> impl Iterator<Item = Result<T, Malformed>> + use<'a, T> {
    const { assert!(T::FIXED_BYTES > 0, "a list's elements need a fixed part") };
    let mut rest = list;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let element = Decoder::new(T::FIXED_BYTES, rest).and_then(|mut decoder| {
            let element = T::decode(&mut decoder)?;
            Ok((element, decoder.tail))
        });
        rest = element.as_ref().map_or(&[][..], |(_, tail)| tail);
        Some(element.map(|(element, _)| element))
    })
}

/// A message being read.
#[derive(Clone)]
pub struct Decoder<'a> {
    fixed: &'a [u8],
    tail: &'a [u8],
    handles: &'a [Handle],
    leases: &'a [LeaseName],
    session: Option<&'a ClientSession>,
    /// The call that is answered, if others may depend on it.
    earlier: Option<&'a Earlier>,
}

impl<'a> Decoder<'a> {
    /// Splits `payload` into fixed part and tail.
    ///
    /// # Errors
    /// [`Malformed`] when it is shorter than its fixed part.
    pub fn new(fixed_bytes: usize, payload: &'a [u8]) -> Result<Decoder<'a>, Malformed> {
        let (fixed, tail) = payload.split_at_checked(fixed_bytes).ok_or(Malformed)?;
        Ok(Decoder { fixed, tail, handles: &[], leases: &[], session: None, earlier: None })
    }

    /// Adds the leases that came beside the payload.
    pub fn with_leases(self, leases: &'a [LeaseName]) -> Decoder<'a> {
        Decoder { leases, ..self }
    }

    /// Adds all that came beside the payload, without a session on which it could be released.
    pub(crate) fn with_beside(self, handles: &'a [Handle], leases: &'a [LeaseName]) -> Decoder<'a> {
        Decoder { handles, leases, ..self }
    }

    /// Adds what came beside a reply on `session`, to `earlier` if others may depend on that call.
    pub(crate) fn with_reply(
        self,
        session: &'a ClientSession,
        handles: &'a [Handle],
        leases: &'a [LeaseName],
        earlier: Option<&'a Earlier>,
    ) -> Decoder<'a> {
        Decoder { handles, leases, session: Some(session), earlier, ..self }
    }

    /// One value which is the whole payload.
    ///
    /// # Errors
    /// [`Malformed`], also when bytes, handles or leases are left over.
    pub fn whole<T: Decode<'a>>(payload: &'a [u8]) -> Result<T, Malformed> {
        let mut decoder = Decoder::new(T::FIXED_BYTES, payload)?;
        let value = T::decode(&mut decoder)?;
        decoder.finish()?;
        Ok(value)
    }

    /// Reads from the fixed part.
    ///
    /// # Errors
    /// [`Malformed`] when it has fewer bytes.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.fixed.split_first_chunk().ok_or(Malformed)?;
        self.fixed = rest;
        Ok(*bytes)
    }

    /// Reads from the tail.
    ///
    /// # Errors
    /// [`Malformed`] when it has fewer bytes.
    pub fn tail(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.tail.split_at_checked(count).ok_or(Malformed)?;
        self.tail = rest;
        Ok(bytes)
    }

    /// Skips bytes of the fixed part that must be zero.
    pub(crate) fn zeros(&mut self, count: usize) -> Result<(), Malformed> {
        let (bytes, rest) = self.fixed.split_at_checked(count).ok_or(Malformed)?;
        self.fixed = rest;
        if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Malformed) }
    }

    /// Takes the next lease.
    ///
    /// # Errors
    /// [`Malformed`] when there is none left.
    pub fn lease(&mut self) -> Result<LeaseName, Malformed> {
        let (name, rest) = self.leases.split_first().ok_or(Malformed)?;
        self.leases = rest;
        Ok(*name)
    }

    /// Takes the next handle.
    pub(crate) fn handle(&mut self) -> Result<Handle, Malformed> {
        let (handle, rest) = self.handles.split_first().ok_or(Malformed)?;
        self.handles = rest;
        Ok(*handle)
    }

    /// The session on which handles and leases are to be released. Only replies have one.
    pub(crate) fn session(&self) -> Result<&'a ClientSession, Malformed> {
        self.session.ok_or(Malformed)
    }

    /// The call that is answered, if others may depend on it.
    pub(crate) fn earlier(&self) -> Option<&'a Earlier> {
        self.earlier
    }

    /// Takes `count` things that travel beside the payload.
    pub(crate) fn beside<T>(
        &mut self,
        count: usize,
        take: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        if count > self.handles.len() + self.leases.len() {
            return Err(Malformed);
        }
        (0..count).map(|_| take(self)).collect()
    }

    /// Handles and leases that nobody took.
    pub(crate) fn untaken(&self) -> (&'a [Handle], &'a [LeaseName]) {
        (self.handles, self.leases)
    }

    /// Checks that everything was read.
    ///
    /// # Errors
    /// [`Malformed`] when something is left over.
    pub fn finish(&self) -> Result<(), Malformed> {
        let nothing_left =
            self.fixed.is_empty() && self.tail.is_empty() && self.handles.is_empty() && self.leases.is_empty();
        if nothing_left { Ok(()) } else { Err(Malformed) }
    }

    fn nested<T>(
        &mut self,
        fixed_bytes: usize,
        read: impl FnOnce(&mut Decoder<'a>) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        let own = self.tail(fixed_bytes)?;
        let outer = self.replace_fixed(own);
        let value = read(self)?;
        self.fixed = outer;
        Ok(value)
    }

    /// Goes on with another fixed part; gives the old one.
    pub(crate) fn replace_fixed(&mut self, fixed: &'a [u8]) -> &'a [u8] {
        std::mem::replace(&mut self.fixed, fixed)
    }

    /// What is behind a value that stands alone: what else there is in a list that is kept as bytes.
    pub(crate) fn rest(&self) -> Result<&'a [u8], Malformed> {
        if self.fixed.is_empty() { Ok(self.tail) } else { Err(Malformed) }
    }

    pub(crate) fn count(&mut self) -> Result<usize, Malformed> {
        usize::try_from(u32::from_le_bytes(self.fixed()?)).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests;
