//! The programs of the components and of the node itself, which are all this binary.

use std::process::ExitCode;

use kernel_ipc::component;
use tracing_subscriber::EnvFilter;

/// The other process of `atoll bench ipc`.
pub const BENCH_HOST: &str = "bench-null";

/// If the command line asks for a process of a node, runs it. These are started by `up`, the keeper and the
/// supervisor, with arguments that clap would take apart.
pub fn process(arguments: &[String]) -> Option<ExitCode> {
    let rest = || arguments.iter().skip(1).cloned();
    match arguments.first().map(String::as_str) {
        Some("keeper") => Some(supervisor::up::keeper_main(rest())),
        // `atoll supervisor restart` is somebody's who wants another one.
        Some("supervisor") if matches!(arguments.get(1).map(String::as_str), None | Some("--manifest" | "--set")) => {
            log_to_stderr();
            Some(supervisor::up::supervisor_main(rest()))
        }
        Some("spare") if arguments.len() == 2 => Some(spare()),
        Some("serve") if arguments.len() == 2 => {
            log_to_stderr();
            arguments.get(1).and_then(|name| component(name))
        }
        _ => None,
    }
}

/// Waits until the keeper needs a process, and is that.
fn spare() -> ExitCode {
    log_to_stderr();
    match supervisor::spare::wait() {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(arguments)) => match arguments.as_slice() {
            [serve, name] if serve == "serve" => component(name).unwrap_or_else(|| {
                eprintln!("error: this program has no component {name}");
                ExitCode::FAILURE
            }),
            other => {
                eprintln!("error: a spare cannot become {other:?}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a built-in component.
fn component(name: &str) -> Option<ExitCode> {
    match name {
        "block-file" => Some(component::run(drivers::block::serve)),
        "fs-server" => Some(component::run(fs_server::server::serve)),
        "net-host" => Some(component::run(net_server::serve)),
        BENCH_HOST => Some(bench::ipc::host::main()),
        "null" => Some(component::run(bench::ipc::component::serve)),
        "httpd" => Some(component::run(apps::httpd::server::serve)),
        _ => None,
    }
}

/// Log events go to standard error, which the supervisor captures and stamps with the time. `ATOLL_LOG` selects them.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ATOLL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}
