//! Who is a node of the cluster: `STATE/node/members/NAME`, a file each.
//!
//! On the node that has the authority's key this is the truth; on every other one it is what that one has said last.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use kernel_ipc::link::socket::keys::{FINGERPRINT_BYTES, NodeName, fingerprint};
use protocol::node::Member;
use serde::{Deserialize, Serialize};

use super::files::{self, hex, unhex};

/// The nodes that are written down in a directory.
#[derive(Clone, Debug)]
pub struct Members(PathBuf);

/// A node as it is written down.
#[derive(Serialize, Deserialize)]
struct Written {
    address: String,
    fingerprint: String,
    since_s: u64,
    until_s: u64,
    authority: bool,
}

impl Members {
    /// Those in this directory.
    pub fn at(directory: PathBuf) -> Members {
        Members(directory)
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// A file cannot be read, or is none of ours.
    pub fn all(&self) -> io::Result<Vec<Member>> {
        let names = self.names()?;
        let members = names.iter().map(|name| self.find(name));
        // One may be removed meanwhile.
        members.filter_map(io::Result::transpose).collect()
    }

    fn names(&self) -> io::Result<BTreeSet<NodeName>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.0)? {
            // What was not written to its end has a name that is none.
            names.extend(entry?.file_name().to_str().and_then(NodeName::new));
        }
        Ok(names)
    }

    /// The node of this name.
    ///
    /// # Errors
    /// Its file cannot be read, or is none of ours.
    pub fn find(&self, name: &NodeName) -> io::Result<Option<Member>> {
        let text = match fs::read(self.0.join(name.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let wrong = || io::Error::other(format!("what is written of node {name} makes no sense"));
        let Written { address, fingerprint, since_s, until_s, authority } =
            serde_json::from_slice(&text).map_err(|_| wrong())?;
        let fingerprint = unhex(&fingerprint).ok_or_else(wrong)?;
        let member = Member { name: name.to_string(), address, fingerprint, since_s, until_s, authority };
        if is_possible(&member) { Ok(Some(member)) } else { Err(wrong()) }
    }

    /// Whether this certificate (DER) is that of the node of this name.
    ///
    /// # Errors
    /// As [`find`](Members::find).
    pub fn has(&self, name: &NodeName, certificate: &[u8]) -> io::Result<bool> {
        Ok(self.find(name)?.is_some_and(|member| member.fingerprint == fingerprint(certificate)))
    }

    /// Writes a node down, in the place of one of its name. Durable when it returns.
    ///
    /// # Errors
    /// Of the system; its name is none.
    pub fn put(&self, member: &Member) -> io::Result<()> {
        let name = NodeName::new(&member.name).filter(|_| is_possible(member));
        let name = name.ok_or_else(|| io::Error::other("what is said of a node makes no sense"))?;
        let written = Written {
            address: member.address.clone(),
            fingerprint: hex(&member.fingerprint),
            since_s: member.since_s,
            until_s: member.until_s,
            authority: member.authority,
        };
        files::write(&self.0.join(name.as_str()), &serde_json::to_vec(&written)?)
    }

    /// Removes a node. False: there is none of this name.
    ///
    /// # Errors
    /// Of the system.
    pub fn remove(&self, name: &NodeName) -> io::Result<bool> {
        match files::remove(&self.0.join(name.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// Writes down that these are the nodes, and no others.
    ///
    /// # Errors
    /// As [`put`](Members::put).
    pub fn replace(&self, members: &[Member]) -> io::Result<()> {
        // By their names: what is written of one may be damaged.
        for known in self.names()? {
            if !members.iter().any(|member| member.name == known.as_str()) {
                self.remove(&known)?;
            }
        }
        members.iter().try_for_each(|member| self.put(member))
    }
}

/// The last second of the year 9999: as late as people can be told.
const LAST_S: u64 = 253_402_300_799;

/// Whether what somebody says of a node can be true.
pub fn is_possible(member: &Member) -> bool {
    NodeName::new(&member.name).is_some()
        && member.address.parse::<SocketAddr>().is_ok()
        && member.fingerprint.len() == FINGERPRINT_BYTES
        && member.since_s.max(member.until_s) <= LAST_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        let address = "10.0.0.1:7700".into();
        Member { name: name.into(), address, fingerprint: vec![1; 32], since_s: 4, until_s: 5, authority: false }
    }

    #[test]
    fn who_is_written_down_is_a_node_with_that_certificate_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let members = Members::at(directory.path().into());
        let name = NodeName::new("b").unwrap();
        members.put(&Member { fingerprint: fingerprint(b"its own").to_vec(), ..member("b") }).unwrap();
        assert!(members.has(&name, b"its own").unwrap() && !members.has(&name, b"another").unwrap());
        assert!(members.remove(&name).unwrap() && !members.has(&name, b"its own").unwrap());
        assert!(!members.remove(&name).unwrap());
        std::fs::write(directory.path().join("b"), "{}").unwrap();
        assert!(members.find(&name).unwrap_err().to_string().contains("node b"));
    }

    #[test]
    fn a_list_that_was_learnt_takes_the_place_of_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let members = Members::at(directory.path().into());
        members.replace(&[member("a"), member("c")]).unwrap();
        members.replace(&[member("b"), member("a")]).unwrap();
        assert_eq!(members.all().unwrap(), [member("a"), member("b")]);
        assert!(members.put(&member("../b")).is_err());
        // One that is damaged is replaced as well.
        std::fs::write(directory.path().join("a"), "{}").unwrap();
        members.replace(&[member("a")]).unwrap();
        assert_eq!(members.all().unwrap(), [member("a")]);
    }

    #[test]
    fn what_cannot_be_true_of_a_node_is_not_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let members = Members::at(directory.path().into());
        for impossible in [
            Member { name: "A".into(), ..member("a") },
            Member { address: "10.0.0.1".into(), ..member("a") },
            Member { fingerprint: vec![1; 31], ..member("a") },
            Member { since_s: u64::MAX, ..member("a") },
            Member { until_s: LAST_S + 1, ..member("a") },
        ] {
            assert!(members.put(&impossible).is_err(), "{impossible:?}");
        }
        assert_eq!(members.all().unwrap(), []);
    }
}
