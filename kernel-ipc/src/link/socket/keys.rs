//! Whom one talks to over a socket: certificates of one authority, which name nodes, and TLS 1.3 with them at both ends.
//!
//! - A node's certificate says its name as the DNS name `NAME.node.atoll`, and no other name of that domain. Beside that it has to
//!   be one for both ends of TLS (RFC 5280, 4.2.1.12, if it says so at all), valid now, and signed by the authority. A client
//!   calls a node by name, and hears nobody else; a host hears nobody without such a certificate.
//! - Both ends speak TLS 1.3 and no earlier version; no session is resumed and no early data is taken, so that what is said
//!   in one connection cannot be said again in another.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

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

/// A node's keys. Clones are the same.
#[derive(Clone, Debug)]
pub struct Keys {
    client: Arc<ClientConfig>,
    host: Arc<ServerConfig>,
}

impl Keys {
    /// `authority`: the certificate that signs all nodes'. `certificate` and `key`: this node's own. All in DER (X.690),
    /// the key as PKCS #8.
    ///
    /// # Errors
    /// See [`BadKeys`]. Whether the authority has signed the certificate is seen by the other end.
    pub fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Keys, BadKeys> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority).into_owned()).map_err(BadKeys::Authority)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let chain = || vec![CertificateDer::from(certificate).into_owned()];
        let own = || PrivateKeyDer::Pkcs8(key.to_vec().into());

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(BadKeys::Own)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain(), own())
            .map_err(BadKeys::Own)?;
        client.resumption = Resumption::disabled();
        // A host has one certificate, and whom somebody calls is nobody else's business.
        client.enable_sni = false;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| BadKeys::Authority(rustls::Error::General(error.to_string())))?;
        let mut host = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(BadKeys::Own)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain(), own())
            .map_err(BadKeys::Own)?;
        host.session_storage = Arc::new(NoServerSessionStorage {});
        host.send_tls13_tickets = 0;
        Ok(Keys { client: Arc::new(client), host: Arc::new(host) })
    }

    /// The client's end of a connection to this node.
    pub(super) fn call(&self, node: &NodeName) -> io::Result<Connection> {
        let name = ServerName::try_from(node.in_certificate()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.client.clone(), name).map_err(io::Error::other)?;
        Ok(connection.into())
    }

    /// The host's end of a connection.
    pub(super) fn answer(&self) -> io::Result<Connection> {
        Ok(ServerConnection::new(self.host.clone()).map_err(io::Error::other)?.into())
    }
}

/// The node that the other end has proven to be; `None`: its certificate names none, or several.
pub(super) fn node_of(connection: &Connection) -> Option<NodeName> {
    let certificate = connection.peer_certificates()?.first()?;
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    // Also those that are none, such as wildcards: whoever compares names in another way might take them for one.
    let is_of_a_node = |name: &&str| name.to_ascii_lowercase().ends_with(DOMAIN);
    let mut names = certificate.valid_dns_names().filter(is_of_a_node);
    let name = names.next().filter(|_| names.next().is_none())?;
    NodeName::new(name.strip_suffix(DOMAIN)?)
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
