//! What the quickstart prints: short aligned lines, and a certificate chain a person can read.

use std::fmt::Display;
use std::time::SystemTime;

use der::Decode;
use rustls_pki_types::CertificateDer;
use spiffe::{X509Bundle, X509Svid};
use time::OffsetDateTime;
use time::macros::format_description;
use x509_cert::Certificate;

use crate::Stuck;

/// A headline.
pub fn title(text: &str) {
    println!("\n{text}");
}

/// The head of a numbered step.
pub fn step(number: u8, text: &str) {
    println!("\n{number}  {text}");
}

/// A named value under a step.
pub fn fact(name: &str, value: impl Display) {
    println!("   {name:<8} {value}");
}

/// A line under a step.
pub fn line(text: impl Display) {
    println!("   {text}");
}

/// The SVID's serial number, hexadecimal.
pub fn serial(svid: &X509Svid) -> Result<String, Stuck> {
    Ok(hex(read(svid.leaf().as_bytes())?.tbs_certificate().serial_number().as_bytes()))
}

/// The chain of an SVID, from the leaf to the root in the bundle, each line with its end of life; and the
/// verdict of a full path validation.
pub fn chain(svid: &X509Svid, bundle: Option<&X509Bundle>) -> Result<(), Stuck> {
    let now = finial_daemon::clock::Clock::wall().now();
    fact("id", svid.spiffe_id());
    fact("serial", serial(svid)?);
    let mut issuer = None;
    for (depth, certificate) in svid.cert_chain().iter().enumerate() {
        let certificate = read(certificate.as_bytes())?;
        print_link(depth, &certificate, if depth == 0 { "the SVID" } else { "sent along with it" }, now);
        issuer = Some(certificate.tbs_certificate().issuer().clone());
    }
    let roots: Vec<_> = bundle.map(|bundle| bundle.authorities().to_vec()).unwrap_or_default();
    for root in &roots {
        let certificate = read(root.as_bytes())?;
        if Some(certificate.tbs_certificate().subject()) == issuer.as_ref() {
            print_link(svid.cert_chain().len(), &certificate, "in the bundle: the enterprise root", now);
        }
    }
    let presented: Vec<CertificateDer<'static>> =
        svid.cert_chain().iter().map(|certificate| certificate.as_bytes().to_vec().into()).collect();
    let roots: Vec<&[u8]> = roots.iter().map(|root| root.as_bytes()).collect();
    finial_identity::peer::verify(&presented, &roots, now).map_err(|error| {
        Stuck::new("the chain does not verify", error, "report this with the output above")
    })?;
    line("verified: every signature, every lifetime, up to the enterprise root");
    Ok(())
}

fn print_link(depth: usize, certificate: &Certificate, role: &str, now: SystemTime) {
    let indent = "   ".repeat(depth);
    let mark = if depth == 0 { "" } else { "signed by " };
    let subject = certificate.tbs_certificate().subject().to_string();
    let end = certificate.tbs_certificate().validity().not_after.to_system_time();
    line(format_args!("{indent}{mark}{subject}"));
    line(format_args!("{indent}   {role}; expires {} ({})", moment(end), left(end, now)));
}

fn read(der: &[u8]) -> Result<Certificate, Stuck> {
    Certificate::from_der(der)
        .map_err(|error| Stuck::new("a certificate can't be read", error, "report this"))
}

fn moment(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::from(at).format(&format).unwrap_or_else(|_| "at an unknown time".to_owned())
}

fn left(end: SystemTime, now: SystemTime) -> String {
    let seconds = end.duration_since(now).unwrap_or_default().as_secs();
    match seconds {
        0 => "over".to_owned(),
        1..=119 => format!("in {seconds} s"),
        120..=7_199 => format!("in {} min", seconds / 60),
        7_200..=172_799 => format!("in {} h", seconds / 3_600),
        _ => format!("in {} days", seconds / 86_400),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
