//! Identifiers of a node: 64-bit numbers that the supervisor deals out and never deals out twice.
//!
//! - An identifier names one *incarnation* of a thing: a component that is started again is a new [`Incarnation`],
//!   its region a new [`RegionId`], so a name that somebody kept can never mean the successor.
//! - Zero is never dealt out; in shared memory it means "none".

use serde::{Deserialize, Serialize};

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number, as it is stored in segments and messages.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

identifiers! {
    /// One run of one component or guest.
    Incarnation;
    /// One session between a client and an endpoint, of one epoch.
    SessionId;
    /// One region object: one piece of shared memory of one epoch of its writer.
    RegionId;
    /// One lender's ledger. Whoever lost its ledger is a new lender.
    LenderId;
    /// Incarnation number of an endpoint: 1, 2, …; rises at each restart and move.
    Epoch;
}

/// What sets the incarnations of clients on other nodes apart: nobody counts so far.
const BEYOND: u64 = 1 << 63;

impl LenderId {
    /// Whoever lends what has [arrived](crate::lease::Arrivals) in this process: nobody, for it came as bytes. Never dealt out.
    pub const ARRIVED: LenderId = LenderId(u64::MAX);
}

/// And this sets apart hosts there, to which a client here lends, from clients there, to which a host here does.
const HOST: u64 = 1 << 62;

impl Incarnation {
    /// Whether this is a client on another node, which the supervisor here knows nothing of.
    pub fn is_beyond(self) -> bool {
        self.0 & BEYOND != 0
    }

    /// The one with this number that is.
    pub fn beyond(number: u64) -> Incarnation {
        Incarnation(number | BEYOND)
    }

    /// The host, on another node, of the session of this process that has this number here.
    pub fn host_beyond(number: u64) -> Incarnation {
        Incarnation(number | HOST | BEYOND)
    }
}
