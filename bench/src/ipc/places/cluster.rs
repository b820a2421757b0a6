//! Two nodes of one authority, for one measurement: nobody else has their keys, and they are gone with it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use kernel_ipc::link::socket::keys::{Keys, NodeName};
use kernel_ipc::sys::segment;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::{Deserialize, Serialize};

/// What a node has to prove who it is; all in DER.
#[derive(Serialize, Deserialize)]
pub(in crate::ipc) struct Identity {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    pub fn keys(&self) -> io::Result<Keys> {
        Keys::new(&self.authority, &self.certificate, &self.key).map_err(io::Error::other)
    }

    /// As it is handed to another process.
    pub fn to_memory(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(segment::memfd("bench-keys")?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into())
    }

    /// What [`to_memory`](Self::to_memory) has written.
    pub fn from_memory(memory: OwnedFd) -> io::Result<Identity> {
        let (mut file, mut text) = (File::from(memory), Vec::new());
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

pub(super) struct Cluster {
    pub client: Identity,
    pub host: Identity,
}

impl Cluster {
    pub fn new() -> io::Result<Cluster> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = KeyPair::generate().and_then(|key| CertifiedIssuer::self_signed(params, key));
        let authority = authority.map_err(io::Error::other)?;
        let node = |name: NodeName| {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new([name.in_certificate()])?.signed_by(&key, &authority)?;
            let (authority, certificate) = (authority.der().to_vec(), certificate.der().to_vec());
            Ok::<_, rcgen::Error>(Identity { authority, certificate, key: key.serialize_der() })
        };
        let named = |name| NodeName::new(name).expect("a name");
        let client = node(named("client")).map_err(io::Error::other)?;
        Ok(Cluster { client, host: node(Self::host_name()).map_err(io::Error::other)? })
    }

    pub fn host_name() -> NodeName {
        NodeName::new("host").expect("a name")
    }
}
