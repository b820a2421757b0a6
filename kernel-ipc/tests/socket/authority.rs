//! A cluster's authority, and the keys of its nodes.

use kernel_ipc::link::socket::keys::{Keys, NodeName};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("a name")
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    pub fn certificate(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// A certificate for these names, and its key.
    pub fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Vec<u8>) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate").der().to_vec(), key.serialize_der())
    }

    pub fn keys(&self, name: &str) -> Keys {
        self.keys_of(&[&node(name).in_certificate()], |_| {})
    }

    pub fn keys_of(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Keys {
        let (certificate, key) = self.sign(names, change);
        Keys::new(&self.certificate(), &certificate, &key).expect("keys")
    }
}
