//! The page for Prometheus, over HTTP or HTTPS, on any path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::peer;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::leaf_id;
use futures::future::BoxFuture;
use http::StatusCode;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_util::sync::CancellationToken;

use super::prometheus::Registry;
use super::settings::{PrometheusSettings, PrometheusTls};
use crate::clock::Clock;
use crate::listen::{self, tls};
use crate::web::{self, Answer};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the program knows of itself and of others, for TLS. Asked anew at each handshake.
#[derive(Clone)]
pub struct SpiffeTls {
    /// The program's own SVID with its key, once there is one.
    pub svid: Arc<dyn Fn() -> Option<Arc<CertifiedKey>> + Send + Sync>,
    /// The X.509 authorities of a trust domain, DER; empty when it is unknown.
    pub authorities: Arc<AuthoritiesOf>,
}

/// Gives the X.509 authorities of a trust domain.
type AuthoritiesOf = dyn Fn(&TrustDomain) -> Vec<Vec<u8>> + Send + Sync;

/// Why TLS cannot be offered. Follows "failed to create TLS config for Prometheus: ".
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}; it must be PEM and readable", path.display())]
    File { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    #[error("the certificate in {} and the key in {} are not usable together: {source}", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("client_ca_file {}: {source}", path.display())]
    ClientCa { path: PathBuf, source: rustls::server::VerifierBuilderError },
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

pub(super) struct Pages {
    pub settings: PrometheusSettings,
    pub registry: Arc<Registry>,
    pub own: SpiffeTls,
    pub require_pq_kem: bool,
    pub clock: Clock,
}

impl Pages {
    /// The task that serves the page. An address that cannot be listened at is logged there, as in SPIRE: the program has
    /// better things to do than to stop for it.
    pub(super) fn open(self, stop: CancellationToken) -> Result<BoxFuture<'static, ()>, TlsError> {
        let tls = self.settings.tls.as_ref().map(|tls| self.tls(tls)).transpose()?;
        let Pages { settings: PrometheusSettings { host, port, .. }, registry, clock, .. } = self;
        if host != "localhost" {
            tracing::warn!(
                "Agent is now configured to accept remote network connections for Prometheus stats collection. Please \
                 ensure access to this port is tightly controlled"
            );
        }
        tracing::info!(host, port, "Starting prometheus exporter");
        Ok(Box::pin(async move {
            let listener = match web::bind(&host, port).await {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(%error, "Prometheus listener stopped unexpectedly");
                    return;
                }
            };
            let page = {
                let clock = clock.clone();
                move |_: &http::request::Parts| Answer {
                    status: StatusCode::OK,
                    content_type: CONTENT_TYPE,
                    body: registry.page(clock.monotonic()),
                }
            };
            web::serve(listen::tcp(listener), tls, Arc::new(page), clock, stop).await;
        }))
    }

    fn tls(&self, settings: &PrometheusTls) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(tls::provider(self.require_pq_kem));
        let shown: Arc<dyn ResolvesServerCert> = match &settings.files {
            Some((cert, key)) => Arc::new(from_files(cert, key, &provider)?),
            None => Arc::new(Own(self.own.clone())),
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(tls::versions(self.require_pq_kem))?;
        let builder = if !settings.authorized.is_empty() {
            builder.with_client_cert_verifier(Arc::new(Authorized {
                ids: settings.authorized.clone(),
                own: self.own.clone(),
                provider,
                clock: self.clock.clone(),
            }))
        } else if let Some(path) = &settings.client_ca_file {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|source| TlsError::ClientCa { path: path.clone(), source })?,
            )
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(shown);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each connection proves itself anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn from_files(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<SingleCertAndKey, TlsError> {
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| TlsError::File { path: key.to_owned(), source })?;
    let pair = CertifiedKey::from_der(chain, secret, provider);
    let unusable = |source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
    Ok(SingleCertAndKey::from(pair.map_err(unusable)?))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::File { path: path.to_owned(), source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let found = found.map_err(unreadable)?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

/// Shows the program's own SVID.
struct Own(SpiffeTls);

impl fmt::Debug for Own {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Own")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (self.0.svid)()
    }
}

/// Lets those in who have an SVID with one of the IDs.
struct Authorized {
    ids: Vec<SpiffeId>,
    own: SpiffeTls,
    provider: Arc<CryptoProvider>,
    clock: Clock,
}

impl fmt::Debug for Authorized {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Authorized").field(&self.ids).finish()
    }
}

impl ClientCertVerifier for Authorized {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The clock decides, so that virtual time holds for certificates too.
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = |error: &dyn fmt::Display| rustls::Error::General(error.to_string());
        let id = leaf_id(end_entity).map_err(|error| refused(&error))?;
        if !self.ids.contains(&id) {
            return Err(refused(&format_args!("unexpected ID {:?}", id.as_str())));
        }
        let authorities = (self.own.authorities)(&id.trust_domain());
        let authorities: Vec<&[u8]> = authorities.iter().map(Vec::as_slice).collect();
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        peer::verify(&chain, &authorities, self.clock.now()).map_err(|error| refused(&error))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for SpiffeTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SpiffeTls")
    }
}
