//! What a guest asks of its supervisor, which is played here.

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use common::run;
use kernel_ipc::broker::{Channel, GUEST_SOCKET, OpenError, ToComponent, ToSupervisor, Welcome};
use kernel_ipc::component::{ConnectError, Context};
use kernel_ipc::lease::StatusPage;
use kernel_ipc::runtime;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

fn welcome() -> Welcome {
    Welcome {
        name: "test".into(),
        system: "test".into(),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        lender: LenderId(1),
        first_region: RegionId(1),
        status_entry: 0,
        state_dir: "/".into(),
        config: serde_json::Value::Null,
        reported: BTreeMap::new(),
        uses: Vec::new(),
        provides: Vec::new(),
        refuse_after_ms: None,
        reactors: 1,
        ancestors: Vec::new(),
        heirs: Vec::new(),
        crash: None,
        keys: None,
        is_in_cluster: false,
        nodes: Vec::new(),
        heritage: 0,
    }
}

/// A supervisor's end, which has greeted a guest, and that one.
fn greeted(state: &Path) -> (Channel, Context) {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let address = UnixAddr::new(&state.join(GUEST_SOCKET)).expect("a short path");
    bind(listener.as_raw_fd(), &address).expect("a new socket");
    listen(&listener, Backlog::new(1).expect("one")).expect("it listens");
    let supervisor = std::thread::spawn(move || {
        // Which kind of socket it is makes no difference for that.
        let connection = OwnedFd::from(UnixListener::from(listener).accept().expect("a guest").0);
        let channel = Channel::new(connection.try_clone().expect("a descriptor"));
        channel.receive_blocking::<ToSupervisor>().expect("a greeting");
        let (page, fence) = (StatusPage::create(1).expect("memory"), std::fs::File::open("/dev/null").expect("a file"));
        let given = [page.fd(), fence.as_fd()];
        channel.send_blocking(&ToComponent::Welcome(Box::new(welcome())), &given).expect("it is there");
        connection
    });
    let guest = Context::guest(state, "test").expect("greeted");
    let connection: OwnedFd = supervisor.join().expect("no panic");
    (Channel::new(connection), guest)
}

/// What it has asked for.
fn opens(channel: &Channel) -> Vec<(u64, String)> {
    let mut opens = Vec::new();
    while let Some((message, _)) = channel.receive::<ToSupervisor>().expect("a message") {
        match message {
            ToSupervisor::Open { request, endpoint, .. } => opens.push((request, endpoint)),
            other => panic!("{other:?}"),
        }
    }
    opens
}

/// A host that is not there, such as one of a node that is down, is waited for by those who wait, however many have gone away.
#[test]
fn whoever_goes_away_leaves_his_question_to_the_next_one() {
    let state = tempfile::tempdir().expect("a directory");
    run(async {
        let (supervisor, guest) = greeted(state.path());
        let ask = |name: &'static str| {
            let guest = guest.clone();
            async move { guest.connection(name, "test/1").await.map(drop) }
        };
        for _ in 0..200 {
            let given_up = runtime::timeout(Duration::from_micros(100), ask("disk.disk")).await;
            assert!(given_up.is_err(), "nobody has answered");
        }
        let asked = opens(&supervisor);
        assert_eq!(asked.len(), 1, "{asked:?}");
        // Two who wait are two, and so are two names.
        let waiting: Vec<_> =
            ["disk.disk", "disk.disk", "fs.root"].map(|name| runtime::spawn(ask(name))).into_iter().collect();
        runtime::sleep(Duration::from_millis(1)).await;
        let more = opens(&supervisor);
        assert_eq!(more.len(), 2, "{more:?}");
        for (request, _) in asked.into_iter().chain(more) {
            let error = OpenError::Unknown;
            supervisor.send(&ToComponent::OpenFailed { request, error }, &[]).expect("there is room");
        }
        for waits in waiting {
            let refused = waits.await.expect("not cancelled").expect_err("all were refused");
            assert!(matches!(refused, ConnectError::Refused { error: OpenError::Unknown, .. }), "{refused}");
        }
    });
}
