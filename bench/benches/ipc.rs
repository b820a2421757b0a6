//! `cargo bench -p bench --bench ipc [-- ROW]`: prints null calls beside raw ping-pong. `SECONDS=n` for each row.

use std::process::Command;
use std::time::Duration;

use bench::ipc::{Options, host, run};

fn main() -> std::io::Result<()> {
    const HOST: &str = "--as-host";
    if std::env::args().any(|argument| argument == HOST) {
        host::main();
        return Ok(());
    }
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let seconds = std::env::var("SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1.0);
    let mut host = Command::new(std::env::current_exe()?);
    host.arg(HOST);
    let run = run(Options { duration: Duration::from_secs_f64(seconds), only, host })?;
    println!("{:?}", run.machine);
    println!(
        "{:44} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}  ratio",
        "", "a second", "p50 ns", "p99 ns", "p99.9 ns", "cpu ns", "syscalls"
    );
    let optional = |value: Option<f64>, digits| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
    for row in &run.rows {
        let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x"));
        println!(
            "{:44} {:>12.0} {:>9} {:>9} {:>9} {:>9} {:>9}  {ratio}",
            row.name,
            row.per_second,
            row.p50_ns,
            row.p99_ns,
            row.p999_ns,
            optional(row.cpu_ns, 0),
            optional(row.system_calls, 3)
        );
    }
    for note in &run.notes {
        println!("{note}");
    }
    Ok(())
}
