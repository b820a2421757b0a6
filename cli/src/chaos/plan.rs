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

/// Disturbances without end at `rate` a second, each of one of `kinds` to one of `components`; none if that is 0 or there are none of these.
pub fn plan(seed: u64, rate: f64, kinds: &[Kind], components: usize) -> impl Iterator<Item = Disturbance> {
    let (mut numbers, mut at) = (Numbers::new(seed), 0.0);
    let next = move || {
        if kinds.is_empty() || components == 0 || rate <= 0.0 {
            return None;
        }
        // Exponential gaps: disturbances that do not know of each other, and sometimes come at once.
        at -= (1.0 - numbers.fraction()).ln() / rate;
        let kind = kinds[numbers.below(kinds.len() as u64) as usize];
        let component = numbers.below(components as u64) as usize;
        let lasts = match kind {
            Kind::Kill => 0,
            Kind::Stop => 10 + numbers.below(491),
            Kind::Delay => 100 + numbers.below(401),
        };
        let lasts = Duration::from_millis(lasts);
        Some(Disturbance { at: Duration::from_secs_f64(at), kind, component, lasts })
    };
    std::iter::from_fn(next)
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
        let of = |seed| -> Vec<Disturbance> { plan(seed, 5.0, &ALL, 4).take(100).collect() };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn a_plan_has_about_its_rate_and_every_kind_to_every_component() {
        let minute = Duration::from_secs(60);
        let plan: Vec<Disturbance> = plan(1, 5.0, &ALL, 4).take_while(|one| one.at < minute).collect();
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
        assert_eq!((plan(1, 5.0, &[], 4).next(), plan(1, 5.0, &ALL, 0).next()), (None, None));
        assert_eq!(plan(1, 0.0, &ALL, 4).next(), None);
    }
}
