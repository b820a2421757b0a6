//! What every carrier promises of leases that are arguments.

use kernel_ipc::runtime;
use kernel_ipc::wire::LeaseName;
use kernel_ipc::{Cause, LenderId};

use super::common::run;
use super::steps;
use super::world::{Carrier, DROP, Ends, HOST, KEEP, KEPT, PIN, READ, no, sum_of, until};

const CARRIERS: [Carrier; 4] = [Carrier::Shared, Carrier::Near, Carrier::Socket, Carrier::Tls];

/// Runs a test over each carrier, and over a simulated connection.
fn over_each_carrier(test: impl AsyncFn(Ends) + Copy + 'static) {
    for carrier in CARRIERS {
        println!("{carrier:?}");
        run(async { test(Ends::over(carrier).await).await });
    }
    println!("simulated");
    steps::simulate(test);
}

#[test]
fn leases_of_every_size_are_found_by_who_reads_and_by_who_pins() {
    over_each_carrier(every_size);
}

async fn every_size(ends: Ends) {
    for size in [1, 4095, 4096, 65_536, (256 << 10) - 1, (256 << 10) + 1, 1 << 20, 4 << 20] {
        for (operation, holder) in [(READ, HOST), (PIN, ends.me)] {
            let ranges = [(3, size), (8192, 17), (12_288, size)];
            let names = ranges.map(|(offset, length)| ends.own.lend(holder, offset, length));
            // All of the first, the end of the second, the middle of the third.
            let parts = [(0, size), (10, 7), (size / 3, size / 2)];
            let asked: Vec<_> = names.into_iter().zip(parts).collect();
            let expected: Vec<u32> =
                ranges.iter().zip(parts).map(|((at, _), (offset, length))| sum_of(at + offset, length)).collect();
            assert_eq!(ends.sums(operation, &asked).await, Ok(expected), "{size}, {operation}");
            names.iter().for_each(|name| ends.own.take_back(name));
        }
    }
    until(|| ends.own.lender.borrow_mut().reclaim() == 0 && ends.own.lender.borrow().dying() == 0).await;
    assert_eq!(ends.own.lender.borrow().lent_count(), 0);
}

#[test]
fn what_somebody_else_has_lent_to_the_client_can_be_lent_on() {
    over_each_carrier(async |ends: Ends| {
        let name = ends.other.lend(ends.me, 5000, 700_000);
        let asked = [(name, (0, 700_000)), (name, (699_999, 1))];
        assert_eq!(ends.sums(PIN, &asked).await, Ok(vec![sum_of(5000, 700_000), sum_of(704_999, 1)]));
    });
}

#[test]
fn a_lease_that_is_not_the_clients_to_lend_fails_its_call_and_nothing_else() {
    over_each_carrier(async |ends: Ends| {
        let good = ends.own.lend(ends.me, 0, 4096);
        let ended = ends.own.lend(ends.me, 0, 4096);
        ends.own.take_back(&ended);
        let somebody = kernel_ipc::Incarnation(999);
        let names = [
            ("ended", ended),
            ("another generation", LeaseName { generation: good.generation + 1, ..good }),
            ("an index that is none", LeaseName { index: u32::MAX, ..good }),
            ("of nobody", LeaseName { lender: LenderId(9), ..good }),
            ("of what has arrived", LeaseName { lender: LenderId::ARRIVED, ..good }),
            ("somebody else's", ends.own.lend(somebody, 0, 4096)),
            ("somebody else's from another", ends.other.lend(somebody, 0, 4096)),
            // In an answer to the host's own call, or for a call of another client.
            ("what another has lent to the host", ends.other.lend(HOST, 0, 4096)),
            // The lender knows nothing of its regions' lengths.
            ("beyond its region", ends.own.lend(ends.me, (24 << 20) - 10, 4096)),
        ];
        for (what, name) in names {
            let asked = [(good, (0, 10)), (name, (0, 10))];
            assert_eq!(ends.sums(PIN, &asked).await, Err(no(Cause::StaleLease)), "{what}");
            assert_eq!(ends.sums(READ, &asked[1..]).await, Err(no(Cause::StaleLease)), "{what}");
            assert_eq!(ends.sums(PIN, &asked[..1]).await, Ok(vec![sum_of(0, 10)]), "after one {what}");
        }
        // A part that is not inside.
        for part in [(0, 4097), (4096, 1), (usize::MAX, 2)] {
            assert_eq!(ends.sums(PIN, &[(good, part)]).await, Err(no(Cause::StaleLease)), "{part:?}");
        }
    });
}

#[test]
fn what_a_host_has_pinned_stays_as_it_was_when_its_call_is_answered() {
    over_each_carrier(async |ends: Ends| {
        let whole = ends.intake();
        let names = [(0, 5000), (40_000, 300_000)].map(|(offset, length)| ends.own.lend(ends.me, offset, length));
        let asked = [(names[0], (100, 4000)), (names[1], (0, 300_000))];
        let expected = vec![sum_of(100, 4000), sum_of(40_000, 300_000)];
        assert_eq!(ends.sums(KEEP, &asked).await, Ok(expected.clone()));
        // Others come and go.
        for _ in 0..4 {
            let passing = ends.own.lend(ends.me, 777, 300_000);
            assert_eq!(ends.sums(PIN, &[(passing, (0, 300_000))]).await, Ok(vec![sum_of(777, 300_000)]));
            ends.own.take_back(&passing);
        }
        assert_eq!(ends.sums(KEPT, &[]).await, Ok(expected));
        assert_ne!(ends.intake(), whole.or(Some(1)), "it takes room where it has arrived");
        names.iter().for_each(|name| ends.own.take_back(name));
        assert_eq!(ends.sums(DROP, &[]).await, Ok(vec![]));
        until(|| {
            ends.own.lender.borrow_mut().reclaim();
            ends.own.lender.borrow().dying() == 0 && ends.intake() == whole
        })
        .await;
    });
}

#[test]
fn calls_that_are_given_up_leave_nothing_behind() {
    over_each_carrier(async |ends: Ends| {
        let whole = ends.intake();
        for round in 0..30u32 {
            let name = ends.own.lend(ends.me, 0, 1 << 20);
            let asked = [(name, (0, 1 << 20))];
            let mut call = std::pin::pin!(ends.sums(PIN, &asked));
            for _ in 0..round {
                if runtime::timeout(std::time::Duration::from_micros(20), call.as_mut()).await.is_ok() {
                    break;
                }
            }
            ends.own.take_back(&name);
        }
        let name = ends.own.lend(ends.me, 9, 100);
        assert_eq!(ends.sums(PIN, &[(name, (0, 100))]).await, Ok(vec![sum_of(9, 100)]));
        until(|| ends.intake() == whole).await;
    });
}
