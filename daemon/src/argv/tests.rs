use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
#[command(name = "finial-server", version = "9.9.9")]
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Runs the server
    Run {
        #[arg(long = "expandEnv")]
        expand_env: bool,
    },
    #[command(subcommand)]
    Entry(Entry),
    /// Prints a completion script
    Completion { shell: String },
}

#[derive(Debug, clap::Subcommand)]
enum Entry {
    /// Creates entries
    Create(Create),
}

#[derive(Debug, PartialEq, clap::Args)]
struct Create {
    /// The SPIFFE ID
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// A selector
    #[arg(long = "selector")]
    selectors: Vec<String>,
    /// Lifetime
    #[arg(long = "ttl", default_value = "600", value_name = "int")]
    ttl: i32,
    /// Admin
    #[arg(long = "admin")]
    admin: bool,
    /// Three states
    #[arg(long = "hinted", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    hinted: Option<bool>,
    /// Format
    #[arg(long = "output", default_value = "pretty")]
    output: OutputFormat,
}

fn run(line: &[&str]) -> Result<Program, Exit> {
    parse(std::iter::once("finial-server").chain(line.iter().copied()).map(OsString::from))
}

fn create(flags: &[&str]) -> Result<Create, Exit> {
    let line: Vec<&str> = ["entry", "create"].into_iter().chain(flags.iter().copied()).collect();
    match run(&line)?.verb {
        Verb::Entry(Entry::Create(create)) => Ok(create),
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_flags_as_go_does() {
    let read = create(&[
        "-spiffeID",
        "-odd",
        "--ttl=5",
        "-selector",
        "a:b",
        "--selector=c:d=e",
        "-admin",
        "-hinted=F",
        "-output",
        "JSON",
        "-ttl",
        "-7",
        "extra",
        "-undefined",
    ])
    .unwrap();
    assert_eq!(
        read,
        Create {
            spiffe_id: Some("-odd".to_string()),
            selectors: vec!["a:b".to_string(), "c:d=e".to_string()],
            ttl: -7,
            admin: true,
            hinted: Some(false),
            output: OutputFormat::Json,
        }
    );
    let read = create(&["-admin", "-admin=false", "-hinted", "--", "-undefined"]).unwrap();
    assert_eq!(
        (read.admin, read.hinted, read.ttl, read.output),
        (false, Some(true), 600, OutputFormat::Pretty)
    );
    assert!(create(&["-admin=0", "--admin=1"]).unwrap().admin);
    assert_eq!(create(&["-spiffeID", ""]).unwrap().spiffe_id.as_deref(), Some(""));
    assert_eq!(create(&["-spiffeID="]).unwrap().spiffe_id.as_deref(), Some(""));
    assert_eq!(create(&["-admin", "-"]).unwrap().selectors, Vec::<String>::new());
}

#[test]
fn complains_in_the_words_of_go() {
    for (flags, want) in [
        (&["-nosuch"][..], "flag provided but not defined: -nosuch\n"),
        (&["--nosuch=1"], "flag provided but not defined: -nosuch\n"),
        (&["-ttl"], "flag needs an argument: -ttl\n"),
        (&["---x"], "bad flag syntax: ---x\n"),
        (&["-=3"], "bad flag syntax: -=3\n"),
        (&["-admin=maybe"], "invalid boolean value \"maybe\" for -admin: parse error\n"),
        (&["-ttl", "x"], "invalid value \"x\" for flag -ttl: "),
        (&["-ttl", "3000000000"], "invalid value \"3000000000\" for flag -ttl: "),
        (
            &["-output", "yaml"],
            "invalid value \"yaml\" for flag -output: bad formatter flag: unknown format option: \"yaml\"\n",
        ),
    ] {
        let exit = create(flags).unwrap_err();
        assert_eq!(exit.code, 1, "{flags:?}");
        assert!(exit.text.starts_with(want), "{flags:?}: {}", exit.text);
        assert!(exit.text.contains("\nUsage of entry create:\n"), "{}", exit.text);
    }
}

#[test]
fn prints_usage() {
    let exit = run(&["entry", "create", "-ttl", "5", "-h"]).unwrap_err();
    assert_eq!(exit.code, 0);
    assert_eq!(
        exit.text,
        "Usage of entry create:\n  -admin\n    \tAdmin\n  -hinted\n    \tThree states\n  -output string\n    \tFormat \
         (default \"pretty\")\n  -selector value\n    \tA selector\n  -spiffeID string\n    \tThe SPIFFE ID\n  -ttl \
         int\n    \tLifetime (default 600)\n"
    );
    let list = "Usage: finial-server [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n    completion    \
                Prints a completion script\n    entry\n    run           Runs the server\n";
    for (line, code) in
        [(&[][..], 127), (&["nosuch"], 127), (&["-x"], 127), (&["-h"], 0), (&["nosuch", "--help"], 127)]
    {
        assert_eq!(run(line).unwrap_err(), Exit { code, text: list.to_string() }, "{line:?}");
    }
    for line in [&["entry"][..], &["entry", "nosuch"]] {
        let exit = run(line).unwrap_err();
        assert_eq!(exit.code, 1);
        assert!(
            exit.text.starts_with("This command is accessed by using one of the subcommands below."),
            "{}",
            exit.text
        );
    }
    assert!(run(&["-help", "entry", "create"]).unwrap_err().text.starts_with("Usage of entry create:"));
    for flag in ["-v", "-version", "--version"] {
        assert_eq!(run(&[flag]).unwrap_err(), Exit { code: 0, text: "9.9.9".to_string() });
    }
}

#[test]
fn positional_arguments_are_for_commands_that_take_them() {
    assert!(
        matches!(run(&["completion", "zsh"]).unwrap().verb, Verb::Completion { shell } if shell == "zsh")
    );
    assert!(matches!(run(&["run", "-expandEnv", "zsh"]).unwrap().verb, Verb::Run { expand_env: true }));
    let exit = run(&["completion"]).unwrap_err();
    assert_eq!(exit.code, 1);
    for shell in ["bash", "zsh", "fish"] {
        let script = completion(Program::command(), shell).unwrap();
        assert!(script.contains("spiffeID") && script.contains("finial-server"), "{shell}");
    }
    assert_eq!(completion(Program::command(), "csh").unwrap_err().code, 1);
}

#[cfg(unix)]
#[test]
fn values_need_not_be_unicode() {
    use std::os::unix::ffi::OsStringExt;

    let odd = OsString::from_vec(b"-\xff".to_vec());
    let line = ["finial-server", "entry", "create"].map(OsString::from).into_iter().chain([odd]);
    assert_eq!(parse::<Program>(line).unwrap_err().code, 1);
}
