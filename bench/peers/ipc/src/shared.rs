//! Peers that are called by a thread: iceoryx2's request-response, polled, and ipc-channel.

use std::collections::VecDeque;
use std::path::Path;

use iceoryx2::active_request::ActiveRequest;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::prelude::*;
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};

use crate::measure::{BYTES, Calls, DEPTH};

type Bytes = [u8; BYTES];
type Service = iceoryx2::service::ipc::Service;

macro_rules! service {
    ($node:expr, $path:expr) => {
        $node
            .service_builder(&$path.display().to_string().as_str().try_into().expect("a name"))
            .request_response::<Bytes, Bytes>()
            .max_active_requests_per_client(2 * DEPTH)
            .max_loaned_requests(DEPTH)
            .open_or_create()
            .expect("a service")
    };
}

pub struct Iceoryx {
    client: Client<Service, Bytes, (), Bytes, ()>,
    pending: VecDeque<PendingResponse<Service, Bytes, (), Bytes, ()>>,
    _node: Node<Service>,
}

impl Iceoryx {
    pub fn connect(path: &Path) -> Iceoryx {
        let node = NodeBuilder::new().create::<Service>().expect("a node");
        let service = service!(node, path);
        Iceoryx { client: service.client_builder().create().expect("a client"), pending: VecDeque::new(), _node: node }
    }

    /// Never returns: it polls, and is killed.
    pub fn serve(path: &Path, ready: impl FnOnce()) {
        let node = NodeBuilder::new().create::<Service>().expect("a node");
        let service = service!(node, path);
        let server = service.server_builder().create().expect("a server");
        ready();
        loop {
            match server.receive().expect("the client lives") {
                Some(request) => answer(&request),
                None => std::hint::spin_loop(),
            }
        }
    }
}

fn answer(request: &ActiveRequest<Service, Bytes, (), Bytes, ()>) {
    request.send_copy(**request).expect("the client lives");
}

impl Calls for Iceoryx {
    fn send(&mut self) {
        self.pending.push_back(self.client.send_copy([7; BYTES]).expect("the server lives"));
    }

    fn receive(&mut self) {
        let pending = self.pending.pop_front().expect("one was sent");
        while pending.receive().expect("the server lives").is_none() {
            std::hint::spin_loop();
        }
    }
}

pub struct Channels {
    to: IpcSender<Vec<u8>>,
    from: IpcReceiver<Vec<u8>>,
}

impl Channels {
    pub fn connect(path: &Path) -> Channels {
        let name = std::fs::read_to_string(path).expect("the server's name");
        let (to, theirs) = ipc::channel().expect("a channel");
        let (back, from) = ipc::channel().expect("a channel");
        IpcSender::connect(name).expect("the server waits").send((theirs, back)).expect("the server lives");
        Channels { to, from }
    }

    pub fn serve(path: &Path, ready: impl FnOnce()) {
        type Ends = (IpcReceiver<Vec<u8>>, IpcSender<Vec<u8>>);
        let (server, name) = IpcOneShotServer::<Ends>::new().expect("a socket");
        std::fs::write(path, name).expect("a new path");
        ready();
        let (_, (from, to)) = server.accept().expect("a client");
        while let Ok(bytes) = from.recv() {
            if to.send(bytes).is_err() {
                return;
            }
        }
    }
}

impl Calls for Channels {
    fn send(&mut self) {
        self.to.send(vec![7; BYTES]).expect("the server lives");
    }

    fn receive(&mut self) {
        assert_eq!(self.from.recv().expect("the server lives").len(), BYTES);
    }
}
