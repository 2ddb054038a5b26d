//! TLS towards the server: its SVID is verified by SPIFFE rules, host names play no part.

use std::sync::Arc;

use finial_daemon::keys::rustls_key;
use finial_identity::x509_svid::leaf_id;
use finial_identity::{SpiffeId, peer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1MLKEM768, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Identity, OwnSvid, Trust};

/// Hybrid key exchanges are for TLS 1.3.
const HYBRID_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];

/// TLS 1.2 or later, ALPN h2, X25519MLKEM768 offered first. With `require_pq_kem` TLS 1.3 and hybrid post-quantum key
/// exchanges only. No resumption: each connection verifies anew.
pub(super) fn client_config(identity: &Identity, own: Option<Arc<OwnSvid>>) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    let mut versions: &[_] = rustls::ALL_VERSIONS;
    if identity.require_pq_kem {
        provider.kx_groups = vec![X25519MLKEM768, SECP256R1MLKEM768];
        versions = HYBRID_VERSIONS;
    }
    let provider = Arc::new(provider);
    let verifier = Arc::new(ServerVerifier { identity: identity.clone(), provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        // The provider is aws-lc-rs itself, which has suites for both versions.
        .unwrap_or_else(|error| unreachable!("TLS 1.2 and 1.3 are supported: {error}"))
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => {
            let certified = CertifiedKey::new(own.svid.chain().to_vec(), rustls_key(&own.key));
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

struct ServerVerifier {
    identity: Identity,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for ServerVerifier {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        // The clock decides, so that virtual time holds for certificates too.
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id = match self.identity.trust() {
            Trust::FirstMet => leaf_id(end_entity).map_err(|error| refused(&error))?,
            Trust::Bundle(bundle) => {
                let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
                let authorities: Vec<&[u8]> =
                    bundle.x509_authorities.iter().map(|authority| authority.der.as_ref()).collect();
                let svid = peer::verify(&chain, &authorities, self.identity.clock.now())
                    .map_err(|error| refused(&error))?;
                svid.id().clone()
            }
        };
        self.must_be_the_server(&id)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerVerifier {
    fn must_be_the_server(&self, id: &SpiffeId) -> Result<(), Error> {
        let server = self.identity.trust_domain.server_id();
        if *id == server {
            return Ok(());
        }
        Err(Error::General(format!(
            "the peer is {id}, not the server {server}; check server_address, server_port and trust_domain"
        )))
    }
}

/// The text reaches the log through the dial error.
fn refused(error: &dyn std::error::Error) -> Error {
    Error::General(error.to_string())
}
