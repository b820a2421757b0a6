//! Guests: programs that the supervisor did not start. They come through `STATE/atoll.sock`; in this version only the
//! operator does, who is whoever has this process's user id.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::broker::{Channel, GUEST_SOCKET, ToComponent, ToSupervisor, Welcome};
use kernel_ipc::runtime::io::{File, poll_readable};
use kernel_ipc::runtime::{spawn, timeout};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen as listen_on, socket, sockopt,
};
use serde_json::Value;

use super::peer::{Identity, PATIENCE, Peer, Who};
use super::records::{Kind, NumbersTag};
use super::{Fence, Node, messages};
use crate::keeper::wire::{Ask, FIRST_GUEST_SLOT, Request, SLOTS};
use crate::sys::process;

/// Makes the socket, which outlives this supervisor; the future accepts guests for ever.
///
/// # Errors
/// Of the socket's system calls.
pub fn listen(node: &Rc<Node>) -> io::Result<impl Future<Output = ()> + 'static> {
    // A relative path: the working directory is the state directory, and a socket's path may have 107 bytes only. The lock
    // says that no node lives here, so a socket that is still there is nobody's.
    match std::fs::remove_file(GUEST_SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(GUEST_SOCKET)?)?;
    listen_on(&listener, Backlog::new(BACKLOG)?)?;
    let kept = node.records.put(Kind::Listener, 0, 0, &NumbersTag::default(), Some(listener.as_fd()))?;
    node.forever.borrow_mut().push(kept);
    Ok(accept(node.clone(), listener.into()))
}

/// Guests that may wait to be let in, while there is no supervisor too.
const BACKLOG: i32 = 128;

/// Goes on with the socket of the last supervisor.
pub fn listen_again(node: &Rc<Node>, listener: OwnedFd) -> impl Future<Output = ()> + 'static {
    accept(node.clone(), listener.into())
}

async fn accept(node: Rc<Node>, listener: File) {
    loop {
        if let Err(error) = poll_readable(&listener).await {
            return eprintln!("supervisor: {GUEST_SOCKET}: {error}");
        }
        match process::accept(listener.as_fd()) {
            Ok(socket) => {
                let node = node.clone();
                spawn(async move {
                    if let Err(error) = admit(&node, socket).await {
                        eprintln!("supervisor: guest: {error}");
                    }
                });
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => {
                // Out of descriptors or memory: it does not help to ask again at once.
                eprintln!("supervisor: {GUEST_SOCKET}: {errno}");
                kernel_ipc::runtime::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether a process descends from another, which every orphan below it is given to. One that cannot be looked up, because it is gone, does.
fn is_below(ancestor: i32, mut pid: i32) -> bool {
    // Of a chain that changes while it is followed, an end comes too.
    for _ in 0..1000 {
        if pid == ancestor {
            return true;
        }
        // 1 began it all; 0 is not to be seen from here, and so none of ours.
        if pid <= 1 {
            return false;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name, whatever it is) state parent …
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let Some(parent) = parent else { return true };
        pid = parent;
    }
    true
}

/// Lets one guest in, if it is who it must be.
async fn admit(node: &Rc<Node>, socket: OwnedFd) -> Result<(), String> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).map_err(|errno| errno.to_string())?;
    let channel = Rc::new(Channel::new(socket));
    let reject = |reason: &str| {
        let _ = channel.send(&ToComponent::Rejected { reason: reason.to_owned() }, &[]);
        Err(reason.to_owned())
    };
    if credentials.uid() != nix::unistd::geteuid().as_raw() {
        return reject("only the user who started the node may be its guest");
    }
    // A component has the sessions that the manifest gives it: by this socket it would be an operator.
    if is_below(nix::unistd::getppid().as_raw(), credentials.pid()) {
        return reject("a component of the node is no guest of it");
    }
    let hello = match timeout(PATIENCE, channel.next::<ToSupervisor>()).await {
        Ok(Ok((ToSupervisor::Hello { protocol, program }, _))) => (protocol, program),
        Ok(Err(kernel_ipc::broker::ChannelError::Closed)) => return Ok(()),
        Ok(_) | Err(_) => return reject("its first message was no greeting"),
    };
    let (protocol, program) = hello;
    let Some((slot, epoch)) = node.free_guest_slot() else {
        return reject("too many guests");
    };
    let incarnation = Incarnation(node.state.deal(1));
    // Before the keeper is asked, so that nobody else is given the slot meanwhile.
    node.fences.borrow_mut().insert((slot, epoch), Fence { incarnation, ended: Rc::default(), record: None });
    let fence = match node.keeper.obtain(Request::new(Ask::Guest, slot, epoch)).await {
        Ok(fence) => fence,
        Err(error) => {
            node.fences.borrow_mut().remove(&(slot, epoch));
            return reject(&format!("the keeper: {error}"));
        }
    };
    let name: String = program.chars().filter(|c| c.is_ascii_graphic()).take(32).collect();
    let lender = LenderId(node.state.deal(1));
    let first_region = RegionId(node.state.deal(kernel_ipc::broker::REGIONS_PER_INCARNATION));
    let welcome = Welcome {
        name: name.clone(),
        system: node.system.clone(),
        incarnation,
        epoch: Epoch(epoch),
        lender,
        first_region,
        status_entry: slot,
        state_dir: node.state.path().display().to_string(),
        config: Value::Null,
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
    };
    let identity = Identity {
        who: Who::Guest,
        name: format!("guest {name}"),
        slot,
        epoch: Epoch(epoch),
        incarnation,
        lender,
        first_region,
    };
    let number = incarnation.get();
    let record = node.records.put(Kind::Peer, slot, number, &identity.tag(0, false), Some(channel.as_fd()));
    let record = match record {
        Ok(record) => Rc::new(record),
        Err(error) => {
            let _ = node.keeper.tell(Ask::GuestGone, slot, 0).await;
            return reject(&format!("the keeper: {error}"));
        }
    };
    if let Some(fence) = node.fences.borrow_mut().get_mut(&(slot, epoch)) {
        fence.record = Some(record.clone());
    }
    let peer = Peer::new(identity, 0, channel, record, Some((welcome, fence)), None);
    node.peers.borrow_mut().insert(incarnation, peer.clone());
    spawn(peer.outbox.clone().write());
    if let Err(fault) = messages::greet(node, &peer, protocol).await {
        node.gone(&peer);
        return Err(fault);
    }
    messages::listen(node.clone(), peer).await;
    Ok(())
}

impl Node {
    /// A slot for a guest whose last user is gone and fenced, and its next epoch there.
    pub(super) fn free_guest_slot(&self) -> Option<(u32, u64)> {
        let mut epochs = self.guest_slots.borrow_mut();
        let fences = self.fences.borrow();
        let slot = (FIRST_GUEST_SLOT..SLOTS).find(|slot| {
            let last = epochs.get(slot).copied().unwrap_or(0);
            last == 0 || !fences.contains_key(&(*slot, last))
        })?;
        let epoch = epochs.entry(slot).or_default();
        *epoch += 1;
        Some((slot, *epoch))
    }
}
