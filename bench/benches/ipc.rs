//! `cargo bench -p bench --bench ipc [-- ROW]`: prints null calls beside raw ping-pong. `SECONDS=n` for each row.

use std::time::Duration;

use bench::ipc::{Options, run};

fn main() -> std::io::Result<()> {
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let seconds = std::env::var("SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1.0);
    let run = run(&Options { duration: Duration::from_secs_f64(seconds), only, ..Options::default() })?;
    println!("{:?}", run.machine);
    println!("{:44} {:>10} {:>12} {:>9} {:>9} {:>9}  ratio", "", "count", "a second", "p50 ns", "p99 ns", "p99.9 ns");
    for row in &run.rows {
        let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x"));
        let (name, count, rate) = (&row.name, row.count, row.per_second);
        println!("{name:44} {count:>10} {rate:>12.0} {:>9} {:>9} {:>9}  {ratio}", row.p50_ns, row.p99_ns, row.p999_ns);
    }
    for note in &run.notes {
        println!("{note}");
    }
    Ok(())
}
