//! Golden wire vectors: every operation of an interface goes from its client to its handler and back, and what
//! travelled is compared with a file in `tests/golden`, byte for byte.
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

use kernel_ipc::interface::{Connect, Connection, Description};
use kernel_ipc::lease::{Lend, Lender};
use kernel_ipc::runtime::{self, Options, Runtime};
use kernel_ipc::session::{Call, Grant, Response, Service, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Incarnation, LeaseName, LenderId, RegionId, SessionId};

/// Writes down what passes through it.
struct Tap<S> {
    service: S,
    transcript: Rc<RefCell<String>>,
}

impl<S: Service> Service for Tap<S> {
    const INTERFACE: &'static Description = S::INTERFACE;

    async fn serve(&self, call: &mut Call) -> Response {
        let operation = Self::INTERFACE.operation(call.operation()).expect("the session has checked it");
        let mut text = format!("{} {}\n  request {}", operation.number, operation.name, hex(call.payload()));
        write_count(&mut text, "handle", operation.handles.len());
        write_count(&mut text, "lease", call.leases().len());
        let response = self.service.serve(call).await;
        match (response.failure, response.operation_error) {
            (Some(failure), _) => panic!("{}: {failure}", operation.name),
            (None, Some(number)) => write!(text, "\n  error {number} {}", hex(&response.payload)),
            (None, None) => write!(text, "\n  reply {}", hex(&response.payload)),
        }
        .expect("a string takes any text");
        write_count(&mut text, "capability", response.grants.len());
        write_count(&mut text, "lease", response.lends.len());
        self.transcript.borrow_mut().push_str(&(text + "\n"));
        response
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[{}] {digits}", bytes.len()).trim_end().into()
}

/// What is promised beside the bytes.
fn write_description(description: &Description, text: &mut String) -> std::fmt::Result {
    writeln!(text, "{}", description.name)?;
    for (name, right) in description.rights {
        writeln!(text, "right {name} {:#x}", right.bits())?;
    }
    for operation in description.operations {
        let handles: Vec<_> = operation.handles.iter().map(|handle| handle.requires.bits()).collect();
        write!(text, "operation {} {} requires {:#x}", operation.number, operation.name, operation.requires.bits())?;
        writeln!(text, ", of handles {handles:x?}, {:?}, {:?}", operation.retry, operation.deadline)?;
        writeln!(text, "  {}", operation.signature)?;
    }
    Ok(())
}

fn write_count(text: &mut String, what: &str, count: usize) {
    if count > 0 {
        write!(text, " + {count} {what}").expect("a string takes any text");
    }
}

/// Runs `calls` between a client and `service`, and compares what travelled with `tests/golden/NAME.txt`.
pub fn compare<C: Connect, S: Service>(name: &str, service: S, root: Grant, calls: impl AsyncFnOnce(&C)) {
    let runtime = Runtime::new(Options::default()).expect("io_uring");
    let mut description = String::new();
    write_description(S::INTERFACE, &mut description).expect("a string takes any text");
    let transcript = Rc::new(RefCell::new(description));
    runtime.block_on(async {
        let tap = Rc::new(Tap { service, transcript: transcript.clone() });
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
