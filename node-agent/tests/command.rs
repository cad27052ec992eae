//! The command line: `explain` and `rules`, which others script against.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use sys::netns::{Netns, within};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance");

fn sluice(args: &[&str], input: &str) -> Output {
    start(env!("CARGO_BIN_EXE_sluice"), args, input, 0)
}

fn start(program: &str, args: &[&str], input: &str, uid: u32) -> Output {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test and the tools it writes for"
    )]
    let mut child = Command::new(program)
        .args(args)
        .uid(uid)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may be refused before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

const POD: &str = "kind: Pod
metadata:
  name: web
  namespace: shop
  annotations:
    sidecar.istio.io/status: '{}'
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/8
spec:
  containers:
  - {name: web}
  - {name: istio-proxy, args: [proxy, sidecar], securityContext: {runAsUser: 5, runAsGroup: 6}}
";

#[test]
fn explains_in_words_and_needs_no_root() {
    let output = start(env!("CARGO_BIN_EXE_sluice"), &["explain", "-"], POD, 1000);
    let said = text(&output);
    for part in [
        "pod shop/web: captured for its sidecar",
        "user 5, group 6",
        "REDIRECT",
        "IPv6 is not captured",
        "not to 10.0.0.0/8",
        "15021",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let json: Value =
        serde_json::from_str(&text(&sluice(&["explain", "--format", "json", "-"], POD))).unwrap();
    assert_eq!((&json["decision"], &json["reason"]), (&json!("sidecar"), &json!("sidecar")));
    assert!(json["plan"]["outbound"].as_str().unwrap().contains("10.0.0.0/8"), "{json}");

    let dual = text(&sluice(&["explain", "--addresses", "fd00::1,10.0.0.1", "-"], POD));
    assert!(dual.contains("IPv4 and IPv6"), "{dual}");
}

#[test]
fn explains_what_is_left_alone_and_what_is_refused() {
    let plain = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let said = text(&sluice(&["explain", "-"], plain));
    assert!(
        said.contains("pod default/a: left alone") && said.contains("no istio-proxy"),
        "{said}"
    );
    let json: Value =
        serde_json::from_str(&text(&sluice(&["explain", "--format", "json", "-"], plain))).unwrap();
    assert_eq!(json["reason"], "no-proxy");

    let ambient = "kind: Pod\nmetadata: {name: a, namespace: n}\nspec: {containers: [{name: a}]}\n---\nkind: Namespace\nmetadata: {name: n, labels: {istio.io/dataplane-mode: ambient}}\n";
    let said = text(&sluice(&["explain", "--ambient-enabled", "true", "-"], ambient));
    assert!(said.contains("ztunnel"), "{said}");

    let wrong = POD.replace("10.0.0.0/8", "10.0.0.0/99");
    let said = error(&sluice(&["explain", "-"], &wrong));
    assert!(said.contains("excludeOutboundIPRanges") && said.contains("10.0.0.0/99"), "{said}");
    assert!(error(&sluice(&["explain", "/nonexistent"], "")).contains("/nonexistent"));
    assert!(
        error(&sluice(&["explain", "-"], "kind: Pod\nmetadata: {name: [}\n")).contains("line 2")
    );
    let two = format!("{POD}---\n{POD}");
    assert!(error(&sluice(&["explain", "-"], &two)).contains("more than one Pod"));
}

#[test]
fn refuses_what_makes_no_rules() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (content, part) in [
        ("{", "line 1"),
        ("{}", "neither `config` nor `pod`"),
        ("{\"config\":{\"no_such_option\":1}}", "no_such_option"),
        ("{\"config\":{\"proxy_uid\":\"a b\"}}", "proxy_uid"),
        ("{\"config\":{\"outbound_ports_exclude\":\"70000\"}}", "70000"),
        ("{\"config\":{},\"pod\":{}}", "both"),
        ("{\"pod\":{\"kind\":\"Pod\"}}", "metadata.name"),
    ] {
        let path = file("case.json", content);
        let said = error(&sluice(&["rules", "--case", &path], ""));
        assert!(said.contains(part) && said.contains("case.json"), "{content}: {said}");
    }
    let path = file("pod.yaml", POD);
    assert!(error(&sluice(&["rules"], "")).contains("--pod"));
    assert!(error(&sluice(&["rules", "--pod", &path, "--case", &path], "")).contains("--case"));
    assert!(error(&sluice(&["rules", "--pod", &path, "--format", "x"], "")).contains("nft"));
    assert!(
        error(&sluice(&["rules", "--pod", &path, "--addresses", "x"], "")).contains("--addresses")
    );
    assert!(text(&sluice(&["rules", "--pod", &path], "")).starts_with("*"));
    assert_eq!(text(&sluice(&["rules", "--pod", &path, "--format", "ip6tables"], "")), "");
}

/// The conformance cases; fails without them when REQUIRE_CONFORMANCE=1.
fn cases() -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "how CI says that nothing may be left out")]
    let required = std::env::var("REQUIRE_CONFORMANCE").is_ok_and(|v| v == "1");
    let mut found = Vec::new();
    for folder in ["sidecar", "pod"] {
        let Ok(entries) = std::fs::read_dir(Path::new(DATA).join(folder)) else { continue };
        found.extend(
            entries
                .map(|e| e.unwrap().path())
                .filter(|p| p.extension().is_some_and(|e| e == "json")),
        );
    }
    assert!(!found.is_empty() || !required, "no conformance cases in {DATA}");
    found
}

#[test]
fn the_tools_load_what_is_printed() {
    for case in cases() {
        let path = case.to_str().unwrap();
        // Its group names exist on few machines, and so not for the tools either.
        let named = path.contains("owner-groups");
        for compat in [&[][..], &["--compat", "istio"][..]] {
            let netns = Netns::create().unwrap();
            for (format, program, args) in [
                ("iptables", "iptables-nft-restore", &["--noflush"][..]),
                ("ip6tables", "ip6tables-nft-restore", &["--noflush"][..]),
                ("nft", "nft", &["-f", "-"][..]),
            ] {
                let asked = [&["rules", "--case", path, "--format", format], compat].concat();
                let rules = text(&sluice(&asked, ""));
                if named || rules.is_empty() {
                    continue;
                }
                let loaded = within(&netns, || start(program, args, &rules, 0)).unwrap();
                assert!(loaded.status.success(), "{path} {format}: {loaded:?}\n{rules}");
            }
            let json: Value = serde_json::from_str(&text(&sluice(
                &["rules", "--case", path, "--format", "json"],
                "",
            )))
            .unwrap();
            assert!(json["iptables"]["v4"]["nat"].is_array(), "{json}");
        }
    }
}

/// A chain's rules in their final order, by table and chain.
fn chains(tables: &Value) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for (table, lines) in tables.as_object().into_iter().flatten() {
        for line in lines.as_array().unwrap() {
            // Spellings of the same: upstream writes both, and IPv6 as it got it.
            let line = line.as_str().unwrap();
            let line =
                line.replace("--to-port ", "--to-ports ").replace("::127.0.0.53", "::7f00:35");
            let mut words = line.splitn(3, ' ');
            let (what, chain) = (words.next().unwrap(), words.next().unwrap());
            let name = format!("{table} {chain}");
            let index = found.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                found.push((name.clone(), Vec::new()));
                found.len() - 1
            });
            let rules = &mut found[index].1;
            match (what, words.next()) {
                ("-N", None) => {}
                ("-A", Some(rule)) => rules.push(rule.to_owned()),
                ("-I", Some(rest)) => {
                    let (at, rule) = rest.split_once(' ').unwrap();
                    rules.insert(at.parse::<usize>().unwrap() - 1, rule.to_owned());
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn compat_istio_prints_istios_rules_in_their_order() {
    for case in cases() {
        let expected: Value = serde_json::from_slice(&std::fs::read(&case).unwrap()).unwrap();
        let path = case.to_str().unwrap();
        let asked = ["rules", "--case", path, "--format", "json", "--compat", "istio"];
        let found: Value = serde_json::from_str(&text(&sluice(&asked, ""))).unwrap();
        for family in ["v4", "v6"] {
            assert_eq!(
                chains(&found["iptables"][family]),
                chains(&expected["iptables"][family]),
                "{path} {family}"
            );
        }
    }
}
