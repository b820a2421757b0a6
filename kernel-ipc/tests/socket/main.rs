//! Sessions over sockets, and the bytes of leases beside them.

mod authority;
mod awaited;
mod bulk;
#[path = "../common/mod.rs"]
mod common;
mod dependent;
mod ends;
mod greetings;
mod lost;
mod peers;
mod relay;
mod rest;
mod secured;
mod world;

#[global_allocator]
static ALLOCATOR: common::allocations::Counting = common::allocations::Counting;
