//! An enterprise's own PKI: an offline root, and intermediates it gives away.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// A root with its key.
pub struct Enterprise {
    root: CertifiedIssuer<'static, KeyPair>,
    now: SystemTime,
}

/// The files that `UpstreamAuthority "disk"` reads.
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

impl Files {
    /// The server's configuration for them.
    pub fn stanza(&self) -> String {
        let Files { cert, key, bundle } = self;
        format!(
            "UpstreamAuthority \"disk\" {{ plugin_data {{
                cert_file_path = {cert:?}  key_file_path = {key:?}  bundle_file_path = {bundle:?}
            }} }}"
        )
    }
}

/// What kind of intermediate to give.
pub struct Intermediate {
    pub lifetime: Duration,
    pub path_len: Option<u8>,
}

impl Default for Intermediate {
    fn default() -> Intermediate {
        Intermediate { lifetime: Duration::from_secs(3 * 365 * 24 * 3600), path_len: None }
    }
}

impl Enterprise {
    /// A root that is valid from `now` for ten years.
    pub fn new(now: SystemTime) -> Enterprise {
        let params = authority("Enterprise Root", now, Duration::from_secs(10 * 365 * 24 * 3600), None);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Enterprise { root, now }
    }

    /// The root certificate, DER.
    pub fn root_der(&self) -> &[u8] {
        self.root.der()
    }

    /// Writes the root, and a new intermediate with its key, into `folder`.
    pub fn give(&self, folder: &Path, intermediate: &Intermediate) -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params =
            authority("Enterprise Intermediate", self.now, intermediate.lifetime, intermediate.path_len);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.root).unwrap();
        let files = Files {
            cert: folder.join("upstream.pem"),
            key: folder.join("upstream.key"),
            bundle: folder.join("root.pem"),
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.bundle, self.root.pem()).unwrap();
        files
    }

    /// Writes the root itself, with its key, into `folder`: what must not happen in an enterprise, and does.
    pub fn give_root(&self, folder: &Path) -> Files {
        let files = Files {
            cert: folder.join("upstream.pem"),
            key: folder.join("upstream.key"),
            bundle: folder.join("root.pem"),
        };
        std::fs::write(&files.cert, self.root.pem()).unwrap();
        std::fs::write(&files.key, self.root.key().serialize_pem()).unwrap();
        std::fs::write(&files.bundle, self.root.pem()).unwrap();
        files
    }
}

fn authority(name: &str, now: SystemTime, lifetime: Duration, path_len: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Enterprise");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + lifetime).into();
    params
}
