//! What a node keeps in its state directory, readable for nobody else (0700, 0600):
//!
//! ```text
//! STATE/node/facts            its name, its address, the node that let it in
//! STATE/node/key              its private key (PKCS #8)
//! STATE/node/certificate      its certificate (X.509, DER, as all of them), signed by the authority
//! STATE/node/authority        the authority's
//! STATE/node/authority-key    the authority's private key: on the first node only
//! STATE/node/members/NAME     a node of the cluster (`super::members`)
//! STATE/node/tokens/HASH      a token (`super::token`), likewise
//! ```
//! The directory is there whole or not at all.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel_ipc::link::socket::keys::{BadKeys, Keys, NodeName, fingerprint};
use protocol::node::Member;
use serde::{Deserialize, Serialize};

use super::authority::{self, Certified, NODE_FOR};
use super::files;
use super::listening::Listening;
use super::members::Members;
use super::seconds;
use super::token::{Token, Tokens};

/// Of the form of these files.
const VERSION: u32 = 1;

/// What a node keeps of being one.
#[derive(Clone, Debug)]
pub struct Home {
    directory: PathBuf,
    name: NodeName,
    listening: Listening,
    by: Option<(NodeName, SocketAddr)>,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    version: u32,
    name: String,
    #[serde(flatten)]
    listening: Listening,
    /// The node that has let this one in, and its address; of the first node none.
    by: Option<(String, SocketAddr)>,
}

/// Why a state directory is not the node that it should be.
#[derive(Debug)]
pub enum HomeError {
    /// It is one already.
    AlreadyANode(NodeName),
    /// It is none.
    NoNode,
    /// It has not the authority's key: what was asked can be done on this node.
    NotTheAuthority(NodeName),
    /// It has the authority's key: without it there is no cluster.
    Itself(NodeName),
    /// A file is damaged, or of another version. Names it.
    Damaged(PathBuf),
    /// The keys that are there do not fit together.
    Keys(BadKeys),
    /// A certificate cannot be made.
    Signing(rcgen::Error),
    /// Others could not call this address: it is none of one machine, or has no port.
    Address(SocketAddr),
    /// A file cannot be read or written. Names it.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for HomeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HomeError::AlreadyANode(name) => write!(f, "this state directory is node {name} of a cluster already"),
            HomeError::NoNode => f.write_str("this state directory is no node of a cluster"),
            HomeError::NotTheAuthority(node) => {
                write!(f, "this node has not the key of the cluster's authority: ask node {node}")
            }
            HomeError::Itself(node) => {
                write!(f, "node {node} has the key of the cluster's authority: without it there is no cluster")
            }
            HomeError::Damaged(path) => write!(f, "{} is damaged, or was written by another release", path.display()),
            HomeError::Keys(error) => write!(f, "the keys of this node: {error}"),
            HomeError::Signing(error) => write!(f, "a certificate cannot be made: {error}"),
            HomeError::Address(address) => {
                write!(f, "other nodes cannot call {address}: give the address of one machine, and a port")
            }
            HomeError::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for HomeError {}

/// Where it is in a state directory.
fn directory(state: &Path) -> PathBuf {
    state.join("node")
}

/// Whether others can call an address.
pub fn is_address(address: SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

impl Home {
    /// The node that this state directory is; `None`: it is no node of a cluster.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn find(state: &Path) -> Result<Option<Home>, HomeError> {
        let directory = directory(state);
        let path = directory.join("facts");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(HomeError::Io(path, error)),
            Ok(text) => text,
        };
        let facts = serde_json::from_slice::<Facts>(&text).ok().filter(|facts| facts.version == VERSION);
        let home = facts.and_then(|Facts { name, listening, by, .. }| {
            let by = match by {
                Some((name, address)) => Some((NodeName::new(&name)?, address)),
                None => None,
            };
            Some(Home { directory, name: NodeName::new(&name)?, listening, by })
        });
        home.map(Some).ok_or(HomeError::Damaged(path))
    }

    /// The same; it has to be one.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn open(state: &Path) -> Result<Home, HomeError> {
        Home::find(state)?.ok_or(HomeError::NoNode)
    }

    /// Makes a state directory the first node of a new cluster.
    ///
    /// # Errors
    /// See [`HomeError`]; nothing is left behind.
    pub fn init(state: &Path, name: &NodeName, listening: impl Into<Listening>) -> Result<Home, HomeError> {
        let listening = listening.into();
        if !is_address(listening.address) {
            return Err(HomeError::Address(listening.address));
        }
        let now = SystemTime::now();
        let authority = authority::new_authority(now).map_err(HomeError::Signing)?;
        let key = authority::new_key().map_err(HomeError::Signing)?;
        let public_key = authority::public_key(&key).map_err(HomeError::Signing)?;
        let until = now + NODE_FOR;
        let certificate = authority::sign_node(&authority.key, name, &public_key, now, until);
        let certificate = certificate.map_err(HomeError::Signing)?;
        let itself = Member {
            name: name.to_string(),
            address: listening.address.to_string(),
            fingerprint: fingerprint(&certificate).to_vec(),
            since_s: seconds(now),
            until_s: seconds(until),
            authority: true,
        };
        let own = Certified { certificate, key };
        let authority_key = Some(authority.key.as_slice());
        Home::settle(state, name, listening, None, &own, &authority.certificate, authority_key, &[itself])
    }

    /// Makes a state directory the node that another one has let in.
    ///
    /// # Errors
    /// See [`HomeError`]; nothing is left behind.
    pub(super) fn move_in(
        state: &Path,
        (name, listening): (&NodeName, Listening),
        by: (NodeName, SocketAddr),
        own: &Certified,
        authority: &[u8],
        members: &[Member],
    ) -> Result<Home, HomeError> {
        Home::settle(state, name, listening, Some(by), own, authority, None, members)
    }

    #[expect(clippy::too_many_arguments, reason = "each is a file")]
    fn settle(
        state: &Path,
        name: &NodeName,
        listening: Listening,
        by: Option<(NodeName, SocketAddr)>,
        own: &Certified,
        authority: &[u8],
        authority_key: Option<&[u8]>,
        members: &[Member],
    ) -> Result<Home, HomeError> {
        if let Some(home) = Home::find(state)? {
            return Err(HomeError::AlreadyANode(home.name));
        }
        let (at, new) = (directory(state), state.join("node.new"));
        let failed = |error| HomeError::Io(new.clone(), error);
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        for below in ["members", "tokens"] {
            files::make_directory(&new.join(below)).map_err(failed)?;
        }
        let facts = Facts {
            version: VERSION,
            name: name.to_string(),
            listening,
            by: by.as_ref().map(|(name, address)| (name.to_string(), *address)),
        };
        let facts = serde_json::to_vec(&facts).expect("it has text and numbers only");
        let mut contents = vec![
            ("facts", facts.as_slice()),
            ("key", &own.key),
            ("certificate", &own.certificate),
            ("authority", authority),
        ];
        contents.extend(authority_key.map(|key| ("authority-key", key)));
        for (file, bytes) in contents {
            files::write(&new.join(file), bytes).map_err(failed)?;
        }
        let moved = Members::at(new.join("members")).replace(members).and_then(|()| files::rename(&new, &at));
        // A key that is of no use is not left lying about.
        moved.inspect_err(|_| drop(fs::remove_dir_all(&new))).map_err(|error| HomeError::Io(at.clone(), error))?;
        Ok(Home { directory: at, name: name.clone(), listening, by })
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Where it listens, and others call it.
    pub fn listening(&self) -> Listening {
        self.listening
    }

    /// The node that has let it in, and its address; `None`: it is the first, and has the authority's key.
    pub fn let_in_by(&self) -> Option<&(NodeName, SocketAddr)> {
        self.by.as_ref()
    }

    /// The nodes of the cluster, as far as this one knows.
    pub fn members(&self) -> Members {
        Members::at(self.directory.join("members"))
    }

    /// All of them.
    ///
    /// # Errors
    /// A file cannot be read, or is damaged.
    pub fn known(&self) -> Result<Vec<Member>, HomeError> {
        self.members().all().map_err(|error| HomeError::Io(self.directory.join("members"), error))
    }

    /// The node of this name, as far as this one knows.
    ///
    /// # Errors
    /// As [`known`](Home::known).
    pub fn find_member(&self, name: &NodeName) -> Result<Option<Member>, HomeError> {
        self.members().find(name).map_err(|error| HomeError::Io(self.directory.join("members"), error))
    }

    /// Writes down that these are the nodes, as the node that has the authority's key says.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn learn(&self, members: &[Member]) -> Result<(), HomeError> {
        let learnt = self.members().replace(members);
        learnt.map_err(|error| HomeError::Io(self.directory.join("members"), error))
    }

    /// Removes a node from the cluster: nobody hears it any more. False: there is none of this name.
    ///
    /// # Errors
    /// [`HomeError::NotTheAuthority`]; [`HomeError::Itself`]; a file cannot be changed.
    pub fn remove(&self, name: &NodeName) -> Result<bool, HomeError> {
        self.check_authority()?;
        if *name == self.name {
            return Err(HomeError::Itself(name.clone()));
        }
        let failed = |error| HomeError::Io(self.directory.join("members"), error);
        // Or it would be let in again by the token that it had.
        if let Some(member) = self.members().find(name).map_err(failed)? {
            let forgotten = self.tokens().forget(&member.fingerprint);
            forgotten.map_err(|error| HomeError::Io(self.directory.join("tokens"), error))?;
        }
        self.members().remove(name).map_err(failed)
    }

    /// The tokens that it has made.
    pub fn tokens(&self) -> Tokens {
        Tokens::at(self.directory.join("tokens"))
    }

    /// Makes a token that lets one node in until `until`.
    ///
    /// # Errors
    /// [`HomeError::NotTheAuthority`], or of a file.
    pub fn new_token(&self, now: SystemTime, until: SystemTime) -> Result<Token, HomeError> {
        self.check_authority()?;
        let authority = fingerprint(&self.authority()?);
        let secret = self.tokens().make(now, until);
        let secret = secret.map_err(|error| HomeError::Io(self.directory.join("tokens"), error))?;
        Ok(Token { node: self.name.clone(), authority, secret })
    }

    /// Whether this node may let others in and remove them.
    ///
    /// # Errors
    /// [`HomeError::NotTheAuthority`] says who may.
    pub fn check_authority(&self) -> Result<(), HomeError> {
        self.by.as_ref().map_or(Ok(()), |(node, _)| Err(HomeError::NotTheAuthority(node.clone())))
    }

    /// Its certificate.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate(&self) -> Result<Vec<u8>, HomeError> {
        self.read("certificate")
    }

    /// The authority's certificate.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn authority(&self) -> Result<Vec<u8>, HomeError> {
        self.read("authority")
    }

    /// Signs the certificate of a newcomer.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub(super) fn sign(
        &self,
        name: &NodeName,
        public_key: &[u8],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Vec<u8>, HomeError> {
        self.check_authority()?;
        let key = self.read("authority-key")?;
        authority::sign_node(&key, name, public_key, now, now + lifetime).map_err(HomeError::Signing)
    }

    /// The first node signs its own certificate anew when half of its time has passed: nobody else could, and with it all would end.
    /// Says whether it did.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn renew_itself(&self, now: SystemTime) -> Result<bool, HomeError> {
        if self.by.is_some() {
            return Ok(false);
        }
        let members = self.members();
        let failed = |error| HomeError::Io(self.directory.join("members"), error);
        let Some(known) = members.find(&self.name).map_err(failed)? else { return Ok(false) };
        let until = seconds(now + NODE_FOR);
        if known.until_s > seconds(now + NODE_FOR / 2) && known.until_s <= until {
            return Ok(false);
        }
        let public_key = authority::public_key(&self.read("key")?).map_err(HomeError::Signing)?;
        let certificate = self.sign(&self.name, &public_key, now, NODE_FOR)?;
        let path = self.directory.join("certificate");
        files::write(&path, &certificate).map_err(|error| HomeError::Io(path, error))?;
        // Last: until it is written down that this was done, it is done again.
        let itself = Member { fingerprint: fingerprint(&certificate).to_vec(), until_s: until, ..known };
        members.put(&itself).map_err(failed)?;
        Ok(true)
    }

    /// A new certificate of its own supervisor or of one of its components, with its key.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn issue(&self, component: Option<&str>) -> Result<Certified, HomeError> {
        let key = self.read("key")?;
        authority::issue(&key, &self.name, component, SystemTime::now()).map_err(HomeError::Signing)
    }

    /// Keys by which it calls others.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn keys(&self) -> Result<Keys, HomeError> {
        let (own, node, authority) = (self.issue(None)?, self.certificate()?, self.authority()?);
        Keys::chained(&authority, &[&own.certificate, &node], &own.key).map_err(HomeError::Keys)
    }

    /// The same for others to call.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn host_keys(&self) -> Result<Keys, HomeError> {
        let (own, shown) = self.shown()?;
        let shown: Vec<&[u8]> = shown.iter().map(Vec::as_slice).collect();
        Keys::chained(&self.authority()?, &shown, &own).map_err(HomeError::Keys)
    }

    /// A new key, and the certificates that those are shown who call. Where newcomers are let in they have to see the authority's;
    /// elsewhere there are two, so that it is plain which one has signed the first.
    fn shown(&self) -> Result<(Vec<u8>, Vec<Vec<u8>>), HomeError> {
        let own = self.issue(None)?;
        let mut shown = vec![own.certificate, self.certificate()?];
        if self.by.is_none() {
            shown.push(self.authority()?);
        }
        Ok((own.key, shown))
    }

    /// Gives keys by which it calls others a new certificate before the last one ends.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn renew_keys(&self, keys: &Keys) -> Result<(), HomeError> {
        let (own, node) = (self.issue(None)?, self.certificate()?);
        keys.renew(&[&own.certificate, &node], &own.key).map_err(HomeError::Keys)
    }

    /// The same for keys by which it is called.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn renew_host_keys(&self, keys: &Keys) -> Result<(), HomeError> {
        let (own, shown) = self.shown()?;
        let shown: Vec<&[u8]> = shown.iter().map(Vec::as_slice).collect();
        keys.renew(&shown, &own).map_err(HomeError::Keys)
    }

    fn read(&self, file: &str) -> Result<Vec<u8>, HomeError> {
        let path = self.directory.join(file);
        fs::read(&path).map_err(|error| HomeError::Io(path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_renews_its_own_certificate_when_half_of_its_time_has_passed() {
        let state = tempfile::tempdir().unwrap();
        let name = NodeName::new("a").unwrap();
        let listen: SocketAddr = "127.0.0.1:7700".parse().unwrap();
        let home = Home::init(state.path(), &name, listen).unwrap();
        let (now, before) = (SystemTime::now(), home.certificate().unwrap());
        assert!(!home.renew_itself(now).unwrap() && home.certificate().unwrap() == before);
        let later = now + NODE_FOR / 2 + Duration::from_secs(60);
        assert!(home.renew_itself(later).unwrap() && !home.renew_itself(later).unwrap());
        let after = home.certificate().unwrap();
        assert_ne!(after, before);
        assert!(home.members().has(&name, &after).unwrap() && !home.members().has(&name, &before).unwrap());
        assert_eq!(home.known().unwrap()[0].until_s, seconds(later + NODE_FOR));
        // Its name is still its own, and what it signs is good.
        home.host_keys().unwrap();
        // The clock is set back.
        assert!(home.renew_itself(now).unwrap());
        assert_eq!(home.known().unwrap()[0].until_s, seconds(now + NODE_FOR));
    }
}
