//! The message-passing core of Atoll: sessions, capabilities, regions and leases, and the runtime that serves them.
//!
//! It knows nothing of disks, files or the TCP/IP of applications. Unsafe code and raw system calls live in
//! [`sys`]; everything else is plain or `async` code over it.
#![deny(unsafe_code)]

// What `#[interface]` writes names this crate by its path, in its own tests too.
extern crate self as kernel_ipc;

pub mod broker;
pub mod capability;
pub mod codec;
pub mod component;
pub mod described;
pub mod error;
pub mod events;
pub mod formats;
pub mod id;
pub mod interface;
pub mod lease;
pub mod ledger;
pub mod link;
pub mod logbook;
pub mod rights;
pub mod runtime;
pub mod session;
pub mod slots;
pub mod steps;
pub mod sys;
pub mod trace;
pub mod wire;

pub use error::{CallError, Cause, Executed, Failure};
pub use id::{Epoch, Incarnation, LenderId, RegionId, SessionId};
pub use rights::Rights;
pub use runtime::block_on_current as blocking;
pub use wire::{Handle, LeaseName};
