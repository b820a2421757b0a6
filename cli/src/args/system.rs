//! The verbs about which system there is: what is made, started, changed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Subcommand)]
pub enum New {
    /// A component of your own and a client of it: a Cargo project in a new directory, and a manifest that runs it
    Component {
        /// Its name: the directory's, the component's and its interface's
        name: String,
        /// The checkout of Atoll with whose kit it is built [default: the one from which this program was built]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        kit: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Up {
    /// The manifest [default: ./atoll.toml if it is there, or the built-in systems/web.toml]
    #[arg(value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,
    /// Override a configuration value, for example httpd.listen=127.0.0.1:0
    #[arg(long = "set", value_name = "COMPONENT.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Return when everything is ready, and leave the system running
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It shows what becomes of each component and why, and asks whether to go ahead, if there is a terminal to ask. The values that `atoll up \
--set` has set stay set. Whatever dies meanwhile, the system has either manifest, whole.")]
pub struct Apply {
    /// The manifest [default: ./atoll.toml]
    #[arg(value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
