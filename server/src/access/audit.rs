//! The audit log (setting `audit_log_enabled`): one line at level info for each call, or for each element of a batch,
//! with SPIRE's message and field names.

use serde::Serialize;
use serde_json::{Map, Value};

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
    /// Whatever else the request says.
    pub others: Others,
}

/// Fields by names that only some methods have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(Map<String, Value>);

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
    /// `value` is text, a number or a truth value.
    pub fn add(&mut self, name: &str, value: impl Serialize) {
        self.0.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
    }

    fn text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| serde_json::to_string(&self.0).unwrap_or_default())
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
        // The log writes each member as a field of its own.
        fields = subject.others.text(),
        "API accessed"
    );
}

/// The names by which SPIRE logs a method: `/spire.api.server.entry.v1.Entry/GetEntry` is method `GetEntry` of service
/// `entry.v1.Entry`.
pub fn service_and_method(full: &str) -> (&str, &str) {
    let (service, method) = full.trim_start_matches('/').split_once('/').unwrap_or((full, ""));
    let service = match service {
        "spire.api.server.logger.v1.Logger" => "Logger",
        "grpc.health.v1.Health" => "Health",
        _ => service.strip_prefix("spire.api.server.").unwrap_or(service),
    };
    (service, method)
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use finial_daemon::listen::peer::LocalPeer;
    use finial_daemon::listen::{ConnInfo, Origin};
    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;
    use crate::access::fixture::{Authority, anonymous, noon};
    use crate::access::permit::{self, Facts};
    use crate::entries::snapshot::EntryFlags;

    type Line = Vec<(String, String)>;

    /// Keeps the events of this module.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<Line>>>);

    struct Fields<'a>(&'a mut Line);

    impl Visit for Fields<'_> {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.push((field.name().to_owned(), value.to_owned()));
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.push((field.name().to_owned(), format!("{value:?}")));
        }
    }

    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target().ends_with("access::audit")
        }

        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = vec![("level".to_owned(), event.metadata().level().to_string())];
            event.record(&mut Fields(&mut line));
            self.0.lock().unwrap().push(line);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// The fields of the one line that `record` leads to, sorted.
    fn line(record: &Record<'_>) -> Vec<String> {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || write(record));
        let mut lines = std::mem::take(&mut *lines.0.lock().unwrap());
        assert_eq!(lines.len(), 1);
        let mut fields: Vec<String> =
            lines.remove(0).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        fields.sort();
        fields
    }

    #[test]
    fn a_call_that_went_well() {
        let caller = Authority::new("example.org").svid("/admin", 7).caller();
        let row = permit::row("/spire.api.server.entry.v1.Entry/BatchCreateEntry").unwrap();
        let flags = EntryFlags { admin: true, downstream: false };
        let facts = Facts { caller: &caller, admin_ids: &[], flags, standing: None, now: noon() };
        let granted = permit::decide(row, &facts).unwrap();
        let mut record = Record::of(&granted, "6f1e");
        record.subject = Subject {
            entry_id: Some("web".into()),
            selectors: Some("unix:uid:1,unix:gid:2".into()),
            x509_svid_ttl: Some(60),
            downstream: Some(false),
            ..Subject::default()
        };
        record.subject.others.add("hint", "a b");
        record.subject.others.add("store_svid", true);
        assert_eq!(
            line(&record),
            [
                "authorized_as=admin",
                "authorized_via=entries",
                "caller_addr=192.0.2.1:4711",
                "caller_id=spiffe://example.org/admin",
                "downstream=false",
                "entry_id=web",
                r#"fields={"hint":"a b","store_svid":true}"#,
                "level=INFO",
                "message=API accessed",
                "method=BatchCreateEntry",
                "request_id=6f1e",
                "selectors=unix:uid:1,unix:gid:2",
                "service=entry.v1.Entry",
                "status=success",
                "type=audit",
                "x509_svid_ttl=60",
            ]
        );
    }

    #[test]
    fn a_call_that_was_refused() {
        let caller = anonymous();
        let record = Record {
            caller: &caller,
            method: "/grpc.health.v1.Health/Check",
            role: None,
            request_id: "1",
            outcome: Outcome::Error { code: "PermissionDenied", message: "authorization denied" },
            subject: Subject::default(),
        };
        assert_eq!(
            line(&record),
            [
                "authorized_as=nobody",
                "authorized_via=",
                "caller_addr=192.0.2.2:4712",
                "level=INFO",
                "message=API accessed",
                "method=Check",
                "request_id=1",
                "service=Health",
                "status=error",
                "status_code=PermissionDenied",
                "status_message=authorization denied",
                "type=audit",
            ]
        );
    }

    #[test]
    fn a_local_caller_is_named_by_its_process() {
        let process = Arc::new(LocalPeer::of_process(std::process::id()).unwrap());
        let caller = Caller::from_socket(&ConnInfo::new(Origin::Local(Arc::clone(&process)), None));
        let record = Record {
            caller: &caller,
            method: "/spire.api.server.logger.v1.Logger/GetLogger",
            role: Some(Role::Local),
            request_id: "1",
            outcome: Outcome::Success,
            subject: Subject::default(),
        };
        let line = line(&record);
        let program = std::env::current_exe().unwrap().canonicalize().unwrap();
        for expected in [
            format!("caller_uid={}", process.uid()),
            format!("caller_gid={}", process.gid()),
            format!("caller_path={}", program.display()),
            "authorized_as=local".to_owned(),
            "authorized_via=transport".to_owned(),
        ] {
            assert!(line.contains(&expected), "{expected} is not in {line:?}");
        }
        assert!(!line.iter().any(|field| field.starts_with("caller_addr") || field.starts_with("caller_id")));
    }
}
