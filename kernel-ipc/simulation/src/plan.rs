//! What a seed decides before anything runs: who there is, how patient they are, and what befalls them when.

use std::time::Duration;

use kernel_ipc::link::socket::dial::Options;
use kernel_ipc::runtime::simulated::Weather;
use kernel_ipc::wire::Shape;

use crate::random::Random;

/// A microsecond, a millisecond, a second.
pub const US: u64 = 1_000;
pub const MS: u64 = 1_000 * US;
pub const S: u64 = 1_000 * MS;

/// When a run begins: clocks may be behind that.
pub const BEGIN: u64 = 100 * S;

/// How a client reaches the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Over a connection of the simulated network, from another machine.
    Socket,
    /// The same, with ledgers: the session survives its host.
    Kept,
    /// Over shared memory, with ledgers.
    Memory,
}

impl Carrier {
    /// Whether the session has a ledger.
    pub fn is_kept(self) -> bool {
        self != Carrier::Socket
    }
}

/// One client.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    pub carrier: Carrier,
    pub shape: Shape,
    /// Tasks that call.
    pub callers: u64,
    /// Calls that each of them makes.
    pub calls: u64,
}

/// Something that befalls the system.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A connection is cut.
    Cut,
    /// Nothing arrives over one connection for so long.
    Hold(u64),
    /// Nothing arrives for so long.
    Part(u64),
    /// A process (0: the host) dies, at once or when it has reached so many steps more; its machine too, or not.
    Crash { process: usize, steps: Option<u32>, silently: bool },
    /// A process has no turn for so long.
    Pause(usize, u64),
}

/// See the module's contract.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sessions over connections survive their host.
    pub keeps_sockets: bool,
    pub clients: Vec<ClientPlan>,
    pub options: Options,
    pub weather: Weather,
    /// How far each process' clock is behind, nanoseconds. Who shares memory shares a clock.
    pub behind: Vec<u64>,
    pub faults: Vec<(u64, Fault)>,
    /// How often the host makes its state durable.
    pub checkpoint_ns: u64,
    /// How long calls over memory may wait before the host refuses them.
    pub refuse_after: Option<Duration>,
}

impl Plan {
    /// What this seed decides.
    pub fn new(seed: u64) -> Plan {
        let mut random = Random::new(seed, 1);
        let random = &mut random;
        let kinds = random.below(8);
        let carrier = |random: &mut Random| match kinds {
            0..=2 => Carrier::Socket,
            3..=5 => Carrier::Memory,
            _ => random.pick(&[Carrier::Socket, Carrier::Memory]),
        };
        let mut clients: Vec<ClientPlan> = (0..random.between(1, 2))
            .map(|_| {
                // More calls at a time than a session has begun in one turn, or a few.
                let (slots, callers, calls) = match random.below(8) {
                    0 => (16, random.between(10, 16), random.between(1, 3)),
                    _ => (random.pick(&[1, 2, 3, 4, 8]), random.between(1, 4), random.between(2, 8)),
                };
                ClientPlan { carrier: carrier(random), shape: Shape { slots, window_bytes: 4096 }, callers, calls }
            })
            .collect();
        // One in four is impatient, so that links are given up.
        let (heartbeat, silence, give_up) = match random.below(4) {
            0 => (50, 300, 1_000),
            _ => (1_000, 5_000, 60_000),
        };
        let ms = Duration::from_millis;
        let options =
            Options { greeting: ms(silence), heartbeat: ms(heartbeat), dead_after: ms(silence), give_up: ms(give_up) };
        let weather = Weather {
            delay_ns: random.pick(&[(0, 100 * US), (20 * US, 200 * US), (MS, 5 * MS), (0, 50 * MS)]),
            capacity: random.pick(&[100, 700, 5_000, 65_536]),
            trickles: random.pick(&[1, 2, 4, 50]),
        };
        let mut behind = vec![0];
        behind.extend(clients.iter().map(|client| match client.carrier {
            Carrier::Memory => 0,
            _ => random.below(90 * S),
        }));
        let active = random.pick(&[20 * MS, 200 * MS, 2 * S]);
        let processes = clients.len() as u64 + 1;
        let mut faults: Vec<(u64, Fault)> =
            (0..random.below(7)).map(|_| (BEGIN + random.below(active), Self::fault(random, processes))).collect();
        faults.sort_by_key(|(at, _)| *at);
        let checkpoint_ns = random.pick(&[5 * MS, 50 * MS, S]);
        // By numbers of its own, so that the others are what they were before there was this.
        let keeps_sockets = Random::new(seed, 5).one_in(2);
        for client in clients.iter_mut().filter(|client| keeps_sockets && client.carrier == Carrier::Socket) {
            client.carrier = Carrier::Kept;
        }
        let refuse_after = random.one_in(4).then(|| Duration::from_micros(random.pick(&[20, 1_000, 20_000])));
        Plan { keeps_sockets, clients, options, weather, behind, faults, checkpoint_ns, refuse_after }
    }

    fn fault(random: &mut Random, processes: u64) -> Fault {
        let long = |random: &mut Random| {
            let most = random.pick(&[5 * MS, 100 * MS, 2 * S, 9 * S]);
            random.below(most) + MS
        };
        match random.below(12) {
            0..=3 => Fault::Cut,
            4 => Fault::Hold(long(random)),
            5 => Fault::Part(long(random)),
            6 => Fault::Pause(random.below(processes) as usize, long(random)),
            7 if random.one_in(2) => {
                let process = random.between(1, processes - 1) as usize;
                Fault::Crash { process, steps: Self::steps(random), silently: random.one_in(2) }
            }
            _ => Fault::Crash { process: 0, steps: Self::steps(random), silently: random.one_in(3) },
        }
    }

    fn steps(random: &mut Random) -> Option<u32> {
        match random.below(4) {
            0 => None,
            _ => Some(random.below(40) as u32),
        }
    }
}
