//! Clusters: which nodes there are, how they know each other, and how a machine becomes one of them.
//!
//! - A node is known by a certificate that the cluster's authority has signed for its name ([`authority`]). By it the node signs
//!   short-lived ones for itself and its components. The authority's key is on the first node and leaves it never.
//! - A newcomer brings a token ([`token`]) that the first node has made: it says who the authority is, so that the newcomer
//!   believes nobody else, and holds a secret that lets one node in, once, for a while.
//! - What a node keeps of this is in its state directory ([`home`]). Who is a node is written there too ([`members`]): a
//!   certificate alone makes nobody one, and who is removed is none, whatever it can show.
//! - Nodes speak `atoll.node/1` over TLS 1.3 ([`desk`] answers, [`join`] and [`Neighbour`] ask).

pub mod authority;
pub mod desk;
pub mod directory;
mod files;
pub mod home;
pub mod join;
pub mod listening;
pub mod members;
mod neighbour;
pub mod token;

pub use home::{Home, HomeError};
pub use listening::{Listening, Ports};
pub use neighbour::{Neighbour, NeighbourError, plain};

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
