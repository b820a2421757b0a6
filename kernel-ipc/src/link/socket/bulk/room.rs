//! Memory for what clients lend, and how much of it each of them may have.
//!
//! - Who is counted together has a *share*: clients of one node. What one of them takes, another node never misses.
//! - Nothing is refused for lack of room: who asks waits, in turn with the others of its share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::lease::{Extent, Pool};
use crate::runtime::Changes;
use crate::runtime::signal::Turns;

/// Bytes that a share has at most.
pub(super) const SHARE: usize = 64 << 20;
/// And the leases of one call.
pub(super) const CALL: usize = 16 << 20;

/// See the module's contract. Clones are the same.
#[derive(Clone)]
pub(super) struct Room(Rc<Inner>);

struct Inner {
    pool: Pool,
    shares: RefCell<HashMap<String, Weak<Share>>>,
    /// Something was given back.
    freed: Changes,
}

/// What clients of one node have among them.
#[derive(Default)]
pub(super) struct Share {
    taken: Cell<usize>,
    turns: Turns,
}

/// Room for one lease, until this is dropped.
pub(super) struct Place {
    /// Always there, but while it is dropped.
    extent: Option<Extent>,
    /// Bytes of the pool, which gives them out in granules.
    size: usize,
    room: Room,
    share: Rc<Share>,
}

impl Room {
    pub(super) fn new(pool: Pool) -> Room {
        Room(Rc::new(Inner { pool, shares: RefCell::default(), freed: Changes::default() }))
    }

    /// The share of whoever is called so.
    pub(super) fn share(&self, of: &str) -> Rc<Share> {
        let mut shares = self.0.shares.borrow_mut();
        shares.retain(|_, share| share.strong_count() > 0);
        if let Some(known) = shares.get(of).and_then(Weak::upgrade) {
            return known;
        }
        let share: Rc<Share> = Rc::default();
        shares.insert(of.to_owned(), Rc::downgrade(&share));
        share
    }

    /// Waits until there is room for all of these lengths, together no more than [`CALL`]. All or nothing: who holds one never
    /// waits for another.
    pub(super) async fn take(&self, share: &Rc<Share>, lengths: &[usize]) -> Vec<Rc<Place>> {
        let _turn = share.turns.take().await;
        loop {
            let freed = self.0.freed.next();
            if let Some(places) = self.take_now(share, lengths) {
                return places;
            }
            freed.await;
        }
    }

    fn take_now(&self, share: &Rc<Share>, lengths: &[usize]) -> Option<Vec<Rc<Place>>> {
        let pool = &self.0.pool;
        let take = |length: &usize| {
            let free = pool.free();
            let extent = pool.take(*length)?;
            Some((extent, free - pool.free()))
        };
        // What was taken in vain goes back without a word: those who wait wait for others.
        let extents: Vec<(Extent, usize)> = lengths.iter().map(take).collect::<Option<_>>()?;
        let taken = share.taken.get() + extents.iter().map(|(_, size)| size).sum::<usize>();
        if taken > SHARE {
            return None;
        }
        share.taken.set(taken);
        let place =
            |(extent, size)| Rc::new(Place { extent: Some(extent), size, room: self.clone(), share: share.clone() });
        Some(extents.into_iter().map(place).collect())
    }
}

impl AsRef<Extent> for Place {
    fn as_ref(&self) -> &Extent {
        self.extent.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.share.taken.set(self.share.taken.get() - self.size);
        drop(self.extent.take());
        self.room.0.freed.happen();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::id::RegionId;
    use crate::lease::Region;

    fn now<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    fn room(bytes: usize) -> Room {
        Room::new(Pool::new(Region::create("room", RegionId(1), bytes).expect("memory"), 4096))
    }

    #[test]
    fn who_has_taken_his_share_waits_in_turn_and_nobody_else_does() {
        let room = room(4 * SHARE);
        let (one, other) = (room.share("a"), room.share("b"));
        assert!(Rc::ptr_eq(&one, &room.share("a")));
        let mut held: Vec<_> =
            (0..SHARE / CALL).map(|_| now(pin!(room.take(&one, &[CALL]))).expect("it has a share")).collect();
        let (mut large, mut small) = (pin!(room.take(&one, &[CALL / 2, CALL / 2])), pin!(room.take(&one, &[1])));
        assert!(now(large.as_mut()).is_none() && now(small.as_mut()).is_none());
        assert!(now(pin!(room.take(&other, &[CALL]))).is_some(), "another one");
        held.pop();
        // As much as was given back, to who came first; then nothing is left.
        assert!(now(small.as_mut()).is_none(), "it does not pass by");
        let large = now(large.as_mut()).expect("there is room");
        assert!(now(small.as_mut()).is_none());
        drop(large);
        assert!(now(small.as_mut()).is_some());
        drop(held);
        assert_eq!((one.taken.get(), room.0.pool.free()), (0, 4 * SHARE));
        // A byte takes as much as memory is given out in.
        let byte = now(pin!(room.take(&one, &[1])));
        assert_eq!((one.taken.get(), byte.map(|places| places.len())), (4096, Some(1)));
    }

    #[test]
    fn what_does_not_fit_as_a_whole_takes_nothing() {
        let room = room(8 * 4096);
        let share = room.share("a");
        let held = now(pin!(room.take(&share, &[5 * 4096]))).expect("there is room");
        let mut both = pin!(room.take(&share, &[2 * 4096, 2 * 4096]));
        assert!(now(both.as_mut()).is_none());
        assert_eq!((room.0.pool.free(), share.taken.get()), (3 * 4096, 5 * 4096));
        drop(held);
        assert_eq!(now(both.as_mut()).map(|places| places.len()), Some(2));
    }
}
