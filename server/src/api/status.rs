//! What a peer sees of an error, and what the log keeps of it. No other file makes a [`tonic::Status`].
//!
//! Texts follow SPIRE's: `outer: inner`, and for NOT_FOUND the outer part alone. A cause that lies in the server
//! (a database, a key) is shown to operators only; agents and strangers get the outer text.

use std::error::Error;
use std::fmt;

use bytes::Bytes;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use prost::{Message, Name};
use tonic::{Code, Status};

use crate::access::audit::Subject;
use crate::access::permit;
use crate::store::StoreError;

/// An answer other than success: to a whole call as [`Status`], to one element of a batch as [`types::Status`].
///
/// It is logged once, with its causes: together with what the call was about when somebody says so
/// ([`Refusal::about`]), and alone when it has become a status before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: Code,
    message: String,
    line: Line,
    /// With PERMISSION_DENIED: what an agent has to do about it.
    reason: Option<Reason>,
}

impl Refusal {
    /// INVALID_ARGUMENT with a text alone.
    pub fn invalid(text: &str) -> Refusal {
        Refusal::new(Code::InvalidArgument, text.to_owned(), Line::new(format!("Invalid argument: {text}")))
    }

    /// INVALID_ARGUMENT `text: cause`: what the caller sent was wrong, so the caller may read why.
    pub fn invalid_because(text: &str, cause: &dyn Error) -> Refusal {
        let cause = chain(cause);
        let line = Line::new(format!("Invalid argument: {text}")).because(&cause);
        Refusal::new(Code::InvalidArgument, format!("{text}: {cause}"), line)
    }

    /// NOT_FOUND with a text alone: the cause says nothing more.
    pub fn not_found(text: &str) -> Refusal {
        Refusal::new(Code::NotFound, text.to_owned(), Line::capitalised(text))
    }

    /// Another code with a text alone.
    pub fn with_code(code: Code, text: &str) -> Refusal {
        match code {
            Code::InvalidArgument => Refusal::invalid(text),
            _ => Refusal::new(code, text.to_owned(), Line::capitalised(text)),
        }
    }

    /// `text: cause` for operators: the methods that only an admin or the local socket may call. UNAVAILABLE while the
    /// database is away.
    pub fn shown(code: Code, text: &str, cause: &(dyn Error + 'static)) -> Refusal {
        let code = if is_outage(cause) { Code::Unavailable } else { code };
        match code {
            Code::InvalidArgument => Refusal::invalid_because(text, cause),
            Code::NotFound => Refusal::not_found(text),
            _ => {
                let cause = chain(cause);
                Refusal::new(code, format!("{text}: {cause}"), Line::capitalised(text).because(&cause))
            }
        }
    }

    /// INTERNAL for agents and strangers: the peer reads `text`, the log has the cause. UNAVAILABLE while the database is
    /// away, which the peer may know, for it will do to try again.
    pub fn internal(text: &str, cause: &(dyn Error + 'static)) -> Refusal {
        let line = Line::capitalised(text).because(&chain(cause));
        match is_outage(cause) {
            true => Refusal::new(Code::Unavailable, format!("{text}: the database cannot be reached"), line),
            false => Refusal::new(Code::Internal, text.to_owned(), line),
        }
    }

    /// What reading a request stream failed with: the peer broke the protocol, or sent too much.
    pub fn from_stream(status: Status) -> Refusal {
        let code = match status.code() {
            Code::OutOfRange => Code::ResourceExhausted,
            code => code,
        };
        Refusal::new(code, status.message().to_owned(), Line::silent())
    }

    /// PERMISSION_DENIED with the reason that an agent acts on.
    pub fn denied(text: &str, reason: Reason) -> Refusal {
        let line = Line::capitalised(text);
        Refusal { reason: Some(reason), ..Refusal::new(Code::PermissionDenied, text.to_owned(), line) }
    }

    /// CANCELLED, for a caller who went away and will not read it. Not logged: nobody has to do anything about it.
    pub fn gone() -> Refusal {
        Refusal::new(Code::Cancelled, "the caller went away".to_owned(), Line::silent())
    }

    fn new(code: Code, message: String, line: Line) -> Refusal {
        Refusal { code, message, line, reason: None }
    }

    /// Logs it with what the call, or the element of a batch, was about.
    pub fn about(mut self, subject: &Subject) -> Refusal {
        self.line.tell(Some(subject));
        self
    }

    pub fn code(&self) -> Code {
        self.code
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The line in the log, which waits for somebody to say what the call was about.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// Empty when there is nothing to say, or it was said.
    text: String,
    error: Option<String>,
}

impl Line {
    fn new(text: String) -> Line {
        Line { text, error: None }
    }

    fn capitalised(text: &str) -> Line {
        Line::new(Capitalised(text).to_string())
    }

    fn silent() -> Line {
        Line::new(String::new())
    }

    fn because(mut self, cause: &str) -> Line {
        self.error = Some(cause.to_owned());
        self
    }

    fn tell(&mut self, subject: Option<&Subject>) {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() {
            return;
        }
        let nothing = Subject::default();
        let subject = subject.unwrap_or(&nothing);
        tracing::error!(
            error = self.error,
            entry_id = subject.entry_id,
            spiffe_id = subject.spiffe_id,
            parent_id = subject.parent_id,
            agent_id = subject.agent_id,
            node_attestor_type = subject.node_attestor_type,
            trust_domain_id = subject.trust_domain_id,
            local_authority_id = subject.local_authority_id,
            "{text}"
        );
    }
}

/// A copy says nothing more: the line is of the first.
impl Clone for Line {
    fn clone(&self) -> Line {
        Line::silent()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// For a call that lost its permit between two steps.
impl From<permit::Refusal> for Refusal {
    fn from(refused: permit::Refusal) -> Refusal {
        match refused.reason {
            Some(reason) => Refusal::denied(&refused.to_string(), self::reason(reason)),
            None => Refusal::with_code(Code::PermissionDenied, &refused.to_string()),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        match refusal.reason {
            Some(reason) => with_reason(&refusal.message, reason),
            None => Status::new(refusal.code, refusal.message),
        }
    }
}

impl From<Refusal> for types::Status {
    fn from(refusal: Refusal) -> types::Status {
        types::Status { code: refusal.code as i32, message: refusal.message }
    }
}

/// The status of a batch element that succeeded. SPIRE's clients read the status without a look whether there is one.
pub fn ok() -> types::Status {
    types::Status { code: Code::Ok as i32, message: "OK".to_owned() }
}

/// UNIMPLEMENTED for a method (`/package.Service/Method`) that this server knows but does not have yet.
pub fn not_built(path: &str) -> Status {
    Status::unimplemented(format!("{} is not built yet", path.trim_start_matches('/')))
}

/// UNIMPLEMENTED for a method (`/package.Service/Method`) that nobody knows, as Go's servers say it. `knows` a service by
/// its name.
pub fn unknown_method(path: &str, knows: impl FnOnce(&str) -> bool) -> Status {
    let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
    Status::unimplemented(match knows(service) {
        true => format!("unknown method {method} for service {service}"),
        false => format!("unknown service {service}"),
    })
}

/// PERMISSION_DENIED for a whole call, with the reason if there is one that helps the caller.
pub fn denied(refused: &permit::Refusal) -> Status {
    let text = refused.to_string();
    match refused.reason {
        Some(reason) => with_reason(&text, self::reason(reason)),
        None => Status::permission_denied(text),
    }
}

/// UNAVAILABLE on a connection that is over; clients call again on another one.
pub fn connection_over() -> Status {
    Status::unavailable("the connection is over; call again on a new one")
}

fn with_reason(text: &str, reason: Reason) -> Status {
    let detail = types::PermissionDeniedDetails { reason: reason as i32 };
    // google.rpc.Status, as gRPC puts it into the trailer grpc-status-details-bin.
    let whole = RpcStatus {
        code: Code::PermissionDenied as i32,
        message: text.to_owned(),
        details: vec![prost_types::Any {
            type_url: format!("type.googleapis.com/{}", types::PermissionDeniedDetails::full_name()),
            value: detail.encode_to_vec(),
        }],
    };
    Status::with_details(Code::PermissionDenied, text, Bytes::from(whole.encode_to_vec()))
}

/// The reason of a refusal, as the wire has it.
fn reason(reason: permit::Reason) -> Reason {
    match reason {
        permit::Reason::AgentExpired => Reason::AgentExpired,
        permit::Reason::AgentNotAttested => Reason::AgentNotAttested,
        permit::Reason::AgentNotActive => Reason::AgentNotActive,
        permit::Reason::AgentBanned => Reason::AgentBanned,
        permit::Reason::AgentMustReattest => Reason::AgentMustReattest,
    }
}

/// The code of a failed store operation.
pub fn code_of(error: &StoreError) -> Code {
    match error {
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::InvalidArgument(_) => Code::InvalidArgument,
        StoreError::FailedPrecondition(_) => Code::FailedPrecondition,
        StoreError::Closed | StoreError::Unavailable(_) => Code::Unavailable,
        StoreError::Contended(_) => Code::Aborted,
        _ => Code::Internal,
    }
}

fn is_outage(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<StoreError>().is_some_and(StoreError::is_outage) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Many errors already name their cause.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

struct Capitalised<'a>(&'a str);

impl fmt::Display for Capitalised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        match chars.next() {
            Some(first) => write!(f, "{}{}", first.to_uppercase(), chars.as_str()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn causes_are_shown_to_those_who_may_read_them() {
        let error = Outer(Inner);
        assert_eq!(Refusal::invalid_because("bad", &error).message(), "bad: outer: inner");
        assert_eq!(Refusal::shown(Code::Internal, "bad", &error).message(), "bad: outer: inner");
        assert_eq!(Refusal::internal("bad", &error).message(), "bad");
        assert_eq!(Refusal::shown(Code::NotFound, "entry not found", &error).message(), "entry not found");
    }

    #[test]
    fn a_denial_carries_its_reason_where_go_looks_for_it() {
        let refused = |reason| permit::Refusal { method: "/a.B/C".to_owned(), reason };
        let status = denied(&refused(Some(permit::Reason::AgentBanned)));
        assert_eq!(status.message(), "authorization denied for method /a.B/C");
        let whole = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(whole.code, 7);
        assert_eq!(whole.details[0].type_url, "type.googleapis.com/spire.api.types.PermissionDeniedDetails");
        let detail = types::PermissionDeniedDetails::decode(whole.details[0].value.as_slice()).unwrap();
        assert_eq!(detail.reason(), Reason::AgentBanned);
        assert!(denied(&refused(None)).details().is_empty());
    }
}
