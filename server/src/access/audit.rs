//! The audit log (setting `audit_log_enabled`): one line at level info for each call, or for each element of a batch,
//! with SPIRE's message and field names.

use std::fmt::{self, Display, Write};

use super::caller::Caller;
use super::permit::{Granted, Role};

/// One line. Everything that is `None` or empty is left out of it.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub caller: &'a Caller,
    /// `/package.Service/Method`.
    pub method: &'a str,
    /// As what the caller was let in; `None` when it was not.
    pub role: Option<Role>,
    /// A UUID that all lines of one call share.
    pub request_id: &'a str,
    pub outcome: Outcome<'a>,
    pub subject: Subject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    Success,
    /// The gRPC status, its code by name (`NotFound`).
    Error {
        code: &'a str,
        message: &'a str,
    },
}

/// What the call was about. Lists are given joined by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub entry_id: Option<String>,
    pub spiffe_id: Option<String>,
    pub parent_id: Option<String>,
    pub selectors: Option<String>,
    pub x509_svid_ttl: Option<i32>,
    pub jwt_svid_ttl: Option<i32>,
    pub federates_with: Option<String>,
    pub dns_name: Option<String>,
    pub admin: Option<bool>,
    pub downstream: Option<bool>,
    pub expires_at: Option<i64>,
    pub agent_id: Option<String>,
    pub node_attestor_type: Option<String>,
    pub trust_domain_id: Option<String>,
    pub local_authority_id: Option<String>,
    /// SHA-256 of the CSR, in hex.
    pub csr: Option<String>,
    /// Whatever else the request says, in the field `request`.
    pub others: Others,
}

/// Fields that are shown together as `name=value, name=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(String);

impl<'a> Record<'a> {
    /// The record of a call that was let in and went well; adjust what differs.
    pub fn of(granted: &'a Granted, request_id: &'a str) -> Record<'a> {
        Record {
            caller: granted.caller(),
            method: granted.method(),
            role: Some(granted.role()),
            request_id,
            outcome: Outcome::Success,
            subject: Subject::default(),
        }
    }
}

impl Others {
    pub fn add(&mut self, name: &str, value: impl Display) {
        let comma = if self.0.is_empty() { "" } else { ", " };
        // Writing to a String does not fail.
        let _ = write!(self.0, "{comma}{name}={value}");
    }
}

impl Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes the line. On the admin socket this looks up the caller's program in /proc, as root or the same user may.
pub fn write(record: &Record<'_>) {
    let Record { caller, subject, .. } = record;
    let (service, method) = service_and_method(record.method);
    let (status, status_code, status_message) = match record.outcome {
        Outcome::Success => ("success", None, None),
        Outcome::Error { code, message } => ("error", Some(code), Some(message)),
    };
    let process = caller.process();
    let path = process.and_then(|process| process.read_link("exe").ok());
    tracing::info!(
        r#type = "audit",
        request_id = record.request_id,
        service,
        method,
        authorized_as = record.role.map_or("nobody", Role::authorized_as),
        authorized_via = record.role.map_or("", Role::authorized_via),
        status,
        status_code,
        status_message,
        caller_addr = caller.address().map(tracing::field::display),
        caller_id = caller.spiffe_id().map(tracing::field::display),
        caller_uid = process.map(|process| process.uid()),
        caller_gid = process.map(|process| process.gid()),
        caller_path = path.as_ref().map(|path| tracing::field::display(path.display())),
        entry_id = subject.entry_id.as_deref(),
        spiffe_id = subject.spiffe_id.as_deref(),
        parent_id = subject.parent_id.as_deref(),
        selectors = subject.selectors.as_deref(),
        x509_svid_ttl = subject.x509_svid_ttl,
        jwt_svid_ttl = subject.jwt_svid_ttl,
        federates_with = subject.federates_with.as_deref(),
        dns_name = subject.dns_name.as_deref(),
        admin = subject.admin,
        downstream = subject.downstream,
        expires_at = subject.expires_at,
        agent_id = subject.agent_id.as_deref(),
        node_attestor_type = subject.node_attestor_type.as_deref(),
        trust_domain_id = subject.trust_domain_id.as_deref(),
        local_authority_id = subject.local_authority_id.as_deref(),
        csr = subject.csr.as_deref(),
        request = Some(&subject.others).filter(|others| !others.0.is_empty()).map(tracing::field::display),
        "API accessed"
    );
}

/// `/spire.api.server.entry.v1.Entry/GetEntry` is logged as service `entry.v1.Entry`, method `GetEntry`.
fn service_and_method(full: &str) -> (&str, &str) {
    let (service, method) = full.trim_start_matches('/').split_once('/').unwrap_or((full, ""));
    (service.strip_prefix("spire.api.server.").unwrap_or(service), method)
}
