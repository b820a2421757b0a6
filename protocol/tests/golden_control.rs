//! What `atoll.control/1` looks like on the wire.

mod common;

use kernel_ipc::CallError;
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::session::Call;
use protocol::control::*;

#[derive(Clone, Copy, Object)]
#[kind(System)]
struct Node;

struct Supervisor;

impl Handler for Supervisor {
    type System = Node;

    async fn ps(&self, _: &Call, _: Granted<Node>, cursor: u32) -> Result<ComponentPage, CallError<PsError>> {
        let fs = ComponentStatus {
            name: "fs".into(),
            pid: 1234,
            state: State::Ready,
            epoch: 2,
            restarts: 1,
            place: "process".into(),
            listen: String::new(),
            leased_bytes: 3,
            verified_bytes: 4,
            copied_bytes: 5,
            trouble: "it fell over".into(),
        };
        let httpd = ComponentStatus { name: "httpd".into(), listen: "127.0.0.1:8080".into(), ..fs.clone() };
        match cursor {
            0 => Ok(ComponentPage { next: Some(2), components: vec![fs, httpd] }),
            2 => Ok(ComponentPage::default()),
            _ => Err(PsError::BadCursor.into()),
        }
    }

    async fn logs(
        &self,
        _: &Call,
        _: Granted<Node>,
        component: &str,
        cursor: u64,
        _: u32,
    ) -> Result<LogPage, CallError<LogsError>> {
        match component {
            "nobody" => Err(LogsError::NoSuchComponent.into()),
            _ => Ok(LogPage { next: cursor + 6, end: true, text: b"hello\n".to_vec() }),
        }
    }

    async fn down(&self, _: &Call, _: Granted<Node>) -> Result<(), CallError<DownError>> {
        Ok(())
    }

    async fn restart(&self, _: &Call, _: Granted<Node>, component: &str) -> Result<(), CallError<RestartError>> {
        self.restart_of(component)
    }

    async fn signal(
        &self,
        _: &Call,
        _: Granted<Node>,
        component: &str,
        _: Signal,
    ) -> Result<u64, CallError<SignalError>> {
        match component {
            "nobody" => Err(SignalError::NoSuchComponent.into()),
            "late" => Err(SignalError::NotRunning.into()),
            _ => Ok(3),
        }
    }

    async fn supervisor(&self, _: &Call, _: Granted<Node>) -> Result<SupervisorStatus, CallError<SupervisorError>> {
        Ok(SupervisorStatus { pid: 77, restarts: 2 })
    }

    async fn replace_supervisor(
        &self,
        _: &Call,
        _: Granted<Node>,
    ) -> Result<SupervisorStatus, CallError<SupervisorError>> {
        Err(SupervisorError::Stopping.into())
    }

    async fn plan_move(
        &self,
        _: &Call,
        _: Granted<Node>,
        component: &str,
        node: &str,
        cursor: u32,
    ) -> Result<MovePlan, CallError<PlanError>> {
        let stop = Stop { kind: StopKind::Path, what: "its `path` is a path on node a: disk.img".into() };
        let edge = Edge {
            client: "fs".into(),
            endpoint: "disk.disk".into(),
            interface: "atoll.block/1".into(),
            sessions: 1,
            now: Carrier::SharedMemory,
            then: Carrier::Socket,
        };
        let first =
            MovePlan { from: "a".into(), round_trip_us: 200, stops: vec![stop], next: Some(1), ..MovePlan::default() };
        match (component, node, cursor) {
            ("nobody", ..) => Err(PlanError::NoSuchComponent.into()),
            (_, "a", _) => Err(PlanError::SameNode.into()),
            (_, _, 0) => Ok(first),
            _ => Ok(MovePlan { from: "a".into(), edges: vec![edge], ..MovePlan::default() }),
        }
    }

    async fn upgrade(
        &self,
        _: &Call,
        _: Granted<Node>,
        component: &str,
        program: &str,
    ) -> Result<Upgrade, CallError<UpgradeError>> {
        let done = Upgrade { epoch: 3, checked_us: 4000, drained_us: 1500, restored_us: 5000, ..Upgrade::default() };
        match component {
            "nobody" => Err(UpgradeError::NoSuchComponent.into()),
            "late" => Err(UpgradeError::UnderWay.into()),
            _ if program == "/none" => {
                Ok(Upgrade { outcome: Outcome::NoProgram, why: "no such file".into(), epoch: 2, ..Upgrade::default() })
            }
            _ => Ok(done),
        }
    }

    async fn stop(&self, _: &Call, _: Granted<Node>, component: &str) -> Result<(), CallError<StopError>> {
        match component {
            "early" => Err(StopError::NotUp.into()),
            _ => Ok(()),
        }
    }

    async fn start(&self, _: &Call, _: Granted<Node>, component: &str) -> Result<(), CallError<RestartError>> {
        self.restart_of(component)
    }

    async fn freeze(&self, _: &Call, _: Granted<Node>, component: &str) -> Result<u64, CallError<FreezeError>> {
        match component {
            "late" => Err(FreezeError::NotRunning.into()),
            _ => Ok(3),
        }
    }

    async fn thaw(&self, _: &Call, _: Granted<Node>, component: &str) -> Result<u64, CallError<FreezeError>> {
        match component {
            "nobody" => Err(FreezeError::NoSuchComponent.into()),
            _ => Ok(3),
        }
    }
}

impl Supervisor {
    fn restart_of(&self, component: &str) -> Result<(), CallError<RestartError>> {
        match component {
            "nobody" => Err(RestartError::NoSuchComponent.into()),
            "late" => Err(RestartError::Stopping.into()),
            _ => Ok(()),
        }
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(Node, OBSERVE | OPERATE).to_grant();
    common::compare("control", Dispatcher(Supervisor), root, async |client: &Client| {
        let system = client.root();
        for cursor in [0, 2] {
            client.ps(system, cursor).await.expect("listed");
        }
        client.ps(system, 9).await.expect_err("no such cursor");
        client.logs(system, "fs", 7, 4096).await.expect("a log");
        client.logs(system, "nobody", 7, 4096).await.expect_err("no such component");
        client.restart(system, "fs").await.expect("restarted");
        client.restart(system, "nobody").await.expect_err("no such component");
        client.restart(system, "late").await.expect_err("going down");
        client.down(system).await.expect("going down");
        client.signal(system, "fs", Signal::Stop).await.expect("stopped");
        client.signal(system, "nobody", Signal::Kill).await.expect_err("no such component");
        client.signal(system, "late", Signal::Abort).await.expect_err("none lives");
        client.supervisor(system).await.expect("it says who it is");
        client.replace_supervisor(system).await.expect_err("going down");
        for cursor in [0, 1] {
            client.plan_move(system, "disk", "b", cursor).await.expect("a page");
        }
        client.plan_move(system, "nobody", "b", 0).await.expect_err("no such component");
        client.plan_move(system, "disk", "a", 0).await.expect_err("it is there");
        client.upgrade(system, "fs", "/bin/atoll").await.expect("upgraded");
        client.upgrade(system, "fs", "/none").await.expect("it says why not");
        client.upgrade(system, "nobody", "/bin/atoll").await.expect_err("no such component");
        client.upgrade(system, "late", "/bin/atoll").await.expect_err("under way");
        client.stop(system, "fs").await.expect("stopped");
        client.stop(system, "early").await.expect_err("coming up");
        client.start(system, "fs").await.expect("started");
        client.start(system, "nobody").await.expect_err("no such component");
        client.freeze(system, "fs").await.expect("frozen");
        client.freeze(system, "late").await.expect_err("none serves");
        client.thaw(system, "fs").await.expect("thawed");
        client.thaw(system, "nobody").await.expect_err("no such component");
    });
}
