use std::path::PathBuf;

use aws_lc_rs::digest::{Digest, SHA384};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA256_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, RSA_PSS_SHA256, RsaPssSaltLength, RsaSignatureEncoding,
};
use finial_identity::go_json::encoded;
use finial_identity::possession::{self, Curve};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

use super::*;
use crate::entries::fixture::td;
use crate::plugins::node_attestor::fixture::{attest, configured, host, refusal, today};

type Ca = CertifiedIssuer<'static, KeyPair>;

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

struct Pki {
    folder: TempDir,
    root: Ca,
    between: Ca,
}

/// An agent of the tests: certificates, and a key to sign with.
struct Agent {
    chain: Vec<Vec<u8>>,
    key: Key,
}

enum Key {
    Ecdsa(EcdsaKeyPair, Curve),
    Rsa(RsaPair),
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "some common name");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(vec![0x0a, 0xbc].into());
    params.not_before = (today() - DAY).into();
    params.not_after = (today() + DAY).into();
    params
}

impl Pki {
    fn new() -> Pki {
        let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
        let between = CertifiedIssuer::signed_by(ca("between"), KeyPair::generate().unwrap(), &root).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), root.pem()).unwrap();
        Pki { folder, root, between }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self, more: &str) -> String {
        format!("ca_bundle_path = {:?}\n{more}", self.path("root.pem"))
    }

    async fn attestor(&self, more: &str) -> Arc<dyn NodeAttestor> {
        configured(make, &self.data(more), &host().await).unwrap()
    }

    /// An agent with a key of this curve, and the intermediate beside its certificate.
    fn agent(&self, curve: Curve, params: CertificateParams) -> Agent {
        let algorithm: &'static EcdsaSigningAlgorithm = match curve {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            Curve::P521 => &ECDSA_P521_SHA256_ASN1_SIGNING,
            Curve::P224 => panic!("nothing here signs with it"),
        };
        let rcgen_algorithm = match curve {
            Curve::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Curve::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            _ => &rcgen::PKCS_ECDSA_P521_SHA512,
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
        let chain = self.certify(params, pkcs8.as_ref(), rcgen_algorithm);
        Agent { chain, key: Key::Ecdsa(key, curve) }
    }

    fn rsa_agent(&self, size: KeySize) -> Agent {
        let key = RsaPair::generate(size).unwrap();
        let chain = self.certify(leaf(), key.as_der().unwrap().as_ref(), &rcgen::PKCS_RSA_SHA256);
        Agent { chain, key: Key::Rsa(key) }
    }

    fn certify(
        &self,
        params: CertificateParams,
        pkcs8: &[u8],
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> Vec<Vec<u8>> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.between).unwrap();
        vec![certificate.der().to_vec(), self.between.der().to_vec()]
    }
}

impl Agent {
    fn payload(&self) -> Vec<u8> {
        let chain: Vec<String> = self.chain.iter().map(|der| encoded(der)).collect();
        json!({ "certificates": chain }).to_string().into_bytes()
    }

    fn answer(&self, challenge: &[u8]) -> Vec<u8> {
        self.answer_with(
            challenge,
            &[7; 32],
            &const { RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) },
        )
    }

    fn answer_with(&self, challenge: &[u8], nonce: &[u8], padding: &'static RsaSignatureEncoding) -> Vec<u8> {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let part = match self.key {
            Key::Rsa(_) => &challenge["rsa_signature"],
            Key::Ecdsa(..) => &challenge["ecdsa_signature"],
        };
        let server = Object::read(part.to_string().as_bytes()).unwrap().bytes("nonce").unwrap();
        let message = [server, nonce.to_vec()].concat();
        let answer = match &self.key {
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), &message, &mut signature).unwrap();
                json!({ "rsa_signature": { "nonce": encoded(nonce), "signature": encoded(&signature) } })
            }
            Key::Ecdsa(pair, curve) => {
                let signature = if *curve == Curve::P384 {
                    let hash = [&[0; 16][..], &possession::hash(&message)].concat();
                    pair.sign_digest(&Digest::import_less_safe(&hash, &SHA384).unwrap()).unwrap()
                } else {
                    pair.sign(&SystemRandom::new(), &message).unwrap()
                };
                let (r, s) = possession::ecdsa_parts(signature.as_ref()).unwrap();
                json!({ "ecdsa_signature": { "nonce": encoded(nonce), "r": encoded(&r), "s": encoded(&s) } })
            }
        };
        answer.to_string().into_bytes()
    }
}

async fn honest(attestor: &dyn NodeAttestor, agent: &Agent) -> Result<Evidence, AttestorFault> {
    attest(attestor, None, &agent.payload(), |challenge| agent.answer(&challenge)).await
}

async fn silent(attestor: &dyn NodeAttestor, payload: &[u8]) -> (Code, String) {
    refusal(attest(attestor, None, payload, |_| panic!("it was asked")).await)
}

#[tokio::test]
async fn each_kind_of_key_proves_itself() {
    let pki = Pki::new();
    let attestor = pki.attestor("").await;
    let agents = [
        pki.agent(Curve::P256, leaf()),
        pki.agent(Curve::P384, leaf()),
        pki.agent(Curve::P521, leaf()),
        pki.rsa_agent(KeySize::Rsa2048),
    ];
    for agent in &agents {
        let evidence = honest(&*attestor, agent).await.unwrap();
        let id = format!("spiffe://{}/spire/agent/x509pop/{}", td(), fingerprint(&agent.chain[0]));
        assert_eq!(evidence.agent_id.as_str(), id);
        let mut values: Vec<String> = evidence.selectors.iter().map(ToString::to_string).collect();
        values.sort();
        let mut issuers =
            [&pki.between, &pki.root].map(|ca| format!("x509pop:ca:fingerprint:{}", fingerprint(ca.der())));
        issuers.sort();
        let own = ["x509pop:serialnumber:0abc", "x509pop:subject:cn:some common name"];
        assert_eq!(values, [&issuers[..], &own.map(str::to_owned)].concat());
        assert!(evidence.can_reattest && !evidence.first_use_only);
    }
    // Go under FIPS 140 takes a salt as long as the hash.
    let rsa = &agents[3];
    let fips = |challenge: Vec<u8>| rsa.answer_with(&challenge, &[7; 32], &RSA_PSS_SHA256);
    attest(&*attestor, None, &rsa.payload(), fips).await.unwrap();
}

#[tokio::test]
async fn wrong_answers_are_refused() {
    let pki = Pki::new();
    let attestor = pki.attestor("").await;
    let failed =
        |text: &str| (Code::PermissionDenied, format!("challenge response verification failed: {text}"));
    for (agent, thief, kind, other) in [
        (pki.agent(Curve::P256, leaf()), pki.agent(Curve::P256, leaf()), "ECDSA", "ecdsa_signature"),
        (pki.rsa_agent(KeySize::Rsa2048), pki.rsa_agent(KeySize::Rsa2048), "RSA", "rsa_signature"),
    ] {
        let answer = async |respond: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            refusal(attest(&*attestor, None, &agent.payload(), respond).await)
        };
        let of_thief = answer(&|challenge| thief.answer(&challenge)).await;
        assert_eq!(of_thief, failed(&format!("{kind} signature verify failed")));
        let padding = &const { RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
        let short = answer(&|challenge| agent.answer_with(&challenge, &[7; 31], padding)).await;
        assert_eq!(short, failed("invalid response nonce"));
        let nothing = answer(&|_| b"{}".to_vec()).await;
        assert_eq!(nothing, failed(&format!("expecting {kind} response")));
        let empty = answer(&|_| json!({ other: {} }).to_string().into_bytes()).await;
        assert_eq!(empty, failed("invalid response nonce"));
        let (code, text) = answer(&|_| b"nonsense".to_vec()).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.starts_with("unable to unmarshal challenge response: "), "{text}");
        // An answer that was good once, to another challenge.
        let seen = std::sync::Mutex::new(Vec::new());
        let watched = |challenge: Vec<u8>| {
            let answer = agent.answer(&challenge);
            seen.lock().unwrap().clone_from(&answer);
            answer
        };
        attest(&*attestor, None, &agent.payload(), watched).await.unwrap();
        let replayed = answer(&|_| seen.lock().unwrap().clone()).await;
        assert_eq!(replayed, failed(&format!("{kind} signature verify failed")));
    }
}

#[tokio::test]
async fn bad_payloads_are_refused_before_anything_is_asked() {
    let pki = Pki::new();
    let attestor = pki.attestor("max_rsa_key_size = 3072").await;
    let agent = pki.agent(Curve::P256, leaf());
    let with = |chain: &[&[u8]]| {
        let chain: Vec<String> = chain.iter().map(|der| encoded(der)).collect();
        json!({ "certificates": chain }).to_string().into_bytes()
    };
    let (own, between) = (agent.chain[0].as_slice(), agent.chain[1].as_slice());
    let large = pki.rsa_agent(KeySize::Rsa4096);
    let mut outdated = leaf();
    outdated.not_after = (today() - DAY / 2).into();
    let mut early = leaf();
    early.not_before = (today() + DAY / 2).into();
    let foreign = Pki::new();
    let mut cases = vec![
        (b"{}".to_vec(), Code::InvalidArgument, "no certificate to attest"),
        (b"null".to_vec(), Code::InvalidArgument, "no certificate to attest"),
        (b"[]".to_vec(), Code::InvalidArgument, "failed to unmarshal data: "),
        (b"{\"certificates\":\"x\"}".to_vec(), Code::InvalidArgument, "failed to unmarshal data: "),
        (with(&[b"x"]), Code::InvalidArgument, "unable to parse leaf certificate: "),
        (with(&[own, b"x"]), Code::InvalidArgument, "unable to parse intermediate certificate 0: "),
        (
            with(&[own, between, between, between, between, between]),
            Code::InvalidArgument,
            "too many intermediate certificates",
        ),
        (with(&[b"x", b"", b"", b"", b"", b""]), Code::InvalidArgument, "too many intermediate certificates"),
        (large.payload(), Code::InvalidArgument, "leaf certificate key size too large"),
        (
            with(&[own, between, &large.chain[0]]),
            Code::InvalidArgument,
            "intermediate certificate 1 key size too large",
        ),
        (
            with(&[own]),
            Code::PermissionDenied,
            "certificate verification failed: x509: certificate signed by unknown authority",
        ),
        (
            foreign.agent(Curve::P256, leaf()).payload(),
            Code::PermissionDenied,
            "certificate verification failed: x509: certificate signed by unknown authority",
        ),
        (
            pki.agent(Curve::P256, outdated).payload(),
            Code::PermissionDenied,
            "certificate verification failed: x509: certificate has expired or is not yet valid",
        ),
        (
            pki.agent(Curve::P256, early).payload(),
            Code::PermissionDenied,
            "certificate verification failed: x509: certificate has expired or is not yet valid",
        ),
    ];
    let mut no_usage = leaf();
    no_usage.key_usages.clear();
    let text = "unable to generate challenge: certificate not intended for digital signature use";
    cases.push((pki.agent(Curve::P256, no_usage).payload(), Code::Internal, text));
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = leaf().signed_by(&ed25519, &pki.between).unwrap();
    let text = "unable to generate challenge: unsupported public key type ed25519.PublicKey";
    cases.push((with(&[ed25519.der(), between]), Code::Internal, text));
    for (payload, code, text) in cases {
        let (found, message) = silent(&*attestor, &payload).await;
        assert_eq!(found, code, "{message}");
        assert!(message.starts_with(text), "{message} and not {text}");
    }
}

#[tokio::test]
async fn the_address_of_the_agent_may_have_to_be_in_its_certificate() {
    let pki = Pki::new();
    let attestor = pki.attestor("verify_client_ip = true").await;
    let mut params = leaf();
    params.subject_alt_names = vec![SanType::IpAddress("10.0.0.7".parse().unwrap())];
    let agent = pki.agent(Curve::P256, params);
    let from = async |caller: Option<&str>| {
        let caller = caller.map(|caller| caller.parse().unwrap());
        attest(&*attestor, caller, &agent.payload(), |challenge| agent.answer(&challenge)).await
    };
    from(Some("10.0.0.7")).await.unwrap();
    from(Some("::ffff:10.0.0.7")).await.unwrap();
    let text = "client IP 10.0.0.8 does not match any certificate IP SAN".to_owned();
    assert_eq!(refusal(from(Some("10.0.0.8")).await), (Code::PermissionDenied, text));
    let text = "client IP not available for verification".to_owned();
    assert_eq!(refusal(from(None).await), (Code::Internal, text));
}

#[tokio::test]
async fn templates_name_what_go_names() {
    let pki = Pki::new();
    let mut params = leaf();
    params.distinguished_name.push(DnType::OrganizationName, "Acme");
    params.subject_alt_names = vec![
        SanType::URI(format!("x509pop://{}/datacenter/us-east-1", td()).try_into().unwrap()),
        SanType::URI(format!("x509pop://{}/environment/production/blue%21", td()).try_into().unwrap()),
        SanType::URI(format!("x509pop://{}/alone", td()).try_into().unwrap()),
        SanType::URI("x509pop://other.org/datacenter/elsewhere".try_into().unwrap()),
        SanType::DnsName("host.example".try_into().unwrap()),
    ];
    let agent = pki.agent(Curve::P256, params);
    for (template, path) in [
        ("/cn/{{ .Subject.CommonName | replace \" \" \"-\" }}", "/cn/some-common-name"),
        ("/{{ .PluginName }}/{{ .SerialNumberHex }}/{{ .SerialNumber }}", "/x509pop/0abc/2748"),
        ("/{{ .TrustDomain }}/{{ index .Subject.Organization 0 | lower }}", "/example.org/acme"),
        ("/{{ .Certificate.Issuer.CommonName }}/{{ index .DNSNames 0 }}", "/between/host.example"),
        ("/dc/{{ .URISanSelectors.datacenter }}", "/dc/us-east-1"),
    ] {
        let attestor = pki.attestor(&format!("agent_path_template = {template:?}")).await;
        let evidence = honest(&*attestor, &agent).await.unwrap();
        assert_eq!(evidence.agent_id.path(), format!("/spire/agent{path}"), "{template}");
        let named = |value: &str| evidence.selectors.iter().any(|selector| selector.value == value);
        assert!(named("san:datacenter:us-east-1") && named("san:environment:production/blue!"));
        assert!(!evidence.selectors.iter().any(|selector| selector.value.contains("elsewhere")));
    }
    for template in
        ["/{{ .Nothing }}", "/{{ .URISanSelectors.nothing }}", "/{{ .Subject }}", "no slash", "/x y"]
    {
        let attestor = pki.attestor(&format!("agent_path_template = {template:?}")).await;
        let (code, text) = refusal(honest(&*attestor, &agent).await);
        assert_eq!(code, Code::Internal);
        assert!(text.starts_with("failed to make spiffe id: "), "{text}");
    }
}

#[tokio::test]
async fn svids_are_exchanged() {
    let pki = Pki::new();
    let host = host().await;
    let mut bundle = finial_identity::bundle::Bundle::new(td());
    bundle.x509_authorities =
        vec![finial_identity::bundle::X509Authority { der: pki.root.der().to_vec(), tainted: false }];
    host.store.bundles().create(bundle).await.unwrap();
    let attestor = configured(make, "mode = \"spiffe\"", &host).unwrap();
    let svid = |uri: &str| {
        let mut params = leaf();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        pki.agent(Curve::P256, params)
    };
    let good = svid(&format!("spiffe://{}/spire-exchange/rack/7", td()));
    let evidence = honest(&*attestor, &good).await.unwrap();
    assert_eq!(evidence.agent_id.path(), "/spire/agent/x509pop/rack/7");

    let denied = |text: &str| (Code::PermissionDenied, text.to_owned());
    let elsewhere = svid(&format!("spiffe://{}/web", td()));
    let text = "x509 cert doesnt match SVID prefix";
    assert_eq!(refusal(honest(&*attestor, &elsewhere).await), denied(text));
    for uri in [
        "spiffe://other.org/spire-exchange/rack/7".to_owned(),
        "https://x.example/spire-exchange/".to_owned(),
        format!("spiffe://{}.evil/spire-exchange/x", td()),
    ] {
        let text = "valid SVID x509 cert not found";
        assert_eq!(refusal(honest(&*attestor, &svid(&uri)).await), denied(text), "{uri}");
    }
    let prefix = configured(make, "mode = \"spiffe\"\nspiffe_prefix = \"/boot\"", &host).unwrap();
    let other = svid(&format!("spiffe://{}/boot/strap", td()));
    assert_eq!(honest(&*prefix, &other).await.unwrap().agent_id.path(), "/spire/agent/x509pop/strap");
    let beside = svid(&format!("spiffe://{}/bootstrap", td()));
    assert_eq!(refusal(honest(&*prefix, &beside).await), denied("x509 cert doesnt match SVID prefix"));
}

#[tokio::test]
async fn settings_are_refused_in_spires_words_and_all_at_once() {
    let pki = Pki::new();
    let host = host().await;
    let refused = |data: &str| configured(make, data, &host).err().unwrap_or_else(|| panic!("{data} passes"));
    std::fs::write(pki.path("empty.pem"), "").unwrap();
    std::fs::write(pki.path("bad.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let bundle = pki.data("");
    let paths = |name: &str| format!("ca_bundle_paths = [{:?}]", pki.path(name));
    for (data, text) in [
        (String::new(), "one of ca_bundle_path or ca_bundle_paths must be configured"),
        ("mode = \"foo\"".to_owned(), "mode can only be either spiffe or external_pki"),
        (
            format!("mode = \"spiffe\"\n{bundle}"),
            "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode",
        ),
        (
            format!("{bundle}\n{}", paths("root.pem")),
            "only one of ca_bundle_path or ca_bundle_paths can be configured, not both",
        ),
        (paths("missing.pem"), "unable to load trust bundle "),
        (paths("empty.pem"), "no certificates found in file"),
        (paths("bad.pem"), "unable to parse certificate in block 0"),
        (format!("{bundle}\nmax_intermediates = 0"), "max_intermediates must be greater than 0"),
        (format!("{bundle}\nmax_rsa_key_size = -1"), "max_rsa_key_size must be greater than 0"),
        (format!("{bundle}\nmax_rsa_key_size = 16384"), "more than 8192 bits are not supported"),
        (format!("{bundle}\nagent_path_template = \"/{{{{ .Foo\""), "failed to parse agent svid template"),
        (format!("{bundle}\nsvid_prefix = \"/x\""), "svid_prefix"),
    ] {
        let error = refused(&data);
        assert!(error.contains(text), "{error} and not {text}");
    }
    let all = refused("max_intermediates = 0\nmax_rsa_key_size = 0\nfoo = 1");
    for text in ["must be configured", "max_intermediates must be", "max_rsa_key_size must be", "foo"] {
        assert!(all.contains(text), "{all}");
    }
    configured(make, &paths("root.pem"), &host).unwrap();
}
