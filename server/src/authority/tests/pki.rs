//! An enterprise's certificates, made by openssl as an enterprise would make them, and openssl as a judge of ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::settings::{Section, parse};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::trust_domain;
use crate::plugins::upstream_authority::{BUILT_IN, Core, UpstreamAuthority};

/// A directory with `<name>.pem` and `<name>.key` files.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
}

pub(crate) const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
pub(crate) const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub(crate) const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
pub(crate) const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
pub(crate) const ED25519: &[&str] = &["-algorithm", "ED25519"];

/// basicConstraints of a CA.
pub(crate) const CA: &str = "critical,CA:TRUE";

impl Pki {
    pub(crate) fn new() -> Pki {
        let pki = Pki { folder: tempfile::tempdir().unwrap() };
        std::fs::write(pki.path("req.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        pki
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    pub(crate) fn key(&self, name: &str, algorithm: &[&str]) {
        let file = self.text(&format!("{name}.key"));
        run(&[&["genpkey", "-out", &file], algorithm].concat());
    }

    /// A root with an enterprise's kind of name.
    pub(crate) fn root(&self, name: &str, algorithm: &[&str], subject: &str, days: u32, constraints: &str) {
        self.key(name, algorithm);
        self.certify(name, name, subject, days, constraints);
    }

    /// A CA below `by`.
    pub(crate) fn below(
        &self,
        name: &str,
        by: &str,
        algorithm: &[&str],
        subject: &str,
        days: u32,
        constraints: &str,
    ) {
        self.key(name, algorithm);
        self.certify(name, by, subject, days, constraints);
    }

    /// A certificate for the key `name`, signed by `by`, which may be `name` itself.
    pub(crate) fn certify(&self, name: &str, by: &str, subject: &str, days: u32, constraints: &str) {
        let [key, csr, pem, extensions, config] =
            ["key", "csr", "pem", "ext", "cnf"].map(|end| self.text(&format!("{name}.{end}")));
        let usage = if constraints.contains("CA:TRUE") { "keyCertSign,cRLSign" } else { "digitalSignature" };
        let mut lines = format!(
            "basicConstraints = {constraints}\nkeyUsage = critical,{usage}\nsubjectKeyIdentifier = hash\n"
        );
        if name != by {
            lines += "authorityKeyIdentifier = keyid\n";
        }
        std::fs::write(&extensions, lines).unwrap();
        std::fs::copy(self.path("req.cnf"), &config).unwrap();
        run(&[
            "req",
            "-new",
            "-config",
            &config,
            "-key",
            &key,
            "-subj",
            subject,
            "-multivalue-rdn",
            "-out",
            &csr,
        ]);
        let (by_key, by_pem) = (self.text(&format!("{by}.key")), self.text(&format!("{by}.pem")));
        let days = days.to_string();
        let common = ["x509", "-req", "-in", &csr, "-days", &days, "-extfile", &extensions, "-out", &pem];
        if name == by {
            run(&[&common[..], &["-signkey", &key]].concat());
        } else {
            run(&[&common[..], &["-CA", &by_pem, "-CAkey", &by_key, "-CAcreateserial"]].concat());
        }
    }

    pub(crate) fn der(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(file)).unwrap()
    }

    /// Writes several files one after another into one.
    pub(crate) fn join(&self, to: &str, files: &[&str]) {
        let all: Vec<u8> = files.iter().flat_map(|file| std::fs::read(self.path(file)).unwrap()).collect();
        std::fs::write(self.path(to), all).unwrap();
    }

    /// The plugin `disk` on files of this directory.
    pub(crate) fn upstream(
        &self,
        certificate: &str,
        key: &str,
        bundle: Option<&str>,
        clock: Clock,
    ) -> std::sync::Arc<dyn UpstreamAuthority> {
        let mut text =
            format!("cert_file_path = {:?}\nkey_file_path = {:?}\n", self.text(certificate), self.text(key));
        if let Some(bundle) = bundle {
            text += &format!("bundle_file_path = {:?}\n", self.text(bundle));
        }
        let section = Section::new(&parse(&text, "server.conf").unwrap());
        let core = Core { trust_domain: trust_domain(), clock };
        let (_, build) = BUILT_IN.iter().find(|(name, _)| *name == "disk").unwrap();
        build(section, core).unwrap()
    }

    /// Lets openssl verify a chain (DER, leaf first) up to `roots` at a time, strictly.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &[impl AsRef<[u8]>],
        at: SystemTime,
    ) -> Result<(), String> {
        write_pem(&self.path("judged-leaf.pem"), &chain[..1]);
        write_pem(&self.path("judged-above.pem"), &chain[1..]);
        write_pem(&self.path("judged-roots.pem"), roots);
        let [leaf, above, roots] =
            ["judged-leaf.pem", "judged-above.pem", "judged-roots.pem"].map(|file| self.text(file));
        let at = unix_seconds(at).to_string();
        let mut arguments =
            vec!["verify", "-x509_strict", "-purpose", "sslclient", "-attime", &at, "-CAfile", &roots];
        if chain.len() > 1 {
            arguments.extend(["-untrusted", &above]);
        }
        arguments.push(&leaf);
        let output = openssl(&arguments);
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// What `openssl x509 -text` says of a certificate.
    pub(crate) fn describe(&self, der: &CertificateDer<'_>) -> String {
        write_pem(&self.path("described.pem"), std::slice::from_ref(der));
        let file = self.text("described.pem");
        let output = openssl(&["x509", "-in", &file, "-noout", "-text", "-nameopt", "RFC2253,sep_multiline"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn write_pem(path: &Path, certificates: &[impl AsRef<[u8]>]) {
    use base64::Engine;
    let mut text = String::new();
    for certificate in certificates {
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate.as_ref());
        text += &format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n");
    }
    std::fs::write(path, text).unwrap();
}

fn openssl(arguments: &[&str]) -> std::process::Output {
    Command::new("openssl").args(arguments).output().expect("these tests need the program openssl")
}

fn run(arguments: &[&str]) {
    let output = openssl(arguments);
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
