//! SVIDs as `api fetch` and `api watch` print them.

use std::fmt::Write;
use std::time::Duration;

use der::{Reader, SliceReader};
use finial_daemon::argv::text;
use finial_daemon::clock::unix_seconds;
use finial_daemon::settings::GoDuration;
use finial_identity::x509_svid::AuthorityCertificate;

/// One X.509-SVID.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub spiffe_id: String,
    pub hint: String,
    /// Leaf first.
    pub chain: Vec<Certificate>,
    pub bundle: Vec<Certificate>,
    /// Sorted by trust domain.
    pub federated: Vec<(String, Vec<Certificate>)>,
}

/// A certificate's bytes and validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub der: Vec<u8>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
}

/// Takes DER certificates apart that follow one another without separators.
pub fn certificates(concatenated: &[u8]) -> Result<Vec<Certificate>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("x509: malformed certificate: {error}");
    let mut reader = SliceReader::new(concatenated).map_err(|error| wrong(&error))?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        let der = reader.tlv_bytes().map_err(|error| wrong(&error))?;
        let certificate = AuthorityCertificate::read(der).map_err(|error| wrong(&error))?;
        found.push(Certificate {
            der: der.to_vec(),
            not_before: unix_seconds(certificate.not_before()),
            not_after: unix_seconds(certificate.not_after()),
        });
    }
    Ok(found)
}

/// The whole text, with how long the answer took.
pub fn received(svids: &[Shown], after: Duration) -> String {
    let plural = if svids.len() == 1 { "" } else { "s" };
    let mut out = format!("Received {} svid{plural} after {}\n", svids.len(), GoDuration(after));
    for svid in svids {
        // Writing to a string does not fail.
        let _ = one(&mut out, svid);
    }
    out.push('\n');
    out
}

fn one(out: &mut String, svid: &Shown) -> std::fmt::Result {
    writeln!(out, "\nSPIFFE ID:\t\t{}", svid.spiffe_id)?;
    if !svid.hint.is_empty() {
        writeln!(out, "Hint:\t\t\t{}", svid.hint)?;
    }
    for (position, certificate) in svid.chain.iter().enumerate() {
        match position {
            0 => validity(out, "SVID", certificate)?,
            _ => validity(out, &format!("Intermediate #{position}"), certificate)?,
        }
    }
    authorities(out, "", &svid.bundle)?;
    for (trust_domain, bundle) in &svid.federated {
        authorities(out, &format!("[{trust_domain}] "), bundle)?;
    }
    Ok(())
}

fn authorities(out: &mut String, prefix: &str, bundle: &[Certificate]) -> std::fmt::Result {
    for (index, authority) in bundle.iter().enumerate() {
        validity(out, &format!("{prefix}CA #{}", index + 1), authority)?;
    }
    Ok(())
}

fn validity(out: &mut String, what: &str, certificate: &Certificate) -> std::fmt::Result {
    writeln!(out, "{what} Valid After:\t{}", text::utc_time(certificate.not_before))?;
    writeln!(out, "{what} Valid Until:\t{}", text::utc_time(certificate.not_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(not_before: i64, not_after: i64) -> Certificate {
        Certificate { der: Vec::new(), not_before, not_after }
    }

    fn web() -> Shown {
        Shown {
            spiffe_id: "spiffe://example.org/web".into(),
            hint: "internal".into(),
            chain: vec![certificate(1_795_296_933, 1_795_300_543), certificate(1_795_296_000, 1_795_396_000)],
            bundle: vec![
                certificate(1_795_296_771, 1_795_383_181),
                certificate(1_795_296_772, 1_795_383_182),
            ],
            federated: vec![("spiffe://fed.org".into(), vec![certificate(1_795_296_771, 1_795_383_181)])],
        }
    }

    #[test]
    fn prints_as_spire_does() {
        let plain = Shown {
            spiffe_id: "spiffe://example.org/a".into(),
            chain: vec![certificate(1_795_296_933, 1_795_300_543)],
            ..Shown::default()
        };
        assert_eq!(
            received(&[web(), plain], Duration::from_nanos(5_152_664)),
            "Received 2 svids after 5.152664ms

SPIFFE ID:\t\tspiffe://example.org/web
Hint:\t\t\tinternal
SVID Valid After:\t2026-11-21 21:35:33 +0000 UTC
SVID Valid Until:\t2026-11-21 22:35:43 +0000 UTC
Intermediate #1 Valid After:\t2026-11-21 21:20:00 +0000 UTC
Intermediate #1 Valid Until:\t2026-11-23 01:06:40 +0000 UTC
CA #1 Valid After:\t2026-11-21 21:32:51 +0000 UTC
CA #1 Valid Until:\t2026-11-22 21:33:01 +0000 UTC
CA #2 Valid After:\t2026-11-21 21:32:52 +0000 UTC
CA #2 Valid Until:\t2026-11-22 21:33:02 +0000 UTC
[spiffe://fed.org] CA #1 Valid After:\t2026-11-21 21:32:51 +0000 UTC
[spiffe://fed.org] CA #1 Valid Until:\t2026-11-22 21:33:01 +0000 UTC

SPIFFE ID:\t\tspiffe://example.org/a
SVID Valid After:\t2026-11-21 21:35:33 +0000 UTC
SVID Valid Until:\t2026-11-21 22:35:43 +0000 UTC

"
        );
        assert!(
            received(&[web()], Duration::from_millis(1500)).starts_with("Received 1 svid after 1.5s\n\n")
        );
    }

    #[test]
    fn concatenated_certificates_are_taken_apart() {
        let der =
            |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.der().to_vec();
        let (one, two) = (der("one"), der("two"));
        let found = certificates(&[one.clone(), two.clone()].concat()).unwrap();
        assert_eq!(
            found.iter().map(|certificate| certificate.der.clone()).collect::<Vec<_>>(),
            [one.clone(), two]
        );
        assert!(found[0].not_before < found[0].not_after);
        assert!(certificates(&[]).unwrap().is_empty());
        certificates(&one[..one.len() - 1]).unwrap_err();
        certificates(b"junk").unwrap_err();
    }
}
