//! Some thousands of seeds, each time the same ones.

use simulation::{Report, Sum, Trace, UnusedRing, run};

/// Seeds of a run of the tests; `SEEDS=N` makes it more or fewer.
const SEEDS: u64 = 3000;

fn report(seed: u64, ring: &UnusedRing) -> Report {
    run(seed, ring, &Trace::new(false))
}

/// Fails with how to see it again, and what happened last.
fn fail(report: &Report, ring: &UnusedRing) -> ! {
    let trace = Trace::new(true);
    run(report.seed, ring, &trace);
    let lines = trace.lines();
    let last = lines.len().saturating_sub(120);
    println!("{}\n{}", lines[0], lines[last..].join("\n"));
    let violation = report.violation.as_deref().unwrap_or("another run of it was another one");
    panic!(
        "seed {}: {violation}\nagain: SEED={} cargo test -p simulation replay -- --nocapture",
        report.seed, report.seed
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_seed_violates_the_model() {
    let ring = UnusedRing::new().expect("io_uring");
    let mut sum = Sum::default();
    let from = number("FROM").unwrap_or(0);
    for seed in from..from + number("SEEDS").unwrap_or(SEEDS) {
        let report = report(seed, &ring);
        if report.violation.is_some() {
            fail(&report, &ring);
        }
        sum.add(&report);
    }
    println!("{sum:?}");
    assert!(sum.answered > sum.calls / 2 && sum.host_deaths > 0 && sum.client_deaths > 0, "{sum:?}");
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let ring = UnusedRing::new().expect("io_uring");
    for seed in 0..200 {
        let (one, other) = (report(seed, &ring), report(seed, &ring));
        if one != other {
            println!("{one:?}\n{other:?}");
            fail(&one, &ring);
        }
    }
}

/// `SEED=7 cargo test -p simulation replay -- --nocapture` prints what happens in it.
#[test]
fn replay() {
    let Some(seed) = number("SEED") else { return };
    let (ring, trace) = (UnusedRing::new().expect("io_uring"), Trace::new(true));
    let report = run(seed, &ring, &trace);
    println!("{}\n{report:#?}", trace.lines().join("\n"));
    assert_eq!(report.violation, None);
}
