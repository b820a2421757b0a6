//! The programs of the components and of the node itself, which are all this binary.

use std::process::ExitCode;

/// If the command line asks for a process of a node, runs it. These are started by `up`, the keeper and the
/// supervisor, with arguments that clap would take apart.
pub fn process(arguments: &[String]) -> Option<ExitCode> {
    let rest = || arguments.iter().skip(1).cloned();
    match arguments.first().map(String::as_str) {
        Some("keeper") => Some(supervisor::up::keeper_main(rest())),
        Some("supervisor") => Some(supervisor::up::supervisor_main(rest())),
        Some("serve") if arguments.len() == 2 => arguments.get(1).and_then(|name| component(name)),
        _ => None,
    }
}

/// Runs a built-in component.
fn component(name: &str) -> Option<ExitCode> {
    use kernel_ipc::component::run;
    Some(match name {
        "block-file" => run(drivers::block::serve),
        "fs-server" => run(fs_server::server::serve),
        "net-host" => run(net_server::serve),
        "httpd" => run(apps::httpd::server::serve),
        _ => return None,
    })
}
