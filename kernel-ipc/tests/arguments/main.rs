//! Leases as arguments: what a client lends to its host, which finds it whatever carries their session.

#[path = "../socket/authority.rs"]
mod authority;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod hostile;
#[path = "../socket/relay.rs"]
mod relay;
mod socket;
mod steps;
mod world;
