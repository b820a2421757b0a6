//! What of calls that are under way when a component is upgraded?
//!
//! - One that another run can make again does not keep the run from ending; one that nobody can make again does, and if it does not
//!   end, the component stays what it is.
//! - Its processes are this very program: see [`main`].

mod common;

use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use common::Node;
use kernel_ipc::component::{self, Context};
use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::runtime::{sleep, spawn};
use kernel_ipc::session::{Call, ClientSession, Grant, Request, Response, Service};
use kernel_ipc::{Failure, Rights};
use protocol::control::{self, Outcome, Upgrade};

const ONCE: u16 = 1;
const AGAIN: u16 = 2;

const fn operation(number: u16, name: &'static str, retry: Retry) -> Operation {
    let (requires, deadline) = (Rights::empty(), None);
    Operation { number, name, target_kind: 1, requires, retry, deadline, handles: &[], signature: "" }
}

/// Waits as many milliseconds as the call says, and answers which process this is.
struct Waits;

impl Service for Waits {
    const INTERFACE: &'static Description = &Description {
        name: "atoll.null/1",
        kinds: &["Thing"],
        rights: &[],
        operations: &[operation(ONCE, "once", Retry::Never), operation(AGAIN, "again", Retry::Idempotent)],
        details: Details::none,
    };
    const SURVIVES: bool = true;

    async fn serve(&self, call: &mut Call) -> Response {
        let pause = u64::from_le_bytes(call.payload().try_into().expect("a number"));
        sleep(Duration::from_millis(pause)).await;
        Response { payload: std::process::id().to_le_bytes().as_slice().into(), ..Response::default() }
    }
}

async fn waits(cx: Context) -> Result<(), component::Error> {
    cx.survive(4096).await?;
    let root = Grant { object: [0; 2], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 };
    cx.provide("null", Rc::new(Waits), async move |_| Ok(root))?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

// ---- The tests' side ----

const MANIFEST: &str = r#"
atoll = 1
[system]
name = "test"
[component.null]
run = "builtin:null"
provides.null = "atoll.null/1"
"#;

/// A call that waits for so long: which process has answered.
async fn call(session: ClientSession, operation: u16, retry: Retry, pause_ms: u64) -> Result<u32, Failure> {
    let (handle, payload) = (session.root(), pause_ms.to_le_bytes());
    let (capabilities, leases, deadline) = (&[][..], &[][..], None);
    let request = Request { operation, handle, payload: &payload, capabilities, leases, deadline, retry };
    let reply = session.call(request).await?;
    Ok(u32::from_le_bytes(reply.payload[..].try_into().expect("a process id")))
}

/// Upgrades the component while such a call is under way, and gives what came of it, which processes there were before and
/// after, and who answered the call.
fn while_one_waits(operation: u16, retry: Retry, pause_ms: u64) -> (Upgrade, [u32; 3]) {
    let mut node = Node::of(tempfile::tempdir().unwrap(), MANIFEST);
    node.assert_up();
    let done = node.guest(async |cx| {
        let connection = cx.connection("null.null", "atoll.null/1").await.unwrap();
        let session = connection.session().await.unwrap();
        let before = call(session.clone(), AGAIN, Retry::Idempotent, 0).await.unwrap();
        let waits = spawn(call(session.clone(), operation, retry, pause_ms));
        sleep(Duration::from_millis(50)).await;
        let control: control::Client = cx.connect("control").await.unwrap();
        let program = std::env::current_exe().unwrap();
        let upgrade = control.upgrade(control.root(), "null", program.to_str().unwrap()).await.unwrap();
        let after = call(session, AGAIN, Retry::Idempotent, 0).await.unwrap();
        (upgrade, [before, after, waits.await.unwrap().expect("no call fails")])
    });
    node.down();
    done
}

fn a_call_that_nobody_can_make_again_is_waited_for() {
    let (upgrade, [before, after, answered]) = while_one_waits(ONCE, Retry::Never, 400);
    assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Done, 2), "{upgrade:?}");
    assert_ne!(before, after);
    assert_eq!(answered, before, "by the run that has begun it");
}

fn a_call_that_nobody_can_make_again_and_that_does_not_end_keeps_its_run() {
    let (upgrade, [before, after, answered]) = while_one_waits(ONCE, Retry::Never, 3000);
    assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Busy, 1), "{upgrade:?}");
    assert_eq!(upgrade.why, "1 calls are under way that nobody could make again");
    assert_eq!([after, answered], [before; 2]);
}

fn a_call_that_can_be_made_again_is_made_again_by_the_next_run() {
    let (upgrade, [before, after, answered]) = while_one_waits(AGAIN, Retry::Idempotent, 3000);
    assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Done, 2), "{upgrade:?}");
    assert_ne!(before, after);
    assert_eq!(answered, after);
}

fn calls_that_nobody_can_make_again_wait_unread_and_none_fails() {
    let mut node = Node::of(tempfile::tempdir().unwrap(), MANIFEST);
    node.assert_up();
    node.guest(async |cx| {
        let connection = cx.connection("null.null", "atoll.null/1").await.unwrap();
        let session = connection.session().await.unwrap();
        let over = Rc::new(Cell::new(false));
        let client = |pause_ms| {
            let (session, over) = (session.clone(), over.clone());
            spawn(async move {
                while !over.get() {
                    call(session.clone(), ONCE, Retry::Never, pause_ms).await.expect("it is made once, and answered");
                }
            })
        };
        // So many and so different that there is no moment without a call, unless they are held.
        let clients: Vec<_> = (2..26).map(client).collect();
        let control: control::Client = cx.connect("control").await.unwrap();
        let program = std::env::current_exe().unwrap();
        for epoch in 2..12 {
            let upgrade = control.upgrade(control.root(), "null", program.to_str().unwrap()).await.unwrap();
            assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Done, epoch), "{upgrade:?}");
        }
        over.set(true);
        for client in clients {
            client.await.unwrap();
        }
    });
    node.down();
}

common::tests! {
    calls_that_nobody_can_make_again_wait_unread_and_none_fails,
    a_call_that_nobody_can_make_again_is_waited_for,
    a_call_that_nobody_can_make_again_and_that_does_not_end_keeps_its_run,
    a_call_that_can_be_made_again_is_made_again_by_the_next_run,
}

fn main() -> ExitCode {
    common::main(TESTS, |_| component::run(waits))
}
