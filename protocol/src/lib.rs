//! The interfaces of the kit, one file each. No logic: types, operations, errors, and the checks
//! that turn foreign bytes into values.
//!
//! * Numbers (operations, errors, enum values, rights) are explicit and never change meaning.
//!   Inside one interface an error number means the same in every operation.
//! * Lengths are bytes, positions are bytes or 4-KiB blocks as their names say, times are
//!   nanoseconds since the Unix epoch.
//! * A client sees `Cap<Object>` and `Lease`, a handler `Granted<Object>`, `NewCap<Object>` and
//!   `Lend`; both come from one trait per interface.
//! * `released/` holds what each interface was when it was last released: what programs out there were built with.
#![forbid(unsafe_code)]

use kernel_ipc::interface::Description;

pub mod block;
pub mod control;
pub mod fs;
pub mod net;
pub mod node;
pub mod null;

/// An interface of the kit.
#[derive(Debug)]
pub struct Known {
    /// What it is now.
    pub description: &'static Description,
    /// What it was when it was last released, as JSON of a
    /// [`described::Interface`](kernel_ipc::described::Interface).
    pub released: &'static str,
}

/// All of them.
pub static INTERFACES: [Known; 6] = [
    Known { description: &block::DESCRIPTION, released: include_str!("../released/block.json") },
    Known { description: &fs::DESCRIPTION, released: include_str!("../released/fs.json") },
    Known { description: &net::DESCRIPTION, released: include_str!("../released/net.json") },
    Known { description: &control::DESCRIPTION, released: include_str!("../released/control.json") },
    Known { description: &node::DESCRIPTION, released: include_str!("../released/node.json") },
    Known { description: &null::DESCRIPTION, released: include_str!("../released/null.json") },
];
