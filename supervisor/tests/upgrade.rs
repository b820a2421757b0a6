//! What of calls that are under way when a component is upgraded, and what if it ends otherwise than it is asked to?
//!
//! - One that another run can make again does not keep the run from ending; one that nobody can make again does, and if it does not
//!   end, the component stays what it is.
//! - One that ends by its own making while it hands over has died, and one that is given up for that is not upgraded: both are said.
//! - Its processes are this very program: see [`main`].

mod common;

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use common::{Node, kill, ps, until};
use kernel_ipc::broker::MAX_HELD_NAME;
use kernel_ipc::component::{self, Context};
use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::runtime::{sleep, spawn, yield_now};
use kernel_ipc::session::{Call, ClientSession, Grant, Request, Response, Service};
use kernel_ipc::steps::{self, Steps};
use kernel_ipc::{Failure, Rights};
use protocol::control::{self, ComponentStatus, Outcome, State, Upgrade};

const ONCE: u16 = 1;
const AGAIN: u16 = 2;
/// Waits until its process is asked to hand over, and does one of the two then.
const ASKED: u16 = 3;
const EXITS: u64 = 1;
const BREAKS_A_RULE: u64 = 2;

/// If there is this file in the state directory, sessions do not go on with the component's next run.
const ENDS_SESSIONS: &str = "ends-sessions";

const fn operation(number: u16, name: &'static str, retry: Retry) -> Operation {
    let (requires, deadline) = (Rights::empty(), None);
    Operation { number, name, target_kind: 1, requires, retry, deadline, at_once: false, handles: &[], signature: "" }
}

/// Waits as many milliseconds as the call says, and answers which process this is.
struct Waits<const SURVIVES: bool> {
    cx: Context,
    is_asked: Rc<Cell<bool>>,
}

impl<const SURVIVES: bool> Service for Waits<SURVIVES> {
    const INTERFACE: &'static Description = &Description {
        name: "atoll.null/1",
        kinds: &["Thing"],
        rights: &[],
        operations: &[
            operation(ONCE, "once", Retry::Never),
            operation(AGAIN, "again", Retry::Idempotent),
            operation(ASKED, "asked", Retry::Never),
        ],
        details: Details::none,
    };
    const SURVIVES: bool = SURVIVES;

    async fn serve(&self, call: &mut Call) -> Response {
        let number = u64::from_le_bytes(call.payload().try_into().expect("a number"));
        if call.operation() == ASKED {
            self.end_when_asked(number).await;
        }
        sleep(Duration::from_millis(number)).await;
        Response { payload: std::process::id().to_le_bytes().as_slice().into(), ..Response::default() }
    }
}

impl<const SURVIVES: bool> Waits<SURVIVES> {
    async fn end_when_asked(&self, how: u64) {
        while !self.is_asked.get() {
            sleep(Duration::from_millis(1)).await;
        }
        if how == EXITS {
            std::process::exit(3);
        }
        let null = File::open("/dev/null").expect("it is everywhere");
        self.cx.hold(&"x".repeat(MAX_HELD_NAME + 1), null.as_fd());
        std::future::pending().await
    }
}

async fn waits(cx: Context) -> Result<(), component::Error> {
    cx.survive(4096).await?;
    cx.last_run_fenced().await;
    match cx.state_dir().join(ENDS_SESSIONS).exists() {
        true => provide::<false>(&cx)?,
        false => provide::<true>(&cx)?,
    }
    cx.ready();
    cx.stopped().await;
    Ok(())
}

fn provide<const SURVIVES: bool>(cx: &Context) -> Result<(), component::Error> {
    let is_asked: Rc<Cell<bool>> = Rc::default();
    let hears = is_asked.clone();
    steps::hear(Some(Rc::new(move |step| hears.set(hears.get() || step == "upgrade/asked"))));
    let root = Grant { object: [0; 2], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 };
    cx.provide("null", Rc::new(Waits::<SURVIVES> { cx: cx.clone(), is_asked }), async move |_| Ok(root))?;
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
        let upgrade = upgrade(&cx).await;
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
        for epoch in 2..12 {
            let upgrade = upgrade(&cx).await;
            assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Done, epoch), "{upgrade:?}");
        }
        over.set(true);
        for client in clients {
            client.await.unwrap();
        }
    });
    node.down();
}

/// Upgrades the component to this program.
async fn upgrade(cx: &Context) -> Upgrade {
    let control: control::Client = cx.connect("control").await.unwrap();
    let program = std::env::current_exe().unwrap();
    control.upgrade(control.root(), "null", program.to_str().unwrap()).await.unwrap()
}

/// Waits until this epoch of the component serves.
async fn serving(cx: &Context, epoch: u64) -> ComponentStatus {
    let mut status = None;
    until(&format!("epoch {epoch}"), async || {
        status = ps(cx).await.pop().filter(|one| (one.epoch, one.state) == (epoch, State::Ready));
        status.is_some()
    })
    .await;
    status.expect("it was waited for")
}

/// Makes a call in which the component ends so when it is asked to hand over, and upgrades it then.
async fn upgrade_one_that(cx: &Context, how: u64) -> Upgrade {
    let session = cx.connection("null.null", "atoll.null/1").await.unwrap().session().await.unwrap();
    let waits = spawn(call(session.clone(), ASKED, Retry::Never, how));
    yield_now().await;
    // It is under way when one behind it is answered.
    call(session, AGAIN, Retry::Idempotent, 0).await.unwrap();
    let upgrade = upgrade(cx).await;
    waits.await.unwrap().expect_err("its run is dead, and nobody could make it again");
    upgrade
}

fn one_that_breaks_a_rule_while_it_hands_over_has_died_of_that() {
    let mut node = Node::of(tempfile::tempdir().unwrap(), MANIFEST);
    node.assert_up();
    node.guest(async |cx| {
        let upgrade = upgrade_one_that(&cx, BREAKS_A_RULE).await;
        assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::Done, 2), "{upgrade:?}");
        let trouble = serving(&cx, 2).await.trouble;
        assert!(trouble.contains("it wants too much to be held"), "{trouble}");
    });
    node.down();
}

fn one_that_is_given_up_while_it_hands_over_is_not_upgraded() {
    let mut node = Node::of(tempfile::tempdir().unwrap(), MANIFEST);
    node.assert_up();
    node.guest(async |cx| {
        for epoch in 1..5 {
            kill(serving(&cx, epoch).await.pid as i32, "ABRT");
        }
        serving(&cx, 5).await;
        let tried = upgrade_one_that(&cx, EXITS).await;
        assert_eq!((tried.outcome, tried.epoch), (Outcome::NotReady, 5), "{tried:?}");
        assert_eq!(tried.why, "it was given up meanwhile: it died too often");
        assert_eq!(ps(&cx).await[0].state, State::Quarantined);
        // Whoever starts it again can upgrade it.
        let control: control::Client = cx.connect("control").await.unwrap();
        control.restart(control.root(), "null").await.unwrap();
        serving(&cx, 6).await;
        let done = upgrade(&cx).await;
        assert_eq!((done.outcome, done.epoch), (Outcome::Done, 7), "{done:?}");
    });
    node.down();
}

fn one_that_keeps_memory_and_no_sessions_is_not_upgraded_in_use() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    std::fs::write(directory.path().join("state").join(ENDS_SESSIONS), "").unwrap();
    let mut node = Node::of(directory, MANIFEST);
    node.assert_up();
    let upgrade = node.guest(async |cx| upgrade(&cx).await);
    assert_eq!((upgrade.outcome, upgrade.epoch), (Outcome::KeepsNothing, 1), "{upgrade:?}");
    assert!(upgrade.why.contains("of endpoint null"), "{}", upgrade.why);
    node.down();
}

fn a_run_that_never_began_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let steps = Steps::create(&state, [("supervisor", "restart/begun")]).unwrap();
    let mut node = Node::of(directory, MANIFEST);
    node.assert_up();
    node.guest(async |cx| {
        let first = serving(&cx, 1).await;
        steps.dies(0, 1).unwrap();
        kill(first.pid as i32, "KILL");
        // The second one has a number and no process; each waits for the fences of all before it.
        serving(&cx, 3).await;
        assert_eq!(steps.count(0).unwrap().1, 1, "the supervisor has died");
    });
    node.down();
}

common::tests! {
    one_that_breaks_a_rule_while_it_hands_over_has_died_of_that,
    one_that_is_given_up_while_it_hands_over_is_not_upgraded,
    one_that_keeps_memory_and_no_sessions_is_not_upgraded_in_use,
    a_run_that_never_began_is_not_waited_for,
    calls_that_nobody_can_make_again_wait_unread_and_none_fails,
    a_call_that_nobody_can_make_again_is_waited_for,
    a_call_that_nobody_can_make_again_and_that_does_not_end_keeps_its_run,
    a_call_that_can_be_made_again_is_made_again_by_the_next_run,
}

fn main() -> ExitCode {
    common::main(TESTS, |_| component::run(waits))
}
