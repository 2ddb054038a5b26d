//! Finding and judging the paths from any certificate to trusted roots: what Go's `x509.Verify` does when it is given roots,
//! intermediates and "any extended key usage".
//!
//! The certificates need not be SVIDs. Paths are looked for by name and signature here, all of them, because what is above a
//! certificate may be looked at by the caller. Each path that was found is then judged by webpki, with only its own root for
//! an anchor; what webpki leaves out (the validity, the CA flag, the key usage and the path length limit of roots and
//! intermediates) is added.
//!
//! Known gaps against Go: six intermediates at most; a CA certificate cannot be the end of a path unless it is trusted
//! itself; name constraints for URIs are refused; signatures are SHA-2 only, RSA has 2048 to 8192 bits, and P-224 signs
//! nothing.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use crate::certificate::Malformed;
use crate::peer::AnyUsage;
use crate::signature::ACCEPTED;
use crate::x509_svid::AuthorityCertificate;

/// How many signatures are checked for one certificate, as in Go.
const MOST_SIGNATURES: usize = 100;
/// How many intermediates webpki accepts in a path.
const MOST_INTERMEDIATES: usize = 6;

/// A certificate that may be part of a path.
#[derive(Clone, Debug)]
pub struct Link {
    der: CertificateDer<'static>,
    certificate: AuthorityCertificate,
}

/// Why no path is good. The texts begin as those of Go's crypto/x509.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("x509: certificate signed by unknown authority")]
    UnknownAuthority,
    #[error("x509: certificate has expired or is not yet valid: {0} has expired")]
    Expired(&'static str),
    #[error("x509: certificate has expired or is not yet valid: {0} is not yet valid")]
    NotYetValid(&'static str),
    #[error("x509: invalid signature: parent certificate cannot sign this kind of certificate")]
    CannotSign,
    #[error("x509: too many intermediates for path length constraint")]
    TooLong,
    #[error(
        "x509: a root or intermediate certificate is not authorized to sign for this name: it has a name constraint that excludes it, or one for URIs, which Finial does not support"
    )]
    NameConstraint,
    #[error("x509: signature check attempts limit reached while verifying certificate chain")]
    TooManySignatures,
    #[error("x509: unhandled critical extension")]
    CriticalExtension,
    #[error("x509: the path cannot be verified: {0}")]
    Path(String),
}

impl Link {
    /// Reads one DER certificate. Does not judge it.
    pub fn read(der: &[u8]) -> Result<Link, Malformed> {
        Ok(Link { certificate: AuthorityCertificate::read(der)?, der: CertificateDer::from(der.to_vec()) })
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    fn is_same_holder(&self, other: &Link) -> bool {
        self.certificate.subject_der() == other.certificate.subject_der()
            && self.certificate.public_key_der() == other.certificate.public_key_der()
    }
}

/// All good paths from `leaf` to `roots`: at least one. Each holds what stands above the leaf, its issuer first and the root
/// last; a leaf that is one of the roots has one empty path.
pub fn verify<'a>(
    leaf: &'a Link,
    intermediates: &'a [Link],
    roots: &'a [Link],
    now: SystemTime,
) -> Result<Vec<Vec<&'a Link>>, ChainError> {
    check_validity(leaf, "the certificate", now)?;
    if roots.iter().any(|root| root.der == leaf.der) {
        return Ok(vec![Vec::new()]);
    }
    let mut search = Search {
        leaf,
        intermediates,
        roots,
        now,
        checked: HashMap::new(),
        signatures: 0,
        good: Vec::new(),
        first_fault: None,
    };
    match search.extend(&mut Vec::new()) {
        Ok(()) if search.good.is_empty() => Err(search.first_fault.unwrap_or(ChainError::UnknownAuthority)),
        // Paths that were found before the limit was reached stand.
        Err(limit) if search.good.is_empty() => Err(limit),
        Ok(()) | Err(_) => Ok(search.good),
    }
}

struct Search<'a> {
    leaf: &'a Link,
    intermediates: &'a [Link],
    roots: &'a [Link],
    now: SystemTime,
    /// By the addresses of child and signer.
    checked: HashMap<(*const Link, *const Link), bool>,
    signatures: usize,
    good: Vec<Vec<&'a Link>>,
    first_fault: Option<ChainError>,
}

impl<'a> Search<'a> {
    /// Tries each signer of the last link of `path` (or of the leaf). Ends early only at the limit.
    fn extend(&mut self, path: &mut Vec<&'a Link>) -> Result<(), ChainError> {
        let (intermediates, roots) = (self.intermediates, self.roots);
        for root in roots {
            if self.may_follow(path, root)? {
                path.push(root);
                let verdict = self.judge(path);
                path.pop();
                match verdict {
                    Ok(good) => self.good.push(good),
                    Err(ChainError::TooManySignatures) => return Err(ChainError::TooManySignatures),
                    Err(fault) => {
                        self.first_fault.get_or_insert(fault);
                    }
                }
            }
        }
        if path.len() == MOST_INTERMEDIATES {
            return Ok(());
        }
        for intermediate in intermediates {
            if self.may_follow(path, intermediate)? {
                path.push(intermediate);
                let ended = self.extend(path);
                path.pop();
                ended?;
            }
        }
        Ok(())
    }

    fn may_follow(&mut self, path: &[&'a Link], signer: &'a Link) -> Result<bool, ChainError> {
        let child = path.last().copied().unwrap_or(self.leaf);
        if child.certificate.issuer_der() != signer.certificate.subject_der()
            || signer.is_same_holder(self.leaf)
            || path.iter().any(|link| link.is_same_holder(signer))
        {
            return Ok(false);
        }
        let pair = (std::ptr::from_ref(child), std::ptr::from_ref(signer));
        if let Some(known) = self.checked.get(&pair) {
            return Ok(*known);
        }
        self.spend(1)?;
        let signed = child.certificate.was_signed_by(&signer.certificate);
        self.checked.insert(pair, signed);
        Ok(signed)
    }

    fn spend(&mut self, signatures: usize) -> Result<(), ChainError> {
        self.signatures += signatures;
        if self.signatures > MOST_SIGNATURES { Err(ChainError::TooManySignatures) } else { Ok(()) }
    }

    /// Judges a path whose signatures hold.
    fn judge(&mut self, path: &[&'a Link]) -> Result<Vec<&'a Link>, ChainError> {
        let Some((root, intermediates)) = path.split_last() else { return Err(ChainError::UnknownAuthority) };
        for (below, link) in path.iter().enumerate() {
            let name = if below == intermediates.len() { "its root" } else { "an intermediate" };
            check_validity(link, name, self.now)?;
            if !link.certificate.can_sign() {
                return Err(ChainError::CannotSign);
            }
            if link.certificate.path_len().is_some_and(|limit| below as u64 > limit) {
                return Err(ChainError::TooLong);
            }
        }
        self.spend(path.len())?;
        let path_error = |error: webpki::Error| match error {
            webpki::Error::NameConstraintViolation => ChainError::NameConstraint,
            webpki::Error::UnsupportedCriticalExtension => ChainError::CriticalExtension,
            other => ChainError::Path(other.to_string()),
        };
        let anchor = webpki::anchor_from_trusted_cert(&root.der).map_err(path_error)?;
        let end = EndEntityCert::try_from(&self.leaf.der).map_err(path_error)?;
        let between: Vec<CertificateDer<'_>> = intermediates.iter().map(|link| link.der.clone()).collect();
        let since_epoch = self.now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        end.verify_for_usage(
            ACCEPTED,
            &[anchor],
            &between,
            UnixTime::since_unix_epoch(since_epoch),
            AnyUsage,
            None,
            None,
        )
        .map_err(path_error)?;
        Ok(path.to_vec())
    }
}

fn check_validity(link: &Link, name: &'static str, now: SystemTime) -> Result<(), ChainError> {
    if now < link.certificate.not_before() {
        Err(ChainError::NotYetValid(name))
    } else if now > link.certificate.not_after() {
        Err(ChainError::Expired(name))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    };

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn params(name: &str, ca: Option<BasicConstraints>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = at(1_000_000).into();
        params.not_after = at(2_000_000).into();
        if let Some(limit) = ca {
            params.is_ca = IsCa::Ca(limit);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }
        params
    }

    fn root(name: &str) -> Ca {
        let params = params(name, Some(BasicConstraints::Unconstrained));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn below(parent: &Ca, params: CertificateParams, key: KeyPair) -> Ca {
        CertifiedIssuer::signed_by(params, key, parent).unwrap()
    }

    fn ca(parent: &Ca, name: &str) -> Ca {
        below(parent, params(name, Some(BasicConstraints::Unconstrained)), KeyPair::generate().unwrap())
    }

    fn leaf(parent: &Ca) -> Link {
        link(&below(parent, params("leaf", None), KeyPair::generate().unwrap()))
    }

    fn link(certificate: &Ca) -> Link {
        Link::read(certificate.der()).unwrap()
    }

    fn names(paths: &[Vec<&Link>]) -> Vec<usize> {
        paths.iter().map(Vec::len).collect()
    }

    #[test]
    fn paths_of_each_length_are_found() {
        let top = root("root");
        let mut signer = ca(&top, "ca 0");
        let mut between = vec![link(&signer)];
        assert_eq!(names(&verify(&leaf(&top), &[], &[link(&top)], at(1_500_000)).unwrap()), [1]);
        for depth in 1..=MOST_INTERMEDIATES {
            let leaf = leaf(&signer);
            let found =
                verify(&leaf, &between, std::slice::from_ref(&link(&top)), at(1_500_000)).map(|p| names(&p));
            assert_eq!(found, Ok(vec![depth + 1]), "{depth}");
            let missing =
                verify(&leaf, &between[..depth - 1], &[link(&top)], at(1_500_000)).map(|p| names(&p));
            assert_eq!(missing, Err(ChainError::UnknownAuthority), "{depth}");
            signer = ca(&signer, &format!("ca {depth}"));
            between.push(link(&signer));
        }
        let too_deep = verify(&leaf(&signer), &between, &[link(&top)], at(1_500_000)).map(|p| names(&p));
        assert_eq!(too_deep, Err(ChainError::UnknownAuthority));
    }

    #[test]
    fn all_paths_of_a_cross_signed_authority_are_found() {
        let (one, two) = (root("one"), root("two"));
        let key = || {
            KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8().into(), &rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
        };
        let shared =
            |parent: &Ca| below(parent, params("shared", Some(BasicConstraints::Unconstrained)), key());
        let (by_one, by_two) = (shared(&one), shared(&two));
        let leaf = leaf(&by_one);
        let roots = [link(&one), link(&two)];
        let between = [link(&by_one), link(&by_two)];
        let found = verify(&leaf, &between, &roots, at(1_500_000)).unwrap();
        assert_eq!(names(&found), [2, 2]);
        assert_eq!(found[0][1].der(), roots[0].der());
        assert_eq!(found[1][1].der(), roots[1].der());
        // A root that became an intermediate of another one is both.
        let roots = [link(&by_one), link(&two)];
        assert_eq!(names(&verify(&leaf, &between, &roots, at(1_500_000)).unwrap()), [1, 2]);
    }

    fn pkcs8() -> Vec<u8> {
        use std::sync::OnceLock;
        static KEY: OnceLock<Vec<u8>> = OnceLock::new();
        KEY.get_or_init(|| KeyPair::generate().unwrap().serialize_der()).clone()
    }

    #[test]
    fn a_trusted_leaf_needs_nobody_above_it() {
        let stranger = root("stranger");
        let leaf = leaf(&stranger);
        let found = verify(&leaf, &[], std::slice::from_ref(&leaf), at(1_500_000)).unwrap();
        assert_eq!(names(&found), [0]);
        assert_eq!(
            verify(&leaf, &[], std::slice::from_ref(&leaf), at(2_000_001)).map(|p| names(&p)),
            Err(ChainError::Expired("the certificate"))
        );
    }

    #[test]
    fn what_must_not_pass_does_not() {
        let top = root("root");
        let impostor = root("root");
        let now = at(1_500_000);
        let check = |leaf: &Link, between: &[Link], now| {
            verify(leaf, between, &[link(&top)], now).map(|paths| names(&paths)).unwrap_err().to_string()
        };
        let unknown = ChainError::UnknownAuthority.to_string();
        assert_eq!(check(&leaf(&impostor), &[], now), unknown, "same name, other key");
        assert_eq!(check(&leaf(&impostor), &[link(&impostor)], now), unknown, "brought along");

        assert!(check(&leaf(&top), &[], at(999_999)).contains("is not yet valid"));
        assert!(check(&leaf(&top), &[], at(2_000_001)).contains("has expired"));
        let mut short = params("short", Some(BasicConstraints::Unconstrained));
        short.not_after = at(1_400_000).into();
        let short = below(&top, short, KeyPair::generate().unwrap());
        assert!(check(&leaf(&short), &[link(&short)], now).contains("an intermediate has expired"));

        let no_ca = below(&top, params("no ca", None), KeyPair::generate().unwrap());
        assert_eq!(check(&leaf(&no_ca), &[link(&no_ca)], now), ChainError::CannotSign.to_string());
        let mut usage = params("usage", Some(BasicConstraints::Unconstrained));
        usage.key_usages = vec![KeyUsagePurpose::CrlSign];
        let usage = below(&top, usage, KeyPair::generate().unwrap());
        assert_eq!(check(&leaf(&usage), &[link(&usage)], now), ChainError::CannotSign.to_string());

        let limited = params("limited", Some(BasicConstraints::Constrained(0)));
        let limited = below(&top, limited, KeyPair::generate().unwrap());
        let under = ca(&limited, "under");
        let between = [link(&limited), link(&under)];
        assert!(verify(&leaf(&limited), &between, &[link(&top)], now).is_ok());
        assert_eq!(check(&leaf(&under), &between, now), ChainError::TooLong.to_string());

        let mut constrained = params("constrained", Some(BasicConstraints::Unconstrained));
        constrained.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("inside.example".into())],
            excluded_subtrees: Vec::new(),
        });
        let constrained = below(&top, constrained, KeyPair::generate().unwrap());
        let named = |name: &str| {
            let mut params = params("leaf", None);
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
            link(&below(&constrained, params, KeyPair::generate().unwrap()))
        };
        let between = [link(&constrained)];
        assert!(verify(&named("a.inside.example"), &between, &[link(&top)], now).is_ok());
        assert_eq!(check(&named("outside.example"), &between, now), ChainError::NameConstraint.to_string());
    }

    #[test]
    fn roots_are_judged_too() {
        let mut old = params("old", Some(BasicConstraints::Unconstrained));
        old.not_after = at(1_400_000).into();
        let old = CertifiedIssuer::self_signed(old, KeyPair::generate().unwrap()).unwrap();
        let found = verify(&leaf(&old), &[], &[link(&old)], at(1_500_000)).map(|p| names(&p));
        assert_eq!(found, Err(ChainError::Expired("its root")));
        let alone = params("alone", Some(BasicConstraints::Constrained(0)));
        let alone = CertifiedIssuer::self_signed(alone, KeyPair::generate().unwrap()).unwrap();
        let under = ca(&alone, "under");
        assert!(verify(&leaf(&alone), &[], &[link(&alone)], at(1_500_000)).is_ok());
        let found = verify(&leaf(&under), &[link(&under)], &[link(&alone)], at(1_500_000)).map(|p| names(&p));
        assert_eq!(found, Err(ChainError::TooLong));
    }

    /// Certificates that all bear one name and one after the other may have signed each other.
    #[test]
    fn a_maze_ends() {
        let top = root("root");
        let impostors: Vec<Link> = (0..300).map(|_| link(&root("root"))).collect();
        let leaf = leaf(&top);
        assert_eq!(
            verify(&leaf, &impostors, &[], at(1_500_000)).map(|p| names(&p)),
            Err(ChainError::TooManySignatures)
        );
        let roots = [link(&top)];
        let found = verify(&leaf, &impostors, &roots, at(1_500_000)).unwrap();
        assert_eq!(names(&found), [1], "what was found before the limit stands");
    }
}
