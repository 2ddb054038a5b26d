//! What a command prints, and how.

use std::io::Write;
use std::process::ExitCode;

use finial_daemon::argv::{OutputFormat, UnknownOutputFormat, text};
use finial_identity::SpiffeIdError;
use finial_proto::json;
use finial_proto::spire::api::types::{Spiffeid, Status};
use prost::{Message, Name};
use serde_json::Value;

/// The outcome of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// For standard output.
    pub out: String,
    /// For standard error, before the failure.
    pub err: String,
    /// Makes the exit code 1.
    pub failure: Option<Failure>,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("Error: {0}")]
    Told(String),
    /// In the words of the flag parser, which says no more than this.
    #[error("{0}")]
    Flag(String),
}

impl From<SpiffeIdError> for Failure {
    fn from(error: SpiffeIdError) -> Failure {
        Failure::Told(error.to_string())
    }
}

impl From<json::Error> for Failure {
    fn from(error: json::Error) -> Failure {
        Failure::Told(error.to_string())
    }
}

/// A failure in these words.
pub fn fail(text: impl Into<String>) -> Failure {
    Failure::Told(text.into())
}

impl Report {
    /// A success with this text.
    pub fn said(out: impl Into<String>) -> Report {
        Report { out: out.into(), ..Report::default() }
    }

    pub fn failed(self, failure: Failure) -> Report {
        Report { failure: Some(failure), ..self }
    }

    /// Prints everything.
    pub fn tell(self) -> ExitCode {
        print(&self.out);
        eprint!("{}", self.err);
        match self.failure {
            None => ExitCode::SUCCESS,
            Some(failure) => {
                eprintln!("{failure}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The `-output` flag.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Output {
    /// How to print the answer: pretty (text) or json; default: pretty
    #[arg(long = "output", value_name = "value", value_parser = known_format)]
    output: Vec<String>,
}

impl Output {
    /// The format. Given twice it must be the same word.
    pub fn format(&self) -> Result<OutputFormat, Failure> {
        let Some(first) = self.output.first() else {
            return Ok(OutputFormat::default());
        };
        let format: OutputFormat = first.parse().unwrap_or_default();
        match self.output.iter().skip(1).find(|word| **word != format.to_string()) {
            None => Ok(format),
            Some(word) => {
                let word = text::quote(word);
                let set = format!("the output format has already been set to \"{format}\"");
                Err(Failure::Flag(format!("invalid value {word} for flag -output: {set}")))
            }
        }
    }

    /// The message as JSON, or else as `pretty` has it. JSON is a success whatever the message says.
    pub fn print<M: Message + Name>(
        &self,
        message: &M,
        pretty: impl FnOnce(&M) -> Result<Report, Failure>,
    ) -> Result<Report, Failure> {
        match self.format()? {
            OutputFormat::Pretty => pretty(message),
            OutputFormat::Json => Ok(json_line(json::to_json(message)?)),
        }
    }
}

/// One line of JSON.
pub fn json_line(value: Value) -> Report {
    Report::said(format!("{}\n", json::to_line(&[value])))
}

/// Writes to standard output. That nobody reads it is no fault (`finial-server … | head`).
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `1 entry`, `2 entries`
pub fn counted(count: usize, before: &str, one: &str, many: &str) -> String {
    format!("{count} {before}{}", if count == 1 { one } else { many })
}

/// `spiffe://…`, empty for no ID.
pub fn id_text(id: Option<&Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

/// Whether an item of a batch succeeded; an item without a status did.
pub fn is_ok(status: Option<&Status>) -> bool {
    status.is_none_or(|status| status.code == 0)
}

/// `(code: NotFound, msg: "entry not found")`
pub fn status_text(status: Option<&Status>) -> String {
    let status = status.cloned().unwrap_or_default();
    format!("(code: {}, msg: {})", text::code_name(status.code.into()), text::quote(&status.message))
}

fn known_format(given: &str) -> Result<String, UnknownOutputFormat> {
    given.parse::<OutputFormat>().map(|_| given.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(words: &[&str]) -> Result<OutputFormat, Failure> {
        Output { output: words.iter().map(|word| (*word).to_owned()).collect() }.format()
    }

    #[test]
    fn output_is_one_word() {
        assert_eq!(format(&[]), Ok(OutputFormat::Pretty));
        assert_eq!(format(&["JSON"]), Ok(OutputFormat::Json));
        assert_eq!(format(&["json", "json"]), Ok(OutputFormat::Json));
        assert_eq!(format(&["prettyprint"]), Ok(OutputFormat::Pretty));
        for (words, text) in [
            (
                ["JSON", "pretty"],
                "invalid value \"pretty\" for flag -output: the output format has already been set to \"json\"",
            ),
            (
                ["json", "JSON"],
                "invalid value \"JSON\" for flag -output: the output format has already been set to \"json\"",
            ),
        ] {
            assert_eq!(format(&words).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_failed_item_is_told_with_its_code() {
        let status = Status { code: 5, message: "entry \"x\" not found".into() };
        assert_eq!(status_text(Some(&status)), r#"(code: NotFound, msg: "entry \"x\" not found")"#);
        assert!(!is_ok(Some(&status)));
        assert!(is_ok(Some(&Status::default())) && is_ok(None));
    }
}
