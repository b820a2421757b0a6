//! A component on several reactors, as real processes: its sessions are spread and moved while their clients call.
//!
//! - This program is its own keeper, supervisor, component and client: see [`main`]. `builtin:null` is a server whose effects
//!   are numbers that its clients give it, each once; what it does beside that its name in the manifest says.
//! - Run one test with `cargo test -p supervisor --test reactors NAME`.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use common::{Node, children, kill, ps, until};
use kernel_ipc::component::{self, Connection, Context, MoveError, Reactor};
use kernel_ipc::interface::{Description, Retry};
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime, sleep};
use kernel_ipc::session::{Call, Grant, Movable, Request, Response, Service, SessionInfo};
use kernel_ipc::steps::Steps;
use kernel_ipc::{Cause, Executed, Failure, Handle, Rights, SessionId};
use protocol::control::State;
use protocol::null;

// ---- The component ----

/// Which reactor serves this session, of how many; and how often sessions were moved, all in all.
const WHERE: u16 = 1;
/// Does what its payload says, on the reactor that serves the session.
const DO: u16 = 2;
/// Takes a number that this session has not given before. Some of them take a moment.
const GIVE: u16 = 3;
/// How many numbers it has given.
const GIVEN: u16 = 4;

/// What [`DO`] can do.
const PANIC: &[u8] = b"panic";
const HANG: &[u8] = b"hang";
/// All sessions go to this session's reactor, and are not moved by the component's program from then on.
const GATHER: &[u8] = b"gather";

/// One reactor's instance.
struct Numbers {
    reactor: Reactor,
    of: RefCell<HashMap<SessionId, HashSet<u64>>>,
    all: Arc<All>,
    epoch: u64,
}

/// What the instances share, for the test's sake.
#[derive(Default)]
struct All {
    moves: AtomicU64,
    gather: AtomicBool,
    gather_on: AtomicU64,
}

fn number(payload: &[u8]) -> u64 {
    payload.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

impl Service for Numbers {
    const INTERFACE: &'static Description = &null::DESCRIPTION;

    async fn serve(&self, call: &mut Call) -> Response {
        let id = call.session().id;
        let numbers = |numbers: &[u64]| {
            let payload: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            Response { payload: payload.into(), ..Response::default() }
        };
        match call.operation() {
            WHERE => {
                let Reactor { index, count } = self.reactor;
                numbers(&[index.into(), count.into(), self.all.moves.load(Relaxed)])
            }
            DO => {
                match call.payload() {
                    PANIC => panic!("what a reactor"),
                    // A bug, which shows once.
                    HANG => {
                        while std::hint::black_box(self.epoch) == 1 {
                            std::hint::spin_loop();
                        }
                    }
                    GATHER => {
                        self.all.gather_on.store(self.reactor.index.into(), Relaxed);
                        self.all.gather.store(true, Relaxed);
                    }
                    _ => {}
                }
                Response::default()
            }
            GIVE => {
                let n = number(call.payload());
                if n % 64 == 5 {
                    // So that some are in the middle when their session is to be moved.
                    sleep(Duration::from_micros(n % 500)).await;
                }
                let is_new = self.of.borrow_mut().entry(id).or_default().insert(n);
                Response { operation_error: (!is_new).then_some(1), ..Response::default() }
            }
            _ => numbers(&[self.of.borrow().get(&id).map_or(0, HashSet::len) as u64]),
        }
    }

    fn closed(&self, session: &SessionInfo) {
        self.of.borrow_mut().remove(&session.id);
    }
}

impl Movable for Numbers {
    type State = HashSet<u64>;

    fn leave(&self, session: &SessionInfo) -> HashSet<u64> {
        self.of.borrow_mut().remove(&session.id).unwrap_or_default()
    }

    fn arrive(&self, session: &SessionInfo, numbers: HashSet<u64>) {
        assert!(self.of.borrow_mut().insert(session.id, numbers).is_none());
    }
}

const ROOT: Grant = Grant { object: [0; 2], kind: 1, rights: Rights::READ, badge: 0 };

async fn server(cx: Context) -> Result<(), component::Error> {
    let (all, epoch) = (Arc::new(All::default()), cx.epoch().get());
    let shared = all.clone();
    let make = move |reactor| {
        let (of, all) = (RefCell::default(), shared.clone());
        (Rc::new(Numbers { reactor, of, all, epoch }), async |_: &SessionInfo| Ok(ROOT))
    };
    if cx.name() == "single" {
        let (service, root) = make(Reactor { index: 0, count: 1 });
        cx.provide("null", service, root)?;
    } else if cx.name() == "survivor" {
        cx.survive(1 << 20).await?;
    } else {
        cx.provide_on_each("null", make)?;
    }
    cx.ready();
    if cx.name() == "mover" {
        let mover = cx.clone();
        runtime::spawn(async move { move_all(&mover, &all).await });
    }
    cx.stopped().await;
    Ok(())
}

/// Moves every session to the next reactor, again and again; once the service says so, to one of them.
async fn move_all(cx: &Context, all: &All) {
    let reactors = cx.reactors();
    loop {
        let gather = all.gather.load(Relaxed);
        for (session, at) in cx.placed_sessions() {
            let to = if gather { all.gather_on.load(Relaxed) as u32 } else { (at + 1) % reactors };
            match cx.move_session(session, to).await {
                Ok(()) => drop(all.moves.fetch_add(1, Relaxed)),
                Err(MoveError::NoSession | MoveError::Busy) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        if gather {
            return;
        }
        assert_eq!(cx.move_session(SessionId(u64::MAX), 0).await, Err(MoveError::NoSession));
        assert_eq!(cx.move_session(SessionId(u64::MAX), reactors).await, Err(MoveError::NoReactor));
        sleep(Duration::from_micros(300)).await;
    }
}

// ---- Clients ----

const OUTSTANDING: u64 = 64;

async fn connect(cx: &Context, component: &str) -> Connection {
    cx.connection(&format!("{component}.null"), null::DESCRIPTION.name).await.expect("a session")
}

async fn call(connection: &Connection, operation: u16, payload: &[u8]) -> Result<(Option<u16>, Vec<u64>), Failure> {
    let session = connection.session().await?;
    let handle: Handle = session.root();
    let (capabilities, leases, deadline, retry) = (&[][..], &[][..], None, Retry::Never);
    let request = Request { operation, handle, payload, capabilities, leases, deadline, retry };
    let reply = session.call(request).await?;
    let words = reply.payload.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Ok((reply.operation_error, words))
}

/// Gives numbers, many at a time, until `done`. Gives how many were answered.
async fn give(connection: &Connection, done: &Rc<Cell<bool>>) -> u64 {
    let next = Rc::new(Cell::new(0u64));
    let callers: Vec<_> = (0..OUTSTANDING)
        .map(|_| {
            let (connection, done, next) = (connection.clone(), done.clone(), next.clone());
            runtime::spawn(async move {
                while !done.get() {
                    let n = next.replace(next.get() + 1);
                    let (error, _) = call(&connection, GIVE, &n.to_le_bytes()).await.expect("no call is lost");
                    assert_eq!(error, None, "{n} was taken twice");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("not cancelled");
    }
    next.get()
}

/// A client's process: gives numbers until sessions were moved so often, and compares what the server says.
fn client(state: &str, moves: u64) -> ExitCode {
    let runtime = Runtime::new(RuntimeOptions::default()).expect("io_uring");
    runtime.block_on(async {
        let cx = Context::guest(state.as_ref(), "client").expect("a guest");
        let connection = connect(&cx, "mover").await;
        let done = Rc::new(Cell::new(false));
        let giving = runtime::spawn({
            let (connection, done) = (connection.clone(), done.clone());
            async move { give(&connection, &done).await }
        });
        let mut seen = HashSet::new();
        loop {
            let (_, at) = call(&connection, WHERE, b"").await.expect("an answer");
            seen.insert(at[0]);
            if at[2] >= moves && seen.len() as u64 == at[1] {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        done.set(true);
        let made = giving.await.expect("not cancelled");
        let (_, given) = call(&connection, GIVEN, b"").await.expect("an answer");
        assert_eq!(given, [made]);
        println!("{made} calls");
        assert!(made > 1000, "only {made}");
    });
    ExitCode::SUCCESS
}

fn start_client(node: &Node, moves: u64) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.arg("client").arg(node.state()).arg(moves.to_string()).stdout(Stdio::piped());
    command.spawn().expect("a process")
}

fn start(component: &str, reactors: u32) -> Node {
    start_with(component, reactors, "", |_| {})
}

fn start_with(component: &str, reactors: u32, more: &str, prepare: impl FnOnce(&std::path::Path)) -> Node {
    let directory = tempfile::tempdir().expect("a directory");
    prepare(&directory.path().join("state"));
    let manifest = format!(
        "atoll = 1\n[component.{component}]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\nreactors = {reactors}\n{more}"
    );
    Node::of(directory, &manifest)
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

// ---- Tests ----

fn clients_lose_no_call_and_none_runs_twice_while_their_sessions_are_moved_hundreds_of_times() {
    let mut node = start("mover", 3);
    node.assert_up();
    assert_eq!(threads(node.ps()[0].pid), ["mover", "mover/1", "mover/2"]);
    let clients: Vec<Child> = (0..3).map(|_| start_client(&node, 900)).collect();
    for client in clients {
        let ended = client.wait_with_output().expect("its end");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    }
    let status = &node.ps()[0];
    assert_eq!((status.epoch, status.restarts), (1, 0), "{}\n{}", status.trouble, node.log("mover"));
    node.down();
}

fn new_sessions_go_to_the_reactor_with_the_fewest() {
    let mut node = start("plain", 3);
    node.assert_up();
    node.guest(async |cx| {
        let mut open = Vec::new();
        for _ in 0..6 {
            open.push(connect(&cx, "plain").await);
        }
        let mut at = Vec::new();
        for connection in &open {
            at.push(call(connection, WHERE, b"").await.unwrap().1[0]);
        }
        assert_eq!(at, [1, 2, 0, 1, 2, 0]);
        // Its place is free again.
        drop(open.remove(3));
        until("a place", async || {
            let new = connect(&cx, "plain").await;
            call(&new, WHERE, b"").await.unwrap().1[0] == 1
        })
        .await;
    });
    node.down();
}

fn a_server_that_is_killed_amid_moves_says_truthfully_what_ran_and_serves_again() {
    let mut node = start("mover", 2);
    node.assert_up();
    node.guest(async |cx| {
        let connection = connect(&cx, "mover").await;
        for _ in 0..8 {
            let before = call(&connection, WHERE, b"").await.unwrap().1[2];
            let answered = Rc::new(Cell::new(0u64));
            let next = Rc::new(Cell::new(0u64));
            let session = connection.session().await.unwrap();
            let callers: Vec<_> = (0..OUTSTANDING)
                .map(|_| {
                    let (session, next, answered) = (session.clone(), next.clone(), answered.clone());
                    runtime::spawn(async move {
                        let fixed = Connection::fixed(session);
                        loop {
                            let n = next.replace(next.get() + 1);
                            match call(&fixed, GIVE, &n.to_le_bytes()).await {
                                Ok((error, _)) => assert_eq!(error, None),
                                Err(Failure { cause: Cause::PeerDied, executed }) => break executed,
                                // Called when it was known already, perhaps with a next run there.
                                Err(Failure {
                                    cause: Cause::SessionClosed | Cause::StaleEpoch,
                                    executed: Executed::No,
                                }) => break Executed::No,
                                Err(other) => panic!("{other:?}"),
                            }
                            answered.set(answered.get() + 1);
                        }
                    })
                })
                .collect();
            until("moves", async || call(&connection, WHERE, b"").await.unwrap().1[2] > before + 20).await;
            kill(ps(&cx).await[0].pid as i32, "KILL");
            for caller in callers {
                let executed = caller.await.expect("not cancelled");
                assert!(executed != Executed::Yes, "it was not answered");
            }
            assert!(answered.get() > 0);
            until("its next run", async || call(&connection, WHERE, b"").await.is_ok()).await;
        }
        assert_eq!(ps(&cx).await[0].restarts, 8);
    });
    node.down();
}

/// At each step of a move, which the process does not survive.
fn a_server_that_dies_at_any_step_of_a_move_serves_again() {
    if !cfg!(debug_assertions) {
        println!("skipped: steps are in builds with debug assertions only");
        return;
    }
    const STEPS: [&str; 3] = ["move/begun", "move/left", "move/arrived"];
    let mut steps = None;
    let mut node = start_with("mover", 2, "", |state| {
        std::fs::create_dir_all(state).expect("a directory");
        steps = Some(Steps::create(state, STEPS.map(|step| ("mover", step))).expect("a file"));
    });
    let steps = steps.expect("it was prepared");
    node.assert_up();
    node.guest(async |cx| {
        let connection = connect(&cx, "mover").await;
        let epoch = async || ps(&cx).await[0].epoch;
        for step in 0..STEPS.len() {
            for _ in 0..3 {
                let before = epoch().await;
                steps.dies(step, 3).expect("a row");
                until("its death", async || {
                    // Whatever becomes of it, it ends.
                    let _ = call(&connection, GIVE, &2u64.to_le_bytes()).await;
                    epoch().await > before
                })
                .await;
                until("its next run", async || call(&connection, WHERE, b"").await.is_ok()).await;
            }
        }
    });
    node.down();
}

fn a_reactor_that_panics_or_hangs_ends_its_component_which_is_started_again() {
    let mut node = start_with("plain", 2, "hung_after_seconds = 2\n", |_| {});
    node.assert_up();
    node.guest(async |cx| {
        let first = connect(&cx, "plain").await;
        assert_eq!(call(&first, WHERE, b"").await.unwrap().1[0], 1);
        let hung = call(&first, DO, HANG).await.expect_err("it hangs");
        assert_eq!((hung.cause, hung.executed), (Cause::PeerDied, Executed::Unknown));
        until("its next run", async || ps(&cx).await[0].state == State::Ready).await;
        assert!(ps(&cx).await[0].trouble.contains("hung"), "{}", ps(&cx).await[0].trouble);
        assert_eq!(call(&first, WHERE, b"").await.unwrap().1[0], 1);
        let panicked = call(&first, DO, PANIC).await.expect_err("it panics");
        assert_eq!(panicked.executed, Executed::Unknown);
        until("its next run", async || ps(&cx).await[0].state == State::Ready && ps(&cx).await[0].epoch == 3).await;
        let trouble = ps(&cx).await[0].trouble.clone();
        assert!(trouble.contains("reactor 1: panicked: what a reactor"), "{trouble}");
        assert_eq!(call(&first, WHERE, b"").await.unwrap().1[1], 2);
    });
    node.down();
}

fn what_is_made_for_one_reactor_says_so() {
    for (name, what) in [("single", "endpoint null"), ("survivor", "it survives")] {
        let node = start(name, 2);
        let wanted = format!("{what}: that is made for one reactor, and the manifest says reactors = 2");
        assert!(node.failure().contains(&wanted), "{}", node.failure());
    }
    // With one it is what it always was.
    let mut node = start("single", 1);
    node.assert_up();
    node.down();
}

fn an_uneven_load_is_evened_out() {
    let mut node = start("mover", 2);
    node.assert_up();
    node.guest(async |cx| {
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(connect(&cx, "mover").await);
        }
        call(&open[0], DO, GATHER).await.unwrap();
        let places = async || {
            let mut at = Vec::new();
            for connection in &open {
                at.push(call(connection, WHERE, b"").await.unwrap().1[0]);
            }
            at
        };
        until("all in one place", async || {
            let at = places().await;
            at.iter().all(|one| *one == at[0])
        })
        .await;
        let gathered = places().await[0];
        let done = Rc::new(Cell::new(false));
        let giving: Vec<_> = open
            .iter()
            .map(|connection| {
                let (connection, done) = (connection.clone(), done.clone());
                runtime::spawn(async move { give(&connection, &done).await })
            })
            .collect();
        until("two places", async || places().await.iter().any(|at| *at != gathered)).await;
        done.set(true);
        for giving in giving {
            giving.await.expect("not cancelled");
        }
    });
    node.down();
}

/// And none of its threads wakes up at rest.
fn another_supervisor_finds_the_sessions_where_they_are() {
    let mut node = start("plain", 3);
    node.assert_up();
    node.guest(async |cx| {
        let before = connect(&cx, "plain").await;
        let server = ps(&cx).await[0].pid;
        for _ in 0..3 {
            let supervisor = children(node.keeper_pid()).into_iter().find(|pid| *pid != server as i32).unwrap();
            kill(supervisor, "KILL");
            let after = connect(&cx, "plain").await;
            assert_eq!(call(&after, GIVE, &1u64.to_le_bytes()).await.unwrap().0, None);
        }
        assert_eq!(call(&before, GIVE, &1u64.to_le_bytes()).await.unwrap().0, None);
        let status = &ps(&cx).await[0];
        assert_eq!((status.pid, status.state), (server, State::Ready), "{}", status.trouble);
        let slept = || -> Vec<String> {
            let tasks = std::fs::read_dir(format!("/proc/{server}/task")).expect("it lives");
            let of = |task: std::io::Result<std::fs::DirEntry>| {
                let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned)
            };
            tasks.filter_map(of).collect()
        };
        // It is asked for a sign of life once more after it has done something, and then no more.
        until("rest", async || {
            let before = slept();
            sleep(Duration::from_millis(2500)).await;
            slept() == before
        })
        .await;
    });
    node.down();
}

common::tests! {
    clients_lose_no_call_and_none_runs_twice_while_their_sessions_are_moved_hundreds_of_times,
    new_sessions_go_to_the_reactor_with_the_fewest,
    a_server_that_is_killed_amid_moves_says_truthfully_what_ran_and_serves_again,
    a_server_that_dies_at_any_step_of_a_move_serves_again,
    a_reactor_that_panics_or_hangs_ends_its_component_which_is_started_again,
    what_is_made_for_one_reactor_says_so,
    an_uneven_load_is_evened_out,
    another_supervisor_finds_the_sessions_where_they_are,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("client") {
        let (state, moves) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
        return client(&state, moves.parse().expect("a number"));
    }
    common::main(TESTS, |_| component::run(server))
}
