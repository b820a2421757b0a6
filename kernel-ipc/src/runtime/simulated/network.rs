//! A network on simulated time: who listens, who dials, and what becomes of connections, as a seed decides.
//!
//! - A connection keeps the order of its bytes and loses none before its end, as TCP; it ends at any byte, for each of its
//!   ends at a time of its own, perhaps long after another one was made.
//! - Time passes when [`Network::pass`] is called; [`Network::next`] says when there is something to pass for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::wire::{Ending, Piece, Pipe, Way, Wire};
use crate::sys::random;

const MS: u64 = 1_000_000;

/// How a network treats what it carries.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// How long bytes take at least, and at most: nanoseconds.
    pub delay_ns: (u64, u64),
    /// Bytes of a connection that may be under way in each direction.
    pub capacity: usize,
    /// One look or send in so many moves a part of what it could; 0: none.
    pub trickles: u64,
}

/// See the module's contract. Clones are the same.
#[derive(Clone, Debug)]
pub struct Network(Rc<Inner>);

pub(super) struct Inner {
    now: Cell<u64>,
    random: Cell<u64>,
    weather: Weather,
    ports: RefCell<BTreeMap<SocketAddr, Rc<Port>>>,
    wires: RefCell<Vec<Rc<Wire>>>,
    dials: RefCell<Vec<Rc<Dial>>>,
    made: Cell<u64>,
    /// Nobody reaches anybody anew before this time.
    parted_until: Cell<u64>,
    tell: Box<dyn Fn(std::fmt::Arguments<'_>)>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Who listens at an address.
#[derive(Debug)]
struct Port {
    owner: u32,
    backlog: RefCell<VecDeque<Pipe>>,
    waiter: RefCell<Option<Waker>>,
}

/// A connection that is being made.
#[derive(Debug)]
struct Dial {
    at: u64,
    to: SocketAddr,
    owner: u32,
    outcome: RefCell<Option<io::Result<Pipe>>>,
    waiter: RefCell<Option<Waker>>,
    is_abandoned: Cell<bool>,
}

impl Inner {
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&self, n: usize) -> usize {
        let mut state = self.random.get();
        let number = random::next(&mut state) % n.max(1) as u64;
        self.random.set(state);
        number as usize
    }

    fn between(&self, (least, most): (u64, u64)) -> u64 {
        least + self.below((most.saturating_sub(least) + 1) as usize) as u64
    }

    /// When what is sent now arrives.
    pub(super) fn arrival(&self) -> u64 {
        self.now() + self.between(self.weather.delay_ns)
    }

    /// How many of `most` bytes are moved.
    pub(super) fn part_of(&self, most: usize) -> usize {
        match self.weather.trickles {
            0 => most,
            often if most > 1 && self.below(often as usize) == 0 => 1 + self.below(most),
            _ => most,
        }
    }
}

impl Network {
    /// A network whose every doing follows from `seed`. `tell` hears of what happens to connections.
    pub fn new(seed: u64, weather: Weather, tell: impl Fn(std::fmt::Arguments<'_>) + 'static) -> Network {
        Network(Rc::new(Inner {
            now: Cell::new(1),
            random: Cell::new(seed),
            weather,
            ports: RefCell::default(),
            wires: RefCell::default(),
            dials: RefCell::default(),
            made: Cell::new(0),
            parted_until: Cell::new(0),
            tell: Box::new(tell),
        }))
    }

    /// What a process has of it. `owner`: the process, for [`crash`](Self::crash).
    pub fn nic(&self, owner: u32) -> Nic {
        Nic { network: self.0.clone(), owner }
    }

    /// When something happens next, after now.
    pub fn next(&self) -> Option<u64> {
        let wires = self.0.wires.borrow();
        let ways = wires.iter().flat_map(|wire| &wire.ways).filter_map(|way| way.borrow().next());
        let dials = self.0.dials.borrow();
        ways.chain(dials.iter().map(|dial| dial.at)).min()
    }

    /// It is `now`.
    pub fn pass(&self, now: u64) {
        self.0.now.set(now);
        let due: Vec<Rc<Dial>> = self.0.dials.borrow_mut().extract_if(.., |dial| dial.at <= now).collect();
        due.iter().for_each(|dial| self.connect(dial));
        let wires = self.0.wires.borrow().clone();
        for way in wires.iter().flat_map(|wire| &wire.ways) {
            way.borrow_mut().arrive(now);
        }
        let is_over = |wire: &Rc<Wire>| wire.closed.iter().all(Cell::get);
        self.0.wires.borrow_mut().retain(|wire| !is_over(wire));
    }

    fn connect(&self, dial: &Dial) {
        let port = self.0.ports.borrow().get(&dial.to).cloned();
        let outcome = match port {
            None => Err(io::ErrorKind::ConnectionRefused.into()),
            Some(port) => {
                let wire = self.wire([dial.owner, port.owner], dial.to);
                port.backlog.borrow_mut().push_back(Pipe::new(&self.0, &wire, 1));
                port.waiter.take().into_iter().for_each(Waker::wake);
                Ok(Pipe::new(&self.0, &wire, 0))
            }
        };
        if !dial.is_abandoned.get() {
            dial.outcome.replace(Some(outcome));
            dial.waiter.take().into_iter().for_each(Waker::wake);
        }
    }

    fn wire(&self, owners: [u32; 2], to: SocketAddr) -> Rc<Wire> {
        let number = self.0.made.get() + 1;
        self.0.made.set(number);
        let from = SocketAddr::new(to.ip(), 30_000 + (number % 30_000) as u16);
        let (addresses, capacity) = ([from, to], self.0.weather.capacity);
        let (ways, closed) = Default::default();
        let wire = Rc::new(Wire { number, owners, addresses, ways, capacity, closed });
        (self.0.tell)(format_args!("connection {number} is made"));
        self.0.wires.borrow_mut().push(wire.clone());
        wire
    }

    /// Both ends of a connection of nobody's.
    pub fn pair(&self) -> (Pipe, Pipe) {
        let wire = self.wire([0, 0], SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        (Pipe::new(&self.0, &wire, 0), Pipe::new(&self.0, &wire, 1))
    }

    /// How many connections were made.
    pub fn made(&self) -> u64 {
        self.0.made.get()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.0.wires.borrow().len()
    }

    /// Cuts the `nth` connection: of what flies some bytes arrive still, and each end hears of it in its own time.
    pub fn cut(&self, nth: usize) {
        let Some(wire) = self.0.wires.borrow().get(nth).cloned() else { return };
        let kept = [0, 1].map(|side| self.cut_way(&wire.ways[side]));
        (self.0.tell)(format_args!("connection {} is cut, {} and {} bytes arrive", wire.number, kept[0], kept[1]));
    }

    fn cut_way(&self, way: &RefCell<Way>) -> usize {
        let mut way = way.borrow_mut();
        if way.is_cut {
            return 0;
        }
        let flying = way.bytes();
        let kept = match self.0.below(4) {
            0 => flying,
            _ => self.0.below(flying + 1),
        };
        way.cut(kept);
        let late = match self.0.below(4) {
            0 => 0,
            1 => self.0.between((0, 5 * MS)),
            2 => self.0.between((0, 500 * MS)),
            _ => self.0.between((0, 9_000 * MS)),
        };
        let ending = if kept == flying && self.0.below(2) == 0 { Ending::Quiet } else { Ending::Reset };
        let at = self.0.now() + late;
        way.fly(at, Piece::Ending(ending));
        kept
    }

    /// For so many nanoseconds nothing arrives over the `nth` connection, in one direction or both; then all of it does.
    pub fn hold(&self, nth: usize, ns: u64) {
        let Some(wire) = self.0.wires.borrow().get(nth).cloned() else { return };
        let which = self.0.below(3);
        (self.0.tell)(format_args!("connection {} stands still for {} ms, way {which}", wire.number, ns / MS));
        for (side, way) in wire.ways.iter().enumerate() {
            if which != side {
                way.borrow_mut().held_until = self.0.now() + ns;
            }
        }
    }

    /// For so many nanoseconds nothing arrives, and nobody reaches anybody anew.
    pub fn part(&self, ns: u64) {
        (self.0.tell)(format_args!("nothing arrives for {} ms", ns / MS));
        let until = self.0.now() + ns;
        self.0.parted_until.set(until);
        for wire in &*self.0.wires.borrow() {
            wire.ways.iter().for_each(|way| way.borrow_mut().held_until = until);
        }
    }

    /// A process is dead. `silently`: its machine is too, so nobody hears of it.
    pub fn crash(&self, owner: u32, silently: bool) {
        self.0.ports.borrow_mut().retain(|_, port| port.owner != owner);
        let wires = self.0.wires.borrow().clone();
        for wire in &wires {
            let sides = wire.owners.iter().enumerate().filter(|(_, end)| **end == owner);
            for (side, _) in sides {
                if wire.closed[side].replace(true) {
                    continue;
                }
                let mut way = wire.ways[side].borrow_mut();
                if way.is_cut {
                    continue;
                }
                let flying = way.bytes();
                let kept = if silently { self.0.below(flying + 1) } else { flying };
                way.cut(kept);
                // A dead machine's peers give up some time, or hear from its next system.
                let late = if silently { self.0.between((1_000 * MS, 9_000 * MS)) } else { 0 };
                let ending = if silently || self.0.below(2) == 0 { Ending::Reset } else { Ending::Quiet };
                let at = self.0.arrival() + late;
                way.fly(at, Piece::Ending(ending));
                drop(way);
                wire.ways[1 - side].borrow_mut().cut(0);
            }
        }
    }
}

/// A process' way to others. Clones are the same.
#[derive(Clone, Debug)]
pub struct Nic {
    network: Rc<Inner>,
    owner: u32,
}

impl Nic {
    /// As `connect(2)`: takes its time.
    ///
    /// # Errors
    /// `ConnectionRefused`: nobody listens there.
    pub fn connect(&self, to: SocketAddr) -> impl Future<Output = io::Result<Pipe>> + use<> {
        let at = self.network.arrival().max(self.network.parted_until.get());
        let dial = Rc::new(Dial {
            at,
            to,
            owner: self.owner,
            outcome: RefCell::default(),
            waiter: RefCell::default(),
            is_abandoned: Cell::new(false),
        });
        self.network.dials.borrow_mut().push(dial.clone());
        let dialling = Dialling(dial);
        poll_fn(move |cx| match dialling.0.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                dialling.0.waiter.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
    }

    /// As `listen(2)`.
    ///
    /// # Errors
    /// `AddrInUse`.
    pub(crate) fn listen(&self, at: SocketAddr) -> io::Result<Listening> {
        let mut ports = self.network.ports.borrow_mut();
        if ports.contains_key(&at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (backlog, waiter) = Default::default();
        let port = Rc::new(Port { owner: self.owner, backlog, waiter });
        ports.insert(at, port.clone());
        Ok(Listening { network: self.network.clone(), port, at })
    }
}

/// Somebody waits for a connection.
struct Dialling(Rc<Dial>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.is_abandoned.set(true);
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listening {
    network: Rc<Inner>,
    port: Rc<Port>,
    at: SocketAddr,
}

impl Listening {
    /// As `accept(2)`.
    pub async fn next(&self) -> Pipe {
        poll_fn(|cx| match self.port.backlog.borrow_mut().pop_front() {
            Some(pipe) => Poll::Ready(pipe),
            None => {
                self.port.waiter.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut ports = self.network.ports.borrow_mut();
        // A dead process' next run may listen there already.
        if ports.get(&self.at).is_some_and(|port| Rc::ptr_eq(port, &self.port)) {
            ports.remove(&self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    const CALM: Weather = Weather { delay_ns: (1000, 1000), capacity: 100, trickles: 0 };

    fn network(seed: u64) -> Network {
        let network = Network::new(seed, CALM, |_| {});
        network.pass(1);
        network
    }

    fn received(pipe: &Pipe) -> Result<Vec<u8>, io::ErrorKind> {
        let mut bytes = [0; 200];
        pipe.receive(&mut bytes).map(|count| bytes[..count].to_vec()).map_err(|error| error.kind())
    }

    #[test]
    fn bytes_arrive_in_order_in_their_time_and_an_end_behind_them() {
        let network = network(1);
        let (one, other) = network.pair();
        assert_eq!((one.send(&[1; 60]).unwrap(), one.send(&[2; 60]).unwrap()), (60, 40), "no more fits");
        assert_eq!(one.send(&[3]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        one.shutdown(Shutdown::Write);
        assert_eq!((received(&other), network.next()), (Err(io::ErrorKind::WouldBlock), Some(1001)));
        network.pass(1001);
        assert_eq!(received(&other), Ok([vec![1; 60], vec![2; 40]].concat()));
        assert_eq!((received(&other), one.send(&[4]).unwrap_err().kind()), (Ok(vec![]), io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_cut_leaves_some_of_what_flies_and_each_end_hears_of_it() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let network = network(seed);
            let (one, other) = network.pair();
            let bytes: Vec<u8> = (0..10).collect();
            one.send(&bytes).unwrap();
            network.cut(0);
            // One that has heard of it is told so.
            let _ = one.send(&[77]);
            network.pass(10_000 * MS);
            let arrived = received(&other).unwrap_or_default();
            assert!(bytes.starts_with(&arrived), "{arrived:?}");
            assert!(matches!(received(&other), Ok(end) if end.is_empty()) || received(&other).is_err());
            assert_ne!(received(&one), Err(io::ErrorKind::WouldBlock));
            kept.insert(arrived.len());
        }
        assert!(kept.len() > 5 && kept.contains(&0) && kept.contains(&10), "{kept:?}");
    }

    #[test]
    fn what_is_held_arrives_later_and_unharmed() {
        let network = network(3);
        let (one, other) = network.pair();
        network.part(MS);
        one.send(&[5]).unwrap();
        network.pass(5000);
        assert_eq!(received(&other), Err(io::ErrorKind::WouldBlock));
        assert_eq!(network.next(), Some(1 + MS));
        network.pass(1 + MS);
        assert_eq!(received(&other), Ok(vec![5]));
    }

    #[test]
    fn a_dead_process_says_nothing_more_and_listens_no_more() {
        let network = network(4);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let mut cx = Context::from_waker(Waker::noop());
        let mut dial = |now: u64| {
            let mut dialling = pin!(network.nic(1).connect(at));
            network.pass(now);
            match dialling.as_mut().poll(&mut cx) {
                Poll::Ready(outcome) => outcome.map_err(|error| error.kind()),
                Poll::Pending => panic!("it is made"),
            }
        };
        assert_eq!(dial(2000).unwrap_err(), io::ErrorKind::ConnectionRefused);
        let listening = network.nic(2).listen(at).unwrap();
        assert!(network.nic(3).listen(at).is_err());
        let client = dial(4000).unwrap();
        let host = match pin!(listening.next()).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(host) => host,
            Poll::Pending => panic!("it has come"),
        };
        host.send(&[1, 2]).unwrap();
        network.crash(2, false);
        host.send(&[3]).unwrap();
        drop((host, listening));
        network.pass(MS);
        assert_eq!(received(&client), Ok(vec![1, 2]));
        assert_ne!(received(&client), Err(io::ErrorKind::WouldBlock), "its end is told by the kernel");
        assert_eq!(dial(2 * MS).unwrap_err(), io::ErrorKind::ConnectionRefused);
    }
}
