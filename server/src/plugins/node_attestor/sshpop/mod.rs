//! `sshpop`: the host certificate that an SSH authority gave the machine, and the proof of the host's key.

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use finial_daemon::clock::unix_seconds;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::go_json::{NotReadable, Object, encoded};
use finial_identity::possession::{self, NONCE_BYTES, NonceFault};
use finial_identity::ssh::{Certificate, FOREVER, HOST, PublicKey, Signature};
use serde_json::{Value, json};

use super::agent_path::AgentPath;
use super::{AttestorFault, Code, Evidence, Exchange, Host, NodeAttestor};

pub const NAME: &str = "sshpop";

const DEFAULT_PATH: &str = "/{{ .PluginName }}/{{ .Fingerprint }}";
/// The one critical option that may be there; it says nothing of hosts.
const SOURCE_ADDRESS: &str = "source-address";

/// The attestor.
pub struct SshPop {
    host: Host,
    authorities: Vec<PublicKey>,
    /// What the names of hosts end in; empty: anything.
    canonical_domain: String,
    agent_path: AgentPath,
}

/// What an agent answers to the challenge.
struct Answer {
    nonce: Vec<u8>,
    signature: Option<Signature>,
}

/// For the plugin table. Blocking: reads the file of authorities.
pub fn make(section: Section, host: &Host) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let listed = section.list("cert_authorities");
    let path = section.string("cert_authorities_path").filter(|path| !path.is_empty());
    let mut authorities = Vec::new();
    let mut read = |text: &str| match PublicKey::read_line(text) {
        Some(Ok(key)) => authorities.push(key),
        Some(Err(error)) => section.problem_here(format!(
            "failed to create cert checker: failed to parse public key {text:?}: {error}"
        )),
        None => section.problem_here(format!(
            "failed to create cert checker: failed to parse public key {text:?}: ssh: no key found"
        )),
    };
    if listed.is_none() && path.is_none() {
        section.problem_here(
            "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"",
        );
    }
    listed.iter().flatten().for_each(|text| read(text));
    let mut from_file = 0;
    if let Some(path) = &path {
        let text = std::fs::read_to_string(path);
        match text.as_deref().map(|text| text.lines().filter(|line| !line.trim().is_empty())) {
            Ok(lines) => {
                for line in lines {
                    read(line);
                    from_file += 1;
                }
                if from_file == 0 {
                    section.problem_here(format!(
                        "failed to get cert authorities from file: no data found in file: {path:?}"
                    ));
                }
            }
            Err(error) => section
                .problem_here(format!("failed to get cert authorities from file: open {path}: {error}")),
        }
    }
    if listed.is_some_and(|listed| listed.is_empty()) && path.is_none() {
        section.problem_here("failed to create cert checker: must provide at least one cert authority");
    }
    let canonical_domain = section.string("canonical_domain").unwrap_or_default();
    let agent_path = AgentPath::read(&section, DEFAULT_PATH);
    section.finish()?;
    let agent_path = agent_path?;
    Ok(Arc::new(SshPop { host: host.clone(), authorities, canonical_domain, agent_path }))
}

#[async_trait]
impl NodeAttestor for SshPop {
    async fn attest(&self, payload: &[u8], exchange: &mut Exchange) -> Result<Evidence, AttestorFault> {
        let certificate = read(payload)?;
        let hostname = self.check(&certificate)?;

        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| internal("failed to generate nonce"))?;
        let challenge = json!({ "Nonce": encoded(&nonce) }).to_string().into_bytes();
        let answer = Answer::read(&exchange.ask(challenge).await?)
            .map_err(|error| internal(format!("failed to unmarshal challenge response: {error}")))?;
        answer.prove(&certificate, &nonce)?;

        let fields = fields(&certificate, &hostname);
        let agent_id = self.agent_path.agent_id(&self.host.trust_domain, &fields);
        let agent_id = agent_id.map_err(|error| internal(format!("failed to create AgentID: {error}")))?;
        Ok(Evidence { agent_id, selectors: Vec::new(), can_reattest: true, first_use_only: false })
    }
}

impl SshPop {
    /// Whether an authority of ours says that this is a host. Returns the host's name without the canonical domain.
    fn check(&self, certificate: &Certificate) -> Result<String, AttestorFault> {
        let Some(name) = certificate.principals.first() else {
            return Err(internal("cert has no valid principals"));
        };
        let refused = |text: String| internal(format!("failed to check host key: {text}"));
        if certificate.cert_type != HOST {
            let kind = certificate.cert_type;
            return Err(refused(format!("ssh: certificate presented as a host key has type {kind}")));
        }
        if !self.authorities.contains(&certificate.authority) {
            return Err(refused(format!("ssh: no authorities for hostname: {name}:22")));
        }
        if name.contains([':', '[', ']']) {
            return Err(refused(format!("address {name}:22: too many colons in address")));
        }
        if let Some((option, _)) =
            certificate.critical_options.iter().find(|(option, _)| option != SOURCE_ADDRESS)
        {
            return Err(refused(format!("ssh: unsupported critical option {option:?} in certificate")));
        }
        let now = u64::try_from(unix_seconds(self.host.clock.now())).unwrap_or(0);
        if now < certificate.valid_after {
            return Err(refused("ssh: cert is not yet valid".to_owned()));
        }
        if certificate.valid_before != FOREVER && now >= certificate.valid_before {
            return Err(refused("ssh: cert has expired".to_owned()));
        }
        certificate
            .check_signature()
            .map_err(|error| refused(format!("ssh: certificate signature does not verify: {error}")))?;

        if self.canonical_domain.is_empty() {
            return Ok(name.clone());
        }
        let suffix = format!(".{}", self.canonical_domain);
        name.strip_suffix(&suffix).map(str::to_owned).ok_or_else(|| {
            internal(format!("failed to decanonicalize hostname: cert principal is not in domain {suffix:?}"))
        })
    }
}

impl Answer {
    fn read(json: &[u8]) -> Result<Answer, NotReadable> {
        let answer = Object::read(json)?;
        let signature = answer.object("Signature")?;
        let signature = signature
            .map(|part| Ok(Signature { format: part.text("Format")?, blob: part.bytes("Blob")? }))
            .transpose()?;
        Ok(Answer { nonce: answer.bytes("Nonce")?, signature })
    }

    fn prove(&self, certificate: &Certificate, nonce: &[u8]) -> Result<(), AttestorFault> {
        let message = possession::combine(nonce, &self.nonce).map_err(|fault| {
            internal(match fault {
                NonceFault::Challenge => "failed to combine nonces: invalid challenge nonce size",
                NonceFault::Response => "failed to combine nonces: invalid response nonce size",
            })
        })?;
        let signature = self.signature.as_ref();
        let signature =
            signature.ok_or_else(|| internal("failed to verify signature: there is no signature"))?;
        certificate
            .key
            .verify(&possession::hash(&message), signature)
            .map_err(|error| internal(format!("failed to verify signature: {error}")))
    }
}

fn read(payload: &[u8]) -> Result<Certificate, AttestorFault> {
    let blob = Object::read(payload).and_then(|data| data.bytes("Certificate"));
    let blob = blob.map_err(|error| internal(format!("failed to unmarshal data: {error}")))?;
    if blob.is_empty() {
        return Err(internal("no certificate in response"));
    }
    use finial_identity::ssh::Malformed::NotACertificate;
    Certificate::read(&blob).map_err(|error| match error {
        NotACertificate => internal(NotACertificate.to_string()),
        error => internal(format!("failed to parse public key: {error}")),
    })
}

/// What a template may name: the fields of Go's `ssh.Certificate` that have a text form, and SPIRE's.
fn fields(certificate: &Certificate, hostname: &str) -> Value {
    let map = |pairs: &[(String, String)]| {
        Value::Object(pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect())
    };
    let of_certificate = json!({
        "Nonce": certificate.nonce,
        "Serial": certificate.serial,
        "CertType": certificate.cert_type,
        "KeyId": certificate.key_id,
        "ValidPrincipals": certificate.principals,
        "ValidAfter": certificate.valid_after,
        "ValidBefore": certificate.valid_before,
        "CriticalOptions": map(&certificate.critical_options),
        "Extensions": map(&certificate.extensions),
        "Reserved": certificate.reserved,
    });
    let mut fields = of_certificate.clone();
    fields["Certificate"] = of_certificate;
    fields["PluginName"] = json!(NAME);
    fields["Fingerprint"] = json!(certificate.fingerprint());
    fields["Hostname"] = json!(hostname);
    fields
}

/// As in SPIRE, this attestor has one code for whatever is wrong.
fn internal(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::Internal, text)
}

#[cfg(test)]
mod tests;
