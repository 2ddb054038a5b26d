//! `telemetry { }`: which sinks, and what they are told.

use std::path::PathBuf;

use finial_identity::spiffe_id::SpiffeId;

use crate::settings::{Notice, Section};

/// The block of both programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSettings {
    pub prometheus: Option<PrometheusSettings>,
    pub dog_statsd: Vec<Addressed>,
    pub statsd: Vec<Addressed>,
    pub in_mem: bool,
    /// `MetricPrefix`
    pub prefix: Option<String>,
    /// `EnableTrustDomainLabel`
    pub trust_domain_label: bool,
    /// `EnableHostnameLabel`; on when absent.
    pub hostname_label: Option<bool>,
    pub allowed_prefixes: Vec<String>,
    pub blocked_prefixes: Vec<String>,
    /// Absent: all of them.
    pub allowed_labels: Option<Vec<String>>,
    pub blocked_labels: Vec<String>,
}

/// A sink that numbers are pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressed {
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrometheusSettings {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub tls: Option<PrometheusTls>,
}

/// Whom the page is shown to, and who shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrometheusTls {
    /// Certificate and key, PEM; `None`: the program's own SVID.
    pub files: Option<(PathBuf, PathBuf)>,
    /// PEM. Clients must have a certificate below one of these.
    pub client_ca_file: Option<PathBuf>,
    /// Clients must have an SVID with one of these IDs; anybody when empty.
    pub authorized: Vec<SpiffeId>,
}

/// Why `M3` is refused.
const NO_M3: &str = "the M3 sink is not built: its UDP protocol (Thrift, by Uber's tally library) has no maintained \
    implementation outside of Go and Java; use Prometheus, which M3 scrapes, or Statsd";

impl MetricsSettings {
    /// Reads the block out of the file's top. Keys that are none of the block's are accepted as in SPIRE, and named in
    /// `warnings`; those of a sink are refused.
    pub fn read(top: &Section, warnings: &mut Vec<Notice>) -> MetricsSettings {
        let Some(section) = top.block("telemetry") else { return MetricsSettings::default() };
        let settings = MetricsSettings {
            prometheus: section.block("Prometheus").map(|section| prometheus(&section)),
            dog_statsd: addressed(&section, "DogStatsd"),
            statsd: addressed(&section, "Statsd"),
            in_mem: section.block("InMem").is_some(),
            prefix: section.string("MetricPrefix").filter(|prefix| !prefix.is_empty()),
            trust_domain_label: section.bool("EnableTrustDomainLabel").unwrap_or(false),
            hostname_label: section.bool("EnableHostnameLabel"),
            allowed_prefixes: section.list("AllowedPrefixes").unwrap_or_default(),
            blocked_prefixes: section.list("BlockedPrefixes").unwrap_or_default(),
            allowed_labels: section.list("AllowedLabels"),
            blocked_labels: section.list("BlockedLabels").unwrap_or_default(),
        };
        let m3 = section.blocks("M3");
        for sink in &m3 {
            sink.allow_unknown();
        }
        if !m3.is_empty() {
            section.problem("M3", NO_M3);
        }
        section.warn_of_unknown(warnings);
        settings
    }
}

fn addressed(section: &Section, key: &str) -> Vec<Addressed> {
    let sinks = section.blocks(key);
    sinks.iter().map(|sink| Addressed { address: sink.string("address").unwrap_or_default() }).collect()
}

fn prometheus(section: &Section) -> PrometheusSettings {
    let host = section.string("host").filter(|host| !host.is_empty());
    PrometheusSettings {
        host: host.unwrap_or_else(|| "localhost".to_owned()),
        port: section.number("port").unwrap_or(0),
        tls: section.block("tls").map(|section| tls(&section)),
    }
}

fn tls(section: &Section) -> PrometheusTls {
    let path = |key| section.string(key).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (cert, key) = (path("cert_file"), path("key_file"));
    let client_ca_file = path("client_ca_file");
    let own_svid = section.bool("use_spire_svid").unwrap_or(false);
    let mut authorized = Vec::new();
    for text in section.list("authorized_spiffe_ids").unwrap_or_default() {
        match SpiffeId::parse(&text) {
            Ok(id) => authorized.push(id),
            Err(error) => section.problem(
                "authorized_spiffe_ids",
                format_args!("invalid authorized SPIFFE ID {text:?}: {error}"),
            ),
        }
    }
    let files = match (own_svid, cert, key) {
        (true, None, None) => None,
        (true, ..) => {
            section
                .problem_here("cert_file and key_file cannot be configured when use_spire_svid is enabled");
            None
        }
        (false, Some(cert), Some(key)) => Some((cert, key)),
        (false, ..) => {
            section.problem_here(
                "cert_file and key_file must both be configured unless use_spire_svid is enabled",
            );
            None
        }
    };
    if !authorized.is_empty() && client_ca_file.is_some() {
        section.problem_here("client_ca_file cannot be configured with authorized_spiffe_ids");
    }
    PrometheusTls { files, client_ca_file, authorized }
}
