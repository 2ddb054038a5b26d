use std::collections::BTreeMap;

use clap::Command;

use super::*;

fn parse(line: &[&str]) -> Result<Program, argv::Exit> {
    argv::parse(std::iter::once("finial-server").chain(line.iter().copied()).map(OsString::from))
}

const RELATIONSHIP: &str = "data trustDomain bundleEndpointURL bundleEndpointProfile endpointSpiffeID \
                            trustDomainBundlePath trustDomainBundleFormat";

/// SPIRE 1.15.3's flags of each verb that is built.
fn spire() -> BTreeMap<String, Vec<String>> {
    let run = "config bindAddress serverPort dataDir logFile logFormat logLevel logSourceLocation trustDomain \
               expandEnv socketPath";
    let entry = "parentID spiffeID selector entryID x509SVIDTTL jwtSVIDTTL data federatesWith admin downstream \
                 storeSVID entryExpiry dns hint disableX509SVIDPrefetch jwtSVIDIncludeJTI";
    let filter =
        "parentID spiffeID selector federatesWith downstream hint matchSelectorsOn matchFederatesWithOn";
    let agents = "selector matchSelectorsOn attestationType canReattest banned expiresBefore";
    let local = [("run", run), ("validate", run), ("completion", "")];
    let remote = [
        ("token generate", "ttl spiffeID"),
        ("entry create", &format!("{entry} node")),
        ("entry update", entry),
        ("entry delete", "entryID file"),
        ("entry show", &format!("{filter} entryID")),
        ("entry count", filter),
        ("agent list", agents),
        ("agent count", agents),
        ("agent show", "spiffeID"),
        ("agent evict", "spiffeID"),
        ("agent ban", "spiffeID"),
        ("agent purge", "expiredFor dryRun"),
        ("bundle show", "format"),
        ("bundle list", "id format"),
        ("bundle set", "id path format"),
        ("bundle delete", "id mode"),
        ("bundle count", ""),
        ("federation create", RELATIONSHIP),
        ("federation update", RELATIONSHIP),
        ("federation list", ""),
        ("federation show", "trustDomain"),
        ("federation delete", "id"),
        ("federation refresh", "id"),
        ("x509 mint", "spiffeID ttl dns write"),
        ("jwt mint", "spiffeID ttl audience write"),
        ("localauthority x509 show", ""),
        ("localauthority x509 prepare", ""),
        ("localauthority x509 activate", "authorityID"),
        ("localauthority x509 taint", "authorityID"),
        ("localauthority x509 revoke", "authorityID"),
        ("localauthority jwt show", ""),
        ("localauthority jwt prepare", ""),
        ("localauthority jwt activate", "authorityID"),
        ("localauthority jwt taint", "authorityID"),
        ("localauthority jwt revoke", "authorityID"),
        ("upstreamauthority taint", "subjectKeyID"),
        ("upstreamauthority revoke", "subjectKeyID"),
        ("logger get", ""),
        ("logger set", "level"),
        ("logger reset", ""),
        ("debug getinfo", ""),
    ]
    .map(|(verb, flags)| (verb, format!("{flags} socketPath instance output")));
    let healthcheck = ("healthcheck", "shallow verbose socketPath instance".to_owned());
    let local = local.map(|(verb, flags)| (verb, flags.to_owned()));
    let all = local.into_iter().chain(remote).chain([healthcheck]);
    all.map(|(verb, flags)| {
        let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        flags.sort();
        (verb.to_owned(), flags)
    })
    .collect()
}

fn leaves(command: &Command, path: &str, found: &mut BTreeMap<String, Vec<String>>) {
    for child in command.get_subcommands() {
        let path = format!("{path} {}", child.get_name()).trim().to_owned();
        if child.has_subcommands() {
            leaves(child, &path, found);
        } else {
            let mut flags: Vec<String> =
                child.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned).collect();
            flags.sort();
            found.insert(path, flags);
        }
    }
}

#[test]
fn verbs_and_flags_are_those_of_spire() {
    let mut ours = BTreeMap::new();
    leaves(&Program::command(), "", &mut ours);
    assert_eq!(ours, spire());
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
    check(&Program::command(), "finial-server");
    let help = parse(&["entry", "create", "-h"]).unwrap_err();
    assert_eq!(help.code, 0);
    assert!(help.text.starts_with("Usage of entry create:\n  -admin\n    \t"), "{}", help.text);
    assert!(help.text.contains("\nExamples:\n    finial-server entry create "), "{}", help.text);
    let help = parse(&["agent", "purge", "-h"]).unwrap_err();
    assert!(help.text.contains("  -expiredFor duration\n"), "{}", help.text);
}

#[test]
fn exit_codes_are_those_of_spire() {
    for (line, code) in [
        (&[][..], 127),
        (&["nothing"][..], 127),
        (&["-h"][..], 0),
        (&["--version"][..], 0),
        (&["entry"][..], 1),
        (&["entry", "nothing"][..], 1),
        (&["entry", "-h"][..], 0),
        (&["run", "-h"][..], 0),
        (&["validate", "-badflag"][..], 1),
        (&["healthcheck", "-output", "json"][..], 1),
        (&["entry", "update", "-node"][..], 1),
        (&["agent", "count", "-spiffeID", "x"][..], 1),
    ] {
        let exit = parse(line).expect_err(&line.join(" "));
        assert_eq!(exit.code, code, "{}: {}", line.join(" "), exit.text);
    }
}

#[test]
fn wrong_values_are_told_in_spires_words() {
    for (line, text) in [
        ("entry create -badflag", "flag provided but not defined: -badflag\n"),
        ("entry create -admin=maybe", "invalid boolean value \"maybe\" for -admin: parse error\n"),
        ("entry create -x509SVIDTTL=x", "invalid value \"x\" for flag -x509SVIDTTL: parse error\n"),
        ("entry create -entryExpiry", "flag needs an argument: -entryExpiry\n"),
        ("entry show ---x", "bad flag syntax: ---x\n"),
        (
            "entry show -output xml",
            "invalid value \"xml\" for flag -output: bad formatter flag: unknown format option: \"xml\"\n",
        ),
        (
            "token generate -ttl 99999999999999999999",
            "invalid value \"99999999999999999999\" for flag -ttl: value out of range\n",
        ),
        ("run -serverPort foo", "invalid value \"foo\" for flag -serverPort: parse error\n"),
        ("validate -serverPort 65536", "invalid value \"65536\" for flag -serverPort: value out of range\n"),
        ("x509 mint -ttl 5", "invalid value \"5\" for flag -ttl: parse error\n"),
        ("agent purge -expiredFor foo", "invalid value \"foo\" for flag -expiredFor: parse error\n"),
    ] {
        let exit = parse(&line.split(' ').collect::<Vec<_>>()).expect_err(line);
        assert_eq!(exit.code, 1);
        assert!(exit.text.starts_with(text), "{line}: {}", exit.text);
    }
}

#[test]
fn both_dash_styles_and_stray_words_are_taken() {
    for line in [
        &["token", "generate", "-ttl", "-5"][..],
        &["token", "generate", "--ttl=0x10"][..],
        &["token", "generate", "stray", "-ttl", "x"][..],
        &["x509", "mint", "-ttl", "-5s"][..],
        &["entry", "show", "-downstream=false", "--output", "JSON"][..],
    ] {
        parse(line).unwrap();
    }
}

#[test]
fn verbs_to_come_are_refused_by_name() {
    let refused = |line: &str| {
        let args: Vec<OsString> =
            std::iter::once("finial-server").chain(line.split(' ')).map(OsString::from).collect();
        not_built(&args)
    };
    for (line, verb) in [("wit", "wit"), ("wit mint -spiffeID x", "wit mint")] {
        let text = refused(line).unwrap();
        assert!(text.starts_with(&format!("\"{verb}\" is not built into finial-server yet")), "{text}");
    }
    for line in ["entry show", "run", "-h", ""] {
        assert_eq!(refused(line), None);
    }
}

#[test]
fn completion_is_made_for_three_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = argv::completion(Program::command(), shell).unwrap();
        assert!(script.contains("finial-server") && script.contains("matchSelectorsOn"), "{shell}");
    }
    assert_eq!(argv::completion(Program::command(), "tcsh").unwrap_err().code, 1);
}
