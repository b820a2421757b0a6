//! Whom one talks to over a socket: certificates of one authority, which name nodes, and TLS 1.3 with them at both ends.
//!
//! - A node's certificate says its name as the DNS name `NAME.node.atoll`, that of a component of it `COMPONENT.NAME.node.atoll`, and no
//!   other name of that domain. Beside that it has to
//!   be one for both ends of TLS (RFC 5280, 4.2.1.12, if it says so at all), valid now, and signed by the authority. A client
//!   calls a node by name, and hears nobody else; a host hears nobody without such a certificate.
//! - Between a certificate and the authority's there may be one other, that of the node by which it was signed ([`Keys::chained`]).
//!   Who that was, [`issuer_of`] says: the chain that was shown has no other.
//! - Who has no keys yet, a newcomer, knows the authority by the fingerprint of its certificate ([`Keys::newcomer`]), and is heard
//!   only by a host that says so ([`Keys::answer_anyone`]).
//! - Both ends speak TLS 1.3 and no earlier version; no session is resumed and no early data is taken, so that what is said
//!   in one connection cannot be said again in another.

mod short;

use std::io;
use std::rc::Rc;
use std::sync::{Arc, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};

use short::Short;

/// What stands behind a node's name in its certificate.
const DOMAIN: &str = ".node.atoll";
/// The longest name of a node: a label of the domain name system (RFC 1035, 2.3.4).
pub const NAME_BYTES: usize = 63;

/// A node's name: 1 to 63 lower-case letters, digits and hyphens, no hyphen first or last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Rc<str>);

impl NodeName {
    /// The name, if it is one.
    pub fn new(name: &str) -> Option<NodeName> {
        let is_within = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(is_within);
        (is_name && !name.starts_with('-') && !name.ends_with('-')).then(|| NodeName(name.into()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it stands in a certificate.
    pub fn in_certificate(&self) -> String {
        format!("{}{DOMAIN}", self.0)
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who can be at an end of a connection: a node itself, or one of its components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The node.
    pub node: NodeName,
    /// The component; none: the node itself.
    pub component: Option<NodeName>,
}

impl Party {
    /// A component of a node; `None`: that is no name of one.
    pub fn component(node: NodeName, component: &str) -> Option<Party> {
        Some(Party { node, component: Some(NodeName::new(component)?) })
    }

    /// As it stands in a certificate.
    pub fn in_certificate(&self) -> String {
        let node = self.node.in_certificate();
        self.component.as_ref().map_or_else(|| node.clone(), |component| format!("{component}.{node}"))
    }
}

impl From<NodeName> for Party {
    fn from(node: NodeName) -> Party {
        Party { node, component: None }
    }
}

/// Why keys are of no use.
#[derive(Debug)]
pub enum BadKeys {
    /// What was given as the authority's certificate is none.
    Authority(rustls::Error),
    /// Certificate and key do not belong together, or one of them is none.
    Own(rustls::Error),
}

impl std::fmt::Display for BadKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadKeys::Authority(error) => write!(f, "the authority's certificate: {error}"),
            BadKeys::Own(error) => write!(f, "the node's own certificate and key: {error}"),
        }
    }
}

impl std::error::Error for BadKeys {}

/// Bytes of a [`fingerprint`].
pub const FINGERPRINT_BYTES: usize = 32;

/// What a certificate, or a secret, is known by: its SHA-256.
pub fn fingerprint(bytes: &[u8]) -> [u8; FINGERPRINT_BYTES] {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let hash = suite.common.hash_provider.hash(bytes);
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A node's keys. Clones are the same, also after they were [renewed](Keys::renew).
#[derive(Clone, Debug)]
pub struct Keys {
    client: Arc<ClientConfig>,
    /// `None`: a newcomer's, which nobody can call.
    host: Option<Host>,
    own: Arc<Own>,
}

/// The host's end, for those who prove who they are, and for everybody.
#[derive(Clone, Debug)]
struct Host {
    proven: Arc<ServerConfig>,
    anyone: Arc<ServerConfig>,
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Own(RwLock<Option<Arc<CertifiedKey>>>);

impl Keys {
    /// `authority`: the certificate that signs all nodes'. `certificate` and `key`: this node's own. All in DER (X.690),
    /// the key as PKCS #8.
    ///
    /// # Errors
    /// See [`BadKeys`]. Whether the authority has signed the certificate is seen by the other end.
    pub fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Keys, BadKeys> {
        Keys::chained(authority, &[certificate], key)
    }

    /// The same with the certificates between our own, the first of `chain`, and the authority's. Newcomers can call only who
    /// shows the authority's too, as the last.
    ///
    /// # Errors
    /// As [`new`](Keys::new).
    pub fn chained(authority: &[u8], chain: &[&[u8]], key: &[u8]) -> Result<Keys, BadKeys> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority).into_owned()).map_err(BadKeys::Authority)?;
        let roots = Arc::new(roots);
        let own = Arc::new(Own(RwLock::new(Some(certified(chain, key)?))));
        let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build();
        let server = server.map_err(|error| BadKeys::Authority(rustls::Error::General(error.to_string())))?;
        let clients = || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let failed =
            |error: rustls::server::VerifierBuilderError| BadKeys::Authority(rustls::Error::General(error.to_string()));
        let host = Host {
            proven: host_config(Arc::new(Short(clients().build().map_err(failed)?)), &own)?,
            anyone: host_config(Arc::new(Short(clients().allow_unauthenticated().build().map_err(failed)?)), &own)?,
        };
        Ok(Keys { client: client_config(Arc::new(Short(server)), &own)?, host: Some(host), own })
    }

    /// The keys of one that has none, and calls a node whose authority's certificate has this fingerprint.
    ///
    /// # Errors
    /// What the cryptography says.
    pub fn newcomer(authority: [u8; FINGERPRINT_BYTES]) -> Result<Keys, BadKeys> {
        let own = Arc::new(Own(RwLock::new(None)));
        let pinned = Arc::new(Short(Arc::new(Pinned { authority, provider: provider() })));
        Ok(Keys { client: client_config(pinned, &own)?, host: None, own })
    }

    /// Shows this certificate from now on, everywhere where these keys are used. Connections that there are go on.
    ///
    /// # Errors
    /// [`BadKeys::Own`].
    pub fn renew(&self, chain: &[&[u8]], key: &[u8]) -> Result<(), BadKeys> {
        let certified = certified(chain, key)?;
        *self.own.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(certified);
        Ok(())
    }

    /// The client's end of a connection to this party.
    pub(super) fn call(&self, party: &Party) -> io::Result<Connection> {
        let name = ServerName::try_from(party.in_certificate()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.client.clone(), name).map_err(io::Error::other)?;
        Ok(connection.into())
    }

    /// The host's end of a connection.
    pub(super) fn answer(&self) -> io::Result<Connection> {
        self.answer_with(|host| &host.proven)
    }

    /// The same for somebody who may have no certificate. One that is shown has to be good.
    pub(super) fn answer_anyone(&self) -> io::Result<Connection> {
        self.answer_with(|host| &host.anyone)
    }

    fn answer_with(&self, which: impl FnOnce(&Host) -> &Arc<ServerConfig>) -> io::Result<Connection> {
        let host = self.host.as_ref().ok_or_else(|| io::Error::other("a newcomer cannot be called"))?;
        Ok(ServerConnection::new(which(host).clone()).map_err(io::Error::other)?.into())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// A certificate, those above it, and the key.
fn certified(chain: &[&[u8]], key: &[u8]) -> Result<Arc<CertifiedKey>, BadKeys> {
    let chain = chain.iter().map(|certificate| CertificateDer::from(*certificate).into_owned()).collect();
    let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
    CertifiedKey::from_der(chain, key, &default_provider()).map(Arc::new).map_err(BadKeys::Own)
}

fn client_config(server: Arc<dyn ServerCertVerifier>, own: &Arc<Own>) -> Result<Arc<ClientConfig>, BadKeys> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(BadKeys::Own)?
        .dangerous()
        .with_custom_certificate_verifier(server)
        .with_client_cert_resolver(own.clone());
    config.resumption = Resumption::disabled();
    // A host has one certificate, and whom somebody calls is nobody else's business.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn host_config(clients: Arc<dyn ClientCertVerifier>, own: &Arc<Own>) -> Result<Arc<ServerConfig>, BadKeys> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(BadKeys::Own)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own.clone());
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl Own {
    fn now(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.now()
    }

    fn has_certs(&self) -> bool {
        self.now().is_some()
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.now()
    }
}

/// Believes the authority whose certificate has this fingerprint, which the host shows with its own.
#[derive(Debug)]
struct Pinned {
    authority: [u8; FINGERPRINT_BYTES],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::from(CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|shown| fingerprint(shown) == self.authority).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Which end's certificate is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The other end has not proven to be who was called.
    Theirs,
    /// The other end does not take ours.
    Ours,
}

/// Whether a connection came to nothing because one end does not believe the other.
pub fn doubt(error: &io::Error) -> Option<Doubt> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Some(Doubt::Theirs),
        rustls::Error::AlertReceived(alert) if is_about_certificates(*alert) => Some(Doubt::Ours),
        _ => None,
    }
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// The one certificate that the other end has shown beside its own: that of who signed it, if that was not the authority itself.
/// `None`: there is none, or there are several, and which of them it was nobody knows.
pub(super) fn issuer_of(connection: &Connection) -> Option<Rc<[u8]>> {
    match connection.peer_certificates()? {
        [_, issuer] => Some(issuer.as_ref().into()),
        _ => None,
    }
}

/// Whether the other end has shown a certificate at all.
pub(super) fn is_proven(connection: &Connection) -> bool {
    connection.peer_certificates().is_some()
}

/// Who the other end has proven to be; `None`: its certificate names nobody, or several.
pub(super) fn party_of(connection: &Connection) -> Option<Party> {
    let certificate = connection.peer_certificates()?.first()?;
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    // Also those that are none, such as wildcards: whoever compares names in another way might take them for one.
    let is_of_a_node = |name: &&str| name.to_ascii_lowercase().ends_with(DOMAIN);
    let mut names = certificate.valid_dns_names().filter(is_of_a_node);
    let name = names.next().filter(|_| names.next().is_none())?;
    let name = name.strip_suffix(DOMAIN)?;
    match name.rsplit_once('.') {
        None => Some(NodeName::new(name)?.into()),
        Some((component, node)) => Party::component(NodeName::new(node)?, component),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_labels() {
        for name in ["a", "node-b", "7", &"x".repeat(63)] {
            assert_eq!(NodeName::new(name).expect(name).in_certificate(), format!("{name}.node.atoll"));
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", "ä", " a", &"x".repeat(64)] {
            assert_eq!(NodeName::new(name), None, "{name:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(Keys::new(b"nonsense", b"", b""), Err(BadKeys::Authority(_))));
    }
}
