//! The certificates of a cluster.
//!
//! ```text
//! authority        signs itself; signs nodes. ECDSA P-256, as all of them
//!   └ NAME         a node's: signs names below NAME.node.atoll and no others (RFC 5280, 4.2.1.10), for a year
//!       └ leaf     NAME.node.atoll (the node's supervisor) or COMPONENT.NAME.node.atoll (a run of a component), for a day
//! ```
//! A node that is not honest can so be itself and its own components, and nobody else.

use std::time::{Duration, SystemTime};

use kernel_ipc::link::socket::keys::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};

/// How long a node's certificate is good.
pub const NODE_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long that of a supervisor or a component's run is good. It is renewed when half of that has passed.
pub const LEAF_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long the authority's is good.
const AUTHORITY_FOR: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Two machines' clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(3600);

/// The name in the authority's certificate. Clusters are told apart by keys, not by it.
const AUTHORITY: &str = "Atoll authority";

/// Bytes of a public key: an uncompressed point of P-256 (SEC 1, 2.3.3).
const POINT_BYTES: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// A certificate and its key, both DER (X.690), the key as PKCS #8.
#[derive(Clone)]
pub struct Certified {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// The key. Nobody but its owner may have it.
    pub key: Vec<u8>,
}

/// A key that nobody has had.
///
/// # Errors
/// The system has no random bytes.
pub fn new_key() -> Result<Vec<u8>, rcgen::Error> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_der())
}

/// The public part of a key.
///
/// # Errors
/// It is no key.
pub fn public_key(key: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
    Ok(KeyPair::try_from(key)?.der_bytes().to_vec())
}

/// Whether these bytes have the form of a public key. Whether there is such a point, the first handshake shows.
pub fn is_public_key(bytes: &[u8]) -> bool {
    bytes.len() == POINT_BYTES && bytes[0] == UNCOMPRESSED
}

/// A new authority.
///
/// # Errors
/// What the cryptography says.
pub fn new_authority(now: SystemTime) -> Result<Certified, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = of_authority();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.not_before = (now - SKEW).into();
    params.not_after = (now + AUTHORITY_FOR).into();
    let certificate = params.self_signed(&key)?.der().to_vec();
    Ok(Certified { certificate, key: key.serialize_der() })
}

/// The certificate of the node `name` that has `public_key`, good until `until`.
///
/// # Errors
/// The authority's key is none.
pub fn sign_node(
    authority_key: &[u8],
    name: &NodeName,
    public_key: &[u8],
    now: SystemTime,
    until: SystemTime,
) -> Result<Vec<u8>, rcgen::Error> {
    let authority = Issuer::new(of_authority(), KeyPair::try_from(authority_key)?);
    let mut params = of_node(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let below = vec![GeneralSubtree::DnsName(name.in_certificate())];
    params.name_constraints = Some(NameConstraints { permitted_subtrees: below, excluded_subtrees: Vec::new() });
    params.not_before = (now.min(until) - SKEW).into();
    params.not_after = until.into();
    Ok(params.signed_by(&Point(public_key), &authority)?.der().to_vec())
}

/// A certificate and a new key for the supervisor of the node `name`, or for a run of a `component` of it.
///
/// # Errors
/// The node's key is none.
pub fn issue(
    node_key: &[u8],
    name: &NodeName,
    component: Option<&str>,
    now: SystemTime,
) -> Result<Certified, rcgen::Error> {
    let of_node = name.in_certificate();
    let subject = component.map_or_else(|| of_node.clone(), |component| format!("{component}.{of_node}"));
    issue_for(node_key, name, &subject, now)
}

/// The same for any name: others believe it only if it is the node's own, or below that.
///
/// # Errors
/// As [`issue`].
pub fn issue_for(node_key: &[u8], name: &NodeName, subject: &str, now: SystemTime) -> Result<Certified, rcgen::Error> {
    let node = Issuer::new(of_node(name), KeyPair::try_from(node_key)?);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![subject.to_owned()])?;
    params.distinguished_name = named(subject);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LEAF_FOR).into();
    let certificate = params.signed_by(&key, &node)?.der().to_vec();
    Ok(Certified { certificate, key: key.serialize_der() })
}

fn of_authority() -> CertificateParams {
    signing(AUTHORITY)
}

fn of_node(name: &NodeName) -> CertificateParams {
    signing(&name.in_certificate())
}

/// Who signs, as those who are signed have to name it.
fn signing(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// Somebody else's public key.
struct Point<'a>(&'a [u8]);

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
