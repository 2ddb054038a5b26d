//! Signing requests: whatever is accepted was signed as it stands.
#![no_main]

use finial_identity::csr::VerifiedCsr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(csr) = VerifiedCsr::from_der(data) else { return };
    assert!(!csr.public_key_der().is_empty());
    let _ = (csr.subject(), csr.subject_der(), csr.uris(), csr.dns_names(), csr.other_names());

    // No bit of what was signed can be another: the signature covers the bytes that came, not a reading of them.
    let Some(signed) = signed_part(data) else { panic!("accepted, but not a sequence in a sequence") };
    let sum = data.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let mut changed = data.to_vec();
    changed[signed.start + sum % signed.len()] ^= 1 << (sum / signed.len() % 8);
    assert!(VerifiedCsr::from_der(&changed).is_err());
});

/// Where the CertificationRequestInfo stands, its head included.
fn signed_part(der: &[u8]) -> Option<std::ops::Range<usize>> {
    let (outer_head, _) = sequence(der)?;
    let (head, length) = sequence(der.get(outer_head..)?)?;
    Some(outer_head..outer_head + head + length)
}

/// Lengths of the head and of the content of a DER sequence.
fn sequence(der: &[u8]) -> Option<(usize, usize)> {
    let (0x30, first) = (*der.first()?, *der.get(1)?) else { return None };
    if first < 0x80 {
        return Some((2, usize::from(first)));
    }
    let count = usize::from(first & 0x7f);
    let length = der.get(2..2 + count)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    Some((2 + count, length))
}
