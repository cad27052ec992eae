//! Splicing, against Istio's own expectations and arbitrary texts.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;

fn entry() -> PluginEntry {
    PluginEntry {
        log_level: "debug".into(),
        run_dir: "/path/to/kubeconfig".into(),
        pod_namespace: "my-namespace".into(),
        ..PluginEntry::default()
    }
}

fn chained(text: &str) -> Result<String, ConflistError> {
    let pristine = List::parse(text)?.pristine()?;
    List::parse(&pristine)?.chained(&entry(), Marker::default())
}

/// A case of the conformance data; `None` where it is not there and need not be.
fn case(name: &str) -> Option<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/conformance/conflist")
        .join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(error) => {
            let required = std::env::vars_os().any(|(k, v)| k == "REQUIRE_CONFORMANCE" && v == "1");
            assert!(!required, "{}: {error}", path.display());
            None
        }
    }
}

/// Takes out what we add to Istio's entry on purpose.
fn as_istio(mut list: Value) -> Value {
    for plugin in list["plugins"].as_array_mut().unwrap() {
        let plugin = plugin.as_object_mut().unwrap();
        if plugin["type"] == TYPE {
            assert_eq!(
                plugin.remove("capabilities").unwrap(),
                json!({"io.kubernetes.cri.pod-annotations": true, "cgroupPath": true})
            );
            plugin.remove(Marker::KEY).unwrap();
        }
    }
    list
}

#[test]
fn a_list_becomes_what_istio_makes_of_it() {
    let Some(case) = case("list.conflist.json") else { return };
    for existing in [&case["existing"], &case["expected"]] {
        let out = chained(&existing.to_string()).unwrap();
        assert_eq!(as_istio(serde_json::from_str(&out).unwrap()), case["expected"]);
    }
}

/// Two things differ on purpose: the list keeps the configuration's own name, by
/// which address allocations are kept, and its own version; and the configuration
/// is whole inside, its version included, which runtimes override.
#[test]
fn a_single_configuration_becomes_a_list() {
    let Some(case) = case("bridge.conf.json") else { return };
    let existing = serde_json::to_string_pretty(&case["existing"]).unwrap();
    let wrapped = Conf::parse(&existing).unwrap().wrapped().unwrap();
    let out = chained(&wrapped).unwrap();
    let mut list = as_istio(serde_json::from_str(&out).unwrap());
    assert_eq!(list["name"], "dbnet");
    assert_eq!(list["cniVersion"], "0.4.0");
    list["name"] = case["expected"]["name"].clone();
    list["cniVersion"] = case["expected"]["cniVersion"].clone();
    list["plugins"][0].as_object_mut().unwrap().remove("cniVersion").unwrap();
    assert_eq!(list, case["expected"]);
    assert_eq!(List::parse(&out).unwrap().unwrapped().unwrap(), existing);
}

#[test]
fn others_bytes_stay() {
    let text = "{ \"x\" : 1e3,\"name\":\"n\\u00e9\",\n\t\"cniVersion\":\"1.0.0\", \"plugins\" : [\n\t{\"type\" :\"a\",\"n\":18446744073709551617,\"n\":1.0, \"s\":\"\\u003c\"}\n\t,  {\"type\":\"b\"}\n] , \"disableCheck\":true}\n\n";
    let out = chained(text).unwrap();
    assert!(out.starts_with(&text[..text.find("\n] , \"dis").unwrap()]), "{out}");
    assert!(out.ends_with("\n] , \"disableCheck\":true}\n\n"), "{out}");
    assert_eq!(List::parse(&out).unwrap().pristine().unwrap(), text);
    assert_eq!(chained(&out).unwrap(), out);
}

#[test]
fn our_entry_is_laid_out_as_its_neighbours() {
    let one_line =
        chained(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#).unwrap();
    assert!(!one_line.contains('\n'), "{one_line}");
    let lines = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\n      \"type\": \"a\"\n    }\n  ]\n}\n";
    let out = chained(lines).unwrap();
    assert!(out.contains("    },\n    {\n      \"name\": \"istio-cni\",\n"), "{out}");
    assert!(out.ends_with("\n    }\n  ]\n}\n"), "{out}");
}

#[test]
fn entries_of_our_type_are_replaced_wherever_they_stand() {
    let (a, b, ours) = (r#"{"type":"a"}"#, r#"{"type":"b"}"#, r#"{"type":"istio-cni","old":1}"#);
    let list = |plugins: &[&str]| {
        format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[ {} ]}}"#, plugins.join(" , "))
    };
    let want = chained(&list(&[a, b])).unwrap();
    for plugins in [[ours, a, b].as_slice(), &[a, ours, b], &[ours, a, ours, b, ours]] {
        assert_eq!(chained(&list(plugins)).unwrap(), want, "{plugins:?}");
        assert_eq!(List::parse(&list(plugins)).unwrap().pristine().unwrap(), list(&[a, b]));
    }
    assert_eq!(chained(&list(&[ours])), Err(ConflistError::OnlyOurs));
}

#[test]
fn the_version_is_the_primarys_unless_no_chain_can_have_it() {
    let list = |version: &str| format!(r#"{{{version}"name":"n","plugins":[{{"type":"a"}}]}}"#);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let text = list(&format!(r#""cniVersion":"{version}","#));
        let out = chained(&text).unwrap();
        assert!(out.starts_with(&format!(r#"{{"cniVersion":"{version}","#)), "{out}");
    }
    for old in ["", r#""cniVersion":"","#, r#""cniVersion" : "0.2.\u0030", "#] {
        let text = list(old);
        let out = chained(&text).unwrap();
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["cniVersion"], OLDEST_CHAINED);
        assert_eq!(List::parse(&out).unwrap().pristine().unwrap(), text);
        assert_eq!(chained(&out).unwrap(), out);
    }
    let versions = r#""cniVersion":"1.0.0","cniVersions":["0.4.0","1.0.0", "1.1.0"],"#;
    assert!(chained(&list(versions)).unwrap().contains(versions));
    for wrong in [r#""cniVersion":"2.0.0","#, r#""cniVersion":"1.0","#, r#""cniVersion":1,"#] {
        assert!(chained(&list(wrong)).is_err(), "{wrong}");
    }
    let error = chained(&list(r#""cniVersion":"2.0.0","#)).unwrap_err().to_string();
    assert!(error.contains("2.0.0") && error.contains("1.1.0"), "{error}");
}

#[test]
fn a_version_that_its_owner_changed_meanwhile_stays() {
    let text = r#"{"name":"n","plugins":[{"type":"a"}]}"#;
    let out = chained(text).unwrap().replacen(OLDEST_CHAINED, "1.0.0", 1);
    let back = List::parse(&out).unwrap().pristine().unwrap();
    assert_eq!(back, r#"{"cniVersion": "1.0.0", "name":"n","plugins":[{"type":"a"}]}"#);
}

#[test]
fn says_why_a_file_is_no_network() {
    for (text, want) in [
        ("", "JSON object"),
        ("\"This is not json\"\n\nMaybe", "JSON object"),
        ("[1]", "JSON object"),
        ("{\"a\":1} x", "not valid JSON"),
        (r#"{"plugins":[{"type":"a"}]}"#, "name"),
        (r#"{"name":"","plugins":[{"type":"a"}]}"#, "name"),
        (r#"{"name":"n"}"#, "plugins"),
        (r#"{"name":"n","plugins":[]}"#, "plugins"),
        (r#"{"name":"n","plugins":{}}"#, "plugins"),
        (r#"{"name":"n","plugins":[5]}"#, "JSON object"),
        (r#"{"name":"n","plugins":[{"type":5}]}"#, "type of a plugin"),
        (r#"{"name":"n","plugins":[{"type":""}]}"#, "type of a plugin"),
        (r#"{"name":"n","cniVersions":5,"plugins":[{"type":"a"}]}"#, "cniVersions"),
    ] {
        let error = List::parse(text).unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
    assert!(Conf::parse(r#"{"name":"n"}"#).unwrap_err().to_string().contains("type"));
    let nameless = Conf::parse(r#"{"type":"a"}"#).unwrap();
    assert_eq!(nameless.name(), FALLBACK_NAME);
    assert!(nameless.wrapped().unwrap().contains(OLDEST_CHAINED));
}

#[test]
fn the_entry_has_istios_keys_and_optional_ones_only_when_set() {
    let entry = PluginEntry {
        exclude_namespaces: vec!["kube-system".into()],
        agent_timeout_ms: Some(900),
        ..entry()
    };
    let value: Value = serde_json::from_str(&entry.compact(&Marker::default())).unwrap();
    assert_eq!(value["exclude_namespaces"], json!(["kube-system"]));
    assert_eq!(value["agent_timeout_ms"], 900);
    assert!(value.get("agent_host_network").is_none());
    assert!(value.get("agent_goes_by_annotations").is_none());
    let ours =
        PluginEntry { agent_host_network: true, agent_goes_by_annotations: true, ..entry.clone() };
    let value: Value = serde_json::from_str(&ours.pretty(&Marker::default())).unwrap();
    assert_eq!(value["agent_host_network"], true);
    assert_eq!(value["agent_goes_by_annotations"], true);
    let value: Value = serde_json::from_str(&super::super::tests::entry().standalone()).unwrap();
    assert_eq!(value["cniVersion"], "0.3.1");
    assert_eq!(value["exclude_namespaces"], Value::Null);
    assert_eq!(value["enablement_selectors"], json!([]));
    assert!(value.get("agent_timeout_ms").is_none() && value.get(Marker::KEY).is_none());
}

/// JSON with odd numbers, escapes and white space, as text.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{0,25}(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        "\"([a-z{}\\[\\],: ]|\\\\u00[0-7][0-9]|\\\\\"|\\\\\\\\|é)*\"",
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let space = "[ \n\t]{0,2}";
        let items = prop::collection::vec((space, inner.clone()), 0..4);
        let members = prop::collection::vec((space, "[a-e]|name|type|plugins", inner), 0..4);
        prop_oneof![
            items.prop_map(|items| {
                let items: Vec<_> = items.into_iter().map(|(s, v)| format!("{s}{v}")).collect();
                format!("[{}]", items.join(","))
            }),
            members.prop_map(|members| {
                let members: Vec<_> =
                    members.into_iter().map(|(s, k, v)| format!("{s}\"{k}\"{s}:{v}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

fn any_plugin() -> impl Strategy<Value = String> {
    let kind = prop_oneof![4 => "[a-z]{1,8}", 1 => Just(TYPE.to_owned())];
    ("[ \n]{0,3}", kind, any_json(), "[ \n]{0,3}").prop_map(|(before, kind, value, after)| {
        format!("{before}{{\"x\":{value},\"type\":\"{kind}\"{after}}}{after}")
    })
}

fn any_list() -> impl Strategy<Value = String> {
    let version = prop_oneof![
        Just(String::new()),
        "\"cniVersion\":[ ]?\"(0\\.[1-4]\\.[01]|1\\.[01]\\.0|)\",[ \n]?",
    ];
    let plugins = prop::collection::vec(any_plugin(), 1..6);
    ("[ \n]{0,2}", version, any_json(), plugins, any_json()).prop_map(
        |(space, version, a, plugins, b)| {
            let plugins = plugins.join(",");
            format!(
                "{space}{{{space}{version}\"other\":{a},\"name\":\"n\",\"plugins\":[{plugins}],\"{TYPE}\":{b}}}{space}"
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_list_keeps_its_bytes(text in any_list()) {
        let list = List::parse(&text).unwrap();
        let foreign: Vec<&str> = list.foreign().collect();
        let out = match chained(&text) {
            Ok(out) => out,
            Err(ConflistError::OnlyOurs) => { prop_assert!(foreign.is_empty()); return Ok(()) }
            Err(ConflistError::Version(_)) => return Ok(()),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let parsed = List::parse(&out).unwrap();
        prop_assert_eq!(parsed.foreign().collect::<Vec<_>>(), foreign);
        prop_assert_eq!(parsed.plugins.iter().filter(|p| p.ours).count(), 1);
        prop_assert!(parsed.plugins.last().unwrap().ours);
        // Twice is once, and taking out is the inverse.
        prop_assert_eq!(&chained(&out).unwrap(), &out);
        let pristine = list.pristine().unwrap();
        prop_assert_eq!(&parsed.pristine().unwrap(), &pristine);
        if !list.carries() {
            prop_assert_eq!(&pristine, &text);
        }
        // What a program that reads it sees is the same but for plugins and version.
        let (mut before, mut after): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(&out).unwrap());
        for value in [&mut before, &mut after] {
            let members = value.as_object_mut().unwrap();
            members.remove("plugins");
            members.remove("cniVersion");
        }
        prop_assert_eq!(before, after);
    }

    #[test]
    fn any_configuration_can_be_had_back(
        value in any_json(), before in "[ \n]{0,3}", after in "[ \n]{0,3}",
    ) {
        let text = format!("{before}{{\"type\":\"a\",\"cniVersion\":\"0.4.0\",\"x\":{value}}}{after}");
        let list = Conf::parse(&text).unwrap().wrapped().unwrap();
        let out = chained(&list).unwrap();
        prop_assert_eq!(List::parse(&out).unwrap().unwrapped().unwrap(), text);
    }

    #[test]
    fn any_text_is_a_list_or_a_clear_error(text in prop_oneof![any_json(), ".{0,60}"]) {
        for error in [
            chained(&text).err(),
            Conf::parse(&text).and_then(|conf| conf.wrapped()).err(),
        ].into_iter().flatten() {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
