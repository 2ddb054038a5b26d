use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use finial_identity::ssh::push_string;

use super::*;
use crate::entries::fixture::td;
use crate::plugins::node_attestor::fixture::{attest, configured, host, refusal, today};

/// A key that signs as OpenSSH's Ed25519 keys do.
struct Key(Ed25519KeyPair);

/// What a certificate says.
struct Draft {
    kind: u32,
    principals: Vec<&'static str>,
    valid_after: u64,
    valid_before: u64,
    critical: Vec<&'static str>,
}

fn now() -> u64 {
    u64::try_from(unix_seconds(today())).unwrap()
}

impl Default for Draft {
    fn default() -> Draft {
        Draft {
            kind: HOST,
            principals: vec!["host1.example.org", "other"],
            valid_after: now() - 60,
            valid_before: now() + 60,
            critical: Vec::new(),
        }
    }
}

impl Key {
    fn new() -> Key {
        Key(Ed25519KeyPair::generate().unwrap())
    }

    fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        push_string(&mut blob, b"ssh-ed25519");
        push_string(&mut blob, self.0.public_key().as_ref());
        blob
    }

    fn line(&self) -> String {
        format!("ssh-ed25519 {}", BASE64_STANDARD.encode(self.blob()))
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let mut blob = Vec::new();
        push_string(&mut blob, b"ssh-ed25519");
        push_string(&mut blob, self.0.sign(message).as_ref());
        blob
    }

    /// The certificate of a host key.
    fn certify(&self, key: &Key, draft: &Draft) -> Vec<u8> {
        let mut blob = Vec::new();
        push_string(&mut blob, b"ssh-ed25519-cert-v01@openssh.com");
        push_string(&mut blob, &[7; 32]);
        push_string(&mut blob, key.0.public_key().as_ref());
        blob.extend(9_u64.to_be_bytes());
        blob.extend(draft.kind.to_be_bytes());
        push_string(&mut blob, b"the key's name");
        let mut names = Vec::new();
        draft.principals.iter().for_each(|name| push_string(&mut names, name.as_bytes()));
        push_string(&mut blob, &names);
        blob.extend(draft.valid_after.to_be_bytes());
        blob.extend(draft.valid_before.to_be_bytes());
        let mut options = Vec::new();
        for option in &draft.critical {
            push_string(&mut options, option.as_bytes());
            push_string(&mut options, b"");
        }
        push_string(&mut blob, &options);
        push_string(&mut blob, b"");
        push_string(&mut blob, b"");
        push_string(&mut blob, &self.blob());
        let signature = self.signature(&blob);
        push_string(&mut blob, &signature);
        blob
    }

    fn answer(&self, challenge: &[u8], nonce: &[u8]) -> Vec<u8> {
        let theirs = Object::read(challenge).unwrap().bytes("Nonce").unwrap();
        let signed = possession::hash(&[&theirs, nonce].concat());
        let blob = encoded(self.0.sign(&signed).as_ref());
        let signature = json!({ "Format": "ssh-ed25519", "Blob": blob, "Rest": null });
        json!({ "Nonce": encoded(nonce), "Signature": signature }).to_string().into_bytes()
    }
}

fn payload(blob: &[u8]) -> Vec<u8> {
    json!({ "Certificate": encoded(blob) }).to_string().into_bytes()
}

async fn attestor(authority: &Key, more: &str) -> Arc<dyn NodeAttestor> {
    let data = format!("cert_authorities = [{:?}]\n{more}", authority.line());
    configured(make, &data, &host().await).unwrap()
}

#[tokio::test]
async fn a_host_proves_its_certificate() {
    let (authority, key) = (Key::new(), Key::new());
    let blob = authority.certify(&key, &Draft::default());
    let attestor = attestor(&authority, "").await;
    let evidence = attest(&*attestor, None, &payload(&blob), |challenge| key.answer(&challenge, &[1; 32]))
        .await
        .unwrap();
    let fingerprint = Certificate::read(&blob).unwrap().fingerprint();
    assert_eq!(evidence.agent_id.as_str(), format!("spiffe://{}/spire/agent/sshpop/{fingerprint}", td()));
    assert!(evidence.selectors.is_empty() && evidence.can_reattest && !evidence.first_use_only);
    for draft in [
        Draft { valid_after: 0, valid_before: FOREVER, ..Draft::default() },
        Draft { critical: vec![SOURCE_ADDRESS], ..Draft::default() },
    ] {
        let blob = authority.certify(&key, &draft);
        let answer = |challenge: Vec<u8>| key.answer(&challenge, &[1; 32]);
        attest(&*attestor, None, &payload(&blob), answer).await.unwrap();
    }
}

#[tokio::test]
async fn templates_name_the_host() {
    let (authority, key) = (Key::new(), Key::new());
    let blob = authority.certify(&key, &Draft::default());
    let answer = |challenge: Vec<u8>| key.answer(&challenge, &[1; 32]);
    for (domain, template, path) in [
        ("example.org", "/{{ .PluginName }}/{{ .Hostname }}", "/sshpop/host1"),
        ("", "/{{ .Hostname }}/{{ .Serial }}", "/host1.example.org/9"),
        ("org", "/static/{{ index .ValidPrincipals 1 }}/{{ .Certificate.CertType }}", "/static/other/2"),
    ] {
        let more = format!("canonical_domain = {domain:?}\nagent_path_template = {template:?}");
        let attestor = attestor(&authority, &more).await;
        let evidence = attest(&*attestor, None, &payload(&blob), answer).await.unwrap();
        assert_eq!(evidence.agent_id.path(), format!("/spire/agent{path}"));
    }
    for template in ["/{{ .Nothing }}", "/{{ .KeyId }}"] {
        let attestor = attestor(&authority, &format!("agent_path_template = {template:?}")).await;
        let (code, text) = refusal(attest(&*attestor, None, &payload(&blob), answer).await);
        assert_eq!(code, Code::Internal);
        assert!(text.starts_with("failed to create AgentID: "), "{text}");
    }
}

#[tokio::test]
async fn bad_certificates_are_refused_before_anything_is_asked() {
    let (authority, stranger, key) = (Key::new(), Key::new(), Key::new());
    let attestor = attestor(&authority, "canonical_domain = \"example.org\"").await;
    let of = |draft: Draft| payload(&authority.certify(&key, &draft));
    let mut forged = authority.certify(&key, &Draft::default());
    let serial = forged.len() / 2;
    forged[serial] ^= 1;
    let check = "failed to check host key: ";
    for (payload, text) in [
        (b"{{".to_vec(), "failed to unmarshal data: "),
        (b"{}".to_vec(), "no certificate in response"),
        (b"{\"certificate\":\"aGVsbG8K\"}".to_vec(), "failed to parse public key: "),
        (payload(&key.blob()), "pubkey in response is not a certificate"),
        (payload(&forged), "failed to "),
        (of(Draft { principals: vec![], ..Draft::default() }), "cert has no valid principals"),
        (
            of(Draft { kind: 1, ..Draft::default() }),
            "failed to check host key: ssh: certificate presented as a host key has type 1",
        ),
        (
            payload(&stranger.certify(&key, &Draft::default())),
            "failed to check host key: ssh: no authorities for hostname: host1.example.org:22",
        ),
        (of(Draft { principals: vec!["::1"], ..Draft::default() }), check),
        (
            of(Draft { critical: vec!["force-command"], ..Draft::default() }),
            "failed to check host key: ssh: unsupported critical option \"force-command\" in certificate",
        ),
        (
            of(Draft { valid_after: now() + 1, ..Draft::default() }),
            "failed to check host key: ssh: cert is not yet valid",
        ),
        (
            of(Draft { valid_before: now(), ..Draft::default() }),
            "failed to check host key: ssh: cert has expired",
        ),
        (
            of(Draft { principals: vec!["host1.example.com"], ..Draft::default() }),
            "failed to decanonicalize hostname: cert principal is not in domain \".example.org\"",
        ),
        (
            of(Draft { principals: vec!["host1example.org"], ..Draft::default() }),
            "failed to decanonicalize hostname: ",
        ),
    ] {
        let verdict = attest(&*attestor, None, &payload, |_| panic!("it was asked")).await;
        let (code, message) = refusal(verdict);
        assert_eq!(code, Code::Internal);
        assert!(message.starts_with(text), "{message} and not {text}");
    }
}

#[tokio::test]
async fn wrong_answers_are_refused() {
    let (authority, key, thief) = (Key::new(), Key::new(), Key::new());
    let attestor = attestor(&authority, "").await;
    let payload = payload(&authority.certify(&key, &Draft::default()));
    let first = std::sync::Mutex::new(Vec::new());
    let keep = |challenge: Vec<u8>| {
        let answer = key.answer(&challenge, &[1; 32]);
        first.lock().unwrap().clone_from(&answer);
        answer
    };
    attest(&*attestor, None, &payload, keep).await.unwrap();
    type Respond<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
    let answers: [(Respond<'_>, &str); 6] = [
        (
            &|challenge| thief.answer(&challenge, &[1; 32]),
            "failed to verify signature: ssh: signature did not verify",
        ),
        (&|_| first.lock().unwrap().clone(), "failed to verify signature: ssh: signature did not verify"),
        (
            &|challenge| key.answer(&challenge, &[1; 31]),
            "failed to combine nonces: invalid response nonce size",
        ),
        (&|_| json!({ "Nonce": encoded(&[1; 32]) }).to_string().into_bytes(), "failed to verify signature: "),
        (
            &|_| {
                let signature = json!({ "Format": "ssh-rsa", "Blob": "AAAA" });
                json!({ "Nonce": encoded(&[1; 32]), "Signature": signature }).to_string().into_bytes()
            },
            "failed to verify signature: ssh: signature type ssh-rsa for key type ssh-ed25519",
        ),
        (&|_| b"nonsense".to_vec(), "failed to unmarshal challenge response: "),
    ];
    for (answer, text) in answers {
        let (code, message) = refusal(attest(&*attestor, None, &payload, answer).await);
        assert_eq!(code, Code::Internal);
        assert!(message.starts_with(text), "{message} and not {text}");
    }
}

#[tokio::test]
async fn settings_are_refused_in_spires_words() {
    let host = host().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (one, two) = (Key::new(), Key::new());
    let from = |path: &Path| format!("cert_authorities_path = {path:?}");
    let list = format!("cert_authorities = [{:?}]", one.line());
    for (data, text) in [
        (
            String::new(),
            "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"",
        ),
        ("cert_authorities = []".to_owned(), "must provide at least one cert authority"),
        (
            "cert_authorities = [\"bad authority\"]".to_owned(),
            "failed to create cert checker: failed to parse public key \"bad authority\"",
        ),
        (from(Path::new("/no/such")), "failed to get cert authorities from file: open /no/such: "),
        (from(&write("empty", "\n")), "no data found in file: "),
        (format!("{list}\nagent_path_template = \"/{{{{ .Foo\""), "failed to parse agent svid template"),
        (format!("{list}\nfoo = 1"), "foo"),
    ] {
        let error = configured(make, &data, &host).err().unwrap_or_else(|| panic!("{data} passes"));
        assert!(error.contains(text), "{error} and not {text}");
    }
    // Both sources count.
    let file = write("many", &format!("{}\n\n{} a comment\n", two.line(), Key::new().line()));
    let attestor = configured(make, &format!("{list}\n{}", from(&file)), &host).unwrap();
    for authority in [&one, &two] {
        let key = Key::new();
        let payload = payload(&authority.certify(&key, &Draft::default()));
        attest(&*attestor, None, &payload, |challenge| key.answer(&challenge, &[1; 32])).await.unwrap();
    }
}
