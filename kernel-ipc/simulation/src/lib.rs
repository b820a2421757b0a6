//! The simulation: sessions, links, resume and ledgers, as they are shipped, run in one thread on simulated time, while a seed
//! decides in which order everything happens and what goes wrong; what comes of it is held against a model of effects.
//!
//! `docs/simulation.md` says what is real in it and what is not. A seed replays: `SEED=7 cargo test -p simulation replay`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "nobody outside calls more than `run`")]

mod client;
mod host;
mod model;
mod plan;
mod process;
mod random;
mod service;
mod sum;
mod trace;
mod world;

pub use kernel_ipc::runtime::simulated::UnusedRing;
pub use sum::Sum;
pub use trace::Trace;
pub use world::{Report, run};

/// Whether hosts and clients can die inside of a turn: builds with debug assertions have steps for that, others let them die
/// between two turns only.
pub const HAS_STEPS: bool = kernel_ipc::steps::ARE_THERE;
