use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};

use super::*;

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn params(san: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(san)];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

fn authority() -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let mut params = params("spiffe://example.org");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    (der, Issuer::new(params, key))
}

/// Two SVIDs with a federated bundle.
fn response() -> X509svidResponse {
    let (bundle, issuer) = authority();
    let (other, _) = authority();
    let svid = |path: &str| {
        let key = KeyPair::generate().unwrap();
        let id = format!("spiffe://example.org/{path}");
        let mut params = params(&id);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = params.signed_by(&key, &issuer).unwrap();
        X509svid {
            spiffe_id: id,
            x509_svid: leaf.der().to_vec().into(),
            x509_svid_key: key.serialize_der().into(),
            bundle: bundle.clone().into(),
            hint: path.to_owned(),
        }
    };
    X509svidResponse {
        svids: vec![svid("web"), svid("api")],
        crl: vec![],
        federated_bundles: [("spiffe://fed.org".to_owned(), other.into())].into(),
    }
}

/// 2026-07-01
fn summer() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_782_864_000)
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_is_taken_apart_and_verified() {
    let received = take_apart(&response()).unwrap();
    let ids: Vec<_> = received.shown.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://example.org/web", "spiffe://example.org/api"]);
    assert_eq!(received.shown[0].hint, "web");
    assert_eq!(received.shown[1].federated[0].0, "spiffe://fed.org");
    verify(&received.shown, &Clock::paused(summer())).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_the_bundle_does_not_vouch_for_is_refused() {
    let mut response = response();
    response.svids[1].bundle = authority().0.into();
    let fault =
        verify(&take_apart(&response).unwrap().shown, &Clock::paused(summer())).unwrap_err().to_string();
    assert!(
        fault.starts_with(
            "\"spiffe://example.org/api\" SVID failed verification against bundle: x509: certificate signed by \
             unknown authority"
        ),
        "{fault}"
    );
    let late = Clock::paused(summer() + Duration::from_secs(400 * 24 * 3600));
    let fault = verify(&take_apart(&self::response()).unwrap().shown, &late).unwrap_err().to_string();
    assert!(
        fault.starts_with("\"spiffe://example.org/web\" SVID failed verification against bundle: x509: "),
        "{fault}"
    );
}

#[test]
fn broken_answers_are_told_in_spires_words() {
    let told = |edit: &dyn Fn(&mut X509svidResponse)| {
        let mut response = response();
        edit(&mut response);
        take_apart(&response).err().unwrap().to_string()
    };
    assert_eq!(told(&|response| response.svids.clear()), "workload response contains no svids");
    let prefix = "failed to parse svid entry 0 for spiffe id \"spiffe://example.org/web\": ";
    assert_eq!(
        told(&|response| response.svids[0].x509_svid = vec![].into()),
        format!("{prefix}no certificates found")
    );
    assert_eq!(
        told(&|response| response.svids[0].bundle = vec![].into()),
        format!("{prefix}no certificates in trust bundle")
    );
    assert!(
        told(&|response| response.svids[0].x509_svid_key = vec![1].into())
            .starts_with(&format!("{prefix}failed to parse private key: "))
    );
    assert_eq!(
        told(&|response| drop(response.federated_bundles.insert("spiffe://fed.org".into(), vec![].into()))),
        "no certificates in bundle for federated domain \"spiffe://fed.org\""
    );
}

#[test]
fn files_are_written_with_their_modes() {
    let dir = tempfile::tempdir().unwrap();
    let response = response();
    let received = take_apart(&response).unwrap();
    let mut told = String::new();
    write_all(&dir.path().join("."), &received, &mut |line| told.push_str(line)).unwrap();
    let base = dir.path().display();
    assert_eq!(
        told,
        format!(
            "Writing SVID #0 to file {base}/svid.0.pem.
Writing key #0 to file {base}/svid.0.key.
Writing bundle #0 to file {base}/bundle.0.pem.
Writing federated bundle #0 for trust domain spiffe://fed.org to file {base}/federated_bundle.0.0.pem.
Writing SVID #1 to file {base}/svid.1.pem.
Writing key #1 to file {base}/svid.1.key.
Writing bundle #1 to file {base}/bundle.1.pem.
Writing federated bundle #0 for trust domain spiffe://fed.org to file {base}/federated_bundle.1.0.pem.
"
        )
    );
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("svid.0.key"), 0o600);
    assert_eq!(mode("svid.0.pem") & 0o600, 0o600);
    let key = std::fs::read_to_string(dir.path().join("svid.1.key")).unwrap();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{}", key.len());
    assert!(key.ends_with("\n-----END PRIVATE KEY-----\n"));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("bundle.1.pem")).unwrap(),
        certificate_pem(&response.svids[1].bundle)
    );

    let mut told = String::new();
    let fault = write_all(Path::new("/nonexist"), &received, &mut |line| told.push_str(line)).unwrap_err();
    assert_eq!(fault.to_string(), "open /nonexist/svid.0.pem: no such file or directory");
    assert_eq!(told, "Writing SVID #0 to file /nonexist/svid.0.pem.\n");
}

#[test]
fn an_existing_key_file_becomes_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("svid.0.key");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    write_private(&path, "new").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn no_timeout_is_no_limit() {
    assert_eq!(timeout("0s").unwrap(), Duration::ZERO);
    assert_eq!(timeout("-5s").unwrap(), Duration::ZERO);
    assert_eq!(timeout("1.5s").unwrap(), Duration::from_millis(1500));
    assert_eq!(timeout("5x").unwrap_err().to_string(), "time: unknown unit \"x\" in duration \"5x\"");
}
