//! Is a chain of CA certificates one that may stand above SVIDs? Used for what upstream authorities give us, for what an
//! operator put into files, and for what the journal remembers.

use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use finial_identity::x509_svid::{AuthorityCertificate, Malformed};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Which certificate of a check is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Of the chain, from 0.
    Chain(usize),
    /// Of the trusted certificates, from 0.
    Root(usize),
}

/// Why a chain can not be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChainFault {
    #[error("there is no certificate")]
    Empty,
    #[error("the {0} can not be read: {1}")]
    Malformed(Place, Malformed),
    #[error("the {0} ({1}) is not a CA certificate that may sign (it needs the CA flag and keyCertSign)")]
    NotCa(Place, String),
    #[error("the {0} ({1}) is not valid before {2}")]
    NotYetValid(Place, String, String),
    #[error("the {0} ({1}) expired at {2}")]
    Expired(Place, String, String),
    #[error(
        "the {0} was not signed by the one after it; they have to follow each other from the signing certificate up"
    )]
    Order(Place),
    #[error("the {0} ({1}) has path length {2}, but {3} CA certificates would stand below it")]
    PathLength(Place, String, u64, usize),
    #[error("the {0} ({1}) was signed by none of the trusted certificates")]
    NotAnchored(Place, String),
}

impl ChainFault {
    /// The certificate at fault.
    pub fn place(&self) -> Place {
        match self {
            ChainFault::Empty => Place::Chain(0),
            ChainFault::Malformed(place, _)
            | ChainFault::NotCa(place, _)
            | ChainFault::NotYetValid(place, ..)
            | ChainFault::Expired(place, ..)
            | ChainFault::Order(place)
            | ChainFault::PathLength(place, ..)
            | ChainFault::NotAnchored(place, _) => *place,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (number, of) = match self {
            Place::Chain(index) => (index + 1, "the chain"),
            Place::Root(index) => (index + 1, "the trusted certificates"),
        };
        write!(f, "certificate {number} of {of}")
    }
}

/// A chain that holds up to a trusted certificate.
#[derive(Clone, Debug)]
pub struct Anchored {
    /// The chain's certificates, the signing one first.
    pub certificates: Vec<AuthorityCertificate>,
    /// Which of the trusted certificates holds it.
    pub root: usize,
    /// Unix seconds at which the first certificate ends, the trusted one included.
    pub ends: i64,
}

/// Checks that every certificate of `chain` is a valid CA, that each was signed by the next and the last by one of
/// `roots` (or is one of them), and that every path length leaves room for the CAs below it, of which there are `below`
/// more under the first.
pub fn check<C: AsRef<[u8]>, R: AsRef<[u8]>>(
    chain: &[C],
    roots: &[R],
    below: usize,
    now: SystemTime,
) -> Result<Anchored, ChainFault> {
    let mut certificates = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let place = Place::Chain(index);
        let certificate =
            AuthorityCertificate::read(der.as_ref()).map_err(|fault| ChainFault::Malformed(place, fault))?;
        check_one(&certificate, place, below + index, now)?;
        certificates.push(certificate);
    }
    for (index, pair) in certificates.windows(2).enumerate() {
        if !follows(&pair[0], &pair[1]) {
            return Err(ChainFault::Order(Place::Chain(index)));
        }
    }
    let top = certificates.last().ok_or(ChainFault::Empty)?;
    let top_der = chain[chain.len() - 1].as_ref();
    let (root, root_ends) = find_root(top, top_der, roots, below + chain.len(), now)?
        .ok_or_else(|| ChainFault::NotAnchored(Place::Chain(chain.len() - 1), subject_text(top)))?;
    let ends = certificates.iter().map(|certificate| unix_seconds(certificate.not_after())).min();
    Ok(Anchored { root, ends: ends.unwrap_or(root_ends).min(root_ends), certificates })
}

/// Unix seconds as people read them.
pub fn at(unix: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(unix).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| format!("unix time {unix}"))
}

/// The subject of a certificate as people read it.
pub fn subject_text(certificate: &AuthorityCertificate) -> String {
    use x509_cert::der::Decode;
    x509_cert::name::Name::from_der(certificate.subject_der())
        .map(|name| name.to_string())
        .unwrap_or_else(|_| "unreadable subject".to_owned())
}

fn check_one(
    certificate: &AuthorityCertificate,
    place: Place,
    below: usize,
    now: SystemTime,
) -> Result<(), ChainFault> {
    let name = || subject_text(certificate);
    if !certificate.can_sign() {
        return Err(ChainFault::NotCa(place, name()));
    }
    if now < certificate.not_before() {
        return Err(ChainFault::NotYetValid(place, name(), at(unix_seconds(certificate.not_before()))));
    }
    if now >= certificate.not_after() {
        return Err(ChainFault::Expired(place, name(), at(unix_seconds(certificate.not_after()))));
    }
    match certificate.path_len() {
        Some(length) if length < below as u64 => Err(ChainFault::PathLength(place, name(), length, below)),
        _ => Ok(()),
    }
}

fn follows(lower: &AuthorityCertificate, upper: &AuthorityCertificate) -> bool {
    lower.issuer_der() == upper.subject_der() && lower.was_signed_by(upper)
}

/// Among the trusted certificates that hold `top` the one that lasts longest, and its end. When the only ones that would
/// hold it have a fault, that fault.
fn find_root<R: AsRef<[u8]>>(
    top: &AuthorityCertificate,
    top_der: &[u8],
    roots: &[R],
    below: usize,
    now: SystemTime,
) -> Result<Option<(usize, i64)>, ChainFault> {
    let mut best: Option<(usize, i64)> = None;
    let mut fault = None;
    for (index, der) in roots.iter().enumerate() {
        let place = Place::Root(index);
        let Ok(root) = AuthorityCertificate::read(der.as_ref()) else { continue };
        let itself = der.as_ref() == top_der;
        if !itself && !follows(top, &root) {
            continue;
        }
        match check_one(&root, place, if itself { below - 1 } else { below }, now) {
            Err(found) => fault = Some(found),
            Ok(()) => {
                let ends = unix_seconds(root.not_after());
                if best.is_none_or(|(_, longest)| ends > longest) {
                    best = Some((index, ends));
                }
            }
        }
    }
    match (best, fault) {
        (None, Some(fault)) => Err(fault),
        (best, _) => Ok(best),
    }
}
