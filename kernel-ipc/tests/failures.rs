//! Every way in which a call can fail, provoked over each carrier, and what its error says of `executed`.
//!
//! One table: [`WAYS`]. Where a cause comes from beyond one session (a broker, a death that the session survives, a service of
//! its own), the table names the test that provokes it there; that the test exists is checked.

mod common;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use common::*;
use kernel_ipc::lease::Lender;
use kernel_ipc::link::{Body, Link, in_process, shm as shared};
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{self, ClientSession, HostSession, Offer, Request};
use kernel_ipc::wire::{Completion, Extent, Shape, Status};
use kernel_ipc::{Cause, Executed, Failure, Handle};

/// One session over a carrier, and what stands around it.
struct Ends {
    client: ClientSession,
    host: HostSession,
    thing: Rc<Thing>,
    carrier: Carrier,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Carrier {
    Shared,
    Near,
    Socket,
}

/// Two ends of a socket share no clock: what is left of a deadline counts from when the host takes the call, so one that waits
/// in the host's kernel is not late there. Its caller hears `Unknown` in time all the same.
const WAITED_FOR_THE_HOST: &str = "it passed while the call waited for the host";

/// Four slots, so that a test can fill them.
const SHAPE: Shape = Shape { slots: 4, window_bytes: 4096 };

impl Carrier {
    fn open(
        self,
        shape: Shape,
        id: u64,
        thing: &Rc<Thing>,
        lender: Option<Rc<RefCell<Lender>>>,
    ) -> (ClientSession, HostSession) {
        match self {
            Carrier::Near => session::in_process(shape, root(), thing.clone(), info(id), lender),
            Carrier::Socket => over_socket(shape, id, thing, lender),
            Carrier::Shared => {
                let offer = Offer::new(shape).expect("a segment");
                let segment = offer.fd().try_clone_to_owned().expect("dup");
                let host = HostSession::start(segment, root(), thing.clone(), info(id), lender).expect("opened");
                let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                (offer.open(segment, info(id).id, info(id).epoch).expect("opened"), host)
            }
        }
    }

    /// A session whose host is a bare link, in the hands of the test.
    fn open_bare(self) -> (ClientSession, Box<dyn Link>) {
        match self {
            Carrier::Near => {
                let (client, host) = in_process::pair(SHAPE);
                (ClientSession::over(client, Handle::NONE, info(1).id, info(1).epoch), Box::new(host))
            }
            Carrier::Socket => {
                let (client, host) = kernel_ipc::link::socket::pair(SHAPE).expect("loopback");
                (ClientSession::over(client, Handle::NONE, info(1).id, info(1).epoch), Box::new(host))
            }
            Carrier::Shared => {
                let offer = Offer::new(SHAPE).expect("a segment");
                let segment = offer.fd().try_clone_to_owned().expect("dup");
                let host = shared::ShmLink::host(segment, info(1).id, info(1).epoch, Handle::NONE).expect("a link");
                let segment = host.fd().try_clone_to_owned().expect("dup");
                (offer.open(segment, info(1).id, info(1).epoch).expect("opened"), Box::new(host))
            }
        }
    }
}

type Answer = Result<(), Failure>;

impl Ends {
    async fn call(&self, request: Request<'_>) -> Answer {
        self.client.call(request).await.map(drop)
    }

    async fn simple(&self, operation: u16, payload: &[u8]) -> Answer {
        self.call(request(self.client.root(), operation, payload)).await
    }

    fn begin(&self, operation: u16) -> JoinHandle<Answer> {
        begin(&self.client, operation, None)
    }
}

fn begin(client: &ClientSession, operation: u16, deadline: Option<Duration>) -> JoinHandle<Answer> {
    let client = client.clone();
    runtime::spawn(async move {
        client.call(Request { deadline, ..request(client.root(), operation, &[]) }).await.map(drop)
    })
}

/// The answer of a call that was begun.
async fn end(call: JoinHandle<Answer>) -> Answer {
    call.await.expect("not cancelled")
}

/// An answer of a host that is a bare link.
fn answer(host: &dyn Link, slot: u16, seq: u64, status: Status) {
    let completion =
        Completion { slot, operation: ECHO, seq, extent: Extent::default(), status, trace: 0, inline: [0; 2] };
    host.send(&completion.to_raw(), slot, &Body::default()).expect("there is room");
    host.flush();
}

type Provoked<'a> = Pin<Box<dyn Future<Output = Answer> + 'a>>;

/// How a cause is come by.
enum Way {
    /// Provoked here: what happens, and what the error says of the call.
    Here(&'static str, Executed, for<'a> fn(&'a Ends) -> Provoked<'a>),
    /// Provoked by this test of this file of the repository, because it takes more than one session.
    There(&'static str, &'static str),
    /// No part of the kit says it; a service may.
    ServicesOnly,
}

use Executed::{No, Unknown, Yes};
use Way::{Here, ServicesOnly, There};

/// By the number of the cause.
const WAYS: &[(u16, &[Way])] = &[
    (1, &[Here("a right is missing", No, |e| Box::pin(e.simple(WRITE, b"")))]),
    (
        2,
        &[
            Here("a handle of nobody's", No, |e| {
                let handle = Handle { index: 7, ..e.client.root() };
                Box::pin(e.call(request(handle, ECHO, b"")))
            }),
            Here("a handle that was released", No, |e| {
                Box::pin(async move {
                    let opened = e.client.call(request(e.client.root(), OPEN, &[1, 1])).await?.capabilities;
                    e.client.release_handle(opened[0]);
                    settle().await;
                    e.call(request(opened[0], ECHO, b"")).await
                })
            }),
        ],
    ),
    (
        3,
        &[Here("an argument of another kind", No, |e| {
            Box::pin(async move {
                let capabilities = &[e.client.root()];
                e.call(Request { capabilities, ..request(e.client.root(), JOIN, b"") }).await
            })
        })],
    ),
    (4, &[Here("an operation that is none", No, |e| Box::pin(e.simple(99, b"")))]),
    (5, &[ServicesOnly]),
    (
        6,
        &[
            Here("too few handles", No, |e| Box::pin(e.simple(JOIN, b""))),
            Here("more than a window holds", No, |e| Box::pin(async move { e.simple(ECHO, &bytes(4097)).await })),
        ],
    ),
    (
        7,
        &[Here("more capabilities than a session may have", Yes, |e| {
            Box::pin(async move {
                loop {
                    e.simple(OPEN, &[1, 16]).await?;
                }
            })
        })],
    ),
    (
        8,
        &[
            Here("it has waited too long at the host", No, |e| {
                Box::pin(async move {
                    let (client, host) = e.carrier.open(Shape::default(), 2, &e.thing, None);
                    // Whatever a second turn finds has.
                    host.refuse_after(Some(Duration::ZERO));
                    let mut answers = Vec::new();
                    for call in (0..64).map(|_| begin(&client, ECHO, None)).collect::<Vec<_>>() {
                        answers.push(end(call).await);
                    }
                    let ran = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
                    assert_eq!(e.thing.begun.get(), ran);
                    answers.into_iter().find(Result::is_err).unwrap_or(Ok(()))
                })
            }),
            Here("too many wait for a slot", No, |e| {
                Box::pin(async move {
                    e.client.limit_waiters(0);
                    let _hanging: Vec<_> = (0..4).map(|_| e.begin(HANG)).collect();
                    settle().await;
                    e.simple(ECHO, b"").await
                })
            }),
        ],
    ),
    (
        9,
        &[
            Here("it was zero", No, |e| {
                let request = request(e.client.root(), ECHO, b"");
                Box::pin(e.call(Request { deadline: Some(Duration::ZERO), ..request }))
            }),
            Here("it passed while the call waited for a slot", No, |e| {
                Box::pin(async move {
                    let _hanging: Vec<_> = (0..4).map(|_| e.begin(HANG)).collect();
                    settle().await;
                    end(begin(&e.client, ECHO, Some(Duration::from_millis(5)))).await
                })
            }),
            Here(WAITED_FOR_THE_HOST, No, |e| {
                Box::pin(async move {
                    let client = e.client.clone();
                    let before = runtime::spawn(async move {
                        // Longer than the deadline of the other and the lag of the clock.
                        client.call(request(client.root(), BLOCK, &[60])).await.map(drop)
                    });
                    let answer = end(begin(&e.client, ECHO, Some(Duration::from_millis(5)))).await;
                    assert_eq!((end(before).await, e.thing.begun.get()), (Ok(()), 1));
                    answer
                })
            }),
            Here("it passed while the handler had the call", Unknown, |e| {
                Box::pin(async move { end(begin(&e.client, HANG, Some(Duration::from_millis(5)))).await })
            }),
        ],
    ),
    (10, &[ServicesOnly]),
    (11, &[There("kernel-ipc/tests/capabilities.rs", "no(Cause::Revoked)")]),
    (
        12,
        &[
            Here("the host had read the call", Unknown, |e| {
                Box::pin(async move {
                    let call = e.begin(HANG);
                    settle().await;
                    e.client.host_died();
                    end(call).await
                })
            }),
            Here("the host had not read the call", No, |e| {
                Box::pin(async move {
                    let call = e.begin(HANG);
                    // Both are tasks of one turn: the host is not polled between them.
                    let client = e.client.clone();
                    runtime::spawn(async move { client.host_died() });
                    end(call).await
                })
            }),
        ],
    ),
    (
        13,
        &[
            Here("the host closed it and had read the call", Unknown, |e| {
                Box::pin(async move {
                    let call = e.begin(HANG);
                    settle().await;
                    e.host.close();
                    end(call).await
                })
            }),
            Here("the client closed it", Unknown, |e| {
                Box::pin(async move {
                    let call = e.begin(HANG);
                    settle().await;
                    e.client.close();
                    end(call).await
                })
            }),
            Here("the host closed it and had not read the call", No, |e| {
                Box::pin(async move {
                    e.host.close();
                    e.simple(ECHO, b"").await
                })
            }),
            Here("it was closed before", No, |e| {
                Box::pin(async move {
                    e.client.close();
                    e.simple(ECHO, b"").await
                })
            }),
        ],
    ),
    (
        14,
        &[
            Here("the host answered what nobody asked", Unknown, |e| {
                Box::pin(async move {
                    let (client, host) = e.carrier.open_bare();
                    let call = begin(&client, ECHO, None);
                    settle().await;
                    answer(&*host, 3, 77, Status::Done);
                    end(call).await
                })
            }),
            There("kernel-ipc/tests/interface.rs", "a_reply_that_the_interface_does_not_know_ends_the_session"),
            Here("it had done so before", No, |e| {
                Box::pin(async move {
                    let (client, host) = e.carrier.open_bare();
                    answer(&*host, 3, 77, Status::Done);
                    settle().await;
                    end(begin(&client, ECHO, None)).await
                })
            }),
        ],
    ),
    (15, &[There("drivers/tests/common/conformance.rs", "Cause::StaleLease")]),
    (
        16,
        &[Here("the host had died before", No, |e| {
            Box::pin(async move {
                e.client.host_died();
                e.simple(ECHO, b"").await
            })
        })],
    ),
    (17, &[There("kernel-ipc/src/component/opening.rs", "Cause::NotConnected")]),
    (
        18,
        &[
            Here("a payload that no window holds", Yes, |e| Box::pin(e.simple(BIG, b""))),
            Here("more capabilities than a message holds", Yes, |e| Box::pin(e.simple(OPEN, &[1, 17]))),
        ],
    ),
    (
        19,
        &[Here("a lease of a host that has none to give", Yes, |e| {
            Box::pin(async move {
                let (client, _host) = e.carrier.open(SHAPE, 2, &e.thing, None);
                client.call(request(client.root(), LEND, &[1])).await.map(drop)
            })
        })],
    ),
    (20, &[There("supervisor/tests/node.rs", "Cause::Poisoned { crash: 2 }")]),
    (21, &[There("kernel-ipc/tests/capabilities.rs", "no(Cause::Expired)")]),
    (22, &[There("kernel-ipc/tests/capabilities.rs", "no(Cause::RightsExceeded)")]),
    (23, &[There("kernel-ipc/tests/capabilities.rs", "no(Cause::BadgeSet)")]),
    (24, &[There("kernel-ipc/tests/capabilities.rs", "no(Cause::NoSuchTicket)")]),
    (25, &[There("kernel-ipc/tests/socket/lost.rs", "Cause::LinkLost")]),
    (26, &[There("kernel-ipc/tests/dependent/named.rs", "failed(Cause::NotBrought)")]),
    (27, &[There("kernel-ipc/tests/dependent/main.rs", "Cause::EarlierError { error: 42 }")]),
];

#[test]
fn each_way_to_fail_says_whether_the_call_ran() {
    for (number, ways) in WAYS {
        for way in *ways {
            let Here(what, executed, provoke) = way else { continue };
            for carrier in [Carrier::Shared, Carrier::Near, Carrier::Socket] {
                if carrier == Carrier::Socket && *what == WAITED_FOR_THE_HOST {
                    continue;
                }
                run(async {
                    let thing = Rc::new(Thing::default());
                    let (client, host) = carrier.open(SHAPE, 1, &thing, Some(lender()));
                    let ends = Ends { client, host, thing, carrier };
                    let failure = provoke(&ends).await.expect_err(what);
                    assert_eq!((failure.cause.number(), failure.executed), (*number, *executed), "{what}, {carrier:?}");
                });
            }
        }
    }
}

#[test]
fn the_table_has_every_cause_and_names_tests_that_exist() {
    let numbers: Vec<u16> = WAYS.iter().map(|(number, _)| *number).collect();
    let every: Vec<u16> = (0..=u16::MAX).filter(|number| Cause::from_number(*number, 0).is_some()).collect();
    assert_eq!(numbers, every);
    for (number, ways) in WAYS {
        assert!(!ways.is_empty(), "{number}");
        for way in *ways {
            if let There(file, what) = way {
                let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
                assert!(text.contains(what), "{file} has no {what}");
            }
        }
    }
}

#[test]
fn what_a_service_says_of_its_call_arrives_as_it_was_said() {
    for carrier in [Carrier::Shared, Carrier::Near, Carrier::Socket] {
        run(async {
            let thing = Rc::new(Thing::default());
            let (client, _host) = carrier.open(SHAPE, 1, &thing, None);
            for (number, _) in WAYS {
                for executed in [No, Yes, Unknown] {
                    let payload = [*number as u8, executed as u8];
                    let failure = client.call(request(client.root(), REFUSE, &payload)).await.expect_err("refused");
                    let cause = Cause::from_number(*number, 0).expect("in the table");
                    assert_eq!(failure, Failure { cause, executed }, "{carrier:?}");
                }
            }
            assert!(client.is_open());
        });
    }
}
