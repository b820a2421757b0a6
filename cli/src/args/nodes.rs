//! The verbs that are about several nodes: `node` and `lab`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};
use supervisor::cluster::Ports;

use super::time;

#[derive(Clone, Debug, Subcommand)]
pub enum Node {
    /// Begin a new cluster: this is its first node, and has its authority's key
    Init {
        /// What the node is called: lower-case letters, digits and hyphens
        name: String,
        #[command(flatten)]
        listening: Listen,
    },
    /// Make a token, which lets one node in; only on the first node
    Token {
        /// How long it is good, for example 90s or 10m
        #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "10m")]
        duration: Duration,
    },
    /// Become a node of the cluster that made a token
    Join {
        /// Where the node that made it listens; its system has to be up
        #[arg(value_name = "ADDRESS:PORT")]
        address: SocketAddr,
        /// The token; `-` reads it from standard input, where nobody sees it
        token: String,
        /// What this node is called: lower-case letters, digits and hyphens
        #[arg(long)]
        name: String,
        #[command(flatten)]
        listening: Listen,
    },
    /// List the nodes of the cluster
    Ls,
    /// Take a node out of the cluster: nobody hears it any more; only on the first node
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Lab {
    /// Start both nodes, and what a manifest places on them, until Ctrl-C
    Up(LabUp),
    /// Run a command on one of the nodes: in its network, and with its state directory
    Exec {
        /// a or b
        #[arg(value_parser = ["a", "b"])]
        node: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Stop the lab that runs on this state directory, and remove what one that was killed has left behind
    Down,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The nodes are called a and b; their state directories are DIR/lab/a and DIR/lab/b. As root each is in a network namespace of its \
own, with a pair of devices between; otherwise both are on addresses of the loopback. With a delay, a rate or cuts, a relay is between them, \
which passes on streams: a cut ends all connections, and what was under way is lost.

  atoll lab up --delay 25 --cut-every 1000
  atoll lab exec b atoll fs put -r site /www      # by the operator of b, on the disk of a")]
pub struct LabUp {
    /// The manifest, with `place = \"node:a\"` or `\"node:b\"` of each component [default: the built-in systems/lab.toml]
    #[arg(value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,
    /// Override a configuration value, for example httpd.listen=127.0.0.1:0
    #[arg(long = "set", value_name = "COMPONENT.KEY=VALUE")]
    pub sets: Vec<String>,
    /// How long everything takes between the nodes, each way; a round trip takes twice that
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub delay: u64,
    /// How much is lost between the nodes; refused by this version
    #[arg(long, value_name = "PERCENT")]
    pub loss: Option<f64>,
    /// Bytes a second that pass between the nodes, each way [default: as many as come]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000_000))]
    pub rate: Option<u64>,
    /// Cut all connections between the nodes again and again, at this interval on average [default: never]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=86_400_000))]
    pub cut_every: Option<u64>,
    /// Decides when the cuts are
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Use addresses of the loopback also where namespaces can be had
    #[arg(long)]
    pub loopback: bool,
}

/// Where a node listens.
#[derive(Clone, Copy, Debug, Args)]
pub struct Listen {
    /// Where it listens, and others call it; one machine's own address, not that of all
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7700")]
    pub listen: SocketAddr,
    /// Its own address, if something between passes on what comes for the other one
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,
    /// Ports of its components, for example 7701-7763 [default: any that are free]
    #[arg(long, value_name = "FIRST-LAST")]
    pub ports: Option<Ports>,
}
