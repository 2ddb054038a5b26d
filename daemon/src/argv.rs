//! Command lines as Go's `flag` package reads them, over `clap`'s description of the commands.
//!
//! SPIRE's operators and scripts write `-spiffeID spiffe://x`, `-ttl=60` and `-admin=false`, and look at exit
//! codes. Flags are declared to `clap` as long options (`#[arg(long = "spiffeID")]`).

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use clap_complete::Shell;

pub mod text;

/// Reads the process's arguments, the program's name first, into a `clap` structure.
///
/// As in Go: `-flag value`, `-flag=value` and the same with two dashes; boolean flags take a value only after
/// `=`; the last of several equal flags counts, unless the flag collects; flags end at the first word that is
/// none, and what follows is ignored by commands without positional arguments. `-h`, `-help` and `--help`
/// anywhere print the usage and the command's `after_help` with exit code 0. A missing or unknown command prints the commands with exit code
/// 127, within a group of commands (`entry`) with exit code 1; wrong flags print what is wrong and the usage
/// with exit code 1. All of it goes to standard error. A usage calls the command by its `display_name`, if it
/// has one.
pub fn parse<T: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<T, Exit> {
    let matches = matches(T::command(), args)?;
    T::from_arg_matches(&matches).map_err(|error| Exit { code: 1, text: format!("{error}") })
}

/// [`parse`] for a command that was built by hand.
pub fn matches(command: Command, args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Exit> {
    let mut command = prepared(command);
    command.build();
    let mut words = args.into_iter();
    let program = words.next().unwrap_or_else(|| OsString::from(command.get_name()));
    let words: Vec<OsString> = words.collect();
    let line = Line::read(&command, &words)?;
    let mut normal = vec![program];
    normal.extend(line.path.iter().skip(1).map(|command| OsString::from(command.get_name())));
    normal.extend(line.flags);
    if line.command.get_positionals().next().is_some() {
        normal.push(OsString::from("--"));
        normal.extend(line.rest);
    }
    let path: Vec<Command> = line.path.into_iter().cloned().collect();
    command.try_get_matches_from(normal).map_err(|error| refused(&error, &path))
}

/// A program that ends before it did anything: what to print to standard error, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: u8,
    pub text: String,
}

impl Exit {
    /// Prints the text to standard error and hands over the code, for `main`.
    pub fn report(self) -> ExitCode {
        eprint!("{}", self.text);
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            eprintln!();
        }
        ExitCode::from(self.code)
    }
}

/// The `-output` of the commands that talk to a server: `pretty` or `json`, in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    #[default]
    Pretty,
    Json,
}

impl FromStr for OutputFormat {
    type Err = UnknownOutputFormat;

    fn from_str(text: &str) -> Result<OutputFormat, UnknownOutputFormat> {
        match text.to_lowercase().as_str() {
            "pretty" | "prettyprint" => Ok(OutputFormat::Pretty),
            "json" => Ok(OutputFormat::Json),
            _ => Err(UnknownOutputFormat(text.to_string())),
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            OutputFormat::Pretty => "pretty",
            OutputFormat::Json => "json",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad formatter flag: unknown format option: {0:?}")]
pub struct UnknownOutputFormat(pub String);

/// The usage of the command that a command line names: its flags, or its commands.
pub fn usage_of(command: Command, args: impl IntoIterator<Item = OsString>) -> String {
    let mut program = prepared(command);
    program.build();
    let mut path = vec![&program];
    for word in args.into_iter().skip(1) {
        let found = word.to_str().and_then(|word| path.last()?.find_subcommand(word));
        match found {
            Some(found) => path.push(found),
            None => break,
        }
    }
    usage(&path)
}

/// The completion script of the program for `bash`, `zsh` or `fish`.
pub fn completion(command: Command, shell: &str) -> Result<String, Exit> {
    let shell = match shell {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        other => {
            let text =
                format!("Error: no completion for the shell {other:?}; it is made for bash, zsh and fish");
            return Err(Exit { code: 1, text });
        }
    };
    let mut command = prepared(command);
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8(script)
        .map_err(|_| Exit { code: 1, text: "Error: the completion script is not UTF-8".into() })
}

/// `clap` without what Go's flags have differently.
fn prepared(command: Command) -> Command {
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(false)
        .arg_required_else_help(false)
        .args_override_self(true)
        .mut_subcommands(prepared)
}

/// A command line taken apart.
struct Line<'a> {
    /// From the program to the command.
    path: Vec<&'a Command>,
    command: &'a Command,
    /// The flags as `--name=value` or `--name`, with every value checked to be there.
    flags: Vec<OsString>,
    /// What follows the flags.
    rest: Vec<OsString>,
}

impl<'a> Line<'a> {
    fn read(program: &'a Command, words: &[OsString]) -> Result<Line<'a>, Exit> {
        let is_help = |word: &OsString| matches!(word.to_str(), Some("-h" | "-help" | "--help"));
        let asks_help = words.iter().take_while(|word| *word != "--").any(is_help);
        let mut path = vec![program];
        let mut command = program;
        let mut remaining = words.iter();
        while command.has_subcommands() {
            // Behind a group's name the wish for help is about that group.
            let word = match path.len() {
                1 => remaining.find(|word| !is_help(word)),
                _ => remaining.next(),
            };
            let word = word.and_then(|word| word.to_str());
            if path.len() == 1 && !asks_help && matches!(word, Some("-v" | "-version" | "--version")) {
                return Err(Exit { code: 0, text: program.get_version().unwrap_or("").to_string() });
            }
            let Some(found) = word.and_then(|name| command.find_subcommand(name)) else {
                let code = match (asks_help, path.len()) {
                    // As in SPIRE, nobody is helped with a command that there is not.
                    (true, 1) if word.is_some() => 127,
                    (true, _) => 0,
                    (false, 1) => 127,
                    (false, _) => 1,
                };
                return Err(Exit { code, text: if code == 0 { help(&path) } else { usage(&path) } });
            };
            command = found;
            path.push(found);
        }
        if asks_help {
            return Err(Exit { code: 0, text: help(&path) });
        }
        let mut flags: Vec<(String, OsString)> = Vec::new();
        let mut rest = Vec::new();
        while let Some(word) = remaining.next() {
            match read_flag(command, word, &mut remaining) {
                Ok(Flag::Set { name, normal }) => flags.push((name, normal)),
                Ok(Flag::Off { name }) => flags.retain(|(set, _)| *set != name),
                Ok(Flag::None) => {
                    rest.extend(Some(word).filter(|word| *word != "--").cloned());
                    rest.extend(remaining.by_ref().cloned());
                }
                Err(text) => return Err(Exit { code: 1, text: format!("{text}\n{}", usage(&path)) }),
            }
        }
        Ok(Line { path, command, flags: flags.into_iter().map(|(_, normal)| normal).collect(), rest })
    }
}

enum Flag {
    /// A flag in `clap`'s form.
    Set { name: String, normal: OsString },
    /// A switch that was turned off, which `clap` reads from its absence.
    Off { name: String },
    /// No flag: flags end here.
    None,
}

fn read_flag<'w>(
    command: &Command,
    word: &OsString,
    remaining: &mut impl Iterator<Item = &'w OsString>,
) -> Result<Flag, String> {
    let bytes = word.as_encoded_bytes();
    if !bytes.starts_with(b"-") || bytes == b"-" || bytes == b"--" {
        return Ok(Flag::None);
    }
    let Some(text) = word.to_str() else {
        return Err(format!("bad flag syntax: {}", word.display()));
    };
    let body = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or(text);
    if body.is_empty() || body.starts_with(['-', '=']) {
        return Err(format!("bad flag syntax: {text}"));
    }
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(name)) else {
        return Err(format!("flag provided but not defined: -{name}"));
    };
    let name = name.to_string();
    if !is_switch(arg) {
        let value = match value {
            Some(value) => OsString::from(value),
            None => remaining.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        let mut normal = OsString::from(format!("--{name}="));
        normal.push(value);
        return Ok(Flag::Set { name, normal });
    }
    let on = match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(other) => return Err(format!("invalid boolean value {other:?} for -{name}: parse error")),
    };
    Ok(match (matches!(arg.get_action(), ArgAction::SetTrue), on) {
        (true, true) => Flag::Set { normal: OsString::from(format!("--{name}")), name },
        (true, false) => Flag::Off { name },
        (false, on) => Flag::Set { normal: OsString::from(format!("--{name}={on}")), name },
    })
}

/// Whether the flag stands without a value.
fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
        || arg.get_num_args().is_some_and(|range| range.min_values() == 0)
}

/// `clap`'s complaint in Go's words, with the usage.
fn refused(error: &clap::Error, path: &[Command]) -> Exit {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let path: Vec<&Command> = path.iter().collect();
    let flag = context(ContextKind::InvalidArg).and_then(|arg| arg.strip_prefix("--"));
    let flag = flag.map(|flag| flag.split([' ', '=']).next().unwrap_or(flag));
    let text = match (error.kind(), flag, context(ContextKind::InvalidValue)) {
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(flag), Some(value)) => {
            let why = std::error::Error::source(error)
                .map_or_else(|| "parse error".to_string(), ToString::to_string);
            format!("invalid value {value:?} for flag -{flag}: {why}")
        }
        _ => {
            format!("Error: {}", error.to_string().lines().next().unwrap_or("").trim_start_matches("error: "))
        }
    };
    Exit { code: 1, text: format!("{text}\n{}", usage(&path)) }
}

/// What `-h` prints: the usage and what the command says of itself at length (`after_help`), mostly examples.
fn help(path: &[&Command]) -> String {
    let mut text = usage(path);
    if let Some(more) = path.last().and_then(|command| command.get_after_help()) {
        text.push('\n');
        text.push_str(more.to_string().trim_end());
        text.push('\n');
    }
    text
}

/// The flags of a command, or the commands of a group.
fn usage(path: &[&Command]) -> String {
    let names: Vec<&str> = path.iter().map(|command| command.get_name()).collect();
    let Some(command) = path.last() else {
        return String::new();
    };
    let mut text = String::new();
    if command.has_subcommands() {
        if path.len() == 1 {
            text.push_str(&format!("Usage: {} [--version] [--help] <command> [<args>]\n\n", names.join(" ")));
            text.push_str("Available commands are:\n");
        } else {
            text.push_str(
                "This command is accessed by using one of the subcommands below.\n\nSubcommands:\n",
            );
        }
        let mut commands: Vec<(&str, String)> = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| {
                (command.get_name(), command.get_about().map(ToString::to_string).unwrap_or_default())
            })
            .collect();
        commands.sort();
        let width = commands.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, about) in commands {
            text.push_str(format!("    {name:width$}    {about}").trim_end());
            text.push('\n');
        }
        return text;
    }
    let own_name = names.get(1..).unwrap_or(&[]).join(" ");
    // `clap` makes one up from the path, with dashes, where the command sets none.
    let display_name = command.get_display_name().filter(|name| *name != names.join("-"));
    let own_name = display_name.unwrap_or(if own_name.is_empty() { command.get_name() } else { &own_name });
    text.push_str(&format!("Usage of {own_name}:\n"));
    let mut flags: Vec<&Arg> =
        command.get_arguments().filter(|arg| arg.get_long().is_some() && !arg.is_hide_set()).collect();
    flags.sort_by_key(|arg| arg.get_long());
    for arg in flags {
        text.push_str(&format!("  -{}", arg.get_long().unwrap_or("")));
        if !is_switch(arg) {
            text.push_str(&format!(" {}", value_name(arg)));
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("\n    \t{}", help.replace('\n', "\n    \t")));
        if let Some(default) = arg.get_default_values().first().filter(|_| !is_switch(arg)) {
            let default = default.to_string_lossy();
            let bare = value_name(arg) != "string";
            text.push_str(&match bare {
                true => format!(" (default {default})"),
                false => format!(" (default {default:?})"),
            });
        }
        text.push('\n');
    }
    text
}

/// Go's name for the flag's type: `value` for flags that collect, `string` unless the flag names another.
fn value_name(arg: &Arg) -> String {
    if matches!(arg.get_action(), ArgAction::Append) {
        return "value".to_string();
    }
    match arg.get_value_names() {
        // Without a name of its own, clap shows the flag's.
        Some([name]) if !name.eq_ignore_ascii_case(arg.get_id().as_str()) => name.to_lowercase(),
        _ => "string".to_string(),
    }
}

#[cfg(test)]
mod tests;
