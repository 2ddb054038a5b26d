//! A CA that is its own root.

use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use finial_daemon::keys::Key;
use finial_identity::x509_svid::AuthorityCertificate;

use super::NewCa;
use super::issue::{self, IssueError, ReadBackFault};
use super::profile::Profiles;

/// A CA certificate for `key` that lasts `ca_ttl`.
pub(super) async fn make(profiles: &Profiles, key: &Key, now: SystemTime) -> Result<NewCa, IssueError> {
    let der = issue::self_signed_ca(profiles, key, now).await?;
    let certificate = AuthorityCertificate::read(&der).map_err(ReadBackFault::from)?;
    Ok(NewCa {
        ends: unix_seconds(certificate.not_after()),
        above: Vec::new(),
        roots: vec![der.clone()],
        der,
    })
}
