//! A process that may become a component's next run, while the run before it serves.
//!
//! - It is started as any run is, in a slot of a guest, and greets; instead of a welcome it gets a question: whether it can go on with
//!   what is there ([`kernel_ipc::formats`]). Then it waits.
//! - [`promote`] makes it the component's run: its process moves to the component's slot, and it is welcomed.
//! - It has no authority before that, and nothing is written for it. One that is not wanted is killed; if this supervisor dies, the
//!   next one finds a process that is nobody's, and kills it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use kernel_ipc::broker::{Channel, ChannelError, PROTOCOL, ToComponent, ToSupervisor};
use kernel_ipc::component::waits::Event;
use kernel_ipc::formats::{self, HEADER};
use kernel_ipc::runtime::{JoinHandle, spawn, timeout};
use kernel_ipc::{Incarnation, steps};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::launch::{Started, capture};
use super::peer::Identity;
use super::records::{Kind, NumbersTag};
use super::{Fence, Node};
use crate::keeper::wire::{Ask, Request};
use crate::lifecycle;

/// How long a program may take for each word of its self-check.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);

/// How long the last words of one that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A process that waits to be a component's next run.
pub struct Candidate {
    node: Weak<Node>,
    slot: u32,
    epoch: u64,
    pid: u32,
    channel: Rc<Channel>,
    output: RefCell<Option<JoinHandle<()>>>,
    end: Rc<End>,
    promoted: Cell<bool>,
}

/// How a candidate ended.
#[derive(Default)]
pub struct End {
    ended: Event,
    wait_status: Cell<i32>,
}

impl End {
    /// Its process was reaped.
    pub fn happens(&self, wait_status: i32) {
        self.wait_status.set(wait_status);
        self.ended.happen();
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let (Some(node), false) = (self.node.upgrade(), self.promoted.get() || self.end.ended.has_happened()) {
            let slot = self.slot;
            spawn(async move { node.keeper.tell(Ask::Signal, slot, libc::SIGKILL as u64).await });
        }
    }
}

impl Candidate {
    /// Starts a program beside the run of a component that serves, and asks whether it can go on after that.
    ///
    /// # Errors
    /// Why it cannot, for people.
    pub async fn examine(node: &Rc<Node>, index: usize, program: BorrowedFd<'_>) -> Result<Candidate, String> {
        let component = &node.components[index];
        component.log.forget_last_lines();
        let candidate = Candidate::start(node, index, program).await.map_err(|error| error.to_string())?;
        steps::reach("upgrade/started");
        match candidate.check(node, index).await {
            Ok(()) => Ok(candidate),
            Err(Unfit::Says(reason)) => Err(reason),
            Err(Unfit::Silent) => Err(format!("it said nothing for {} s", CHECKED_WITHIN.as_secs())),
            Err(Unfit::Ended) => {
                let output = candidate.output.borrow_mut().take();
                let _ = timeout(LAST_WORDS, async {
                    candidate.end.ended.wait().await;
                    if let Some(output) = output {
                        let _ = output.await;
                    }
                })
                .await;
                let (_, end) = lifecycle::explain(candidate.end.wait_status.get());
                Err(std::iter::once(end).chain(component.log.last_lines()).collect::<Vec<_>>().join("\n  | "))
            }
        }
    }

    async fn start(node: &Rc<Node>, index: usize, program: BorrowedFd<'_>) -> std::io::Result<Candidate> {
        let component = &node.components[index];
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (slot, epoch) = node.free_guest_slot().ok_or_else(|| std::io::Error::other("too many guests"))?;
        let nobodys = Fence { incarnation: Incarnation(0), ended: Rc::default(), record: None };
        node.fences.borrow_mut().insert((slot, epoch), nobodys);
        let next = component.epoch.get() + 1;
        let printed =
            node.records.put(Kind::Output, component.slot, next, &NumbersTag::default(), Some(output.as_fd()))?;
        let request = Request::new(Ask::Spawn, slot, epoch)
            .with_arguments(&component.entry.run.arguments())
            .ok_or(nix::errno::Errno::E2BIG)?;
        let end: Rc<End> = Rc::default();
        node.candidates.borrow_mut().insert((slot, epoch), Rc::downgrade(&end));
        let given = [program, theirs.as_fd(), written.as_fd(), written.as_fd()];
        let spawned = node.keeper.ask(request, &given).await.inspect_err(|_| {
            node.fences.borrow_mut().remove(&(slot, epoch));
            node.candidates.borrow_mut().remove(&(slot, epoch));
        })?;
        Ok(Candidate {
            node: Rc::downgrade(node),
            slot,
            epoch,
            pid: spawned.0.a as u32,
            channel: Rc::new(Channel::new(ours)),
            output: RefCell::new(Some(capture(component, output, printed))),
            end,
            promoted: Cell::new(false),
        })
    }

    async fn check(&self, node: &Node, index: usize) -> Result<(), Unfit> {
        match self.hear().await? {
            ToSupervisor::Hello { protocol: PROTOCOL, .. } => {}
            ToSupervisor::Hello { protocol, .. } => {
                return Err(Unfit::Says(format!("it speaks protocol {protocol}, this node {PROTOCOL}")));
            }
            _ => return Err(Unfit::Says("its first message was no greeting".into())),
        }
        let component = &node.components[index];
        let question = ToComponent::Examine {
            name: component.entry.name.clone(),
            state_dir: node.state.path().display().to_string(),
            segment: formats::SEGMENT,
            left: node.left_by(index),
        };
        self.channel.send(&question, &[]).map_err(|_| Unfit::Ended)?;
        match self.hear().await? {
            ToSupervisor::Fits => Ok(()),
            ToSupervisor::Failed { reason } => Err(Unfit::Says(reason)),
            _ => Err(Unfit::Says("it did not say whether it can go on".into())),
        }
    }

    async fn hear(&self) -> Result<ToSupervisor, Unfit> {
        match timeout(CHECKED_WITHIN, self.channel.next::<ToSupervisor>()).await {
            Ok(Ok((message, _))) => Ok(message),
            Ok(Err(ChannelError::Closed)) => Err(Unfit::Ended),
            Ok(Err(error)) => Err(Unfit::Says(error.to_string())),
            Err(_) => Err(Unfit::Silent),
        }
    }
}

/// Why a program cannot go on.
enum Unfit {
    Says(String),
    Silent,
    Ended,
}

/// Makes a candidate the run of its component, with this identity.
///
/// # Errors
/// It has ended; or of the keeper.
pub async fn promote(node: &Node, identity: &Identity, candidate: Candidate) -> std::io::Result<Started> {
    let number = identity.incarnation.get();
    let tag = identity.tag(0, false);
    let record = node.records.put(Kind::Peer, identity.slot, number, &tag, Some(candidate.channel.as_fd()))?;
    steps::reach("upgrade/known");
    let request = Request::new(Ask::Promote, identity.slot, identity.epoch.get()).with_b(candidate.slot.into());
    let fence = node.keeper.obtain(request).await?;
    candidate.promoted.set(true);
    node.candidates.borrow_mut().remove(&(candidate.slot, candidate.epoch));
    steps::reach("upgrade/promoted");
    let output = candidate.output.borrow_mut().take();
    Ok(Started {
        pid: candidate.pid,
        fence,
        channel: candidate.channel.clone(),
        record: Rc::new(record),
        output: output.ok_or_else(|| std::io::Error::other("it was promoted before"))?,
    })
}

impl Node {
    /// What the memory begins with that a component's next run would go on from, each beginning once.
    fn left_by(&self, index: usize) -> Vec<(String, [u8; HEADER])> {
        let mut left: Vec<(String, [u8; HEADER])> = Vec::new();
        let mut add = |name: String, memory: std::io::Result<OwnedFd>| {
            let mut header = [0; HEADER];
            let read = memory.and_then(|memory| File::from(memory).read_exact_at(&mut header, 0));
            if read.is_ok() && !left.iter().any(|(_, known)| *known == header) {
                left.push((name, header));
            }
        };
        for (name, memory) in self.components[index].estate.memories() {
            add(name, memory);
        }
        for (session, known) in &*self.sessions.borrow() {
            if let Some(surviving) = known.surviving.as_ref().filter(|surviving| surviving.component == index) {
                add(format!("session {session}"), surviving.ledger.again());
            }
        }
        left
    }
}
