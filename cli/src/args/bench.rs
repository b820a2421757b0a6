//! The verbs of `atoll bench`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Calls: client stub, capability check and dispatcher beside a raw ping-pong
    Ipc {
        #[command(flatten)]
        options: BenchOptions,
        /// Compare where the server is instead: the same client and server over each place, beside its raw floor
        #[arg(long, value_enum)]
        place: Option<BenchPlace>,
        /// Compare a server on one thread instead with one on so many, each called by as many clients
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=64), conflicts_with = "place")]
        reactors: Option<u32>,
    },
    /// Blocks through the driver beside the same reads made directly
    Block(BenchOptions),
    /// Requests a second over HTTP beside a server that only answers from memory
    Http(BenchOptions),
    /// Calls answered in time while up to ten times as many come as a host can serve, with early refusal and without
    Overload(BenchOptions),
    /// From a component's death to the first answered call, beside the start of a process
    Recovery {
        /// Kills of each component
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        kills: u64,
        /// Files that are open when the file server dies
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=15_000))]
        files: u64,
        /// Keep the raw figures under bench/runs, with machine and date
        #[arg(long)]
        save: bool,
    },
}

/// Where the server of a measurement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPlace {
    /// In its client's thread
    InProcess,
    /// In another process, over shared memory
    Process,
    /// At the other end of a TCP connection through loopback, in the clear
    Socket,
    /// The same over TLS 1.3
    SocketEncrypted,
    /// All of these, one after the other
    All,
}

#[derive(Clone, Debug, Args)]
pub struct BenchOptions {
    /// Seconds for each measurement
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Keep the raw figures under bench/runs, with machine and date
    #[arg(long)]
    pub save: bool,
}
