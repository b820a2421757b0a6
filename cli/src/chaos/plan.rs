//! What is done to whom and when: decided by a seed, before anything is done.

use std::time::Duration;

use clap::ValueEnum;

/// What can be done to a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// It is killed (SIGKILL)
    Kill,
    /// It is stopped for 10 to 500 ms (SIGSTOP, SIGCONT)
    Stop,
    /// It gets every other 5 ms only, for 100 to 500 ms
    Delay,
}

impl Kind {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::Delay => "delay",
        }
    }
}

/// One disturbance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// When, from the begin.
    pub at: Duration,
    pub kind: Kind,
    /// Index of the component.
    pub component: usize,
    /// How long a stop or delay lasts.
    pub lasts: Duration,
}

/// The disturbances of `seconds` at `rate` a second, each of one of `kinds` to one of `components`.
pub fn plan(seed: u64, rate: f64, seconds: u64, kinds: &[Kind], components: usize) -> Vec<Disturbance> {
    let (mut numbers, mut plan, mut at) = (Numbers::new(seed), Vec::new(), 0.0);
    loop {
        // Exponential gaps: disturbances that do not know of each other, and sometimes come at once.
        at -= (1.0 - numbers.fraction()).ln() / rate;
        if at >= seconds as f64 || kinds.is_empty() || components == 0 {
            return plan;
        }
        let kind = kinds[numbers.below(kinds.len() as u64) as usize];
        let component = numbers.below(components as u64) as usize;
        let lasts = match kind {
            Kind::Kill => 0,
            Kind::Stop => 10 + numbers.below(491),
            Kind::Delay => 100 + numbers.below(401),
        };
        plan.push(Disturbance {
            at: Duration::from_secs_f64(at),
            kind,
            component,
            lasts: Duration::from_millis(lasts),
        });
    }
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Any seed will do.
    pub fn new(seed: u64) -> Numbers {
        // Spreads small seeds over all bits; a state of zero would stay zero.
        let mut numbers = Numbers((seed ^ 0x9E37_79B9_7F4A_7C15).max(1));
        numbers.next();
        numbers
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// From 0 up to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 3] = [Kind::Kill, Kind::Stop, Kind::Delay];

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_one_another() {
        let one = plan(7, 5.0, 60, &ALL, 4);
        assert_eq!(one, plan(7, 5.0, 60, &ALL, 4));
        assert_ne!(one, plan(8, 5.0, 60, &ALL, 4));
    }

    #[test]
    fn a_plan_has_about_its_rate_and_every_kind_to_every_component() {
        let plan = plan(1, 5.0, 60, &ALL, 4);
        assert!((200..400).contains(&plan.len()), "{}", plan.len());
        assert!(plan.is_sorted_by_key(|one| one.at));
        for kind in ALL {
            for component in 0..4 {
                assert!(plan.iter().any(|one| one.kind == kind && one.component == component));
            }
        }
    }

    #[test]
    fn nothing_to_do_is_no_plan() {
        assert!(plan(1, 5.0, 60, &[], 4).is_empty() && plan(1, 5.0, 60, &ALL, 0).is_empty());
    }
}
