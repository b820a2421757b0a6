//! The `atoll` binary: every verb of the command line, and every built-in component.
//!
//! * Standard output has results, standard error messages; `--json` turns facts into JSON.
//! * Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing runs on the state directory.
//! * A verb that talks to a running system is a guest of it, with an operator's rights.
#![forbid(unsafe_code)]

mod args;
mod bar;
mod bench;
mod call;
mod chaos;
mod check;
mod cluster;
mod control;
mod crash;
mod demo;
mod explain;
mod fs;
mod hold;
mod init;
mod inside;
mod interface;
mod interrupt;
mod lab;
mod moving;
mod new;
mod node;
mod output;
mod serve;
mod simulate;
mod up;
mod upgrade;
mod why;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
use output::Failed;

fn main() -> ExitCode {
    // Not UTF-8 is no process of a node; clap says what is wrong with it.
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map_while(|argument| argument.into_string().ok()).collect();
    if let Some(code) = serve::process(&arguments) {
        return code;
    }
    let cli = Cli::parse();
    let done = match &cli.verb {
        Verb::Check { manifest, sets } => check::check(&cli.common, manifest, sets),
        Verb::Completions { shell } => completions(*shell),
        Verb::Init { directory } => init::init(&cli.common, directory),
        Verb::New(args::New::Component { name, kit }) => new::component(&cli.common, name, kit.as_deref()),
        Verb::Up(up) => up::up(&cli.common, up),
        Verb::Down => control::down(&cli.common),
        Verb::Ps { io } => control::ps(&cli.common, *io),
        Verb::Stuck(what) => inside::stuck::stuck(&cli.common, what),
        Verb::Stat(what) => inside::stat::stat(&cli.common, what),
        Verb::Capabilities(what) => inside::capabilities::capabilities(&cli.common, what),
        Verb::Trace(what) => inside::trace::trace(&cli.common, what),
        Verb::Upgrade { component, program } => upgrade::upgrade(&cli.common, component, program.as_deref()),
        Verb::Move { component, node, .. } => moving::dry_run(&cli.common, component, node),
        Verb::Restart { component } => hold::restart(&cli.common, component),
        Verb::Stop { component } => hold::stop(&cli.common, component),
        Verb::Start { component } => hold::start(&cli.common, component),
        Verb::Freeze { component } => hold::freeze(&cli.common, component),
        Verb::Thaw { component } => hold::thaw(&cli.common, component),
        Verb::Chaos(options) => chaos::chaos(&cli.common, options),
        Verb::Crash(what) => crash::crash(&cli.common, what),
        Verb::Demo(what) => demo::demo(&cli.common, what),
        Verb::Explain(what) => explain::explain(&cli.common, what),
        Verb::Logs { component } => control::logs(&cli.common, component.as_deref()),
        Verb::Supervisor(args::Supervisor::Restart) => control::replace_supervisor(&cli.common),
        Verb::Node(what) => cluster::node(&cli.common, what),
        Verb::Lab(what) => lab::lab(&cli.common, what),
        Verb::Fs(verb) => fs::run(&cli.common, verb),
        Verb::Interface { what } => interface::interface(&cli.common, what.as_ref()),
        Verb::Call(what) => call::call(&cli.common, what),
        Verb::Bench(what) => bench::bench(&cli.common, what),
        Verb::Simulate(what) => simulate::simulate(&cli.common, what),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => failed.report(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "atoll", &mut script);
    output::write(&script)
}
