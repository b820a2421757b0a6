//! The first word of each side: a guest or component says hello, and the supervisor tells it all that it begins with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::link::socket::nodes::KnownNode;
use crate::{Epoch, Incarnation, LenderId, RegionId, Rights};

/// The supervisor's greeting: who this process is, and all that its manifest entry says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The component's name in the manifest, or the guest's.
    pub name: String,
    /// The node's name (`[system] name`).
    pub system: String,
    /// This run.
    pub incarnation: Incarnation,
    /// The epoch of this component's endpoints.
    pub epoch: Epoch,
    /// Names this run's ledger of leases.
    pub lender: LenderId,
    /// The first of [`REGIONS_PER_INCARNATION`] region ids that belong to this run.
    pub first_region: RegionId,
    /// Which entry of the status page is this component's.
    pub status_entry: u32,
    /// The state directory, absolute; also the working directory of components.
    pub state_dir: String,
    /// The manifest's `config`, with `--set` applied.
    pub config: Value,
    /// What this component's earlier runs reported, the latest of each: so that a run can go on where they were.
    #[serde(default)]
    pub reported: BTreeMap<String, Value>,
    /// The sessions that it may open.
    pub uses: Vec<UseInfo>,
    /// The endpoints that it must provide before it is ready.
    pub provides: Vec<ProvideInfo>,
    /// After so many milliseconds it refuses calls that it has not read ([`HostSession::refuse_after`](crate::session::HostSession::refuse_after)).
    #[serde(default)]
    pub refuse_after_ms: Option<u32>,
    /// How many reactors its sessions are spread over ([`Context::reactors`](crate::component::Context::reactors)).
    #[serde(default = "one")]
    pub reactors: u32,
    /// Dead runs of this component since one of it was ready.
    #[serde(default)]
    pub ancestors: Vec<Incarnation>,
    /// The number of the crash that ended the last run that was ready, until one is ready again.
    #[serde(default)]
    pub crash: Option<u64>,
    /// Runs of other components whose leases are inherited: dead ones that survive, and their next runs until they are ready.
    #[serde(default)]
    pub heirs: Vec<Incarnation>,
    /// By which it proves to other nodes who it is; absent: it has nothing to do with any.
    #[serde(default)]
    pub keys: Option<PartyKeys>,
    /// Its system is on several nodes: it may come to call others.
    #[serde(default)]
    pub is_in_cluster: bool,
    /// What the nodes are with which it has to do.
    #[serde(default)]
    pub nodes: Vec<(String, KnownNode)>,
    /// How many messages of the kinds `Heritage`, `Held`, `Recovers` and `AttachPins` follow at once: what its last run left.
    #[serde(default)]
    pub heritage: u32,
}

/// What one proves by who one is. All in DER, the key as PKCS #8.
#[derive(Clone, Serialize, Deserialize)]
pub struct PartyKeys {
    /// The authority's certificate.
    pub authority: Vec<u8>,
    /// One's own, then that of the node that has signed it.
    pub chain: Vec<Vec<u8>>,
    /// The key.
    pub key: Vec<u8>,
}

impl PartyKeys {
    /// The certificates, one's own first.
    pub fn chain(&self) -> Vec<&[u8]> {
        self.chain.iter().map(Vec::as_slice).collect()
    }
}

/// Without the key: it is in no message for debugging.
impl std::fmt::Debug for PartyKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartyKeys").finish_non_exhaustive()
    }
}

fn one() -> u32 {
    1
}

/// How many regions one run may publish.
pub const REGIONS_PER_INCARNATION: u64 = 1024;

/// A session that a component may open: one `uses.NAME` of its manifest entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UseInfo {
    /// What the component calls it.
    pub name: String,
    /// The endpoint, as `component.endpoint`.
    pub endpoint: String,
    /// Its interface, with version.
    pub interface: String,
    /// The rights of the root capability.
    pub rights: Rights,
}

/// An endpoint that a component provides: one `provides.NAME` of its manifest entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProvideInfo {
    /// The endpoint's name within the component.
    pub name: String,
    /// Its interface, with version.
    pub interface: String,
}
