//! How many chunks are asked for at a time: as many as keep the connection busy, and as many again. No system calls.
//!
//! A chunk that is alone on its way takes a round trip, the shortest time that there is. Of those that are asked for together each waits for
//! the ones before it. So when a chunk has taken `t`, and `n` were under way when it was asked for, `n * shortest / t` of them were
//! really on their way, and the others waited. Twice that number leaves no pause.

use std::time::Duration;

/// Chunks at first and at least. With fewer, a connection without delay would have pauses.
const LEAST: usize = 4;
/// And at most: 16 MiB.
const MOST: usize = 64;

/// The window of one connection.
#[derive(Clone, Debug)]
pub(super) struct Window {
    chunks: usize,
    /// The shortest time that a chunk has taken.
    shortest: Duration,
}

impl Window {
    pub(super) fn new() -> Window {
        Window { chunks: LEAST, shortest: Duration::MAX }
    }

    /// How many may be under way.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// One has come that `took` so long from when it was asked for; `with` it so many were under way then.
    pub(super) fn came(&mut self, took: Duration, with: usize) {
        self.shortest = self.shortest.min(took);
        let (shortest, took) = (self.shortest.as_nanos().max(1), took.as_nanos().max(1));
        let wanted = usize::try_from(2 * with as u128 * shortest / took).unwrap_or(MOST);
        // What came soon though there was not much to ask for says nothing of how much there could be.
        if wanted > self.chunks || took > 2 * shortest {
            self.chunks = wanted.clamp(LEAST, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Fetches so many chunks over a connection with this round trip, on which each takes `each` to pass. Gives how long that took, and
    /// the window at the end.
    fn fetch(window: &mut Window, mut count: usize, round_trip: Duration, each: Duration) -> Duration {
        let (mut now, mut free, mut under_way) = (Duration::ZERO, Duration::ZERO, VecDeque::new());
        while count > 0 || !under_way.is_empty() {
            while count > 0 && under_way.len() < window.chunks() {
                count -= 1;
                free = free.max(now + round_trip / 2) + each;
                under_way.push_back((now, free + round_trip / 2, under_way.len() + 1));
            }
            let (asked, there, with) = under_way.pop_front().expect("some are");
            now = there;
            window.came(now - asked, with);
        }
        now
    }

    #[test]
    fn a_connection_without_delay_needs_few() {
        let mut window = Window::new();
        let took = fetch(&mut window, 400, 50 * US, 300 * US);
        assert_eq!(window.chunks(), LEAST);
        assert!(took < 401 * 300 * US + 100 * US, "{took:?}");
    }

    #[test]
    fn a_long_way_is_filled_and_not_flooded() {
        // 50 ms, 80 MiB/s: 16 chunks are under way when it is full.
        let mut window = Window::new();
        let took = fetch(&mut window, 400, 50_000 * US, 3125 * US);
        let alone = 50_000 * US + 400 * 3125 * US;
        assert!(took < alone + alone / 10, "{took:?} and {alone:?}");
        assert!((16..=40).contains(&window.chunks()), "{}", window.chunks());
        // A narrow one is full with less.
        let mut window = Window::new();
        fetch(&mut window, 100, 50_000 * US, 25_000 * US);
        assert!(window.chunks() <= 8, "{}", window.chunks());
    }

    #[test]
    fn it_shrinks_when_the_way_becomes_narrow_and_grows_only_when_it_is_full() {
        let mut window = Window::new();
        fetch(&mut window, 400, 50_000 * US, 1000 * US);
        assert!(window.chunks() > 32, "{}", window.chunks());
        fetch(&mut window, 400, 50_000 * US, 30_000 * US);
        assert!(window.chunks() <= 8, "{}", window.chunks());
        let mut window = Window::new();
        for _ in 0..100 {
            window.came(1000 * US, 1);
        }
        assert_eq!(window.chunks(), LEAST);
        for _ in 0..100 {
            window.came(1000 * US, MOST);
        }
        assert_eq!(window.chunks(), MOST);
    }
}
