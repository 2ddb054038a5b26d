//! Bundle documents, bundle maps and PEM: what is read can be written and is read the same again.
#![no_main]

use finial_identity::TrustDomain;
use finial_identity::bundle::Bundle;
use finial_identity::bundle::document::{self, DocumentError};
use finial_identity::x509_svid::AuthorityCertificate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(trust_domain) = TrustDomain::parse("example.org") else { unreachable!() };

    if let Ok(read) = document::read(&trust_domain, data) {
        assert_eq!(read.bundle.trust_domain, trust_domain);
        survives(&read.bundle);
        assert_eq!(document::parse(&trust_domain, data).as_ref(), Ok(&read.bundle));
    }
    for read in document::read_map(data).unwrap_or_default() {
        survives(&read.bundle);
    }
    if let Ok(bundle) = document::from_pem(&trust_domain, data) {
        assert!(!bundle.x509_authorities.is_empty());
        assert_eq!(
            document::from_pem(&trust_domain, document::to_pem(&bundle).as_bytes()).as_ref(),
            Ok(&bundle)
        );
        // PEM may hold any certificate, as with SPIRE; a document holds those of CAs.
        let is_ca = |der: &[u8]| AuthorityCertificate::read(der).is_ok_and(|certificate| certificate.is_ca());
        if bundle.x509_authorities.iter().all(|authority| is_ca(&authority.der)) {
            survives(&bundle);
        }
    }
});

fn survives(bundle: &Bundle) {
    let json = match document::to_json(bundle) {
        Ok(json) => json,
        // Such as a key of a kind that a JWK cannot hold. Named, so that no authority is lost in silence.
        Err(DocumentError::NotWritable { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let again = document::read(&bundle.trust_domain, json.as_bytes());
    let again = again.unwrap_or_else(|error| panic!("{error} in what was written: {json}"));
    assert_eq!(again.skipped, [], "{json}");
    assert_eq!(&again.bundle, bundle, "{json}");
}
