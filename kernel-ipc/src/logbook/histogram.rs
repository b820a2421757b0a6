//! Times in buckets: four for each doubling, so that a bucket says a time to an eighth of it.

/// Buckets, for 0 ns to 36 minutes; the last one has what is longer.
pub const BUCKETS: usize = 160;

/// The bucket of a time in ns.
pub fn bucket(ns: u64) -> usize {
    if ns < 4 {
        return ns as usize;
    }
    let doublings = ns.ilog2() as usize;
    let quarter = (ns >> (doublings - 2)) as usize & 3;
    ((doublings - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// The middle of a bucket, in ns.
fn middle(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let doublings = bucket / 4 + 1;
    let width = 1u64 << (doublings - 2);
    (4 + bucket as u64 % 4) * width + width / 2
}

/// The time that a share of all, in thousandths, did not exceed, in ns; 0 if there are none.
pub fn quantile(buckets: &[u64], thousandths: u64) -> u64 {
    let all = buckets.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    let wanted = u64::try_from((u128::from(all) * u128::from(thousandths)).div_ceil(1000)).unwrap_or(u64::MAX).max(1);
    let mut seen = 0u64;
    for (bucket, count) in buckets.iter().enumerate() {
        seen = seen.saturating_add(*count);
        if seen >= wanted {
            return middle(bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_without_gaps_and_say_a_time_to_an_eighth() {
        let mut last = 0;
        for ns in (0..100_000).chain((17..41).map(|doublings| (1 << doublings) - 1)) {
            let found = bucket(ns);
            assert!(found == last || found == last + 1 || ns > 100_000, "{ns} is in {found} behind {last}");
            last = found;
            assert!(middle(found).abs_diff(ns) <= ns / 8 + 1, "{ns} is said to be {}", middle(found));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_the_time_of_the_one_that_stands_there() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(quantile(&buckets, 500), 0);
        buckets[bucket(1000)] = 98;
        buckets[bucket(1_000_000)] = 2;
        let said = [0, 500, 980, 981, 990, 1000].map(|thousandths| quantile(&buckets, thousandths));
        let (short, long) = (middle(bucket(1000)), middle(bucket(1_000_000)));
        assert_eq!(said, [short, short, short, long, long, long]);
        assert!(quantile(&[u64::MAX, u64::MAX], 999) < 4);
    }
}
