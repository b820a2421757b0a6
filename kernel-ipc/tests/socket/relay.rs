//! A relay that cuts: it passes the bytes of connections on, and ends each after a number of frames that its seed decides.
//!
//! It runs in a thread of its own and understands the frames' lengths and nothing else. A connection is cut in the middle of a
//! frame, after it, or with all that the other side has sent still unread. It can also hold back what a host says, so that one sees
//! what a client does without an answer.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::common::random::Random;

pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    to: Mutex<SocketAddr>,
    /// Cuts after at most so many frames of one direction; 0: never.
    most: AtomicU64,
    cuts: AtomicU64,
    connections: AtomicU64,
    ended: AtomicBool,
    refuses: AtomicBool,
    /// Nothing that a host says passes.
    holds: AtomicBool,
    /// Messages of hosts that are held back.
    held: AtomicU64,
    /// What passes now.
    open: Mutex<Vec<TcpStream>>,
}

/// What it understands of what passes: how long a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Our own frames.
    Frames,
    /// Records of TLS. Some are changed by a bit before the connection ends.
    Tls,
}

impl Framing {
    fn header_bytes(self) -> usize {
        match self {
            Framing::Frames => 8,
            Framing::Tls => 5,
        }
    }

    fn length(self, header: &[u8]) -> usize {
        match self {
            Framing::Frames => u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize,
            Framing::Tls => u16::from_be_bytes([header[3], header[4]]).into(),
        }
    }
}

impl Relay {
    pub fn start(to: SocketAddr, seed: u64, most: u64, framing: Framing) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            to: Mutex::new(to),
            most: AtomicU64::new(most),
            cuts: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            held: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let accepting = shared.clone();
        let acceptor = std::thread::spawn(move || {
            let mut random = Random(seed);
            while let Ok((client, _)) = listener.accept() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                if accepting.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let Ok(host) = TcpStream::connect(*accepting.to.lock().expect("no panic")) else { continue };
                for socket in [&client, &host] {
                    socket.set_nodelay(true).expect("an option");
                    accepting.open.lock().expect("no panic").push(socket.try_clone().expect("dup"));
                }
                // One budget of each direction, and where in the frame it ends.
                for (from, to, of_host) in [(&client, &host, false), (&host, &client, true)] {
                    let (from, to) = (from.try_clone().expect("dup"), to.try_clone().expect("dup"));
                    let most = accepting.most.load(Ordering::SeqCst);
                    let frames = if most == 0 { u64::MAX } else { 1 + random.below(most) };
                    let (part, shared) = (random.below(3), accepting.clone());
                    std::thread::spawn(move || pass(from, to, (frames, part), of_host, framing, &shared));
                }
            }
        });
        Relay { address, shared, acceptor: Some(acceptor) }
    }

    /// Connections that it has cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Connections that it has taken.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// From now on connections go there.
    pub fn lead_to(&self, to: SocketAddr) {
        *self.shared.to.lock().expect("no panic") = to;
    }

    /// Cuts what is connected now.
    pub fn cut_all(&self) {
        for socket in self.shared.open.lock().expect("no panic").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// From now on connections are not cut.
    pub fn be_kind(&self) {
        self.shared.most.store(0, Ordering::SeqCst);
    }

    /// Holds back what hosts say from now on, or lets it pass, what was held first.
    pub fn hold_answers(&self, holds: bool) {
        self.shared.held.store(0, Ordering::SeqCst);
        self.shared.holds.store(holds, Ordering::SeqCst);
    }

    /// Messages that are held back.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// From now on new connections end at once.
    pub fn refuse(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // So that the acceptor looks.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Passes `frames` frames, then a third, two thirds or nothing of the next, and ends the connection both ways.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    (frames, part): (u64, u64),
    of_host: bool,
    framing: Framing,
    shared: &Shared,
) {
    let mut frame = Vec::new();
    // What is held back: kept here, so that a host that says more is heard.
    let mut kept = Vec::new();
    for number in 0..=frames {
        frame.resize(framing.header_bytes(), 0);
        if from.read_exact(&mut frame).is_err() {
            break;
        }
        let header = frame.len();
        frame.resize(header + framing.length(&frame), 0);
        if from.read_exact(&mut frame[header..]).is_err() {
            break;
        }
        if number == frames {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            let mut sent = frame.len() * part as usize / 3;
            if framing == Framing::Tls && part == 0 {
                sent = frame.len();
                frame[header + number as usize % (sent - header)] ^= 1;
            }
            let _ = to.write_all(&frame[..sent]);
            break;
        }
        if of_host && shared.holds.load(Ordering::SeqCst) {
            kept.extend_from_slice(&frame);
            // A heartbeat has no body.
            shared.held.fetch_add(u64::from(frame.len() > header), Ordering::SeqCst);
        } else if to.write_all(&kept).and_then(|()| to.write_all(&frame)).is_err() {
            break;
        } else {
            kept.clear();
        }
        frame.clear();
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
