//! Berths: where the sockets of connections lie while this process may die.
//!
//! - A berth is a pair of unix sockets that the keeper [holds](Holding). A connection's socket is sent into it and
//!   stays in its queue, where the kernel keeps it open: one system call for a connection, and nobody else is troubled.
//! - The next run looks at what lies there without taking it out, so that it may be killed as well.
//! - There are two. When one is full, or most of what lies in it is of the past, everything that lives is sent into the other
//!   one before this one is emptied: at any moment a living connection lies in one of them, or in both.
//! - A socket that lies here is closed when it is swept out, or when whoever holds the berths lets go of them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kernel_ipc::broker::MAX_DESCRIPTORS;
use kernel_ipc::runtime::io::File;
use kernel_ipc::sys::descriptors;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::listener::Holding;

/// What the four sockets are held under: of each berth, where it is sent into and where it is looked at.
const NAMES: [[&str; 2]; 2] = [["berth/0/in", "berth/0/out"], ["berth/1/in", "berth/1/out"]];
/// Bytes of the name of one socket in a berth.
const SERIAL: usize = 8;
/// Wished size of a queue; the system's limit may be less.
const QUEUE_BYTES: usize = 1 << 20;
/// So many more than twice the living may lie in a berth.
const SLACK: usize = 64;

struct Berth {
    into: OwnedFd,
    out: OwnedFd,
}

/// See the module's contract.
pub(crate) struct Berths {
    berths: [Berth; 2],
    /// Which of them sockets are sent into.
    active: Cell<usize>,
    /// How many lie in it.
    lying: Cell<usize>,
    /// By serial: what lives.
    living: RefCell<HashMap<u64, File>>,
}

impl Berths {
    /// Takes over what is held, or makes new ones and has them held.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(held: &mut HashMap<String, OwnedFd>, holding: &dyn Holding) -> io::Result<Berths> {
        let mut open = |[into, out]: [&str; 2]| match (held.remove(into), held.remove(out)) {
            (Some(into), Some(out)) => Ok(Berth { into, out }),
            _ => {
                let berth = Berth::make()?;
                holding.hold(into, berth.into.as_fd());
                holding.hold(out, berth.out.as_fd());
                Ok::<Berth, io::Error>(berth)
            }
        };
        let berths = [open(NAMES[0])?, open(NAMES[1])?];
        Ok(Berths { berths, active: Cell::new(0), lying: Cell::new(0), living: RefCell::default() })
    }

    /// What lies in them, by serial.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn look(&self) -> io::Result<HashMap<u64, OwnedFd>> {
        let mut found = HashMap::new();
        for berth in &self.berths {
            berth.look(&mut found)?;
        }
        Ok(found)
    }

    /// Puts a connection's socket in. False: it cannot be, and goes down with this process.
    pub(crate) fn put(&self, serial: u64, socket: &File) -> bool {
        self.living.borrow_mut().insert(serial, socket.clone());
        if self.lying.get() > 2 * self.living.borrow().len() + SLACK {
            return self.sweep();
        }
        match self.berths[self.active.get()].put(&[(serial, socket.as_fd())]) {
            Ok(()) => {
                self.lying.set(self.lying.get() + 1);
                true
            }
            Err(_) => self.sweep(),
        }
    }

    /// A connection is over. Its socket is closed here when it is swept out.
    pub(crate) fn forget(&self, serial: u64) {
        self.living.borrow_mut().remove(&serial);
    }

    /// How many connections live.
    #[cfg(test)]
    pub(crate) fn living(&self) -> usize {
        self.living.borrow().len()
    }

    /// Takes a socket over that lies here already.
    pub(crate) fn know(&self, serial: u64, socket: &File) {
        self.living.borrow_mut().insert(serial, socket.clone());
    }

    /// Leaves in one berth what lives, and nothing in the other. False: there is not room enough, and nothing has changed but
    /// that more lies there.
    pub(crate) fn sweep(&self) -> bool {
        let active = self.active.get();
        // After a death either may be full of the past.
        [1 - active, active].into_iter().any(|target| self.sweep_into(target))
    }

    fn sweep_into(&self, target: usize) -> bool {
        let living = self.living.borrow();
        let all: Vec<(u64, BorrowedFd<'_>)> = living.iter().map(|(serial, socket)| (*serial, socket.as_fd())).collect();
        let (to, from) = (&self.berths[target], &self.berths[1 - target]);
        if let Some(error) = all.chunks(MAX_DESCRIPTORS).find_map(|some| to.put(some).err()) {
            tracing::debug!(%error, "a berth has no room for {} connections", all.len());
            return false;
        }
        from.empty();
        self.active.set(target);
        self.lying.set(all.len());
        true
    }
}

impl Berth {
    fn make() -> io::Result<Berth> {
        let (into, out) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // Whatever the limit is: what does not fit is seen when it is put in.
        let _ = setsockopt(&into, sockopt::SndBuf, &QUEUE_BYTES);
        Ok(Berth { into, out })
    }

    /// Puts some sockets in, as one packet.
    fn put(&self, sockets: &[(u64, BorrowedFd<'_>)]) -> io::Result<()> {
        let serials: Vec<u8> = sockets.iter().flat_map(|(serial, _)| serial.to_le_bytes()).collect();
        let given: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| *socket).collect();
        descriptors::send(self.into.as_fd(), &serials, &given, false)
    }

    fn look(&self, found: &mut HashMap<u64, OwnedFd>) -> io::Result<()> {
        descriptors::set_peek_offset(self.out.as_fd(), 0)?;
        let mut buffer = [0; SERIAL * MAX_DESCRIPTORS];
        loop {
            let packet = match descriptors::peek(self.out.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                packet => packet?,
            };
            if packet.length == 0 {
                break;
            }
            let serials = buffer.chunks_exact(SERIAL).take(packet.length / SERIAL);
            for (serial, socket) in serials.zip(packet.descriptors) {
                found.insert(u64::from_le_bytes(serial.try_into().unwrap_or_default()), socket);
            }
        }
        // So that it can be emptied from its beginning.
        descriptors::set_peek_offset(self.out.as_fd(), -1)
    }

    /// Closes all that lies in it.
    fn empty(&self) {
        let mut buffer = [0; SERIAL * MAX_DESCRIPTORS];
        while descriptors::receive(self.out.as_fd(), &mut buffer, false).is_ok_and(|packet| packet.length > 0) {}
    }
}

impl std::fmt::Debug for Berths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<i32> = self.berths.iter().map(|berth| berth.into.as_raw_fd()).collect();
        f.debug_struct("Berths").field("into", &numbers).field("lying", &self.lying).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[derive(Default)]
    struct Held(RefCell<HashMap<String, OwnedFd>>);

    impl Holding for Held {
        fn hold(&self, name: &str, socket: BorrowedFd<'_>) {
            self.0.borrow_mut().insert(name.to_owned(), socket.try_clone_to_owned().unwrap());
        }

        fn let_go(&self, _: &str) {}
    }

    impl Held {
        /// As the next run is given them.
        fn copies(&self) -> HashMap<String, OwnedFd> {
            self.0.borrow().iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap())).collect()
        }
    }

    /// A socket that is open if its port is taken.
    fn socket() -> (File, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (OwnedFd::from(listener).into(), address)
    }

    fn is_open(address: std::net::SocketAddr) -> bool {
        TcpStream::connect(address).is_ok()
    }

    fn serials(found: &HashMap<u64, OwnedFd>) -> Vec<u64> {
        let mut serials: Vec<u64> = found.keys().copied().collect();
        serials.sort_unstable();
        serials
    }

    #[test]
    fn what_was_put_in_is_there_for_the_next_run_and_the_one_after_it() {
        let held = Held::default();
        let berths = Berths::open(&mut HashMap::new(), &held).unwrap();
        let (one, address) = socket();
        assert!(berths.put(7, &one));
        drop((berths, one));
        assert!(is_open(address));
        for _ in 0..2 {
            let berths = Berths::open(&mut held.copies(), &held).unwrap();
            let found = berths.look().unwrap();
            assert_eq!(serials(&found), [7]);
            // This run dies before it has done anything.
        }
        let berths = Berths::open(&mut held.copies(), &held).unwrap();
        berths.look().unwrap();
        assert!(berths.sweep());
        assert!(!is_open(address), "what nobody knows is swept out");
        assert!(berths.look().unwrap().is_empty());
    }

    #[test]
    fn everything_that_lives_stays_whatever_comes_and_goes() {
        let held = Held::default();
        let berths = Berths::open(&mut HashMap::new(), &held).unwrap();
        let (kept, address) = socket();
        assert!(berths.put(1, &kept));
        let (other, _) = socket();
        for serial in 2..20_000 {
            assert!(berths.put(serial, &other));
            berths.forget(serial);
        }
        assert!(berths.put(20_000, &other));
        assert!(berths.lying.get() < 200);
        drop((berths, kept, other));
        assert!(is_open(address));
        let found = Berths::open(&mut held.copies(), &held).unwrap().look().unwrap();
        assert!(serials(&found).contains(&1) && serials(&found).contains(&20_000));
        drop(found);
        held.0.borrow_mut().clear();
        assert!(!is_open(address), "nobody holds the berths any more");
    }

    #[test]
    fn a_run_that_dies_between_the_two_steps_of_a_sweep_loses_nothing() {
        let held = Held::default();
        let berths = Berths::open(&mut HashMap::new(), &held).unwrap();
        let (one, _) = socket();
        for serial in 1..=10 {
            assert!(berths.put(serial, &one));
        }
        // The first step, half done.
        berths.berths[1].put(&[(3, one.as_fd()), (4, one.as_fd())]).unwrap();
        drop(berths);
        let next = Berths::open(&mut held.copies(), &held).unwrap();
        let found = next.look().unwrap();
        assert_eq!(serials(&found), (1..=10).collect::<Vec<_>>());
        for (serial, socket) in found {
            next.know(serial, &File::from(socket));
        }
        assert!(next.sweep());
        assert_eq!(serials(&next.look().unwrap()), (1..=10).collect::<Vec<_>>());
    }
}
