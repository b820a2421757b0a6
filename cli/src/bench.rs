//! `atoll bench`: measurements, each beside its floor in the same run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use bench::http::{Floor, Load, measure};
use bench::ipc::places::{self, Comparison, Placement};
use bench::report::{Machine, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::json;
use supervisor::up::{Options, Progress};

use crate::args::{Bench, BenchOptions, BenchPlace, Common};
use crate::output::{self, Align, Failed, Table, duration, size};
use crate::{control, fs, node};

/// Measures what was asked.
pub fn bench(common: &Common, what: &Bench) -> Result<(), Failed> {
    let (run, keep) = match what {
        Bench::Ipc { options, place: Some(place), .. } => return places(common, options, *place),
        Bench::Ipc { options, reactors: Some(count), .. } => (reactors(options, *count)?, options.save),
        Bench::Ipc { options, .. } => (ipc(options)?, options.save),
        Bench::Block(options) => (block(options)?, options.save),
        Bench::Http(options) => (http(options)?, options.save),
        Bench::Overload(options) => (overload(options)?, options.save),
        Bench::Recovery { kills, files, save } => (recovery(*kills, *files)?, *save),
    };
    if keep {
        let path = save(&run.bench, run.unix_seconds, &run)?;
        output::message(&format!("kept in {}", path.display()));
        if run.bench == "overload" {
            let plot = path.with_extension("svg");
            std::fs::write(&plot, ::bench::overload::plot::svg(&run))?;
            output::message(&format!("drawn in {}", plot.display()));
        }
    }
    if common.json { output::json(&run) } else { output::write(show(&run).as_bytes()) }
}

/// Calls between this process and another one of the same binary, beside raw ping-pong.
fn ipc(options: &BenchOptions) -> Result<Run, Failed> {
    ::bench::ipc::run(ipc_options(options)?).map_err(|error| Failed::new(format!("the measurement broke off: {error}")))
}

fn ipc_options(options: &BenchOptions) -> Result<::bench::ipc::Options, Failed> {
    let mut host = std::process::Command::new(std::env::current_exe()?);
    host.args(["serve", crate::serve::BENCH_HOST]);
    Ok(::bench::ipc::Options { duration: Duration::from_secs(options.seconds), only: None, host })
}

/// The same calls over each place, beside the raw floor of each.
fn places(common: &Common, options: &BenchOptions, place: BenchPlace) -> Result<(), Failed> {
    let wanted: &[Placement] = match place {
        BenchPlace::InProcess => &[Placement::InProcess],
        BenchPlace::Process => &[Placement::Shm],
        BenchPlace::Socket => &[Placement::Socket],
        BenchPlace::SocketEncrypted => &[Placement::SocketEncrypted],
        BenchPlace::All => &Placement::ALL,
    };
    let comparison = places::run(ipc_options(options)?, wanted)
        .map_err(|error| Failed::new(format!("the measurement broke off: {error}")))?;
    if options.save {
        let path = save("ipc-places", comparison.unix_seconds, &comparison)?;
        let plot = path.with_extension("svg");
        std::fs::write(&plot, places::plot::svg(&comparison))?;
        output::message(&format!("kept in {}, drawn in {}", path.display(), plot.display()));
    }
    if common.json {
        return output::json(&comparison.rows);
    }
    output::write(show_places(&comparison).as_bytes())
}

/// The comparison for people.
fn show_places(comparison: &Comparison) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("place", Left),
        ("wait", Left),
        ("cores", Left),
        ("size", Right),
        ("depth", Right),
        ("p50", Right),
        ("p99", Right),
        ("p99.9", Right),
        ("calls/s", Right),
        ("processor", Right),
        ("floor", Right),
        ("ratio", Right),
    ]);
    for row in &comparison.rows {
        table.row(vec![
            row.place.label().into(),
            format!("{:?}", row.wait).to_lowercase(),
            row.pin.name().into(),
            row.size.to_string(),
            row.depth.to_string(),
            duration(row.p50_ns),
            duration(row.p99_ns),
            duration(row.p999_ns),
            rate(row.calls_per_s),
            duration(row.cpu_ns_per_call as u64),
            duration(row.floor_p50_ns),
            // Of one call outstanding: several share their time.
            if row.depth == 1 { format!("{:.2}", row.ratio()) } else { String::new() },
        ]);
    }
    let mut text = table.render(output::stdout_colours());
    for place in Placement::ALL.iter().filter(|place| comparison.rows.iter().any(|row| row.place == **place)) {
        text.push_str(&format!("\nfloor of {}: {}", place.label(), place.floor_label()));
    }
    text.push_str(&about(&comparison.machine, &comparison.notes));
    text
}

/// What a reader must know beside the table.
fn about(machine: &Machine, notes: &[String]) -> String {
    let Machine { processor, cores, kernel, load } = machine;
    let mut text = format!("\n{processor}, {cores} cores, Linux {kernel}, load {load}\n");
    for note in notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}

/// Calls between two threads of this process, more than one of them can serve.
fn overload(options: &BenchOptions) -> Result<Run, Failed> {
    let options = ::bench::overload::Options { duration: Duration::from_secs(options.seconds), rounds: 3 };
    ::bench::overload::run(&options).map_err(|error| Failed::new(format!("the measurement broke off: {error}")))
}

/// Reads of a system of its own that is nothing but a driver, beside the same reads made directly.
fn block(options: &BenchOptions) -> Result<Run, Failed> {
    const MANIFEST: &str = r#"
atoll = 1
[system]
name = "bench-block"
[component.disk]
run = "builtin:block-file"
provides.disk = "atoll.block/1"
config = { path = "disk.img" }
"#;
    const IMAGE_BYTES: u64 = 1 << 30;
    let prepare = |own: &OwnSystem| -> Result<PathBuf, Failed> {
        std::fs::create_dir_all(own.state())?;
        ::bench::block::fill(&own.image(), IMAGE_BYTES)?;
        let manifest = own.directory.join("block.toml");
        std::fs::write(&manifest, MANIFEST)?;
        Ok(manifest)
    };
    let own = OwnSystem::start_with(prepare, &[])?;
    let options = ::bench::block::Options { duration: Duration::from_secs(options.seconds) };
    let run = node::visit(&own.common(), async |context| {
        let device: protocol::block::Client = node::connect(&context, "disk.disk").await?;
        ::bench::block::run(&device, &own.image(), &options)
            .await
            .map_err(|error| Failed::new(format!("the measurement broke off: {error}")))
    })?;
    own.stop()?;
    Ok(run)
}

/// Calls of several clients in a system of its own, to a server with one reactor and to one with several.
fn reactors(options: &BenchOptions, count: u32) -> Result<Run, Failed> {
    let prepare = |own: &OwnSystem| -> Result<PathBuf, Failed> {
        let component = |name: &str, count: u32| {
            format!(
                "[component.{name}]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\nreactors = {count}\n"
            )
        };
        let manifest = own.directory.join("reactors.toml");
        std::fs::write(&manifest, format!("atoll = 1\n{}{}", component("one", 1), component("several", count)))?;
        Ok(manifest)
    };
    let own = OwnSystem::start_with(prepare, &[])?;
    let running = node::visit(&own.common(), async |context| control::components(&context).await)?;
    let server = |name: &str, reactors| {
        let pid = running.iter().find(|component| component.name == name).map_or(0, |component| component.pid);
        ::bench::ipc::reactors::Server { name: name.into(), pid, reactors }
    };
    let options = ::bench::ipc::reactors::Options {
        duration: Duration::from_secs(options.seconds),
        clients: count,
        state: own.state(),
        components: [server("one", 1), server("several", count)],
    };
    let run = ::bench::ipc::reactors::run(&options)
        .map_err(|error| Failed::new(format!("the measurement broke off: {error}")))?;
    own.stop()?;
    Ok(run)
}

/// Requests a second of a system of its own, at three sizes, beside the floor.
fn http(options: &BenchOptions) -> Result<Run, Failed> {
    const SIZES: [(&str, usize); 3] = [("1 KiB", 1 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];
    let own = OwnSystem::start(&["httpd.listen=127.0.0.1:0"])?;
    let mut files = Vec::new();
    for (_, length) in SIZES {
        let file = own.directory.join(format!("{length}.bin"));
        std::fs::write(&file, vec![b'x'; length])?;
        files.push(file);
    }
    fs::put::copy(&own.common(), &files, "/www".as_ref(), false)?;
    let server = own.http_address()?;
    let mut run = Run::begin("http");
    let load = Load { duration: Duration::from_secs(options.seconds), ..Load::default() };
    run.notes.push(format!("{} keep-alive connections from one thread, {} s a row", load.connections, options.seconds));
    run.notes.push("the floor answers from memory, without a parser or a file".into());
    let failed = |error: std::io::Error| Failed::new(format!("the measurement broke off: {error}"));
    for (name, length) in SIZES {
        let floor = Floor::start(length).map_err(failed)?;
        let floor_row =
            measure(&format!("floor {name}"), floor.address(), "/", length as u64, &load).map_err(failed)?;
        drop(floor);
        let path = format!("/{length}.bin");
        let row = measure(&format!("atoll {name}"), server, &path, length as u64, &load).map_err(failed)?;
        let row = row.rate_beside(&floor_row);
        run.rows.extend([floor_row, row]);
    }
    own.stop()?;
    Ok(run)
}

/// Deaths of the components of a system of its own.
fn recovery(kills: u64, files: u64) -> Result<Run, Failed> {
    let own = OwnSystem::start(&["httpd.listen=127.0.0.1:0", "disk.size=1GiB"])?;
    let http = own.http_address()?;
    let options = ::bench::recovery::Options { kills, files: usize::try_from(files).unwrap_or(usize::MAX) };
    let run = node::visit(&own.common(), async |context| {
        let system = ::bench::recovery::System {
            disk: node::connect(&context, "disk.disk").await?,
            fs: node::connect(&context, "fs.root").await?,
            control: node::connect(&context, "control").await?,
            http,
            program: std::env::current_exe()?,
        };
        ::bench::recovery::run(&system, &options)
            .await
            .map_err(|error| Failed::new(format!("the measurement broke off: {error}")))
    })?;
    own.stop()?;
    Ok(run)
}

/// Makes a manifest, and whatever else must be there before the system starts.
type Prepare<'a> = Box<dyn FnOnce(&OwnSystem) -> Result<PathBuf, Failed> + 'a>;

/// A system of its own for a measurement, in a directory that vanishes with it.
struct OwnSystem {
    directory: PathBuf,
    keeper: Option<Child>,
}

impl OwnSystem {
    fn start(sets: &[&str]) -> Result<OwnSystem, Failed> {
        OwnSystem::launch(sets, None)
    }

    /// The same with a manifest that `prepare` makes, in a directory that is there already.
    fn start_with(
        prepare: impl FnOnce(&OwnSystem) -> Result<PathBuf, Failed>,
        sets: &[&str],
    ) -> Result<OwnSystem, Failed> {
        OwnSystem::launch(sets, Some(Box::new(prepare)))
    }

    fn launch(sets: &[&str], prepare: Option<Prepare<'_>>) -> Result<OwnSystem, Failed> {
        let directory = std::env::temp_dir().join(format!("atoll-bench-{}", std::process::id()));
        std::fs::create_dir(&directory)
            .map_err(|error| Failed::new(format!("cannot make {}: {error}", directory.display())))?;
        let mut own = OwnSystem { directory, keeper: None };
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
        let manifest = prepare.map(|prepare| prepare(&own)).transpose()?;
        let state = own.state();
        let options = Options { manifest: manifest.as_deref(), state: &state, sets: &sets, end_with_parent: true };
        let mut starting = supervisor::up::start(&options)?;
        let last = loop {
            match starting.next_step() {
                last @ (Progress::Up | Progress::Failed { .. }) => break last,
                Progress::Starting { .. } | Progress::Ready { .. } => {}
            }
        };
        own.keeper = Some(starting.into_keeper());
        match last {
            Progress::Failed { reason } => {
                Err(Failed::new(format!("the system to be measured did not start: {reason}")))
            }
            _ => Ok(own),
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn image(&self) -> PathBuf {
        self.state().join("disk.img")
    }

    fn common(&self) -> Common {
        Common { state: self.state(), json: false }
    }

    fn http_address(&self) -> Result<SocketAddr, Failed> {
        let components = node::visit(&self.common(), async |context| control::components(&context).await)?;
        let listen = components.iter().find_map(|one| one.listen.parse().ok());
        listen.ok_or_else(|| Failed::new("the system to be measured does not listen"))
    }

    /// Ends it in order.
    fn stop(mut self) -> Result<(), Failed> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failed> {
        if let Some(mut keeper) = self.keeper.take() {
            let pid = Pid::from_raw(i32::try_from(keeper.id()).unwrap_or(i32::MAX));
            // It is our child and not waited for yet, so the number is still its own.
            let _ = kill(pid, Signal::SIGTERM);
            keeper.wait()?;
        }
        Ok(())
    }
}

impl Drop for OwnSystem {
    fn drop(&mut self) {
        // Best effort on the way out of a failure; `stop` reports.
        let _ = self.end();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The run for people.
fn show(run: &Run) -> String {
    use Align::{Left, Right};
    let mut columns = vec![("what", Left), ("per second", Right)];
    let payload = run.rows.iter().any(|row| row.bytes_per_second > 0.0);
    if payload {
        columns.push(("payload", Right));
    }
    columns.extend([("p50", Right), ("p99", Right), ("p99.9", Right)]);
    let processor = run.rows.iter().any(|row| row.cpu_ns.is_some());
    let calls = run.rows.iter().any(|row| row.system_calls.is_some());
    if processor {
        columns.push(("processor", Right));
    }
    if calls {
        columns.push(("system calls", Right));
    }
    let overload = run.rows.iter().any(|row| row.offered_per_second.is_some());
    if overload {
        columns.extend([("offered", Right), ("refused", Right)]);
    }
    columns.push(("ratio", Right));
    let mut table = Table::new(&columns);
    for row in &run.rows {
        let mut cells = vec![row.name.clone(), rate(row.per_second)];
        if payload {
            cells.push(format!("{}/s", size(row.bytes_per_second as u64)));
        }
        cells.extend([row.p50_ns, row.p99_ns, row.p999_ns].map(duration));
        if processor {
            cells.push(row.cpu_ns.map_or_else(String::new, |nanos| duration(nanos as u64)));
        }
        if calls {
            cells.push(row.system_calls.map_or_else(String::new, |calls| format!("{calls:.3}")));
        }
        if overload {
            cells
                .extend([row.offered_per_second, row.refused_per_second].map(|one| one.map_or_else(String::new, rate)));
        }
        cells.push(row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")));
        table.row(cells);
    }
    let mut text = table.render(output::stdout_colours());
    text.push_str(&about(&run.machine, &run.notes));
    text
}

/// A rate with separators: `98 765`.
fn rate(per_second: f64) -> String {
    let digits = format!("{per_second:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Keeps a run under `bench/runs`, named after its date.
fn save(what: &str, unix_seconds: u64, run: &impl Serialize) -> Result<PathBuf, Failed> {
    let directory = Path::new("bench/runs");
    let time = output::time(unix_seconds.saturating_mul(1_000_000_000));
    let name: String = time.chars().filter(char::is_ascii_digit).collect();
    let path = directory.join(format!("{name}-{what}.json"));
    let text = serde_json::to_string_pretty(&json!(run)).map_err(|error| Failed::new(error.to_string()))?;
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&path, text + "\n"))
        .map_err(|error| Failed::new(format!("cannot keep the run in {}: {error}", path.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_grouped_by_thousands() {
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.0].map(rate), ["0", "999", "1 000", "1 234 567"]);
    }
}
