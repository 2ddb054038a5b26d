use std::collections::BTreeMap;

use clap::Command;

use super::*;

fn parse(line: &[&str]) -> Result<Program, argv::Exit> {
    let line = std::iter::once("finial-agent").chain(line.iter().copied()).map(OsString::from);
    argv::parse(with_default_verb(line.collect()))
}

/// SPIRE 1.15.3's flags of each verb that is built.
fn spire() -> BTreeMap<&'static str, Vec<&'static str>> {
    let run = "config dataDir joinToken joinTokenFile logFile logFormat logLevel logSourceLocation serverAddress \
               serverPort trustDomain trustBundle trustBundleUrl trustBundleFormat allowUnauthenticatedVerifiers \
               insecureBootstrap rebootstrapMode rebootstrapDelay disableWorkloadAPI disableSDSAPI expandEnv \
               socketPath";
    [
        ("run", run),
        ("validate", run),
        ("healthcheck", "shallow verbose socketPath instance"),
        ("api fetch x509", "silent write timeout socketPath instance output"),
        ("api fetch jwt", "audience spiffeID timeout socketPath instance output format"),
        ("api validate jwt", "audience svid timeout socketPath instance output"),
        ("api watch", "socketPath instance"),
        ("logger get", "socketPath output"),
        ("logger set", "level socketPath output"),
        ("logger reset", "socketPath output"),
        ("debug getinfo", "socketPath output"),
        // Not SPIRE's.
        ("completion", ""),
    ]
    .map(|(verb, flags)| (verb, flags.split_whitespace().collect()))
    .into()
}

fn leaves(command: &Command, path: &str, found: &mut BTreeMap<String, Vec<String>>) {
    for child in command.get_subcommands() {
        let path = format!("{path} {}", child.get_name()).trim().to_owned();
        if child.has_subcommands() {
            leaves(child, &path, found);
        } else {
            let flags = child.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned).collect();
            found.insert(path, flags);
        }
    }
}

#[test]
fn verbs_and_flags_are_those_of_spire() {
    let mut ours = BTreeMap::new();
    leaves(&Program::command(), "", &mut ours);
    for flags in ours.values_mut() {
        flags.sort();
    }
    let theirs: BTreeMap<String, Vec<String>> = spire()
        .into_iter()
        .map(|(verb, mut flags)| {
            flags.sort_unstable();
            (verb.to_owned(), flags.into_iter().map(str::to_owned).collect())
        })
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn every_flag_and_verb_is_explained() {
    fn check(command: &Command, path: &str) {
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{path} -{}", arg.get_id());
        }
        assert!(command.has_subcommands() || command.get_after_help().is_some(), "{path} has no examples");
        for child in command.get_subcommands() {
            let path = format!("{path} {}", child.get_name());
            assert!(child.get_about().is_some(), "{path}");
            check(child, &path);
        }
    }
    check(&Program::command(), "finial-agent");
    let help = parse(&["api", "fetch", "-h"]).unwrap_err();
    assert_eq!(help.code, 0);
    assert!(help.text.starts_with("Usage of fetch x509:\n  -instance string\n"), "{}", help.text);
    assert!(help.text.contains("\nExamples:\n    finial-agent api fetch\n"), "{}", help.text);
}

#[test]
fn exit_codes_are_those_of_spire() {
    for (line, code) in [
        (&[][..], 127),
        (&["nothing"][..], 127),
        (&["-h"][..], 0),
        (&["--version"][..], 0),
        (&["api"][..], 1),
        (&["api", "nothing"][..], 1),
        (&["api", "validate"][..], 1),
        (&["api", "validate", "jwt", "-h"][..], 0),
        (&["api", "-h"][..], 0),
        (&["run", "-h"][..], 0),
        (&["run", "-badflag"][..], 1),
        (&["run", "-serverPort", "foo"][..], 1),
        (&["healthcheck", "-output", "json"][..], 1),
        (&["api", "fetch", "-timeout", "5"][..], 1),
        (&["api", "watch", "-timeout", "5s"][..], 1),
    ] {
        let exit = parse(line).expect_err(&line.join(" "));
        assert_eq!(exit.code, code, "{}: {}", line.join(" "), exit.text);
    }
}

#[test]
fn wrong_values_are_told_in_spires_words() {
    for (line, text) in [
        (&["run", "-badflag"][..], "flag provided but not defined: -badflag\n"),
        (&["run", "-serverPort", "foo"][..], "invalid value \"foo\" for flag -serverPort: parse error\n"),
        (
            &["run", "-serverPort", "99999"][..],
            "invalid value \"99999\" for flag -serverPort: value out of range\n",
        ),
        (&["run", "-config"][..], "flag needs an argument: -config\n"),
        (
            &["api", "fetch", "-silent=maybe"][..],
            "invalid boolean value \"maybe\" for -silent: parse error\n",
        ),
        (
            &["api", "fetch", "-timeout", "5"][..],
            "invalid value \"5\" for flag -timeout: time: missing unit in duration \"5\"\n",
        ),
        (
            &["api", "fetch", "-timeout", "foo"][..],
            "invalid value \"foo\" for flag -timeout: time: invalid duration \"foo\"\n",
        ),
        (
            &["api", "fetch", "jwt", "-format", "xml"][..],
            "invalid value \"xml\" for flag -format: bad formatter flag: unknown format option: \"xml\"\n",
        ),
        (
            &["api", "fetch", "-output", "xml"][..],
            "invalid value \"xml\" for flag -output: bad formatter flag: unknown format option: \"xml\"\n",
        ),
    ] {
        let exit = parse(line).expect_err(&line.join(" "));
        assert!(exit.text.starts_with(text), "{}: {}", line.join(" "), exit.text);
    }
}

#[test]
fn fetch_alone_fetches_x509() {
    for line in [
        &["api", "fetch", "-silent", "-timeout=0s"][..],
        &["api", "fetch", "x509", "--silent=true", "--timeout", "-1s"][..],
        &["api", "fetch", "stray", "-silent"][..],
    ] {
        let program = parse(line).unwrap();
        assert!(matches!(program.verb, Verb::Api(api::Verb::Fetch(api::Fetch::X509(_)))), "{line:?}");
    }
    let program = parse(&["api", "fetch", "jwt", "-audience", "a,b"]).unwrap();
    assert!(matches!(program.verb, Verb::Api(api::Verb::Fetch(api::Fetch::Jwt(_)))));
}

#[test]
fn completion_is_made_for_three_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = argv::completion(Program::command(), shell).unwrap();
        assert!(script.contains("finial-agent") && script.contains("insecureBootstrap"), "{shell}");
    }
    assert_eq!(argv::completion(Program::command(), "tcsh").unwrap_err().code, 1);
}
