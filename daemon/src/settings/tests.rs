use proptest::prelude::*;

use super::*;

fn ok(text: &str) -> Block {
    parse(text, "f").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn error(text: &str) -> String {
    parse(text, "f").map(|block| block.to_hcl()).expect_err(text).to_string()
}

/// The value of key `v` in a text.
fn value(text: &str) -> Value {
    ok(text).named("v").next().unwrap_or_else(|| panic!("{text}")).value.value.clone()
}

fn string(text: &str) -> String {
    match value(text) {
        Value::String(text) => text,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn reads_a_file_in_order_with_positions() {
    let file = ok("# first\nserver {\n  bind_address = \"0.0.0.0\" // where\n  bind_port = \"8081\"\n}\n\n\
                   /* two\n lines */ plugins {\n\tKeyManager \"disk\" { plugin_data { keys_path = \"k\" } }\n}\n");
    let names: Vec<(&str, u32, u32)> =
        file.items.iter().map(|item| (item.name(), item.at().line, item.at().column)).collect();
    assert_eq!(names, [("server", 2, 1), ("plugins", 8, 11)]);
    let Value::Block(plugins) = &file.items[1].value.value else { panic!() };
    let keys: Vec<&str> = plugins.items[0].keys.iter().map(|key| key.text.as_str()).collect();
    assert_eq!(keys, ["KeyManager", "disk"]);
    assert_eq!(plugins.items[0].at(), Position { line: 9, column: 2 });
    assert_eq!(plugins.items[0].value.at, Position { line: 9, column: 20 });
}

#[test]
fn forms_of_hcl_1_that_later_versions_lost() {
    for text in [
        "a = 1 b = 2",
        "a = 1, b = 2,",
        "\u{feff}a = 1\nb = 2",
        "a { x = {} } b = [1, 2,]",
        "\"a\" = 1\n\"b\" { c = 1 d { e = 2 } }",
        "a.b-c = 1 b = 2",
        "a \"x\" y { } b = 1",
        "{\"a\": 1, \"b\": 2}",
        "\n \t{\"a\": {}, \"b\": [{\"c\": null}],}\n",
        "a=1\rb=2\r\n",
        "a = 1 #",
        "a = 1 /**/ b = 1 //",
        "",
    ] {
        ok(text);
    }
    assert_eq!(ok("a = 1 b = 2").items.len(), 2);
    assert_eq!(ok("a \"x\" y { } b = 1").items[0].keys.len(), 3);
    assert_eq!(ok("a.b-c = 1").items[0].name(), "a.b-c");
    assert_eq!(ok("trust\u{e9}1 = 1").items[0].name(), "trust\u{e9}1");
}

#[test]
fn numbers() {
    for (text, want) in [
        ("0", 0),
        ("-1", -1),
        ("0600", 0o600),
        ("0x1fA", 0x1fa),
        ("-0x10", -16),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
    ] {
        assert_eq!(value(&format!("v = {text}")).integer(), Some(want), "{text}");
    }
    for (text, want) in
        [("1.5", 1.5), ("-1.5e3", -1500.0), ("1e+2", 100.0), ("2E-1", 0.2), (".5", 0.5), ("7", 7.0)]
    {
        assert_eq!(value(&format!("v = {text}")).float(), Some(want), "{text}");
    }
    assert_eq!(value("v = 1.5").integer(), None);
    assert_eq!(error("v = 089"), "f:1: 089 starts with a zero and so is octal, which has no digits 8 and 9");
    assert_eq!(
        error("v = 9223372036854775808"),
        "f:1: the number 9223372036854775808 does not fit in 64 bits"
    );
    for text in ["30s", "1h30m", "0x", "-", ".", "1.2.3", "1e", "1_000", "0b1", "1e999", "--1", "0x-1"] {
        let text = error(&format!("v = {text}"));
        assert!(text.contains("is not a number"), "{text}");
    }
}

#[test]
fn strings() {
    assert_eq!(string(r#"v = "a\"b\\c\n\t\x41\101\u00e9\U0001F600\a""#), "a\"b\\c\n\tAA\u{e9}\u{1f600}\u{7}");
    assert_eq!(string(r#"v = "\xc3\xa9 /x #no //no""#), "\u{e9} /x #no //no");
    // Between ${ and } everything stays as written.
    assert_eq!(string("v = \"a${f(\"x\ny\")}b\\n\""), "a${f(\"x\ny\")}b\n");
    assert_eq!(string(r#"v = "${ {a} \n }${b}$c{d}""#), r"${ {a} \n }${b}$c{d}");
    assert_eq!(string("v = <<EOF\none\n  two \"x\" ${y}\nEOF\n"), "one\n  two \"x\" ${y}\n");
    assert_eq!(string("v = <<EOF\r\none\r\nEOF\r\n"), "one\r\n");
    assert_eq!(string("v = <<EOF\nEOF"), "");
    assert_eq!(string("v = <<-EOF\n    one\n      two\n\n    EOF\nw = 1"), "    one\n      two\n\n");
    assert_eq!(string("v = <<-EOF\n    one\n      two\n    EOF\nw = 1"), "one\n  two\n");
    assert_eq!(string("v = <<-EOF\n  one\n two\n  EOF\n"), "  one\n two\n");
    assert_eq!(string("v = <<EOF\na EOF\nEOFx\nEOF\n"), "a EOF\nEOFx\n");
    assert_eq!(ok("v = [<<A\nx\nA\n, \"y\"]").items.len(), 1);
}

#[test]
fn complaints_say_where_and_what() {
    for (text, want) in [
        ("a {\n b = 1\n", "f:1: the block that opens here has no closing brace"),
        ("a = 1\n}\n", "f:2: this closing brace closes nothing"),
        ("a = [1,\n2\n", "f:1: the list that opens here has no closing bracket"),
        ("a = [1 2]", "f:1: ',' or ']' is expected in the list, found the number 2"),
        ("a = [,]", "f:1: a value is expected here, found ','"),
        ("\n\na = \"x\n", "f:3: the string that starts here has no closing quote"),
        ("a = \"${x\"", "f:1: the string that starts here has no closing quote"),
        ("a = \"\\q\"", "f:1: unknown escape \\q; a backslash itself is written \\\\"),
        ("a = \"\\ud800\"", "f:1: U+D800 is not a character"),
        ("a = \"\\xff\"", "f:1: the escapes of this string are not UTF-8"),
        ("a = \"\\777\"", "f:1: an octal escape is at most \\377"),
        ("a = 'x'", "f:1: strings are written in double quotes"),
        ("a = x", "f:1: strings are written in quotes: \"x\""),
        ("a = <<EOF\nx\n", "f:1: the heredoc that starts here has no closing EOF"),
        ("a = <<\nx\n", "f:1: a heredoc starts with << and a word, and nothing else on its line"),
        ("a = <b", "f:1: unexpected character '<'"),
        ("/* x", "f:1: the comment that starts here has no closing */"),
        ("a \"b\" = 1", "f:1: a key with a label is followed by a block in braces, without '='"),
        ("a b", "f:1: '=' or '{' is expected after \"b\", found the end of the file"),
        ("a = ", "f:1: a value is expected here, found the end of the file"),
        ("= 1", "f:1: a key is expected here, found '='"),
        ("true = 1", "f:1: a key is expected here, found true"),
        ("a = 1 %", "f:1: unexpected character '%'"),
        ("a = \"\0\"", "f:1: unexpected null character"),
        ("{\"a\": 1", "f:1: what opens here has no closing '}'"),
        ("{\"a\" 1}", "f:1: ':' is expected here, found '1'"),
        ("{a: 1}", "f:1: a key in quotes is expected here, found 'a'"),
        ("{\"a\": 01}", "f:1: 01 is not a JSON number"),
        ("{\"a\": [1 2]}", "f:1: ',' or ']' is expected here, found '2'"),
        ("{\"a\": nil}", "f:1: nil is not JSON; strings are written in quotes"),
        ("{\n\"a\": \"x\n\"}", "f:2: the string that starts here has no closing quote"),
        ("{\"a\": \"\\ud800\\u0041\"}", "f:1: a \\u surrogate stands alone"),
        ("{}\n{}", "f:2: there is more text after the end of the JSON object"),
    ] {
        assert_eq!(error(text), want, "{text}");
    }
    for (open, close) in [("a {", "}"), ("a = [", "]")] {
        let text = open.to_string() + &open.trim_start_matches("a = ").repeat(100) + &close.repeat(101);
        assert!(error(&text).contains("nest more than 64 deep"), "{text}");
    }
    let text = format!("{{\"a\": {}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    assert!(error(&text).contains("nest more than 64 deep"));
}

#[test]
fn json_and_hcl_give_the_same_tree() {
    let hcl = ok("a = \"x\"\nb { c = 1 d = [true, 1.5, \"\u{1f600}\"] }\ne = {}\n");
    let json = ok(r#"{"a": "x", "b": {"c": 1, "d": [true, 1.5, "\ud83d\ude00"]}, "e": {}, "f": null}"#);
    assert_eq!(hcl.to_hcl(), json.to_hcl());
    assert_eq!(json.items[1].at(), Position { line: 1, column: 12 });
}

#[test]
fn loads_files_with_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.conf");
    std::fs::write(&path, "v = \"$PATH\" w = \"$$x\"").unwrap();
    assert_eq!(load(&path, false).unwrap().to_hcl(), "v = \"$PATH\"\nw = \"$$x\"\n");
    let path_variable = std::env::var("PATH").unwrap();
    assert!(load(&path, true).unwrap().to_hcl().contains(&path_variable));
    std::fs::write(&path, b"v = \"\xff\"").unwrap();
    assert!(
        load(&path, false)
            .unwrap_err()
            .to_string()
            .ends_with("server.conf: the configuration file is not UTF-8 text")
    );
    let missing = load(&dir.path().join("none"), false).unwrap_err().to_string();
    assert!(missing.contains("/none: cannot read the configuration file: "), "{missing}");
}

#[test]
fn typed_values_with_weak_types() {
    let file = ok(r#"
        s = "x"  n = 8081  qn = "0x10"  b = true  qb = "False"  nb = 1
        d = "1h30m"  nod = ""  l = ["a", 5]  m { k = "v" j = 2 }  e { }
        key = "ec-p384"  one = [{ x = 1 }]
    "#);
    let top = Section::new(&file);
    assert_eq!(top.string("s").as_deref(), Some("x"));
    assert_eq!(top.string("n").as_deref(), Some("8081"));
    assert_eq!((top.int("n"), top.int("qn"), top.number::<u16>("n")), (Some(8081), Some(16), Some(8081)));
    assert_eq!((top.bool("b"), top.bool("qb"), top.bool("nb")), (Some(true), Some(false), Some(true)));
    assert_eq!(top.duration("d"), Some(std::time::Duration::from_secs(5400)));
    assert_eq!(top.duration("nod"), None);
    assert_eq!(top.list("l"), Some(vec!["a".to_string(), "5".to_string()]));
    let pairs = [("k", "v"), ("j", "2")].map(|(key, value)| (key.to_string(), value.to_string()));
    assert_eq!(top.string_map("m"), Some(pairs.to_vec()));
    assert!(top.block("e").is_some() && top.is_block("e") && !top.is_block("s"));
    assert_eq!(top.parsed::<crate::keys::KeyType>("key"), Some(crate::keys::KeyType::EcP384));
    assert_eq!(top.block("one").unwrap().int("x"), Some(1));
    assert_eq!((top.string("absent"), top.has("absent"), top.has("s")), (None, false, true));
    assert_eq!(top.require_string("s"), "x");
    top.finish().unwrap();
}

#[test]
fn every_problem_of_a_file_is_reported_on_its_line() {
    let file = parse(
        "server {\n  bind_adress = \"x\"\n  bind_port = \"http\"\n  ca_ttl = \"1 day\"\n  ca_ttl = \"2h\"\n  \
         ratelimit { atestation = true }\n  zzz = 1\n  port = 70000\n  admin_ids = \"a\"\n  tls = \"on\"\n  \
         key_type = \"dsa\"\n  trust_domain = \"\"\n}\nserver { }\nagnet = {}\n",
        "server.conf",
    )
    .unwrap();
    let top = Section::new(&file);
    let server = top.require_block("server");
    server.string("bind_address");
    server.int("bind_port");
    server.duration("ca_ttl");
    server.number::<u16>("port");
    server.list("admin_ids");
    server.block("tls");
    server.require_string("trust_domain");
    server.require_string("data_dir");
    server.parsed::<crate::keys::KeyType>("key_type");
    server.block("ratelimit").unwrap().bool("attestation");
    top.block("agent");
    top.require_block("plugins").require_string("never mentioned");
    server.problem("port", "is taken");
    assert_eq!(
        top.finish().unwrap_err().to_string(),
        "server.conf:1: the \"plugins\" block is missing\n\
         server.conf:1: \"data_dir\" must be set in the server block\n\
         server.conf:2: unknown key \"bind_adress\" in server block; did you mean \"bind_address\"?\n\
         server.conf:3: bind_port must be a whole number, found the string \"http\"\n\
         server.conf:4: ca_ttl: unknown unit \" day\" in the duration \"1 day\"; the units are ns, us, ms, s, m and h\n\
         server.conf:5: \"ca_ttl\" is set twice in server block; it is first set on line 4\n\
         server.conf:6: unknown key \"atestation\" in server.ratelimit block; did you mean \"attestation\"?\n\
         server.conf:7: unknown key \"zzz\" in server block\n\
         server.conf:8: port: 70000 is out of range\n\
         server.conf:8: port: is taken\n\
         server.conf:9: admin_ids must be a list of strings, found the string \"a\"\n\
         server.conf:10: tls must be a block, found the string \"on\"\n\
         server.conf:11: key_type: key type \"dsa\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]\n\
         server.conf:12: \"trust_domain\" must be set in the server block\n\
         server.conf:14: \"server\" is set twice at the top of the file; it is first set on line 1\n\
         server.conf:15: unknown key \"agnet\" at the top of the file; did you mean \"agent\"?"
    );
}

#[test]
fn unknown_keys_can_be_let_through() {
    let file = ok("experimental { anything = 1 inner { unknown = 1 } }");
    let top = Section::new(&file);
    let experimental = top.block("experimental").unwrap();
    experimental.allow_unknown();
    top.finish().unwrap();
    let top = Section::new(&file);
    let experimental = top.block("experimental").unwrap();
    experimental.allow_unknown();
    experimental.block("inner");
    assert!(
        top.finish().unwrap_err().to_string().contains("unknown key \"unknown\" in experimental.inner block")
    );
}

#[test]
fn repeated_and_labelled_blocks() {
    for text in [
        "sink { a = 1 } sink { a = 2 }",
        "sink = [{ a = 1 }, { a = 2 }]",
        "{\"sink\": [{\"a\": 1}, {\"a\": 2}]}",
    ] {
        let top = Section::new(&ok(text));
        let read: Vec<Option<i64>> = top.blocks("sink").iter().map(|sink| sink.int("a")).collect();
        assert_eq!(read, [Some(1), Some(2)], "{text}");
        top.finish().unwrap();
    }
    for text in [
        "with \"td1\" { a = 1 } with \"td2\" { a = 2 }",
        "with { td1 { a = 1 } \"td2\" { a = 2 } }",
        "with { td1 { a = 1 } } with { \"td2\" = { a = 2 } }",
        "{\"with\": {\"td1\": {\"a\": 1}, \"td2\": {\"a\": 2}}}",
        "{\"with\": [{\"td1\": [{\"a\": 1}]}, {\"td2\": {\"a\": 2}}]}",
    ] {
        let top = Section::new(&ok(text));
        let read: Vec<(String, Option<i64>)> =
            top.labelled("with").into_iter().map(|(label, with)| (label, with.int("a"))).collect();
        assert_eq!(read, [("td1".to_string(), Some(1)), ("td2".to_string(), Some(2))], "{text}");
        top.finish().unwrap();
    }
    let top =
        Section::new(&ok("with \"td1\" { b = 1 }\nwith = 1\nwith { td2 = 1 }\nsink \"x\" {}\nsink = 1"));
    for (_, with) in top.labelled("with") {
        with.int("a");
    }
    top.blocks("sink");
    assert_eq!(
        top.finish().unwrap_err().to_string(),
        "f:1: unknown key \"b\" in with \"td1\" block\n\
         f:2: with must be a block with a label, found the number 1\n\
         f:3: with: \"td2\" must be a block, found the number 1\n\
         f:4: sink: takes no label\n\
         f:5: sink must be a block, found the number 1"
    );
}

#[test]
fn plugin_stanzas_in_every_notation() {
    for text in [
        "plugins {\n KeyManager \"disk\" { plugin_data { keys_path = \"k\" } }\n NodeAttestor \"join_token\" { plugin_data {} }\n}",
        "plugins { KeyManager disk { plugin_data { keys_path = \"k\" } } NodeAttestor { join_token {} } }",
        "plugins { KeyManager \"disk\" plugin_data { keys_path = \"k\" } NodeAttestor { join_token { } } }",
        "plugins { \"KeyManager\" { \"disk\" { \"plugin_data\" = { keys_path = \"k\" } } } \"NodeAttestor\" = { \"join_token\" = {} } }",
        r#"{"plugins": {"KeyManager": {"disk": {"plugin_data": {"keys_path": "k"}}}, "NodeAttestor": {"join_token": {"plugin_data": null}}}}"#,
        r#"{"plugins": [{"KeyManager": [{"disk": [{"plugin_data": [{"keys_path": "k"}]}]}]}, {"NodeAttestor": {"join_token": null}}]}"#,
    ] {
        let stanzas = plugin_stanzas(&ok(text)).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let names: Vec<(&str, &str, bool)> = stanzas
            .iter()
            .map(|stanza| (stanza.kind.as_str(), stanza.name.as_str(), stanza.enabled))
            .collect();
        assert_eq!(names, [("KeyManager", "disk", true), ("NodeAttestor", "join_token", true)], "{text}");
        let data = Section::named(&stanzas[0].data, &stanzas[0].data_name());
        assert_eq!(data.string("keys_path").as_deref(), Some("k"));
        data.finish().unwrap();
        assert!(stanzas[1].data.items.is_empty());
    }
}

#[test]
fn plugin_stanzas_are_read_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.conf");
    std::fs::write(&path, "a = 1").unwrap();
    let sum = "0123456789abcdef".repeat(4);
    let text = format!(
        "plugins {{ KeyManager \"x\" {{ plugin_cmd = \"/bin/x\" plugin_args = [\"-v\"] plugin_checksum = \"{sum}\" \
         enabled = false plugin_data_file = {path:?} }} }}"
    );
    let stanza = plugin_stanzas(&ok(&text)).unwrap().remove(0);
    assert_eq!((stanza.cmd.as_deref(), stanza.args.as_slice()), (Some("/bin/x"), &["-v".to_string()][..]));
    assert_eq!((stanza.checksum.as_deref(), stanza.enabled), (Some(sum.as_str()), false));
    assert_eq!(stanza.configuration().unwrap().to_hcl(), "a = 1\n");

    let file = ok("plugins {\n KeyManager \"a\" { plugin_data {} plugin_data_file = \"f\" }\n \
                   KeyManager \"b\" { plugin_dat { } }\n KeyManager \"c\" { }\n KeyManager \"c\" { }\n KeyManager \"d\" \
                   = 1\n}\n".replace(" = 1", " { enabled = 7 }").as_str());
    assert_eq!(
        plugin_stanzas(&file).unwrap_err().to_string(),
        "f:2: plugin_data_file: only one of plugin_data and plugin_data_file may be set; remove one\n\
         f:3: unknown key \"plugin_dat\" in KeyManager \"b\" block; did you mean \"plugin_data\"?\n\
         f:5: plugins: KeyManager \"c\" is configured twice; it is first on line 4\n\
         f:6: enabled must be true or false, found the number 7"
    );
    assert_eq!(
        plugin_stanzas(&ok("a = 1")).unwrap_err().to_string(),
        "f:1: the \"plugins\" block is missing"
    );
    let file = ok("plugins { KeyManager = 1 }");
    assert_eq!(
        plugin_stanzas(&file).unwrap_err().to_string(),
        "f:1: plugins: KeyManager takes a name and a block"
    );
    let stanza = plugin_stanzas(&ok("plugins { KeyManager \"disk\" { plugin_data { key_path = 1 } } }"))
        .unwrap()
        .remove(0);
    let data = Section::named(&stanza.data, &stanza.data_name());
    data.string("keys_path");
    assert_eq!(
        data.finish().unwrap_err().to_string(),
        "f:1: unknown key \"key_path\" in plugin_data of KeyManager \"disk\" block; did you mean \"keys_path\"?"
    );
}

/// The tree without positions.
fn shape(block: &Block) -> String {
    fn node(value: &Value, out: &mut String) {
        match value {
            Value::List(elements) => {
                out.push('[');
                for element in elements {
                    node(&element.value, out);
                    out.push(',');
                }
                out.push(']');
            }
            Value::Block(block) => out.push_str(&shape(block)),
            other => out.push_str(&format!("{other:?}")),
        }
    }
    let mut out = "{".to_string();
    for item in &block.items {
        let keys: Vec<&str> = item.keys.iter().map(|key| key.text.as_str()).collect();
        out.push_str(&format!("{keys:?}="));
        node(&item.value.value, &mut out);
        out.push(';');
    }
    out + "}"
}

const START: Position = Position { line: 1, column: 1 };

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![".*", "[a-z_]{1,8}", r#"[${}"\\a\n]{0,8}"#]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any_text()
            .prop_filter("null characters end a file", |text| !text.contains('\0'))
            .prop_map(Value::String),
        any::<i64>().prop_map(|number| Value::Number(number.to_string())),
        any::<bool>().prop_map(Value::Bool),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| {
                Value::List(values.into_iter().map(|value| Node { at: START, value }).collect())
            }),
            block_of(inner).prop_map(Value::Block),
        ]
    })
}

fn block_of(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Block> {
    let keys = prop::collection::vec(any_text(), 1..3);
    prop::collection::vec((keys, value), 0..4).prop_map(|items| Block {
        file: Arc::from("f"),
        at: START,
        items: items
            .into_iter()
            .map(|(keys, value)| {
                // Only a block can have labels.
                let count = if matches!(value, Value::Block(_)) { keys.len() } else { 1 };
                let keys = keys.into_iter().take(count).map(|text| Key { text, at: START }).collect();
                Item { keys, value: Node { at: START, value } }
            })
            .collect(),
    })
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(block in block_of(any_value())) {
        let text = block.to_hcl();
        let again = parse(&text, "f").map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(shape(&again), shape(&block), "{}", text);
    }

    #[test]
    fn no_text_panics(text in ".*") {
        let _ = parse(&text, "f");
    }

    #[test]
    fn no_text_of_the_grammar_panics(text in r#"([a-c]|[{}\[\]=,:."$\\#/*<>EOF\-+\n 0-9xeu]|true|null|<<E\n){0,40}"#) {
        if let Ok(block) = parse(&text, "f") {
            let again = parse(&block.to_hcl(), "f").map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(block.to_hcl(), again.to_hcl());
            let _ = plugin_stanzas(&block);
            let top = Section::new(&block);
            for item in &block.items {
                top.labelled(item.name());
                top.block(item.name());
                top.int(item.name());
            }
            let _ = top.finish();
        }
    }

    #[test]
    fn json_from_elsewhere_reads(text in any_text(), number in any::<i32>()) {
        let json = serde_json::json!({"s": text, "n": number, "l": [text, {"k": text}]}).to_string();
        let top = Section::new(&parse(&json, "f").unwrap());
        prop_assert_eq!(top.string("s"), Some(text));
        prop_assert_eq!(top.int("n"), Some(i64::from(number)));
    }

    #[test]
    fn durations_read_back(nanos in 0..=i64::MAX as u64) {
        let duration = GoDuration(std::time::Duration::from_nanos(nanos));
        prop_assert_eq!(duration.to_string().parse::<GoDuration>(), Ok(duration));
    }

    #[test]
    fn expansion_never_panics(text in "[${}a-c*é]{0,20}") {
        expand_env(&text, |name| Some(name.to_string()));
    }
}
