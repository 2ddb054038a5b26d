//! `x509 mint`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use finial_daemon::argv::{OutputFormat, text};
use finial_daemon::clock::Clock;
use finial_daemon::private_file;
use finial_identity::SpiffeId;
use finial_identity::bundle::document::certificate_pem;
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use serde_json::json;
use zeroize::Zeroizing;

use super::client::Server;
use super::lifetime::{capped, seconds};
use super::matching::given;
use super::output::{Failure, Output, Report, fail, json_line};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Makes an X.509-SVID for any SPIFFE ID, without an entry
    Mint(Mint),
}

const HELP: &str = "\
The key is made here and never leaves this command except as its output. With -write the key file is readable by this
user alone. A minted SVID is not rotated: for what runs for long, register an entry.

Examples:
    finial-server x509 mint -spiffeID spiffe://example.org/ci -ttl 10m -write /tmp/ci
        writes svid.pem (the chain), key.pem and bundle.pem
    finial-server x509 mint -spiffeID spiffe://example.org/web -dns web.example.org -dns web -output json";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Mint {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The SPIFFE ID of the SVID
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// How long it shall be valid, for example 30m; the server's default without it
    #[arg(long = "ttl", value_name = "duration", value_parser = text::duration)]
    ttl: Option<i64>,
    /// A DNS name for the certificate; the first one becomes its common name too. May be given more than once
    #[arg(long = "dns", value_name = "value")]
    dns_names: Vec<String>,
    /// An existing directory to write svid.pem, key.pem and bundle.pem to, instead of printing them
    #[arg(long = "write")]
    write: Option<PathBuf>,
}

/// What was minted.
struct Minted {
    /// DER, leaf first.
    chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    key: Zeroizing<Vec<u8>>,
    /// DER.
    roots: Vec<Vec<u8>>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        let Verb::Mint(flags) = self;
        flags.mint(&Clock::wall()).await
    }
}

impl Mint {
    async fn mint(self, clock: &Clock) -> Result<Report, Failure> {
        let format = self.output.format()?;
        let client = self.server.connect()?;
        let spiffe_id = given(&self.spiffe_id).ok_or_else(|| fail("spiffeID must be specified"))?;
        let spiffe_id = SpiffeId::parse(spiffe_id)?;
        let nanos = self.ttl.unwrap_or(0);
        let ttl = seconds(nanos)?;
        let (key, csr) = request(&spiffe_id, &self.dns_names)?;

        let answer = client.svids().mint_x509svid(MintX509svidRequest { csr, ttl }).await;
        let minted = answer.map_err(|status| client.refused_to("unable to mint SVID", &status))?.into_inner();
        let svid = minted.svid.unwrap_or_default();
        if svid.cert_chain.is_empty() {
            return Err(fail("server response missing SVID chain"));
        }
        let answer = client.bundles().get_bundle(GetBundleRequest::default()).await;
        let bundle =
            answer.map_err(|status| client.refused_to("unable to get bundle", &status))?.into_inner();
        if bundle.x509_authorities.is_empty() {
            return Err(fail("server response missing X509 Authorities"));
        }

        let err = capped("X509-SVID", nanos, svid.expires_at, clock);
        let minted = Minted {
            chain: svid.cert_chain,
            key,
            roots: bundle.x509_authorities.into_iter().map(|authority| authority.asn1).collect(),
        };
        let report = match self.write.as_deref().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => write_files(dir, &minted),
            None if format == OutputFormat::Json => minted_json(&minted),
            None => Report::said(pretty(&minted)),
        };
        Ok(Report { err, ..report })
    }
}

/// A new P-256 key (PKCS#8, DER) and a request for it (PKCS#10, DER).
fn request(id: &SpiffeId, dns_names: &[String]) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Failure> {
    let not_made = |error: rcgen::Error| fail(format!("unable to generate CSR: {error}"));
    let ia5 = |text: &str| {
        let not_ascii =
            format!("unable to generate CSR: x509: {} cannot be encoded as an IA5String", text::quote(text));
        Ia5String::try_from(text).map_err(|_| fail(not_ascii))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(ia5(id.as_str())?)];
    for name in dns_names {
        params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
    }
    let key = KeyPair::generate().map_err(|error| fail(format!("unable to generate key: {error}")))?;
    let csr = params.serialize_request(&key).map_err(not_made)?;
    Ok((Zeroizing::new(key.serialize_der()), csr.der().to_vec()))
}

fn pretty(minted: &Minted) -> String {
    let key = key_pem(&minted.key);
    format!(
        "X509-SVID:\n{}\nPrivate key:\n{}\nRoot CAs:\n{}\n",
        pem(&minted.chain),
        key.as_str(),
        pem(&minted.roots)
    )
}

fn minted_json(minted: &Minted) -> Report {
    let list =
        |certificates: &[Vec<u8>]| certificates.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>();
    json_line(json!({
        "x509_svid": list(&minted.chain),
        "private_key": STANDARD.encode(minted.key.as_slice()),
        "root_cas": list(&minted.roots),
    }))
}

/// Tells of each file after it is there; stops at the first that cannot be written.
fn write_files(dir: &Path, minted: &Minted) -> Report {
    let mut out = String::new();
    let key = key_pem(&minted.key);
    let files: [(&str, &str, &str, &str, Writer); 3] = [
        ("svid.pem", "SVID", "X509-SVID", &pem(&minted.chain), write_public),
        ("key.pem", "key", "Private key", &key, private_file::replace),
        ("bundle.pem", "bundle", "Root CAs", &pem(&minted.roots), write_public),
    ];
    for (name, what, title, text, write) in files {
        let path = text::clean(&dir.join(name));
        if let Err(error) = write(&path, text.as_bytes()) {
            let cause = text::file_error("open", &path, &error);
            return Report::said(out).failed(fail(format!("unable to write {what}: {cause}")));
        }
        out.push_str(&format!("{title} written to {}\n", path.display()));
    }
    Report::said(out)
}

type Writer = fn(&Path, &[u8]) -> io::Result<()>;

fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644).open(path)?.write_all(bytes)
}

fn pem(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|der| certificate_pem(der)).collect()
}

fn key_pem(pkcs8: &[u8]) -> Zeroizing<String> {
    let certificate = Zeroizing::new(certificate_pem(pkcs8));
    Zeroizing::new(certificate.replace("CERTIFICATE", "PRIVATE KEY"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use finial_identity::csr::VerifiedCsr;

    use super::*;

    fn minted() -> Minted {
        Minted {
            chain: vec![b"leaf".to_vec(), b"intermediate".to_vec()],
            key: Zeroizing::new(b"key".to_vec()),
            roots: vec![b"root<>".to_vec()],
        }
    }

    const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nbGVhZg==\n-----END CERTIFICATE-----\n\
                         -----BEGIN CERTIFICATE-----\naW50ZXJtZWRpYXRl\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n";
    const ROOTS: &str = "-----BEGIN CERTIFICATE-----\ncm9vdDw+\n-----END CERTIFICATE-----\n";

    #[test]
    fn prints_as_spire_does() {
        assert_eq!(
            pretty(&minted()),
            format!("X509-SVID:\n{CHAIN}\nPrivate key:\n{KEY}\nRoot CAs:\n{ROOTS}\n")
        );
        assert_eq!(
            minted_json(&minted()).out,
            "{\"x509_svid\":[\"bGVhZg==\",\"aW50ZXJtZWRpYXRl\"],\"private_key\":\"a2V5\",\"root_cas\":[\"cm9vdDw+\"]}\n"
        );
    }

    #[test]
    fn writes_three_files() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().display();
        std::fs::write(dir.path().join("key.pem"), "old and open").unwrap();
        std::fs::set_permissions(dir.path().join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(
            write_files(&dir.path().join("."), &minted()),
            Report::said(format!(
                "X509-SVID written to {base}/svid.pem\nPrivate key written to {base}/key.pem\nRoot CAs written to \
                 {base}/bundle.pem\n"
            ))
        );
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("svid.pem"), read("key.pem"), read("bundle.pem")),
            (CHAIN.into(), KEY.into(), ROOTS.into())
        );
        let mode = std::fs::metadata(dir.path().join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let report = write_files(Path::new("/nonexist"), &minted());
        assert_eq!(
            report,
            Report::default()
                .failed(fail("unable to write SVID: open /nonexist/svid.pem: no such file or directory"))
        );
    }

    #[test]
    fn the_request_has_the_id_and_the_names() {
        let id = SpiffeId::parse("spiffe://example.org/m").unwrap();
        let (key, csr) = request(&id, &["a.b".into(), "c.d".into()]).unwrap();
        let csr = VerifiedCsr::from_der(&csr).unwrap();
        assert_eq!(csr.uris(), ["spiffe://example.org/m"]);
        assert_eq!(csr.dns_names(), ["a.b", "c.d"]);
        let key = finial_daemon::keys::exportable::WorkloadKey::from_pkcs8(&key).unwrap();
        assert_eq!(key.public_key_der(), csr.public_key_der());
        assert_eq!(
            request(&id, &["é".into()]).unwrap_err(),
            fail("unable to generate CSR: x509: \"é\" cannot be encoded as an IA5String")
        );
    }
}
