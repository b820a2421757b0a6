//! What two ends of a socket link say to each other, byte by byte. Drawn once, here; `docs/socket.md` explains it.
//!
//! ```text
//! frame      length u32 (of the body) | kind u16 | zero u16 | body          everything little-endian
//!
//! HELLO      client, first on each connection, 136 bytes
//!            magic u64 | version u32 | slots u16 | control slots u16 | window bytes u32 | outstanding u16 | zero u16
//!            session u64 (0: a new one) | number of the connection u64 | secret 32 bytes | interface 64 bytes
//! WELCOME    host, in answer to it, 56 bytes
//!            magic u64 | version u32 | slots u16 | control slots u16 | window bytes u32 | zero u32
//!            session u64 | epoch u64 | root handle u64 | number of the connection u64
//! REFUSED    host, in answer to it, 8 bytes; the connection ends: reason u16 | zero u16 | detail u32
//! MESSAGE    either: a descriptor of 64 bytes with lap 0, then as much of its slot's window as its extent says
//! HEARTBEAT  either, when it has said nothing for a while: no body
//! BYE        either, last on a session, 8 bytes: messages of the other end that were taken from this connection u64
//! BULK       client, first on a connection for leased bytes, 64 bytes
//!            magic u64 | version u32 | way u32 | session u64 | number of the connection u64 | secret 32 bytes
//! READY      host, in answer to it: no body
//! PULL       whom the bytes go to (way 0: the client, 1: the host), 32 bytes:
//!            lender u64 | index u32 | generation u32 | offset u64 | length u32 | tag u32
//! PIECE      the other, in the order of the PULLs: tag u32 | 0 u32 and the bytes that were asked for, or tag u32 | 1 u32:
//!            the lease is no more
//! ```
//!
//! - A descriptor is the one of [`wire`](crate::wire), but for its deadline: what is left of it, in nanoseconds. Two
//!   machines' monotonic clocks have nothing to do with each other.
//! - Every length, index, version and zero is checked before anything else is done with a frame. A frame that no correct
//!   peer sends is a [`FrameError`] and ends the session.

use crate::id::{Epoch, LenderId, SessionId};
use crate::wire::{CONTROL_SLOTS, DESCRIPTOR_BYTES, Extent, Handle, RawDescriptor, Shape, VERSION, Violation};

/// First word of a [`Hello`] and a [`Welcome`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-N1");
/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 8;
/// Bytes of a [`Hello`]'s body.
pub const HELLO_BYTES: usize = 136;
/// Bytes of a [`Welcome`]'s body.
pub const WELCOME_BYTES: usize = 56;
/// Bytes of a refusal's body.
pub const REFUSED_BYTES: usize = 8;
/// Bytes of a session's secret.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a farewell's body.
pub const BYE_BYTES: usize = 8;
/// Bytes of a [`Bulk`]'s body.
pub const BULK_BYTES: usize = 64;
/// Bytes of a [`Pull`]'s body.
pub const PULL_BYTES: usize = 32;
/// Bytes of a piece before the leased ones.
pub const PIECE_BYTES: usize = 8;
/// Most leased bytes in one piece.
pub const CHUNK: usize = 256 * 1024;
/// Room for an interface's name.
pub const INTERFACE_BYTES: usize = 64;

/// Numbers of the kinds of frames.
pub mod kind {
    /// See the module's drawing.
    pub const HELLO: u16 = 1;
    /// See the module's drawing.
    pub const WELCOME: u16 = 2;
    /// See the module's drawing.
    pub const REFUSED: u16 = 3;
    /// See the module's drawing.
    pub const MESSAGE: u16 = 4;
    /// See the module's drawing.
    pub const HEARTBEAT: u16 = 5;
    /// See the module's drawing.
    pub const BYE: u16 = 6;
    /// See the module's drawing.
    pub const BULK: u16 = 7;
    /// See the module's drawing.
    pub const READY: u16 = 8;
    /// See the module's drawing.
    pub const PULL: u16 = 9;
    /// See the module's drawing.
    pub const PIECE: u16 = 10;
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// There is no such kind, or not in this place.
    Kind(u16),
    /// A body of this kind is never so long.
    Length {
        /// The frame's kind.
        kind: u16,
        /// What it says of its length.
        length: u32,
    },
    /// A body that is not as long as its own descriptor says.
    Tail {
        /// What the frame says.
        said: u32,
        /// What the descriptor says.
        meant: u32,
    },
    /// A field that is always zero is not.
    NotZero,
    /// The descriptor names more than a message can carry.
    Extent,
    /// It does not begin as a hello or a welcome does.
    Magic,
    /// A welcome that does not answer the hello: another shape, session or connection.
    NotAnAnswer,
    /// An interface's name is not one.
    Name,
    /// There is no such way for leased bytes.
    Way(u32),
}

impl FrameError {
    /// What the session that ends by it says.
    pub fn violation(self) -> Violation {
        match self {
            FrameError::Length { .. } | FrameError::Tail { .. } | FrameError::Extent => Violation::Length,
            FrameError::Magic | FrameError::NotAnAnswer => Violation::Segment,
            FrameError::Kind(_) | FrameError::NotZero | FrameError::Name | FrameError::Way(_) => Violation::Reserved,
        }
    }
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Kind(kind) => write!(f, "a frame of kind {kind}, which has no place here"),
            FrameError::Length { kind, length } => write!(f, "a frame of kind {kind} with a body of {length} bytes"),
            FrameError::Tail { said, meant } => {
                write!(f, "a message of {said} bytes whose descriptor speaks of {meant}")
            }
            FrameError::NotZero => f.write_str("a frame with a field that is always zero and is not"),
            FrameError::Extent => f.write_str("a message that names more than a window holds"),
            FrameError::Magic => f.write_str("a greeting in another language than Atoll's"),
            FrameError::NotAnAnswer => f.write_str("a welcome to somebody else's session"),
            FrameError::Name => f.write_str("an interface's name that is none"),
            FrameError::Way(way) => write!(f, "a greeting for leased bytes that go way {way}, which is none"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A frame's first eight bytes, checked as far as they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u16,
    /// Bytes of the body: at most what its kind allows.
    pub length: usize,
}

impl Header {
    /// The header in these bytes, if a body of its kind can be so long in a session with windows of so many bytes.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(bytes: [u8; HEADER_BYTES], window_bytes: u32) -> Result<Header, FrameError> {
        let word = u64::from_le_bytes(bytes);
        let (length, kind) = (word as u32, (word >> 32) as u16);
        if word >> 48 != 0 {
            return Err(FrameError::NotZero);
        }
        let (least, most) = match kind {
            kind::HELLO => (HELLO_BYTES, HELLO_BYTES),
            kind::WELCOME => (WELCOME_BYTES, WELCOME_BYTES),
            kind::REFUSED => (REFUSED_BYTES, REFUSED_BYTES),
            kind::MESSAGE => (DESCRIPTOR_BYTES, DESCRIPTOR_BYTES + window_bytes as usize),
            kind::HEARTBEAT => (0, 0),
            kind::BYE => (BYE_BYTES, BYE_BYTES),
            kind::BULK => (BULK_BYTES, BULK_BYTES),
            kind::READY => (0, 0),
            kind::PULL => (PULL_BYTES, PULL_BYTES),
            kind::PIECE => (PIECE_BYTES, PIECE_BYTES + CHUNK),
            _ => return Err(FrameError::Kind(kind)),
        };
        match usize::try_from(length) {
            Ok(bytes) if (least..=most).contains(&bytes) => Ok(Header { kind, length: bytes }),
            _ => Err(FrameError::Length { kind, length }),
        }
    }
}

/// The first eight bytes of a frame.
pub fn header(kind: u16, length: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(u32::try_from(length).is_ok());
    (length as u64 | u64::from(kind) << 32).to_le_bytes()
}

/// Bytes of the largest frame of a session.
pub fn largest(shape: Shape) -> usize {
    HEADER_BYTES + DESCRIPTOR_BYTES + shape.window_bytes as usize
}

/// How much of its window a descriptor needs, if it can be that much.
fn window_part(descriptor: &RawDescriptor, shape: Shape) -> Result<usize, FrameError> {
    let extent = Extent::from_word(descriptor.0[2]).map_err(|_| FrameError::NotZero)?;
    extent.check(shape.window_bytes).map_err(|_| FrameError::Extent)?;
    Ok(extent.payload_offset() + if extent.is_inline() { 0 } else { extent.length as usize })
}

/// The descriptor of a message, whose body is so long, if the two agree. What else it says is for the session to check.
///
/// # Errors
/// [`FrameError::Tail`], [`FrameError::NotZero`], [`FrameError::Extent`].
pub fn descriptor(bytes: &[u8; DESCRIPTOR_BYTES], length: usize, shape: Shape) -> Result<RawDescriptor, FrameError> {
    let (words, _) = bytes.as_chunks::<8>();
    let mut descriptor = RawDescriptor([0; 8]);
    for (to, from) in descriptor.0.iter_mut().zip(words) {
        *to = u64::from_le_bytes(*from);
    }
    if descriptor.0[0] as u16 != 0 {
        return Err(FrameError::NotZero);
    }
    let meant = DESCRIPTOR_BYTES + window_part(&descriptor, shape)?;
    match meant == length {
        true => Ok(descriptor),
        false => Err(FrameError::Tail { said: length as u32, meant: meant as u32 }),
    }
}

/// The bytes of a descriptor.
pub fn descriptor_bytes(descriptor: &RawDescriptor) -> [u8; DESCRIPTOR_BYTES] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    for (to, from) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(descriptor.0) {
        *to = from.to_le_bytes();
    }
    bytes
}

/// Who a client is, and which session it wants to have or to go on with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The session's measures.
    pub shape: Shape,
    /// The session to go on with; 0: a new one.
    pub session: SessionId,
    /// Rises with each connection of a session.
    pub number: u64,
    /// How many RESUMEs come first.
    pub outstanding: u16,
    /// Chosen by the client with the session's first connection, and known to nobody else.
    pub secret: [u8; SECRET_BYTES],
    /// Padded with zeros.
    pub interface: [u8; INTERFACE_BYTES],
}

impl std::fmt::Debug for Hello {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Hello { session, number, outstanding, .. } = self;
        write!(f, "Hello {{ session: {session}, number: {number}, outstanding: {outstanding}, .. }}")
    }
}

/// An interface's name as it stands in a hello.
///
/// # Errors
/// [`FrameError::Name`] if it is too long or empty.
pub fn interface_bytes(name: &str) -> Result<[u8; INTERFACE_BYTES], FrameError> {
    let mut bytes = [0; INTERFACE_BYTES];
    match bytes.get_mut(..name.len()) {
        Some(front) if !name.is_empty() && !name.contains('\0') => front.copy_from_slice(name.as_bytes()),
        _ => return Err(FrameError::Name),
    }
    Ok(bytes)
}

/// Writes fields one after the other.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Writer { bytes: [0; N], at: 0 }
    }

    /// Begins a greeting.
    fn greeting() -> Self {
        Writer::new().put(MAGIC.to_le_bytes()).put(VERSION.to_le_bytes())
    }

    /// A session's measures.
    fn shape(self, shape: Shape) -> Self {
        self.put(shape.slots.to_le_bytes()).put(CONTROL_SLOTS.to_le_bytes()).put(shape.window_bytes.to_le_bytes())
    }

    fn put<const M: usize>(mut self, field: [u8; M]) -> Self {
        self.bytes[self.at..self.at + M].copy_from_slice(&field);
        self.at += M;
        self
    }

    fn done(self) -> [u8; N] {
        debug_assert_eq!(self.at, N);
        self.bytes
    }
}

/// Takes fields one after the other.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const M: usize>(&mut self) -> [u8; M] {
        let (field, rest) = self.0.split_first_chunk().expect("the caller's array holds all fields");
        self.0 = rest;
        *field
    }

    /// How a client's greeting begins.
    fn greeting(&mut self) -> Result<(), BadHello> {
        if self.u64() != MAGIC {
            return Err(BadHello::Frame(FrameError::Magic));
        }
        match self.u32() {
            VERSION => Ok(()),
            version => Err(BadHello::Version(version)),
        }
    }

    /// A session's measures, unchecked; `None` for other control slots than ours.
    fn shape(&mut self) -> Option<Shape> {
        let (slots, control, window_bytes) = (self.u16(), self.u16(), self.u32());
        (control == CONTROL_SLOTS).then_some(Shape { slots, window_bytes })
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Why a hello of the right length says nothing that can be answered with a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHello {
    /// No Atoll wrote it.
    Frame(FrameError),
    /// One of another version did.
    Version(u32),
    /// No session can have these measures.
    Shape,
}

impl Hello {
    /// The frame's body.
    pub fn to_bytes(&self) -> [u8; HELLO_BYTES] {
        Writer::greeting()
            .shape(self.shape)
            .put(self.outstanding.to_le_bytes())
            .put([0; 2])
            .put(self.session.get().to_le_bytes())
            .put(self.number.to_le_bytes())
            .put(self.secret)
            .put(self.interface)
            .done()
    }

    /// The hello in these bytes.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, BadHello> {
        let mut from = Reader(bytes);
        from.greeting()?;
        let shape = from.shape().and_then(|shape| Shape::checked(shape.slots, shape.window_bytes));
        let shape = shape.ok_or(BadHello::Shape)?;
        let outstanding = from.u16();
        if from.u16() != 0 {
            return Err(BadHello::Frame(FrameError::NotZero));
        }
        let (session, number) = (SessionId(from.u64()), from.u64());
        if outstanding > shape.slots || (session.get() == 0 && outstanding != 0) {
            return Err(BadHello::Frame(FrameError::Extent));
        }
        Ok(Hello { shape, session, number, outstanding, secret: from.take(), interface: from.take() })
    }
}

/// What a host answers to a client that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// As asked for.
    pub shape: Shape,
    /// The session, never 0.
    pub session: SessionId,
    /// The endpoint's epoch.
    pub epoch: Epoch,
    /// The session's first handle.
    pub root: Handle,
    /// The connection's, as the client said.
    pub number: u64,
}

impl Welcome {
    /// The frame's body.
    pub fn to_bytes(&self) -> [u8; WELCOME_BYTES] {
        Writer::greeting()
            .shape(self.shape)
            .put([0; 4])
            .put(self.session.get().to_le_bytes())
            .put(self.epoch.get().to_le_bytes())
            .put(self.root.to_word().to_le_bytes())
            .put(self.number.to_le_bytes())
            .done()
    }

    /// The welcome in these bytes, if it answers `hello`.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(bytes: &[u8; WELCOME_BYTES], hello: &Hello) -> Result<Welcome, FrameError> {
        let mut from = Reader(bytes);
        from.greeting().map_err(|_| FrameError::Magic)?;
        let (shape, zero) = (from.shape(), from.u32());
        let (session, epoch) = (SessionId(from.u64()), Epoch(from.u64()));
        let (root, number) = (Handle::from_word(from.u64()), from.u64());
        if zero != 0 {
            return Err(FrameError::NotZero);
        }
        let is_ours = session.get() != 0 && (hello.session.get() == 0 || hello.session == session);
        let shape = shape.filter(|shape| *shape == hello.shape && number == hello.number && is_ours);
        let shape = shape.ok_or(FrameError::NotAnAnswer)?;
        Ok(Welcome { shape, session, epoch, root, number })
    }
}

/// Which way leased bytes go on a connection. The numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// To the client: what replies lend.
    ToClient = 0,
    /// To the host: what calls lend.
    ToHost = 1,
}

/// Which session a connection for leased bytes belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// The session.
    pub session: SessionId,
    /// Which way they go.
    pub way: Way,
    /// Rises with each such connection of a session, for each way.
    pub number: u64,
    /// The session's.
    pub secret: [u8; SECRET_BYTES],
}

impl Bulk {
    /// The frame's body.
    pub fn to_bytes(&self) -> [u8; BULK_BYTES] {
        Writer::greeting()
            .put((self.way as u32).to_le_bytes())
            .put(self.session.get().to_le_bytes())
            .put(self.number.to_le_bytes())
            .put(self.secret)
            .done()
    }

    /// The greeting in these bytes.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(bytes: &[u8; BULK_BYTES]) -> Result<Bulk, BadHello> {
        let mut from = Reader(bytes);
        from.greeting()?;
        let way = match from.u32() {
            0 => Way::ToClient,
            1 => Way::ToHost,
            way => return Err(BadHello::Frame(FrameError::Way(way))),
        };
        Ok(Bulk { session: SessionId(from.u64()), way, number: from.u64(), secret: from.take() })
    }
}

/// Asks for some bytes of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Whose table.
    pub lender: LenderId,
    /// Entry of it.
    pub index: u32,
    /// Which use of that entry.
    pub generation: u32,
    /// Where in the lease the bytes begin.
    pub offset: u64,
    /// How many: 1 to [`CHUNK`].
    pub length: u32,
    /// Returned with them.
    pub tag: u32,
}

impl Pull {
    /// The frame's body.
    pub fn to_bytes(&self) -> [u8; PULL_BYTES] {
        Writer::new()
            .put(self.lender.get().to_le_bytes())
            .put(self.index.to_le_bytes())
            .put(self.generation.to_le_bytes())
            .put(self.offset.to_le_bytes())
            .put(self.length.to_le_bytes())
            .put(self.tag.to_le_bytes())
            .done()
    }

    /// The question in these bytes.
    ///
    /// # Errors
    /// [`FrameError::Extent`]: nothing, or too much, is asked for.
    pub fn check(bytes: &[u8; PULL_BYTES]) -> Result<Pull, FrameError> {
        let mut from = Reader(bytes);
        let lender = LenderId(from.u64());
        let (index, generation, offset) = (from.u32(), from.u32(), from.u64());
        let (length, tag) = (from.u32(), from.u32());
        match (1..=CHUNK).contains(&(length as usize)) {
            true => Ok(Pull { lender, index, generation, offset, length, tag }),
            false => Err(FrameError::Extent),
        }
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a host does not take a client. The numbers never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
            /// The host speaks this version of the protocol, and no other.
            Version(u32),
        }

        impl Refusal {
            /// The frame's body.
            pub fn to_bytes(self) -> [u8; REFUSED_BYTES] {
                let (number, detail): (u16, u32) = match self {
                    $(Refusal::$name => ($number, 0),)*
                    Refusal::Version(version) => (1, version),
                };
                (u64::from(number) | u64::from(detail) << 32).to_le_bytes()
            }

            /// The refusal in these bytes.
            ///
            /// # Errors
            /// [`FrameError::NotZero`] for one that nobody writes.
            pub fn check(bytes: [u8; REFUSED_BYTES]) -> Result<Refusal, FrameError> {
                let word = u64::from_le_bytes(bytes);
                match (word as u32, (word >> 32) as u32) {
                    (1, version) => Ok(Refusal::Version(version)),
                    $(($number, 0) => Ok(Refusal::$name),)*
                    _ => Err(FrameError::NotZero),
                }
            }
        }

        impl std::fmt::Display for Refusal {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Refusal::$name => f.write_str($text),)*
                    Refusal::Version(version) => write!(
                        f,
                        "it speaks version {version} of the protocol and we speak {VERSION}: run the same release on both"
                    ),
                }
            }
        }
    };
}

refusals! {
    /// No session can have the measures that were asked for.
    Shape = 2, "no session can have the measures that were asked for";
    /// The endpoint speaks another interface.
    Interface = 3, "the endpoint speaks another interface";
    /// There is no such session, or not with this secret. Which of the two is nobody's business.
    NoSuchSession = 4, "it has no such session of ours: it ended, or its host was started again";
    /// A connection with a higher number has been here.
    StaleConnection = 5, "a later connection of this session has been there already";
    /// It has as many sessions, or greetings under way, as it will have. Try again later.
    Busy = 6, "it has as many sessions as it takes: try again later, or raise its limit";
    /// What was said first was no hello.
    NoHello = 7, "it did not understand our greeting";
    /// Policy forbids it.
    Forbidden = 8, "this client has nothing to call there: its host admits others only";
}

#[cfg(test)]
mod tests;
