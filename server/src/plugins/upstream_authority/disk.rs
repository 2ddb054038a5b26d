//! `UpstreamAuthority "disk"`: an enterprise CA's certificate and key in PEM files, with SPIRE's configuration keys.
//!
//! The files are read anew for each CA, so that replacing them is all an operator has to do. They are checked as a whole
//! before anything is signed; nothing is remembered from an earlier, better state of the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use finial_daemon::clock::Clock;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::csr::{CsrError, VerifiedCsr};
use finial_identity::trust_domain::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Core, MintedCa, UpstreamAuthority, UpstreamError};
use crate::authority::chain::{self, ChainFault, Place};
use crate::authority::issue::{FileKey, FileKeyFault, IssueError, UpstreamKey, upstream_signed_ca};

/// Why the files can not be used. Each names the file, the cause and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    #[error("{setting} {} can not be read: {cause}; make it readable for the server's user", path.display())]
    Unreadable { setting: &'static str, path: PathBuf, cause: std::io::Error },
    #[error("{setting} {} holds no certificate in PEM form; put the CA certificate there", path.display())]
    NoCertificate { setting: &'static str, path: PathBuf },
    #[error("key_file_path {} can not be used: {fault}; put the CA's unencrypted private key there", path.display())]
    Key { path: PathBuf, fault: FileKeyFault },
    #[error(
        "the private key in {} does not belong to the first certificate in {}; replace one so that they match, the CA's own \
         certificate first",
        key.display(), certificate.display()
    )]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error(
        "cert_file_path {} holds an intermediate or more than one certificate, but bundle_file_path is not set; set it to a \
         file with the root certificates",
        path.display()
    )]
    BundleNeeded { path: PathBuf },
    #[error("{setting} {}: {fault}; {advice}", path.display())]
    Chain { setting: &'static str, path: PathBuf, fault: Box<ChainFault>, advice: &'static str },
    #[error("the CSR can not be used: {0}")]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Issue(#[from] Box<IssueError>),
    #[error("the task that read the files was cut off")]
    CutOff,
}

/// Reads `cert_file_path`, `key_file_path` and `bundle_file_path`. The files themselves are read when a CA is needed.
pub(super) fn build(section: Section, core: Core) -> Result<Arc<dyn UpstreamAuthority>, SettingsError> {
    let files = Files {
        certificate: section.require_string("cert_file_path").into(),
        key: section.require_string("key_file_path").into(),
        bundle: section.string("bundle_file_path").filter(|path| !path.is_empty()).map(PathBuf::from),
    };
    section.finish()?;
    Ok(Arc::new(Disk { files, trust_domain: core.trust_domain, clock: core.clock }))
}

struct Disk {
    files: Files,
    trust_domain: TrustDomain,
    clock: Clock,
}

#[async_trait]
impl UpstreamAuthority for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    async fn mint_x509_ca(&self, csr: &[u8], preferred_ttl: Duration) -> Result<MintedCa, UpstreamError> {
        Ok(self.mint(csr, preferred_ttl).await?)
    }

    async fn check(&self) -> Result<(), UpstreamError> {
        self.load().await?;
        Ok(())
    }
}

impl Disk {
    async fn mint(&self, csr: &[u8], preferred_ttl: Duration) -> Result<MintedCa, DiskFault> {
        let csr = VerifiedCsr::from_der(csr)?;
        let Loaded { key, above, roots } = self.load().await?;
        let ca = upstream_signed_ca(&key, &self.trust_domain, &csr, preferred_ttl, self.clock.now())
            .map_err(Box::new)?;
        Ok(MintedCa { chain: std::iter::once(ca).chain(above).collect(), roots })
    }

    async fn load(&self) -> Result<Loaded, DiskFault> {
        let (files, now) = (self.files.clone(), self.clock.now());
        tokio::task::spawn_blocking(move || files.load(now)).await.map_err(|_| DiskFault::CutOff)?
    }
}

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    bundle: Option<PathBuf>,
}

struct Loaded {
    key: UpstreamKey,
    /// What stands between our CA and the roots, the signing certificate first.
    above: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Files {
    fn load(&self, now: SystemTime) -> Result<Loaded, DiskFault> {
        let certificates = read_certificates("cert_file_path", &self.certificate)?;
        let key = read("key_file_path", &self.key)?;
        let key =
            FileKey::from_pem(&key).map_err(|fault| DiskFault::Key { path: self.key.clone(), fault })?;
        let roots = match &self.bundle {
            Some(path) => read_certificates("bundle_file_path", path)?,
            // Without a bundle the certificate has to be the root itself.
            None if certificates.len() == 1 => certificates.clone(),
            None => return Err(DiskFault::BundleNeeded { path: self.certificate.clone() }),
        };
        // Our own CA will stand below the first of them.
        let anchored = chain::check(&certificates, &roots, 1, now).map_err(|fault| self.name(fault))?;
        let [signing, ..] = anchored.certificates.as_slice() else {
            return Err(self.name(ChainFault::Empty));
        };
        if self.bundle.is_none() && !signing.is_self_signed() {
            return Err(DiskFault::BundleNeeded { path: self.certificate.clone() });
        }
        let key = UpstreamKey::new(key, signing.clone(), anchored.ends).map_err(|_| DiskFault::Mismatch {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
        })?;
        let above = if self.bundle.is_some() { certificates } else { Vec::new() };
        Ok(Loaded { key, above, roots })
    }

    /// Which file a fault of the chain lies in, and what to do about it.
    fn name(&self, fault: ChainFault) -> DiskFault {
        let (setting, path) = match (fault.place(), &self.bundle) {
            (Place::Root(_), Some(bundle)) => ("bundle_file_path", bundle),
            _ => ("cert_file_path", &self.certificate),
        };
        let advice = match &fault {
            ChainFault::Expired(..) => "have it renewed and replace the file",
            ChainFault::NotYetValid(..) => "compare the clocks, or wait",
            ChainFault::Order(_) => "write the signing certificate first and then each one's issuer",
            ChainFault::PathLength(..) => {
                "ask for a CA certificate whose path length leaves room for this server's CA"
            }
            ChainFault::NotAnchored(..) => {
                "put every intermediate into cert_file_path, and the root into bundle_file_path"
            }
            ChainFault::NotCa(..) | ChainFault::Malformed(..) | ChainFault::Empty => {
                "replace it with a CA certificate"
            }
        };
        DiskFault::Chain { setting, path: path.clone(), fault: Box::new(fault), advice }
    }
}

fn read(setting: &'static str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, DiskFault> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(zeroize::Zeroizing::new(bytes)),
        Err(cause) => Err(DiskFault::Unreadable { setting, path: path.to_owned(), cause }),
    }
}

fn read_certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, DiskFault> {
    let pem = read(setting, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(DiskFault::NoCertificate { setting, path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
