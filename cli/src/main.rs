//! The `atoll` binary: every verb of the command line, and every built-in component.
//!
//! * Standard output has results, standard error messages; `--json` turns facts into JSON.
//! * Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing runs on the state directory.
//! * A verb that talks to a running system is a guest of it, with an operator's rights.
#![forbid(unsafe_code)]

mod args;
mod check;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
use output::Failed;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.verb {
        Verb::Check { manifest, sets } => check::check(&cli.common, manifest, sets),
        Verb::Completions { shell } => completions(*shell),
        _ => Err(Failed::new("not built yet")),
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
