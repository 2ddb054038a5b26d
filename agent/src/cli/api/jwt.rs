//! `api fetch jwt` and `api validate jwt`

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use finial_daemon::argv::OutputFormat;
use finial_daemon::clock::Clock;
use finial_proto::json;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::Value as Json;
use tonic::{Code, Status};

use super::fetch::{Fault, timeout};
use super::request;
use crate::cli::output::{Output, json_line, known, print};
use crate::cli::refused_flag;
use crate::cli::socket::{Connection, Socket};

const FETCH_HELP: &str = "\
Fetches JWT-SVIDs for each identity that the agent gives to processes like this one, and the keys to judge others by.
Whoever has a token can pass for the workload until it expires: it belongs into no log and no ticket.

Examples:
    finial-agent api fetch jwt -audience reports
    finial-agent api fetch jwt -audience reports,billing -spiffeID spiffe://example.org/web -output json";

const VALIDATE_HELP: &str = "\
Asks the agent whether a JWT-SVID is valid and meant for this audience. The caller needs no identity. Of a token of another
trust domain only the claims sub, aud, exp and those in allowed_foreign_jwt_claims of the agent are told.

Examples:
    finial-agent api validate jwt -audience reports -svid \"$TOKEN\"";

#[derive(Debug, clap::Args)]
#[command(display_name = "fetch jwt", after_help = FETCH_HELP)]
pub struct FetchJwt {
    #[command(flatten)]
    socket: Socket,
    /// For whom the tokens are meant; several names are separated by commas
    #[arg(long = "audience", value_name = "value")]
    audience: Vec<String>,
    /// Only this one of the caller's identities
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// How long to wait for each of the two answers; 0 waits for ever
    #[arg(long = "timeout", value_name = "value", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
    /// The old name of -output
    #[arg(long = "format", value_name = "value", value_parser = known)]
    format: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(display_name = "validate jwt", after_help = VALIDATE_HELP)]
pub struct ValidateJwt {
    #[command(flatten)]
    socket: Socket,
    /// For whom the token must be meant
    #[arg(long = "audience")]
    audience: Option<String>,
    /// The token
    #[arg(long = "svid")]
    svid: Option<String>,
    /// How long to wait for the answer; 0 waits for ever
    #[arg(long = "timeout", value_name = "value", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

impl FetchJwt {
    pub async fn run(self) -> ExitCode {
        match self.output.format_after(&self.format) {
            Ok(format) => exit(self.fetch(format, &Clock::wall()).await),
            Err(text) => refused_flag(&text),
        }
    }

    async fn fetch(&self, format: OutputFormat, clock: &Clock) -> Result<String, Fault> {
        let connection = self.socket.connect().map_err(|error| Fault(error.to_string()))?;
        // The last one counts, as in SPIRE.
        let audience = self.audience.last().ok_or_else(|| Fault("audience must be specified".to_owned()))?;
        let audience = audience.split(',').map(str::to_owned).collect();

        let mut client = SpiffeWorkloadApiClient::new(connection.channel.clone());
        let first = async {
            client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await?.into_inner().message().await
        };
        let bundles = within(clock, self.timeout, first).await.map_err(|status| {
            let text = connection.text(&status);
            let was_dialled = status.source().is_none();
            Fault(if was_dialled { text } else { format!("failed to receive JWT bundles: {text}") })
        })?;
        let bundles = bundles.ok_or_else(|| Fault("EOF".to_owned()))?;
        let spiffe_id = self.spiffe_id.clone().unwrap_or_default();
        let asked = client.fetch_jwtsvid(request(JwtsvidRequest { audience, spiffe_id }));
        let svids = within(clock, self.timeout, asked).await;
        let svids = svids.map_err(|status| Fault(connection.text(&status)))?.into_inner();
        match format {
            OutputFormat::Pretty => Ok(tokens(&svids, &bundles)),
            OutputFormat::Json => {
                let value =
                    |value: Result<Json, json::Error>| value.map_err(|error| Fault(error.to_string()));
                let both = [value(json::to_json(&svids))?, value(json::to_json(&bundles))?];
                Ok(format!("{}\n", json::to_line(&both)))
            }
        }
    }
}

impl ValidateJwt {
    pub async fn run(self) -> ExitCode {
        match self.output.format() {
            Ok(format) => exit(self.validate(format, &Clock::wall()).await),
            Err(text) => refused_flag(&text),
        }
    }

    async fn validate(&self, format: OutputFormat, clock: &Clock) -> Result<String, Fault> {
        let connection = self.socket.connect().map_err(|error| Fault(error.to_string()))?;
        let given = |name: &str, value: &Option<String>| {
            value
                .clone()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Fault(format!("{name} must be specified")))
        };
        let audience = given("audience", &self.audience)?;
        let svid = given("svid", &self.svid)?;
        let mut client = SpiffeWorkloadApiClient::new(connection.channel.clone());
        let asked = client.validate_jwtsvid(request(ValidateJwtsvidRequest { audience, svid }));
        let answer = within(clock, self.timeout, asked).await;
        let answer = answer.map_err(|status| refused(&status, &connection))?.into_inner();
        match format {
            OutputFormat::Pretty => Ok(judgement(&answer)),
            OutputFormat::Json => json_line(&answer).map_err(Fault),
        }
    }
}

fn exit(result: Result<String, Fault>) -> ExitCode {
    match result {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

async fn within<T>(
    clock: &Clock,
    limit: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    if limit.is_zero() {
        return answer.await;
    }
    let too_late = |_| Status::deadline_exceeded("context deadline exceeded");
    clock.timeout(limit, answer).await.map_err(too_late)?
}

fn refused(status: &Status, connection: &Connection) -> Fault {
    Fault(match status.code() {
        Code::InvalidArgument => format!("SVID is not valid: {}", status.message()),
        _ => format!("unable to validate JWT SVID: {}", connection.text(status)),
    })
}

fn tokens(svids: &JwtsvidResponse, bundles: &JwtBundlesResponse) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    for svid in &svids.svids {
        let id = &svid.spiffe_id;
        let _ = writeln!(out, "token({id}):\n\t{}", svid.svid);
        if !svid.hint.is_empty() {
            let _ = writeln!(out, "hint({id}):\n\t{}", svid.hint);
        }
    }
    for (trust_domain, jwks) in &bundles.bundles {
        let _ = writeln!(out, "bundle({trust_domain}):\n\t{}", String::from_utf8_lossy(jwks));
    }
    out
}

fn judgement(answer: &ValidateJwtsvidResponse) -> String {
    let mut claims = String::new();
    spaced(&object(answer.claims.clone().unwrap_or_default()), &mut claims);
    format!("SVID is valid.\nSPIFFE ID : {}\nClaims    : {claims}\n", answer.spiffe_id)
}

fn object(members: Struct) -> Json {
    Json::Object(members.fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
}

fn plain(value: Value) -> Json {
    /// Up to here floats hold whole numbers exactly.
    const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= LARGEST_WHOLE => {
            Json::from(number as i64)
        }
        Some(Kind::NumberValue(number)) => Json::from(number),
        Some(Kind::StringValue(text)) => Json::String(text),
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(plain).collect()),
        Some(Kind::StructValue(members)) => object(members),
    }
}

/// On one line, with a blank behind commas alone, as Go's protojson writes in SPIRE's program. Unlike `-output json` this
/// keeps nulls.
fn spaced(value: &Json, out: &mut String) {
    match value {
        Json::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                spaced(value, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (index, (name, value)) in members.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                out.push_str(&Json::String(name.clone()).to_string());
                out.push(':');
                spaced(value, out);
            }
            out.push('}');
        }
        single => out.push_str(&single.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use finial_proto::workload::Jwtsvid;

    use super::*;

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    #[test]
    fn tokens_are_printed_as_by_spire() {
        let svid = |id: &str, hint: &str| Jwtsvid {
            spiffe_id: id.to_owned(),
            svid: "x.y.z".to_owned(),
            hint: hint.to_owned(),
        };
        let svids = JwtsvidResponse {
            svids: vec![svid("spiffe://example.org/web", "h1"), svid("spiffe://example.org/db", "")],
        };
        let bundles = JwtBundlesResponse {
            bundles: [("spiffe://example.org".to_owned(), "{\n    \"keys\": []\n}".into())].into(),
        };
        assert_eq!(
            tokens(&svids, &bundles),
            "token(spiffe://example.org/web):\n\tx.y.z\nhint(spiffe://example.org/web):\n\th1\n\
             token(spiffe://example.org/db):\n\tx.y.z\n\
             bundle(spiffe://example.org):\n\t{\n    \"keys\": []\n}\n"
        );
    }

    #[test]
    fn claims_are_printed_as_by_spire() {
        let text = |text: &str| value(Kind::StringValue(text.to_owned()));
        let audience = prost_types::ListValue { values: vec![text("a"), text("b")] };
        let inner = Struct { fields: [("n".to_owned(), value(Kind::NullValue(0)))].into() };
        let fields = [
            ("sub", text("spiffe://example.org/web")),
            ("aud", value(Kind::ListValue(audience))),
            ("exp", value(Kind::NumberValue(1_795_308_042.0))),
            ("half", value(Kind::NumberValue(0.5))),
            ("inner", value(Kind::StructValue(inner))),
            ("ok", value(Kind::BoolValue(true))),
        ];
        let claims = Struct { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() };
        let answer = ValidateJwtsvidResponse {
            spiffe_id: "spiffe://example.org/web".to_owned(),
            claims: Some(claims),
        };
        assert_eq!(
            judgement(&answer),
            "SVID is valid.\nSPIFFE ID : spiffe://example.org/web\nClaims    : {\"aud\":[\"a\", \"b\"], \"exp\":1795308042, \
             \"half\":0.5, \"inner\":{\"n\":null}, \"ok\":true, \"sub\":\"spiffe://example.org/web\"}\n"
        );
        assert_eq!(
            json_line(&answer).unwrap(),
            r#"{"claims":{"aud":["a","b"],"exp":1795308042,"half":0.5,"inner":{},"ok":true,"sub":"spiffe://example.org/web"},"spiffe_id":"spiffe://example.org/web"}
"#
        );
    }
}
