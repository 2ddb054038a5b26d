//! What a command prints, and how.

use std::io::Write;

use finial_daemon::argv::{OutputFormat, UnknownOutputFormat, text};
use finial_proto::json;
use prost::{Message, Name};

/// The `-output` flag.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Output {
    /// How to print the answer: pretty (text) or json; default: pretty
    #[arg(long = "output", value_name = "value", value_parser = known)]
    output: Vec<String>,
}

impl Output {
    /// The format, or what is wrong with it. Given twice it must be the same word.
    pub fn format(&self) -> Result<OutputFormat, String> {
        self.format_after(&[])
    }

    /// The format, where another flag of the same meaning was given these words.
    pub fn format_after(&self, before: &[String]) -> Result<OutputFormat, String> {
        let mut format = None;
        for (index, text) in before.iter().chain(&self.output).enumerate() {
            let first = format.get_or_insert(text.parse::<OutputFormat>().unwrap_or_default());
            if index > 0 && *text != first.to_string() {
                let text = text::quote(text);
                return Err(format!(
                    "invalid value {text} for flag -output: the output format has already been set to \"{first}\""
                ));
            }
        }
        Ok(format.unwrap_or_default())
    }
}

/// The message as one line of JSON.
pub fn json_line<M: Message + Name>(message: &M) -> Result<String, String> {
    let value = json::to_json(message).map_err(|error| error.to_string())?;
    Ok(format!("{}\n", json::to_line(&[value])))
}

/// Writes to standard output. That nobody reads it is no fault (`finial-agent … | head`).
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Keeps the text: given twice it must be the same word.
pub fn known(given: &str) -> Result<String, UnknownOutputFormat> {
    given.parse::<OutputFormat>().map(|_| given.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_one_word() {
        let given = |words: &[&str]| {
            Output { output: words.iter().map(|word| (*word).to_owned()).collect() }.format()
        };
        assert_eq!(given(&[]), Ok(OutputFormat::Pretty));
        assert_eq!(given(&["JSON"]), Ok(OutputFormat::Json));
        assert_eq!(given(&["json", "json"]), Ok(OutputFormat::Json));
        assert_eq!(given(&["prettyprint"]), Ok(OutputFormat::Pretty));
        assert_eq!(
            given(&["JSON", "pretty"]),
            Err("invalid value \"pretty\" for flag -output: the output format has already been set to \"json\""
                .into())
        );
    }
}
