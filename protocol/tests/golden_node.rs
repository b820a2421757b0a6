//! What `atoll.node/1` looks like on the wire.

mod common;

use kernel_ipc::CallError;
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::session::Call;
use protocol::control::{ComponentStatus, State};
use protocol::node::*;

#[derive(Clone, Copy, Object)]
#[kind(Cluster)]
struct TheCluster;

struct First;

fn member(name: &str) -> Member {
    Member {
        name: name.into(),
        address: "10.0.0.1:7700".into(),
        fingerprint: vec![1, 2, 3],
        since_s: 4,
        until_s: 5,
        authority: name == "a",
    }
}

impl Handler for First {
    type Cluster = TheCluster;

    async fn join(
        &self,
        _: &Call,
        _: Granted<TheCluster>,
        secret: &[u8],
        name: &str,
        _: &str,
        _: &[u8],
    ) -> Result<Joined, CallError<JoinError>> {
        match (secret, name) {
            (b"used", _) => Err(JoinError::UsedToken.into()),
            (_, "a") => Err(JoinError::NameTaken.into()),
            _ => Ok(Joined { certificate: vec![6, 7], authority: vec![8], by: member("a") }),
        }
    }

    async fn members(
        &self,
        _: &Call,
        _: Granted<TheCluster>,
        after: &str,
    ) -> Result<MemberPage, CallError<MembersError>> {
        match after {
            "" => Ok(MemberPage { more: true, members: vec![member("a"), member("b")] }),
            "b" => Ok(MemberPage::default()),
            _ => Err(MembersError::Removed.into()),
        }
    }

    async fn announce(
        &self,
        _: &Call,
        _: Granted<TheCluster>,
        client: &str,
        _: &str,
        _: &str,
        _: &[u8],
    ) -> Result<Announced, CallError<AnnounceError>> {
        match client {
            "httpd" => Ok(Announced { component: "fs".into(), address: "10.0.0.1:40000".into() }),
            _ => Err(AnnounceError::NotGiven.into()),
        }
    }

    async fn status(
        &self,
        _: &Call,
        _: Granted<TheCluster>,
        component: &str,
    ) -> Result<ComponentStatus, CallError<StatusError>> {
        match component {
            "fs" => Ok(ComponentStatus {
                name: "fs".into(),
                pid: 1,
                state: State::Ready,
                epoch: 2,
                restarts: 3,
                place: "node:a".into(),
                listen: String::new(),
                leased_bytes: 4,
                verified_bytes: 5,
                copied_bytes: 6,
                trouble: String::new(),
            }),
            _ => Err(StatusError::NoSuchComponent.into()),
        }
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(TheCluster, JOIN | MEMBER).to_grant();
    common::compare("node", Dispatcher(First), root, async |client: &Client| {
        let cluster = client.root();
        client.join(cluster, b"secret", "c", "10.0.0.3:7700", b"key").await.expect("it is let in");
        client.join(cluster, b"used", "c", "10.0.0.3:7700", b"key").await.expect_err("used");
        client.join(cluster, b"secret", "a", "10.0.0.3:7700", b"key").await.expect_err("taken");
        for after in ["", "b"] {
            client.members(cluster, after).await.expect("listed");
        }
        client.members(cluster, "z").await.expect_err("removed");
        client.announce(cluster, "httpd", "root", "atoll.fs/1", b"ticket").await.expect("expected");
        client.announce(cluster, "other", "root", "atoll.fs/1", b"ticket").await.expect_err("not given");
        client.status(cluster, "fs").await.expect("it is there");
        client.status(cluster, "net").await.expect_err("it is not");
    });
}
