//! A client that was not built with an interface: it asks the host what that is, and calls by what it hears.

mod common;

use std::rc::Rc;

use kernel_ipc::described::{self, AskError, Book, Checked, DESCRIBE, Entry, Interface, NoResult};
use kernel_ipc::interface::{Cap, Granted, Lease, NewCap, Object, OperationError, Wire, interface};
use kernel_ipc::lease::Lend;
use kernel_ipc::session::{Call, ClientSession, HostSession, Response, Service, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Executed, Failure, RegionId, Rights};
use serde_json::{Value, json};

use common::{info, lender, request};

/// Telescopes.
#[interface("somebody.telescopes/3")]
pub trait Telescopes {
    /// A place with telescopes.
    type Dome;
    /// A telescope.
    type Telescope;

    /// Look through it.
    const LOOK: Rights = 12;

    /// Points one to a place of the sky.
    #[op(4, retry = cached, deadline = "5s")]
    fn point(dome: Dome, at: Sky) -> Result<Cap<Telescope>, PointError>;

    /// Takes a picture.
    #[op(9, requires = LOOK, retry = idempotent, deadline = "5s")]
    fn look(telescope: Telescope, filters: &[u8], seconds: i64) -> Result<(Lease, Vec<Star>), LookError>;
}

/// A place of the sky.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct Sky {
    /// From west to east.
    pub ascension: u64,
    /// From south to north.
    pub declination: i64,
}

/// A star.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Star {
    /// What it is called.
    pub name: String,
}

/// Why a telescope is not pointed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum PointError {
    /// It is below the horizon.
    Below {
        /// By so much.
        by: i64,
    } = 1,
}

/// Why there is no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum LookError {
    /// There are clouds.
    Clouds = 2,
}

#[derive(Object)]
#[kind(Dome)]
struct TheDome;

#[derive(Object)]
#[kind(Telescope)]
struct Pointed(u64);

struct Observatory;

impl Handler for Observatory {
    type Dome = TheDome;
    type Telescope = Pointed;

    async fn point(&self, _: &Call, _: Granted<TheDome>, at: Sky) -> Result<NewCap<Pointed>, CallError<PointError>> {
        if at.declination < 0 {
            return Err(PointError::Below { by: at.declination }.into());
        }
        Ok(NewCap::new(Pointed(at.ascension), LOOK))
    }

    async fn look(
        &self,
        _: &Call,
        telescope: Granted<Pointed>,
        filters: &[u8],
        seconds: i64,
    ) -> Result<(Lend, Vec<Star>), CallError<LookError>> {
        if seconds < 0 {
            return Err(LookError::Clouds.into());
        }
        let lend = Lend { region: RegionId(1), offset: 0, length: 100, source: None, keep: Rc::new(()) };
        let name = format!("{} through {} filters", telescope.object.0, filters.len());
        Ok((lend, vec![Star { name }]))
    }
}

fn session_of<S: Service>(service: S) -> (ClientSession, HostSession) {
    let root = NewCap::new(TheDome, Rights::empty()).to_grant();
    in_process(Shape::default(), root, Rc::new(service), info(1), Some(lender()))
}

async fn call(
    interface: &Checked,
    session: &ClientSession,
    book: &mut Book,
    operation: &str,
    arguments: Value,
) -> Result<Value, NoResult> {
    let operation = interface.operation(operation).expect("it is described");
    interface.call(session, operation, &arguments, None, book).await
}

#[test]
fn whoever_asks_the_host_can_call_it() {
    common::run(async {
        let (session, _host) = session_of(Dispatcher(Observatory));
        let interface = described::ask(&session).await.expect("it says what it is");
        assert_eq!(*interface, Interface::of(&DESCRIPTION));

        let mut book = Book::default();
        let at = json!({ "at": { "ascension": u64::MAX, "declination": 7 } });
        let pointed = call(&interface, &session, &mut book, "point", at).await;
        assert_eq!(pointed, Ok(json!({ "capability": "$1", "kind": "Telescope" })));
        let look = json!({ "telescope": "$1", "filters": { "base64": "/w==" }, "seconds": 3 });
        let seen = call(&interface, &session, &mut book, "look", look).await;
        let star = json!({ "name": "18446744073709551615 through 1 filters" });
        assert_eq!(seen, Ok(json!([{ "lease": "$2", "bytes": 100 }, [star]])));
        assert!(matches!(book.entries(), [Entry::Capability(..), Entry::Lease(lease)] if lease.length == 100));
    });
}

#[test]
fn an_error_has_its_name_and_a_failure_says_whether_it_ran() {
    common::run(async {
        let (session, host) = session_of(Dispatcher(Observatory));
        let interface = described::ask(&session).await.expect("it says what it is");
        let mut book = Book::default();
        let at = |declination: i64| json!({ "at": { "ascension": 0, "declination": declination } });
        let below = call(&interface, &session, &mut book, "point", at(-5)).await;
        let error = NoResult::Error {
            number: 1,
            name: "Below".into(),
            about: "It is below the horizon".into(),
            fields: json!({ "by": -5 }),
        };
        assert_eq!(below, Err(error));

        // What is wrong is not sent, not even when the host is gone.
        let pointed = call(&interface, &session, &mut book, "point", at(5)).await;
        assert!(pointed.is_ok());
        let long = json!({ "telescope": "$1", "filters": "x".repeat(5000), "seconds": 0 });
        let Err(NoResult::Wrong(wrong)) = call(&interface, &session, &mut book, "look", long).await else {
            panic!("there is no room for it")
        };
        let text = "expected at most 8 leases and 16 capabilities, and all in 4096 bytes, found 0, 0 and 5012 bytes";
        assert_eq!(wrong.to_string(), text);
        drop(host);
        let wrong = call(&interface, &session, &mut book, "point", json!({ "at": { "ascension": 1 } })).await;
        let Err(NoResult::Wrong(wrong)) = wrong else { panic!("{wrong:?}") };
        assert_eq!(wrong.to_string(), "at.declination: expected i64, and it is missing");
        let failed = call(&interface, &session, &mut book, "point", at(1)).await;
        let Err(NoResult::Failed(failure)) = failed else { panic!("{failed:?}") };
        assert_eq!(failure.executed, Executed::No);
    });
}

/// Answers every call with the same bytes.
struct Liar(Vec<u8>, Option<u16>);

impl Service for Liar {
    const INTERFACE: &'static kernel_ipc::interface::Description = &DESCRIPTION;

    async fn serve(&self, _: &mut Call) -> Response {
        Response { payload: self.0.as_slice().into(), operation_error: self.1, ..Response::default() }
    }
}

#[test]
fn an_answer_that_the_description_does_not_know_ends_the_session() {
    common::run(async {
        for liar in [Liar(vec![], None), Liar(vec![0; 9], None), Liar(vec![0; 7], Some(1)), Liar(vec![], Some(3))] {
            let (session, _host) = session_of(liar);
            let interface = described::ask(&session).await.expect("it does not lie about that");
            let at = json!({ "at": { "ascension": 0, "declination": 0 } });
            let failed = call(&interface, &session, &mut Book::default(), "point", at).await;
            let failure = Failure { cause: Cause::ProtocolViolation, executed: Executed::Yes };
            assert_eq!(failed, Err(NoResult::Failed(failure)));
            assert!(!session.is_open());
        }
    });
}

#[test]
fn a_question_that_makes_no_sense_is_refused_and_disturbs_nobody() {
    common::run(async {
        let (session, host) = session_of(Dispatcher(Observatory));
        let refused = |cause| Some(Failure::not_executed(cause));
        for payload in [&b""[..], b"123", b"12345", &u32::MAX.to_le_bytes()] {
            let answer = session.call(request(session.root(), DESCRIBE, payload)).await;
            assert_eq!(answer.err(), refused(Cause::BadArguments));
        }
        let interface = described::ask(&session).await.expect("it says what it is");
        let mut book = Book::default();
        let at = json!({ "at": { "ascension": 0, "declination": 0 } });
        call(&interface, &session, &mut book, "point", at).await.expect("pointed");
        let [Entry::Capability(_, telescope)] = book.entries() else { panic!("a capability") };
        let zero = 0u32.to_le_bytes();
        let answer = session.call(request(*telescope, DESCRIBE, &zero)).await;
        assert_eq!(answer.err(), refused(Cause::WrongKind));
        let at_the_end = u32::try_from(serde_json::to_string(&*interface).expect("JSON").len()).expect("short");
        let answer = session.call(request(session.root(), DESCRIBE, &at_the_end.to_le_bytes())).await.expect("nothing");
        assert_eq!(*answer.payload, [&at_the_end.to_le_bytes()[..], &[0; 4]].concat());
        assert!(host.is_open());
    });
}

#[test]
fn an_interface_that_was_written_without_the_macro_cannot_be_called_by_its_description() {
    common::run(async {
        let (session, _host) = common::shm(Shape::default(), 1, &Rc::default(), &lender());
        let Err(AskError::Fault(fault)) = described::ask(&session).await else { panic!("it has no types") };
        assert_eq!(fault.to_string(), "operation echo: there is no set of errors ``");
    });
}
