//! `golden.jsonl` holds what SPIRE 1.15.3 makes of these templates with the data below: a line for each, with its result
//! or its error, as printed by a program of some lines around SPIRE's package `agentpathtemplate` that reads templates
//! from its input.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn data() -> serde_json::Value {
    json!({
        "PluginName": "x509pop",
        "Fingerprint": "da39a3ee",
        "Subject": {"CommonName": "Node-7.Example.ORG"},
        "Tags": {"env": "prod", "zone": "eu-1"},
        "List": ["a", "b", "c"],
        "EmptyList": [],
        "Nested": [[1, 2], [3]],
        "Maps": [{"name": "first"}],
        "Num": 7,
        "Float": 2.5,
        "Flag": true,
        "Empty": "",
        "NoList": "text",
        "Host": "node-7.example.org",
    })
}

fn rendered(template: &str) -> Result<String, TemplateError> {
    PathTemplate::parse(template)?.render(&data())
}

/// Where Finial differs on purpose: a missing key is an error by `index` too, and a connector alone is not doubled.
const DIFFERENT: &[(&str, Option<&str>)] =
    &[("{{ index .Tags \"none\" }}", None), ("{{ camelcase \"-\" }}", Some("-"))];

#[test]
fn renders_what_spire_renders() {
    for (template, result) in DIFFERENT {
        assert_eq!(rendered(template).ok().as_deref(), *result, "{template}");
    }
    let mut differences = Vec::new();
    for line in include_str!("golden.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let template = case["template"].as_str().unwrap();
        if DIFFERENT.iter().any(|(different, _)| *different == template) {
            continue;
        }
        let ours = rendered(template);
        let same = match (&ours, case["result"].as_str()) {
            (Ok(ours), Some(theirs)) => ours == theirs,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            differences.push(format!(
                "{template}\n   SPIRE: {}{}\n   here:  {ours:?}",
                case["result"], case["error"]
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn errors_name_the_place_and_the_cause() {
    for (template, message) in [
        (
            "/{{ .Nope }}",
            "template: agent-path:1:5: executing \"agent-path\" at <.Nope>: there is no field Nope; there are: \
             EmptyList, Empty, ",
        ),
        ("{{ nofunc 1 }}", "template: agent-path:1: function \"nofunc\" not defined"),
        ("a\n{{ .PluginName", "template: agent-path:2: unclosed action"),
        ("{{ lower 1 }}", "error calling lower: argument 1 has the wrong type: expected string; found int"),
        ("{{ fail \"only nodes with a name\" }}", "error calling fail: only nodes with a name"),
        ("{{ get .List \"a\" }}", "argument 1 has the wrong type: expected dict; found list"),
    ] {
        let error = rendered(template).unwrap_err().to_string();
        let message = message.replace("EmptyList, Empty, ", "Empty, EmptyList, ");
        assert!(error.contains(&message), "{template}: {error}");
    }
}

#[test]
fn results_stay_small() {
    for template in [
        "{{ repeat 1000000 .Host }}",
        "{{ seq 1000000000 }}",
        "{{ indent 100000 .Host }}",
        "{{ range 60000 }}{{ $.Host }}{{ end }}",
        "{{ range 1000000 }}{{ end }}",
        "{{ define \"t\" }}{{ template \"t\" . }}{{ end }}{{ template \"t\" . }}",
        "{{ $d := dict }}{{ $d = set $d \"self\" $d }}{{ $d }}",
    ] {
        assert!(rendered(template).is_err(), "{template}");
    }
    let nested = format!("{}1{}", "{{ ".to_owned() + &"(".repeat(200), ")".repeat(200) + " }}");
    assert!(rendered(&nested).is_err());
    let nested = "{{ if 1 }}".repeat(200) + &"{{ end }}".repeat(200);
    assert!(rendered(&nested).is_err());
}

proptest! {
    #[test]
    fn any_text_is_rendered_or_refused(text in "(\\{\\{|\\}\\}|[ .|$():=,a-z0-9\"'`\\\\-]|if|end|range|else|é){0,30}") {
        let _ = rendered(&text);
    }

    #[test]
    fn text_without_actions_is_itself(text in "[^{}]{0,40}") {
        prop_assert_eq!(rendered(&text).unwrap(), text);
    }

    #[test]
    fn functions_take_any_arguments(
        name in prop::sample::select(functions::names().collect::<Vec<_>>()),
        arguments in prop::collection::vec(prop::sample::select(vec![
            "nil", "true", "0", "1", "-1", "9223372036854775807", "2.5", "\"\"", "\"a/é b-C\"", ".List", ".Tags", "(list)", "(dict \"a\" 1)",
        ]), 0..4),
    ) {
        let _ = rendered(&format!("{{{{ {name} {} }}}}", arguments.join(" ")));
    }
}
