//! The orderly end: last started, first stopped, so that each component still has what it uses while it ends.

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::broker::ToComponent;
use kernel_ipc::runtime::timeout;

use super::{Node, Phase};
use crate::keeper::wire::Ask;

/// How long a component may take to end in order. A file system writes its checkpoint then.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Stops every component.
pub async fn stop_all(node: &Rc<Node>) {
    node.stopping.happen();
    for component in node.components.iter().rev() {
        let run = component.peer.borrow_mut().take();
        let Some(run) = run.filter(|run| !run.ended.has_happened()) else {
            component.set_phase(Phase::Stopped);
            continue;
        };
        component.set_phase(Phase::Stopping);
        // One that never said a word to us cannot be asked; it is killed below.
        let asked = run.is_introducible() && run.send(&ToComponent::Stop, &[]).is_ok();
        if !asked || timeout(STOP_WITHIN, run.ended.wait()).await.is_err() {
            eprintln!("supervisor: {} does not end in order; killing it", run.name);
            component.log.note("did not end in order; killed");
            let _ = node.keeper.tell(Ask::Signal, run.slot, libc::SIGKILL as u64).await;
            let _ = timeout(STOP_WITHIN, run.ended.wait()).await;
        }
        component.set_phase(Phase::Stopped);
    }
    let _ = std::fs::remove_file(kernel_ipc::broker::GUEST_SOCKET);
}
