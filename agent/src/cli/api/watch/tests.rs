use rcgen::string::Ia5String;
use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

use finial_proto::workload::X509svid;

use super::*;

fn certificate(uri: &str) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn svid(id: &str, hint: &str) -> X509svid {
    let authority = id.split('/').take(3).collect::<Vec<_>>().join("/");
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: certificate(id).into(),
        x509_svid_key: vec![].into(),
        bundle: certificate(&authority).into(),
        hint: hint.to_owned(),
    }
}

#[test]
fn shows_each_svid_with_the_bundles_of_the_others() {
    let response = X509svidResponse {
        svids: vec![
            svid("spiffe://example.org/web", "a"),
            svid("spiffe://other.org/web", ""),
            svid("spiffe://example.org/hidden", "a"),
            svid("spiffe://example.org/api", ""),
        ],
        crl: vec![],
        federated_bundles: [("spiffe://fed.org".to_owned(), certificate("spiffe://fed.org").into())].into(),
    };
    let seen: Vec<_> = shown(&response)
        .unwrap()
        .into_iter()
        .map(|svid| {
            let others: Vec<_> = svid.federated.into_iter().map(|(name, _)| name).collect();
            (svid.spiffe_id, svid.hint, svid.bundle.len(), others.join(" "))
        })
        .collect();
    let row = |id: &str, others: &str| (id.to_owned(), String::new(), 1, others.to_owned());
    assert_eq!(
        seen,
        [
            row("spiffe://example.org/web", "fed.org other.org"),
            row("spiffe://other.org/web", "example.org fed.org"),
            row("spiffe://example.org/api", "fed.org other.org"),
        ]
    );
}

#[test]
fn an_answer_without_svids_or_with_broken_ones_is_told() {
    assert_eq!(shown(&X509svidResponse::default()).unwrap_err(), "no SVIDs in response");
    let mut broken =
        X509svidResponse { svids: vec![svid("spiffe://example.org/a", "")], ..Default::default() };
    broken.svids[0].x509_svid = vec![1, 2, 3].into();
    shown(&broken).unwrap_err();
}
