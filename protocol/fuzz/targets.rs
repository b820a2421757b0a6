//! What is done with foreign bytes, by a fuzzer and, with the kept corpus, by `tests/corpus.rs`.
//!
//! - [`descriptor`]: a descriptor as a peer wrote it into a ring.
//! - [`arguments`]: a window and what came beside it, as arguments, result or error of each operation of each interface.
//! - [`json`]: what a person wrote after `atoll call`.
//! - [`description`]: a description as a host said it, and bytes that are read by it.
//! - [`ledger`]: ledgers as a dead host left them, and what its next incarnation does with them.
//! - [`leases`]: a lease table as its lender wrote it, read by a holder and by a mapper.
//!
//! Nothing may panic, take memory without bound or read beyond what is there; and what is accepted must mean the same when it
//! is written and read again.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use kernel_ipc::capability::Realm;
use kernel_ipc::codec::Decoder;
use kernel_ipc::described::{Book, Checked, Entry, Interface, Message, compare};
use kernel_ipc::interface::Retry;
use kernel_ipc::lease::{Holder, Lend, Lender, Mapper, PinSegment, Region, RegionReader};
use kernel_ipc::ledger::{Kept, Legible, Records, SessionLedger, Tag};
use kernel_ipc::sys::segment::{SegmentReader, SegmentWriter};
use kernel_ipc::wire::{Completion, Handle, LeaseName, Outstanding, RawDescriptor, Shape, Submission};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, Rights, SessionId};
use protocol::fs::DirectoryPage;
use protocol::net::EventBatch;

/// A name, and what is done with bytes under it.
pub type Target = (&'static str, fn(&[u8]));

/// Each of them.
pub const TARGETS: [Target; 6] = [
    ("descriptor", descriptor),
    ("arguments", arguments),
    ("json", json),
    ("description", description),
    ("ledger", ledger),
    ("leases", leases),
];

/// Takes numbers from the front of the bytes; what is not there is 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn handle(&mut self) -> Handle {
        Handle { index: self.u32() % 8, generation: self.u32() % 8 }
    }

    fn lease(&mut self) -> LeaseName {
        let lender = LenderId(self.u64());
        LeaseName { lender, index: self.u32(), generation: self.u32(), length: self.u64() }
    }
}

/// See the module.
pub fn descriptor(bytes: &[u8]) {
    let mut input = Input(bytes);
    let window_bytes = 4096 << (input.u8() % 3);
    let Some(shape) = Shape::checked(u16::from(input.u8()), window_bytes) else { return };
    let raw = RawDescriptor([(); 8].map(|()| input.u64()));
    if let Ok(call) = Submission::check(&raw, shape) {
        assert!(call.slot < shape.all_slots());
        let payload = if call.extent.is_inline() { 0 } else { call.extent.length as usize };
        assert!(call.extent.payload_offset() + payload <= window_bytes as usize);
        assert_eq!(Submission::check(&call.to_raw(), shape), Ok(call));
    }
    if let Ok(answer) = Completion::check(&raw, shape) {
        assert!(answer.slot < shape.all_slots());
        assert_eq!(Completion::check(&answer.to_raw(), shape), Ok(answer));
    }
    if let Ok(outstanding) = Outstanding::check(&raw, shape) {
        assert!(outstanding.slot < shape.all_slots());
    }
}

static INTERFACES: LazyLock<Vec<Checked>> = LazyLock::new(|| {
    let checked =
        |known: &protocol::Known| Interface::of(known.description).check().expect("what is built in is sound");
    protocol::INTERFACES.iter().map(checked).collect()
});

/// What `operation` of `interface` makes of a message: its arguments, its result, each of its errors. What it takes must be
/// the same when it is written and read again.
fn read_by(interface: &Checked, operation: &kernel_ipc::described::Operation, message: &Message) {
    let mut book = Book::default();
    if let Ok(value) = interface.decode_arguments(operation, message, &mut book) {
        let written = interface.encode_arguments(operation, &value, &book).expect("what was read can be written");
        let again = interface.decode_arguments(operation, &written, &mut Book::default());
        assert_eq!(again.as_ref(), Ok(&value), "{}", operation.name);
    }
    let mut book = Book::default();
    if interface.decode(&operation.result, message, &mut book).is_ok() {
        assert!(book.entries().len() <= message.capabilities.len() + message.leases.len());
    }
    for variant in interface.errors.get(&operation.error).into_iter().flatten() {
        let Ok(value) = interface.decode_fields(&variant.fields, &message.payload) else { continue };
        let written = interface.encode_fields(&variant.fields, &value).expect("what was read can be written");
        assert_eq!(interface.decode_fields(&variant.fields, &written.payload).as_ref(), Ok(&value));
    }
}

/// See the module.
pub fn arguments(bytes: &[u8]) {
    let mut input = Input(bytes);
    let interface = &INTERFACES[usize::from(input.u8()) % INTERFACES.len()];
    let operation = &interface.operations[usize::from(input.u8()) % interface.operations.len()];
    let counts = input.u8();
    // No target means the root, which is of the first kind.
    let is_on_root = interface.kinds.first().is_some_and(|kind| kind.name == operation.target.kind);
    let target = (counts & 1 == 1 || !is_on_root).then(|| input.handle());
    let capabilities = (0..counts >> 1 & 3).map(|_| input.handle()).collect();
    let leases = (0..counts >> 3 & 3).map(|_| input.lease()).collect();
    let payload = input.0.to_vec();
    // What is packed into bytes has rules of its own.
    DirectoryPage { next: None, bytes: payload.clone() }.entries().take_while(Result::is_ok).for_each(drop);
    if let Ok(batch) = Decoder::whole::<EventBatch>(&payload) {
        batch.events().take_while(Result::is_ok).for_each(drop);
    }
    read_by(interface, operation, &Message { target, payload, capabilities, leases });
}

/// See the module.
pub fn json(bytes: &[u8]) {
    let mut input = Input(bytes);
    let interface = &INTERFACES[usize::from(input.u8()) % INTERFACES.len()];
    let operation = &interface.operations[usize::from(input.u8()) % interface.operations.len()];
    let Ok(value) = serde_json::from_slice(input.0) else { return };
    let mut book = Book::default();
    for kind in &interface.kinds {
        book.enter(Entry::Capability(kind.name.clone(), Handle { index: 1, generation: 1 }));
    }
    book.enter(Entry::Lease(LeaseName { lender: LenderId(1), index: 2, generation: 3, length: 4096 }));
    if let Ok(message) = interface.encode_arguments(operation, &value, &book) {
        let read = interface.decode_arguments(operation, &message, &mut Book::default());
        assert!(read.is_ok(), "{}: {value}", operation.name);
    }
}

/// See the module. What comes after the first zero byte is read by the description.
pub fn description(bytes: &[u8]) {
    let (text, payload) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let Ok(interface) = Interface::from_json(text) else { return };
    let again = Interface::from_json(interface.to_json().as_bytes()).expect("what was written can be read");
    assert_eq!(*again, *interface);
    assert_eq!(compare(&interface, &interface), []);
    let handle = Handle { index: 1, generation: 1 };
    let lease = LeaseName { lender: LenderId(1), index: 2, generation: 3, length: 4096 };
    for operation in &interface.operations {
        let message = Message {
            target: Some(handle),
            payload: payload.to_vec(),
            capabilities: vec![handle; 2],
            leases: vec![lease; 2],
        };
        read_by(&interface, operation, &message);
    }
}

/// Memory of a ledger, without a kernel.
#[derive(Clone, Debug)]
struct Plain(Rc<RefCell<Vec<u8>>>);

impl Plain {
    fn new(bytes: usize) -> Plain {
        Plain(Rc::new(RefCell::new(vec![0; bytes])))
    }

    /// Words are changed, as the input says.
    fn damage(&self, input: &mut Input<'_>) {
        let mut bytes = self.0.borrow_mut();
        for _ in 0..input.u8() % 16 {
            let at = usize::from(input.u16()) * 8 % (bytes.len() / 8 * 8);
            bytes[at..at + 8].copy_from_slice(&input.bytes::<8>());
        }
    }
}

impl Legible for Plain {
    fn bytes(&self) -> usize {
        self.0.borrow().len()
    }

    fn load(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        self.read(at, &mut word);
        u64::from_le_bytes(word)
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.borrow()[at..at + bytes.len()]);
    }
}

impl Kept for Plain {
    fn store(&self, at: usize, value: u64, _: Ordering) {
        self.write(at, &value.to_le_bytes());
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A ledger with a call that is done, one that is under way, and capabilities of both.
fn used_ledger() -> Plain {
    let shape = Shape { slots: 2, window_bytes: 4096 };
    let memory = Plain::new(SessionLedger::<Plain>::bytes(shape, 8));
    let root = Handle { index: 0, generation: 1 };
    let ledger = SessionLedger::create(memory.clone(), SessionId(1), shape, 8, root).expect("fresh");
    let ledger = Rc::new(ledger);
    let mut realm = Realm::default();
    let member = realm.join(SessionId(1), 8, Some(ledger.clone()));
    let grant = kernel_ipc::session::Grant { object: [1, 2], kind: 1, rights: Rights::READ, badge: 0 };
    realm.first(member, grant).expect("room");
    for (slot, seq) in [(0, 1), (1, 1)] {
        ledger.begin(slot, seq, 7, Retry::Cached);
        ledger.keep_request(slot, [1, 2], b"request");
        realm.grant(member, 0, grant, Tag::Call { slot, seq }).expect("room");
    }
    ledger.done(0, 1);
    memory
}

/// See the module.
pub fn ledger(bytes: &[u8]) {
    let mut input = Input(bytes);
    let memory = used_ledger();
    memory.damage(&mut input);
    let _ = SessionLedger::executing(memory.clone(), SessionId(1));
    let committed = u64::from(input.u8() % 4);
    if let Ok((ledger, recovered)) = SessionLedger::recover(memory.clone(), SessionId(1), |_| committed) {
        for (slot, cell) in (0..).zip(&recovered.cells) {
            let _ = ledger.reply(slot, cell.done);
            ledger.granted_by(slot, cell.begun);
        }
        let mut cells = recovered.cells.clone();
        ledger.crashed(ledger.last_crash().wrapping_add(1), &mut cells);
        let mut realm = Realm::default();
        let quota = recovered.entries.len() as u32 + 1;
        let member = realm.join(SessionId(1), quota, Some(Rc::new(ledger)));
        realm.restore(&[(member, &recovered.entries)], &[]);
        let held: Vec<Handle> = realm.held(member).map(|(handle, _)| handle).collect();
        for handle in held {
            let _ = realm.inspect(member, handle);
            let _ = realm.lookup(member, handle, 0, Rights::empty(), || 1).map(drop);
            let _ = realm.release(member, handle);
        }
        realm.leave(member);
        // It has been used, and it is still a ledger.
        SessionLedger::recover(memory, SessionId(1), |_| 0).expect("what was gone on with can be gone on with");
    }

    let memory = Plain::new(Records::<Plain>::bytes(1024));
    let mut records = Records::create(memory.clone()).expect("fresh");
    for seq in 1..4 {
        records.append(Some((SessionId(1), 0, seq)), &[b"effect", &bytes[..bytes.len().min(40)]]).expect("room");
    }
    memory.damage(&mut input);
    if let Ok((mut records, found)) = Records::recover(memory) {
        assert!(found.iter().map(|record| record.effect.len()).sum::<usize>() <= 1024);
        while records.append(None, &[b"more"]).is_ok() {}
        records.trim(records.position());
        records.append(None, &[b"room again"]).expect("all was trimmed");
    }
}

const LENDER: LenderId = LenderId(11);
const REGION: RegionId = RegionId(21);
const ME: Incarnation = Incarnation(41);
const REGION_BYTES: usize = 1 << 14;

/// See the module.
pub fn leases(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut lender = Lender::new(LENDER, Epoch(3), 8).expect("memory");
    for n in 0..4 {
        let lend = Lend { region: REGION, offset: 4096 * n, length: 4096, source: None, keep: Rc::new(()) };
        lender.lend(ME, lend).expect("room");
    }
    let reader = |fd: std::os::fd::BorrowedFd<'_>| SegmentReader::open(fd.try_clone_to_owned().expect("dup"), 1);
    let honest = reader(lender.table_fd()).expect("sealed");
    // A table that its lender did not write as it should.
    let mut table = vec![0; honest.len() - usize::from(input.u8() % 128) * 8 % honest.len()];
    honest.copy_out(0, &mut table).expect("inside");
    let table = Plain(Rc::new(RefCell::new(table)));
    table.damage(&mut input);
    let hostile = SegmentWriter::create("table", table.bytes()).expect("memory");
    hostile.copy_in(0, &table.0.borrow()).expect("inside");

    let region = Region::create("region", REGION, REGION_BYTES).expect("memory");
    let region = RegionReader::open(region.fd().try_clone_to_owned().expect("dup"), REGION).expect("sealed");
    let regions = [(REGION, region)];
    let mut holder = Holder::new(ME);
    let mut mapper = Mapper::new();
    let pins = PinSegment::create(ME, Epoch(1), LENDER, 8).expect("memory");
    let is_taken = holder.introduce(LENDER, Epoch(3), reader(hostile.fd()).expect("sealed"), &regions, None).is_ok();
    let is_mapped = mapper.introduce(LENDER, Epoch(3), reader(hostile.fd()).expect("sealed"), &regions, pins, None);
    assert!(is_taken || is_mapped.is_err(), "both check the same");
    holder.held();
    let mut copy = vec![0; REGION_BYTES];
    for index in 0..10 {
        let name = LeaseName { lender: LENDER, index, generation: input.u32() % 3, length: 4096 };
        if let Ok(held) = holder.hold(&name) {
            assert!(held.offset() + held.len() <= REGION_BYTES);
            held.copy_out(0, &mut copy[..held.len()]).expect("nobody takes it back");
        }
        let range = u64::from(input.u16())..u64::from(input.u16());
        if let Ok(pinned) = mapper.pin(&name, ME, range.clone()) {
            assert_eq!(pinned.len() as u64, range.end - range.start);
        }
    }
}
