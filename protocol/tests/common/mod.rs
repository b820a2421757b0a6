//! Golden wire vectors: every operation of an interface goes from its client to its handler and back, and what
//! travelled is compared with a file in `tests/golden`, byte for byte. Beside the bytes stands what they mean by the
//! interface's description, as JSON, of which the description makes the same bytes again.
//!
//! A difference means that programs built before and after this change do not understand each other. If that is
//! meant, the interface needs a new version; if the interface was never released, `ATOLL_BLESS=1 cargo test -p protocol`
//! writes the files anew.
#![allow(dead_code, reason = "each test uses its part")]

use std::cell::RefCell;
use std::fmt::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::{Book, Checked, Entry, Interface, Message, Operation};
use kernel_ipc::interface::{Connect, Connection, Description};
use kernel_ipc::lease::{Lend, Lender};
use kernel_ipc::runtime::{self, Options, Runtime};
use kernel_ipc::session::{Call, Grant, Response, Service, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Handle, Incarnation, LeaseName, LenderId, RegionId, SessionId};
use serde_json::{Value, json};

/// Writes down what passes through it.
struct Tap<S> {
    service: S,
    interface: Checked,
    transcript: Rc<RefCell<String>>,
}

impl<S: Service> Service for Tap<S> {
    const INTERFACE: &'static Description = S::INTERFACE;

    async fn serve(&self, call: &mut Call) -> Response {
        let operation = Self::INTERFACE.operation(call.operation()).expect("the session has checked it");
        let described = self.interface.operation(operation.name).expect("the description has it");
        let mut text = format!("{} {}\n  request {}", operation.number, operation.name, hex(call.payload()));
        write_count(&mut text, "handle", operation.handles.len());
        write_count(&mut text, "lease", call.leases().len());
        let request = Message {
            target: None,
            payload: call.payload().to_vec(),
            capabilities: handles(operation.handles.len()),
            leases: call.leases().to_vec(),
        };
        write!(text, "\n    {}", self.arguments(described, request)).expect("a string takes any text");
        let response = self.service.serve(call).await;
        let value = match (response.failure, response.operation_error) {
            (Some(failure), _) => panic!("{}: {failure}", operation.name),
            (None, Some(number)) => {
                write!(text, "\n  error {number} {}", hex(&response.payload)).expect("a string takes any text");
                self.error(described, number, &response.payload)
            }
            (None, None) => {
                write!(text, "\n  reply {}", hex(&response.payload)).expect("a string takes any text");
                self.result(described, &response)
            }
        };
        write_count(&mut text, "capability", response.grants.len());
        write_count(&mut text, "lease", response.lends.len());
        self.transcript.borrow_mut().push_str(&format!("{text}\n    {value}\n"));
        response
    }
}

/// What travels means something by the description, which makes the same bytes of that.
impl<S> Tap<S> {
    fn arguments(&self, operation: &Operation, request: Message) -> Value {
        let mut book = Book::default();
        let value = self.interface.decode_without_target(operation, &request, &mut book).expect("the client wrote it");
        let mut named = value.clone();
        // The target is not part of what was written down.
        if self.interface.kinds[0].name != operation.target.kind {
            let target = Entry::Capability(operation.target.kind.clone(), Handle::NONE);
            named[&operation.target.name] = json!(book.enter(target));
        }
        let again = self.interface.encode_arguments(operation, &named, &book).expect("the description read it");
        assert_eq!(Message { target: None, ..again }, request);
        value
    }

    fn result(&self, operation: &Operation, response: &Response) -> Value {
        let lend = |lend: &Lend| LeaseName { length: lend.length, ..lease(0) };
        let reply = Message {
            target: None,
            payload: response.payload.to_vec(),
            capabilities: handles(response.grants.len()),
            leases: response.lends.iter().map(lend).collect(),
        };
        let mut book = Book::default();
        let value = self.interface.decode(&operation.result, &reply, &mut book).expect("the handler wrote it");
        assert_eq!(self.interface.encode(&operation.result, &value, &book), Ok(reply));
        value
    }

    fn error(&self, operation: &Operation, number: u16, payload: &[u8]) -> Value {
        let error = self.interface.error(&operation.error, number).expect("the description has it");
        let value = self.interface.decode_fields(&error.fields, payload).expect("the handler wrote it");
        let again = self.interface.encode_fields(&error.fields, &value).expect("the description read it");
        assert_eq!(again.payload, payload);
        json!({ &error.name: value })
    }
}

/// Handles that stand for those beside a message.
fn handles(count: usize) -> Vec<Handle> {
    (1..).map(|index| Handle { index, generation: 1 }).take(count).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[{}] {digits}", bytes.len()).trim_end().into()
}

fn write_count(text: &mut String, what: &str, count: usize) {
    if count > 0 {
        write!(text, " + {count} {what}").expect("a string takes any text");
    }
}

/// Runs `calls` between a client and `service`, and compares what travelled with `tests/golden/NAME.txt`.
pub fn compare<C: Connect, S: Service>(name: &str, service: S, root: Grant, calls: impl AsyncFnOnce(&C)) {
    let runtime = Runtime::new(Options::default()).expect("io_uring");
    let interface = Interface::of(S::INTERFACE).check().expect("the macro wrote it");
    let transcript = Rc::new(RefCell::new(format!("{}\n", interface.name)));
    runtime.block_on(async {
        let tap = Rc::new(Tap { service, interface, transcript: transcript.clone() });
        let info = SessionInfo {
            id: SessionId(1),
            epoch: Epoch(1),
            client: Incarnation(2),
            client_name: "golden".into(),
            attenuation: serde_json::Value::Null,
        };
        let lender = Lender::new(LenderId(3), Epoch(1), 16).expect("memory for a table");
        let lender = Some(Rc::new(RefCell::new(lender)));
        let (session, _host) = in_process(Shape::default(), root, tap, info, lender);
        let client = C::from_connection(Connection::fixed(session));
        let calls = runtime::timeout(Duration::from_secs(60), calls(&client)).await;
        calls.expect("the watchdog barked");
    });

    let called: Vec<String> =
        transcript.borrow().lines().filter(|line| !line.starts_with(' ')).map(Into::into).collect();
    for operation in S::INTERFACE.operations {
        let name = format!("{} {}", operation.number, operation.name);
        assert!(called.contains(&name), "{name} was not called");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("ATOLL_BLESS").is_some() {
        std::fs::write(&path, &*transcript.borrow()).expect("the file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    assert_eq!(*transcript.borrow(), golden, "the wire format has changed: see tests/common/mod.rs");
}

/// A range to lend.
pub fn lend(length: u64) -> Lend {
    Lend { region: RegionId(4), offset: 8192, length, source: None, keep: Rc::new(()) }
}

/// A lease to name.
pub fn lease(length: u64) -> LeaseName {
    LeaseName { lender: LenderId(0x0505), index: 6, generation: 7, length }
}
