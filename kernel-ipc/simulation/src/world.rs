//! A run: processes take turns, time passes when all of them wait, and things befall them, as a seed decides.
//!
//! - The turn of a process is one poll of one of its ready tasks, whichever the seed picks, or one look at one of its
//!   sessions. Between two turns anything may happen; inside of one a process may die at any named step.
//! - The keeper's and the supervisor's part (who died, what is kept, which segment goes to whom) is played by [`broker`].
//! - A dead process is never given a turn again, and what it left in shared memory stays as it was, until the run is over.

mod broker;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kernel_ipc::runtime::clock;
use kernel_ipc::runtime::simulated::{Network, Stepped, UnusedRing};
use kernel_ipc::sys::random;

use crate::client::Client;
use crate::host::{Beyond, Host};
use crate::model::{Circumstances, Model};
use crate::plan::{BEGIN, Carrier, Fault, MS, Plan, S};
use crate::process::{Doom, Process, Turn};
use crate::random::Random;
use crate::service::Truth;
use crate::trace::Trace;

use broker::{Due, Kept};

/// The host's process; clients' have the numbers from 1 on.
const HOST: usize = 0;
const NAMES: [&str; 4] = ["host", "client 1", "client 2", "client 3"];
/// Turns that no run needs.
const TURNS_MAX: u64 = 2_000_000;
/// After the last fault every call ends in this time, by the world's clock.
const CALLS_END_WITHIN: u64 = 200 * S;

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub calls: u64,
    pub answered: u64,
    /// Connections that were made, turns that were taken, deaths of hosts and of clients.
    pub connections: u64,
    pub turns: u64,
    pub host_deaths: u64,
    pub client_deaths: u64,
    /// How long it took on the simulated clock.
    pub simulated_ns: u64,
    /// Two runs of a seed have the same.
    pub hash: u64,
    /// What was wrong.
    pub violation: Option<String>,
}

/// Runs a seed. One run at a time on a thread.
///
/// # Panics
/// When the kernel has no memory. A panic of what is simulated is a violation.
pub fn run(seed: u64, ring: &UnusedRing, trace: &Trace) -> Report {
    let mut world = World::new(seed, ring, trace.clone());
    world.play();
    let (calls, answered) = world.model.counts();
    let report = Report {
        seed,
        calls,
        answered,
        connections: world.network.made(),
        turns: world.turns,
        host_deaths: world.circumstances.host_deaths,
        client_deaths: world.circumstances.is_dead.iter().filter(|dead| **dead).count() as u64,
        simulated_ns: world.now - BEGIN,
        hash: trace.hash(),
        violation: world.model.violation(),
    };
    drop(world);
    clock::simulate(None);
    random::simulate(None);
    report
}

struct World {
    seed: u64,
    random: Random,
    plan: Plan,
    trace: Trace,
    doom: Doom,
    ring: UnusedRing,
    now: u64,
    turns: u64,
    network: Network,
    processes: Vec<Process>,
    /// Of dead processes, all that they had.
    dead: Vec<Process>,
    dead_hosts: Vec<Rc<Host>>,
    agenda: BTreeMap<(u64, u64), Due>,
    scheduled: u64,
    owners: u32,
    host: Option<Rc<Host>>,
    clients: Vec<Rc<Client>>,
    kept: Vec<Kept>,
    /// Of clients over connections.
    beyond: Beyond,
    component_ring: OwnedFd,
    epoch: u64,
    next_session: Rc<Cell<u64>>,
    truth: Rc<Truth>,
    model: Rc<Model>,
    circumstances: Circumstances,
}

impl World {
    fn new(seed: u64, ring: &UnusedRing, trace: Trace) -> World {
        let plan = Plan::new(seed);
        clock::simulate(Some(BEGIN));
        random::simulate(Some(seed));
        let tell = trace.clone();
        let network = Network::new(Random::new(seed, 2).number(), plan.weather, move |what| tell.note(what));
        network.pass(BEGIN);
        let model: Rc<Model> = Rc::default();
        let is_impatient = plan.options.give_up.as_secs() < 10;
        let circumstances = Circumstances {
            host_deaths: 0,
            is_impatient,
            refuses: plan.refuse_after.is_some(),
            is_dead: vec![false; plan.clients.len()],
        };
        trace.note(format_args!("{plan:?}"));
        let mut world = World {
            seed,
            random: Random::new(seed, 3),
            doom: Doom::begin(trace.clone(), network.clone()),
            ring: ring.clone(),
            now: BEGIN,
            turns: 0,
            network,
            processes: Vec::new(),
            dead: Vec::new(),
            dead_hosts: Vec::new(),
            agenda: BTreeMap::new(),
            scheduled: 0,
            owners: 0,
            host: None,
            clients: Vec::new(),
            kept: plan.clients.iter().map(|_| Kept::default()).collect(),
            beyond: Beyond::default(),
            component_ring: broker::ring_memory(),
            epoch: 0,
            next_session: Rc::new(Cell::new(1)),
            truth: Rc::default(),
            model: model.clone(),
            circumstances,
            plan,
            trace,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let host = self.new_process(HOST);
        self.processes.push(host);
        for (index, plan) in self.plan.clients.clone().into_iter().enumerate() {
            let process = self.new_process(index + 1);
            self.processes.push(process);
            let refused = self.plan.refuse_after.is_some();
            self.clients.push(Client::new(index, plan, refused, self.model.clone(), self.trace.clone()));
        }
        for (at, fault) in self.plan.faults.clone() {
            self.schedule(at, Due::Fault(fault));
        }
        self.start_host();
        for index in 0..self.clients.len() {
            let (client, seed, options) = (self.clients[index].clone(), self.seed, self.plan.options);
            self.act(index + 1, |stepped| stepped.enter(|| client.start(seed, address(), options)));
            if self.plan.clients[index].carrier == Carrier::Memory {
                self.later(0, MS, Due::Introduce(index));
            }
        }
    }

    fn new_process(&mut self, number: usize) -> Process {
        self.owners += 1;
        let stepped = Stepped::new(&self.ring, self.network.nic(self.owners));
        Process::new(NAMES[number], self.owners, stepped, self.plan.behind[number])
    }

    fn schedule(&mut self, at: u64, due: Due) {
        self.scheduled += 1;
        self.agenda.insert((at, self.scheduled), due);
    }

    /// Schedules something from `least` to `most` nanoseconds from now.
    fn later(&mut self, least: u64, most: u64, due: Due) {
        let at = self.now + self.random.between(least, most);
        self.schedule(at, due);
    }

    /// Does something as a process. `None`: it died of it.
    fn act<R>(&mut self, process: usize, work: impl FnOnce(&Stepped) -> R) -> Option<R> {
        self.processes[process].is_quiet = false;
        match self.processes[process].turn(self.now, &self.doom, &self.trace, work) {
            Turn::Done(result) => Some(result),
            Turn::Died => {
                self.died(process);
                None
            }
            Turn::Panicked(said) => {
                self.model.violated(format!("{} panicked: {said}", self.processes[process].name));
                self.processes[process].is_alive = false;
                None
            }
        }
    }

    /// A process is dead. The keeper has reaped it.
    fn died(&mut self, process: usize) {
        let Process { owner, dies_silently, .. } = self.processes[process];
        self.trace.turn(self.now, "world");
        self.trace.note(format_args!("{} is dead{}", NAMES[process], if dies_silently { ", silently" } else { "" }));
        self.processes[process].is_alive = false;
        self.network.crash(owner, dies_silently);
        match process {
            HOST => {
                self.circumstances.host_deaths += 1;
                self.dead_hosts.extend(self.host.take());
                self.host_died();
            }
            client => {
                self.circumstances.is_dead[client - 1] = true;
                if self.plan.clients[client - 1].carrier == Carrier::Memory {
                    self.later(0, 5 * MS, Due::ClientGone(client - 1));
                }
            }
        }
    }

    /// The next run of the host.
    fn start_host(&mut self) {
        if self.epoch > 0 {
            let next = self.new_process(HOST);
            let last = std::mem::replace(&mut self.processes[HOST], next);
            self.dead.push(last);
        }
        self.epoch += 1;
        let start = self.host_start();
        let started = self.act(HOST, |stepped| stepped.enter(|| Host::start(start)));
        match started {
            None => {}
            Some(Err(what)) => self.model.violated(format!("the host cannot start: {what}")),
            Some(Ok(host)) => {
                self.host = Some(host);
                self.host_started();
            }
        }
    }

    /// Plays to the end.
    fn play(&mut self) {
        let faults_end = self.plan.faults.last().map_or(BEGIN, |(at, _)| *at);
        let until = faults_end + CALLS_END_WITHIN;
        self.until(until, "a call has not ended", |world| world.calls_are_over());
        self.settle(50 * MS);
        let Some(host) = self.host.clone() else { return };
        if let Some(what) = host.violation() {
            self.model.violated(what);
        }
        self.model.check(&self.truth, &host.list(), &self.circumstances);
        if self.model.violation().is_some() {
            return;
        }
        for index in 0..self.clients.len() {
            if let Some(session) = self.clients[index].session().filter(|_| self.processes[index + 1].is_alive) {
                self.act(index + 1, |stepped| stepped.enter(|| session.close()));
            }
        }
        // Who lost his connection with his farewell in it is waited for, and so is a dead machine.
        let give_up = self.plan.options.give_up.as_nanos() as u64;
        self.until(self.now + give_up + 100 * S, "a session has not ended", |_| host.open_sessions() == 0);
        // Handlers run to their end, also for nobody.
        self.settle(2 * S);
        self.check_grants();
    }

    /// Whether nothing more befalls anybody, and every living client is done.
    fn calls_are_over(&self) -> bool {
        let is_over = |index: usize| self.circumstances.is_dead[index] || self.clients[index].is_done();
        self.host.is_some()
            && (0..self.clients.len()).all(is_over)
            && self.all_are_introduced()
            && !self.agenda.values().any(|due| matches!(due, Due::Fault(_)))
            && self
                .processes
                .iter()
                .all(|process| !process.is_alive || (process.dies_in.is_none() && process.runs(self.now)))
    }

    /// With no death of a host, the service hears of each grant that it is gone, once.
    fn check_grants(&self) {
        if self.circumstances.host_deaths > 0 || self.model.violation().is_some() {
            return;
        }
        let (granted, dropped) = (self.truth.granted.borrow(), self.truth.dropped.borrow());
        if let Some((n, times)) = granted.iter().find(|(n, times)| dropped.get(n) != Some(times)) {
            let dropped = dropped.get(n).copied().unwrap_or(0);
            self.model.violated(format!("what call {n} gave was granted {times} times and dropped {dropped} times"));
        }
    }

    /// Runs until all that was under way has been done.
    fn settle(&mut self, ns: u64) {
        let then = self.now + ns;
        self.until(then + S, "the processes do not come to rest", |world| world.now >= then);
    }

    /// Runs until `is_over`; at `deadline` that is a violation.
    fn until(&mut self, deadline: u64, what: &str, is_over: impl Fn(&World) -> bool) {
        while !is_over(self) && self.model.violation().is_none() {
            self.turns += 1;
            if self.now > deadline || self.turns > TURNS_MAX {
                let unended = self.model.unended(&self.circumstances);
                let seconds = (self.now - BEGIN) / S;
                let turns = self.turns;
                return self.model.violated(format!("{what} after {seconds} s and {turns} turns; calls {unended:?}"));
            }
            self.happen();
            if !self.step() {
                match self.next() {
                    Some(next) => self.now = self.now.max(next),
                    None => self.now += S,
                }
            }
        }
    }

    /// When something happens by itself next.
    fn next(&self) -> Option<u64> {
        let timers = self.processes.iter().filter(|process| process.is_alive).filter_map(Process::next_timer);
        let paused = self.processes.iter().filter(|process| process.is_alive && !process.is_quiet);
        let wakes = paused.map(|process| process.paused_until).filter(|until| *until > self.now);
        let due = self.agenda.first_key_value().map(|((at, _), _)| *at);
        timers.chain(wakes).chain(due).chain(self.network.next()).min()
    }

    /// Does what is due.
    fn happen(&mut self) {
        if self.next().is_none_or(|next| next > self.now) {
            return;
        }
        self.network.pass(self.now);
        self.wake_all();
        for process in 0..self.processes.len() {
            let is_due = self.processes[process].next_timer().is_some_and(|at| at <= self.now);
            if is_due && self.processes[process].runs(self.now) {
                self.act(process, Stepped::expire_timers);
            }
        }
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let due = entry.remove();
            self.trace.turn(self.now, "world");
            self.befall(due);
        }
    }

    fn wake_all(&mut self) {
        self.processes.iter_mut().for_each(|process| process.is_quiet = false);
    }

    /// Gives one process a turn. False: nobody has anything to do.
    fn step(&mut self) -> bool {
        let now = self.now;
        let awake = |process: &Process| process.runs(now) && !process.is_quiet;
        let count = self.processes.iter().filter(|process| awake(process)).count() as u64;
        if count == 0 {
            return false;
        }
        let nth = self.random.below(count) as usize;
        let Some(process) = (0..self.processes.len()).filter(|at| awake(&self.processes[*at])).nth(nth) else {
            return false;
        };
        let (which, looks) = (self.random.number(), self.random.one_in(3));
        let did = self.act(process, |stepped| turn(stepped, which, looks));
        match did {
            Some(Did::Nothing) => {
                self.processes[process].is_quiet = true;
                if let Some(host) = self.host.as_ref().filter(|_| process == HOST) {
                    host.has_published();
                }
            }
            Some(Did::Little) => {}
            // What it did others may see.
            Some(Did::Something) | None => {
                self.wake_all();
                if self.random.one_in(2) {
                    self.now += self.random.below(20_000);
                }
            }
        }
        true
    }

    fn befall(&mut self, due: Due) {
        match due {
            Due::Fault(fault) => self.fault(fault),
            due => self.broker(due),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let connections = self.network.connections() as u64;
        match fault {
            Fault::Cut => self.network.cut(self.random.below(connections) as usize),
            Fault::Hold(ns) => self.network.hold(self.random.below(connections) as usize, ns),
            Fault::Part(ns) => self.network.part(ns),
            Fault::Pause(process, ns) => {
                self.trace.note(format_args!("{} has no turn for {} ms", NAMES[process], ns / MS));
                let paused = &mut self.processes[process].paused_until;
                *paused = (*paused).max(self.now + ns);
            }
            Fault::Crash { process, steps, silently } => {
                if !self.processes[process].is_alive {
                    return;
                }
                // A machine that shares memory with the host's goes with it or not at all.
                let shares = process > 0 && self.plan.clients[process - 1].carrier == Carrier::Memory;
                self.processes[process].dies_silently = silently && !shares;
                match steps.filter(|_| kernel_ipc::steps::ARE_THERE) {
                    Some(steps) => {
                        self.processes[process].dies_in = Some(steps);
                        self.later(0, S, Due::Deadline(process, self.processes[process].owner));
                    }
                    None => self.died(process),
                }
            }
        }
    }
}

/// Where the host listens.
fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

/// What a process did in its turn.
enum Did {
    Something,
    /// It found out that it has nothing to do but has work after all.
    Little,
    Nothing,
}

fn turn(stepped: &Stepped, which: u64, looks: bool) -> Did {
    let (ready, sources) = (stepped.ready() as u64, stepped.sources() as u64);
    if ready > 0 && !(looks && sources > 0) {
        stepped.run((which % ready) as usize);
        return Did::Something;
    }
    if ready > 0 {
        return if stepped.look((which % sources) as usize) { Did::Something } else { Did::Little };
    }
    for nth in 0..sources {
        if stepped.look(((which % sources + nth) % sources) as usize) {
            return Did::Something;
        }
    }
    match stepped.ready() > 0 || stepped.nods_off() {
        true => Did::Little,
        false => Did::Nothing,
    }
}
