//! Chains of certificates that are no longer than ours, before anybody looks for a way through them.
//!
//! Whoever can connect can show a certificate and beside it any number that seem to have signed each other. Looking for a way from it
//! to the authority then takes a long time, of the one thread that everybody waits for, and no key is needed to cause it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Certificates above an end's own that it may show: its node's, and the authority's for newcomers.
const ABOVE: usize = 2;

/// Asks the verifier inside about such chains, and about no others.
#[derive(Debug)]
pub(super) struct Short<V: ?Sized>(pub(super) Arc<V>);

fn check(above: &[CertificateDer<'_>]) -> Result<(), Error> {
    match above.len() > ABOVE {
        true => Err(CertificateError::UnknownIssuer.into()),
        false => Ok(()),
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for Short<V> {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check(above)?;
        self.0.verify_client_cert(own, above, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for Short<V> {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check(above)?;
        self.0.verify_server_cert(own, above, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Believes everybody.
    #[derive(Debug)]
    struct Believes;

    impl ServerCertVerifier for Believes {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            Vec::new()
        }
    }

    #[test]
    fn nobody_is_asked_about_a_chain_that_is_longer_than_ours() {
        let short = Short(Arc::new(Believes));
        let name = ServerName::try_from("a.node.atoll").expect("a name");
        let certificate = || CertificateDer::from(vec![0]);
        let ask = |above: usize| {
            let above: Vec<_> = (0..above).map(|_| certificate()).collect();
            short.verify_server_cert(&certificate(), &above, &name, &[], UnixTime::now()).map(drop)
        };
        assert_eq!([ask(0), ask(1), ask(2)], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(ask(3), Err(CertificateError::UnknownIssuer.into()));
    }
}
