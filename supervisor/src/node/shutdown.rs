//! The orderly end: last started, first stopped, so that each component still has what it uses while it ends.

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::broker::ToComponent;
use kernel_ipc::runtime::timeout;

use super::launch::{explain, last_words};
use super::peer::Peer;
use super::{Component, Node, Phase};
use crate::keeper::wire::Ask;

/// How long a component may take to end in order. A file system writes its checkpoint then.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Stops every component. Says what did not go in order: who had to be killed, who failed at its end, who was down
/// already. Nothing of the kind means that each of them did all that it does at its end.
pub async fn stop_all(node: &Rc<Node>) -> Vec<String> {
    node.ends("");
    node.thaw_all().await;
    let mut troubles = Vec::new();
    for component in node.components.iter().rev() {
        let (name, phase) = (&component.entry.name, component.phase.get());
        // It may have answered for what only its next run can put in order.
        let keeps = component.estate.survives() && component.ready_at.get().is_some();
        let run = component.peer.borrow_mut().take();
        let trouble = match (phase, run) {
            // By the last supervisor.
            (Phase::Stopped, _) => component.disorder.get().then(|| component.trouble.borrow().clone()),
            (Phase::Held, _) => keeps.then(|| format!("{name} was stopped, and what it kept is lost")),
            (Phase::Stopping, Some(run)) if run.wait_status.get() == Some(0) => None,
            (_, Some(run)) if run.ended.has_happened() => {
                last_words(&run).await;
                Some(format!("{name} was down: {}", explain(&run).1))
            }
            (_, Some(run)) => {
                component.set_phase(Phase::Stopping);
                let trouble = stop(node, component, &run).await.err().map(|trouble| format!("{name}: {trouble}"));
                // One that has not gone on where the last run ended ends without a word.
                let is_lost = keeps && !matches!(phase, Phase::Ready | Phase::Stopping);
                trouble.or_else(|| is_lost.then(|| format!("{name} had not come to serve, and what it kept is lost")))
            }
            // Never started, or between two runs.
            (_, None) => keeps.then(|| format!("{name} was down, and what it kept is lost")),
        };
        if let Some(trouble) = trouble {
            component.disorder.set(true);
            component.trouble.replace(trouble.clone());
            troubles.push(trouble);
        }
        component.set_phase(Phase::Stopped);
    }
    let _ = std::fs::remove_file(kernel_ipc::broker::GUEST_SOCKET);
    troubles
}

/// Stops one run.
///
/// # Errors
/// For people: it did not end in order.
async fn stop(node: &Rc<Node>, component: &Component, run: &Rc<Peer>) -> Result<(), String> {
    // One that never said a word to us cannot be asked; it has promised nothing either.
    let asked = run.is_greeted() && run.send(&ToComponent::Stop, &[]).is_ok();
    if !asked || timeout(STOP_WITHIN, run.ended.wait()).await.is_err() {
        eprintln!("supervisor: {} does not end in order; killing it", run.name);
        component.log.note("did not end in order; killed");
        let _ = node.keeper.tell(Ask::Signal, run.slot, libc::SIGKILL as u64).await;
        let _ = timeout(STOP_WITHIN, run.ended.wait()).await;
        return if asked { Err("did not end when it was asked to, and was killed".into()) } else { Ok(()) };
    }
    if run.wait_status.get() == Some(0) {
        return Ok(());
    }
    last_words(run).await;
    let end = explain(run).1;
    component.log.note(&end);
    Err(end)
}
