//! Istio's form against the text of Istio's own tools, rule by rule. The same
//! comparison through the kernel is e2e/node's; this one needs no root and says
//! which line differs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what failed by panicking, and prints what it leaves out"
)]

use redirect::case::{AmbientCase, Case};
use redirect::compile::{ambient, compile};
use redirect::desired::{Desired, Dialect, Form};
use redirect::enroll::Config;
use redirect::net::{Cidr, Family};
use redirect::plan::Plan;
use redirect::pod::{Container, Pod};
use redirect::{iptables, nft, sidecar};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// Rules by "table chain", each a sorted list of its words.
type Chains = BTreeMap<String, Vec<Vec<String>>>;

fn cases(folder: &str) -> Vec<(String, Value)> {
    let dir =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance").join(folder);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        #[expect(
            clippy::disallowed_methods,
            reason = "the switch that makes missing data a failure"
        )]
        let required = std::env::var("REQUIRE_CONFORMANCE").as_deref() == Ok("1");
        assert!(!required, "no conformance data at {}", dir.display());
        println!("left out: no conformance data at {}", dir.display());
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .map(|e| e.unwrap().path())
        .map(|p| {
            let text = std::fs::read_to_string(&p).unwrap();
            (p.display().to_string(), serde_json::from_str(&text).unwrap())
        })
        .collect();
    all.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
    assert!(!all.is_empty(), "no case in {}", dir.display());
    all
}

fn words(spec: &str) -> Vec<String> {
    let spec = spec
        .replace("--to-port ", "--to-ports ")
        .replace("-m tcp ", "")
        .replace("-m udp ", "")
        .replace(" --nfmask 0xffffffff --ctmask 0xffffffff", "");
    // One address has several spellings: `::127.0.0.53` is `::7f00:35`.
    let canonical = |word: &str| match (word.parse::<Cidr>(), word.parse::<IpAddr>()) {
        (Ok(cidr), _) => cidr.to_string(),
        (_, Ok(address)) => Cidr::host(address).to_string(),
        _ => word.to_owned(),
    };
    let mut words: Vec<String> = spec.split_whitespace().map(canonical).collect();
    words.sort();
    words
}

fn iptables_chains<'a>(tables: impl Iterator<Item = (&'a str, &'a str)>) -> Chains {
    let mut chains = Chains::new();
    for (table, line) in tables {
        let mut parts = line.splitn(3, ' ');
        let (op, chain) = (parts.next().unwrap(), parts.next().unwrap());
        let rules = chains.entry(format!("{table} {chain}")).or_default();
        let rest = parts.next().unwrap_or_default();
        match op {
            "-N" => {}
            "-A" => rules.push(words(rest)),
            "-I" => {
                let (index, spec) = rest.split_once(' ').unwrap();
                rules.insert(index.parse::<usize>().unwrap() - 1, words(spec));
            }
            other => panic!("{other}"),
        }
    }
    chains
}

fn restore_lines(text: &str) -> Chains {
    let mut table = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if line == "COMMIT" => {}
            None => lines.push((table, line)),
        }
    }
    iptables_chains(lines.into_iter())
}

fn nft_words(spec: &str) -> Vec<String> {
    let mut text = spec
        .replace('"', "")
        .replace("ct mark set mark", "ct mark set meta mark")
        .replace("mark and ", "mark & ");
    for proto in ["tcp", "udp"] {
        if text.contains(&format!("{proto} dport")) || text.contains(&format!("{proto} sport")) {
            text = text.replace(&format!("meta l4proto {proto}"), "");
        }
    }
    words(&text.replace("meta ", ""))
}

fn nft_chains<'a>(lines: impl Iterator<Item = &'a str>) -> Chains {
    let mut chains = Chains::new();
    for line in lines {
        let w: Vec<&str> = line.splitn(6, ' ').collect();
        let key = || format!("{} {}", w[3], w[4]);
        match (w[0], w[1]) {
            ("add", "chain") => {
                let hook = w.get(5).map(|h| words(h)).unwrap_or_default();
                assert!(chains.insert(key(), vec![hook]).is_none(), "{line}");
            }
            ("add", "rule") => chains.get_mut(&key()).unwrap().push(nft_words(w[5])),
            ("insert", "rule") => {
                let rest = w[5].strip_prefix("index ").unwrap();
                let (index, spec) = rest.split_once(' ').unwrap();
                let rules = chains.get_mut(&key()).unwrap();
                rules.insert(index.parse::<usize>().unwrap() + 1, nft_words(spec));
            }
            _ => assert!(line.contains("table"), "{line}"),
        }
    }
    chains
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap())
}

fn assert_iptables(name: &str, case: &Value, plan: &Plan) {
    assert_tables(name, case, &compile(plan, Form::Istio(Dialect::Iptables)));
}

fn assert_tables(name: &str, case: &Value, desired: &Desired) {
    for (key, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        let tables = case["iptables"][key].as_object().unwrap();
        let want = iptables_chains(
            tables.iter().flat_map(|(t, lines)| strings(lines).map(move |l| (t.as_str(), l))),
        );
        let got = restore_lines(&iptables::render(desired, family));
        assert_eq!(got, want, "{name} {key}");
    }
}

#[test]
fn sidecar_cases_are_istios() {
    for (name, case) in cases("sidecar") {
        let config = case["config"].to_string();
        assert!(!AmbientCase::is_one(&config), "{name}");
        let plan = Case::parse(&config).unwrap().plan().unwrap();
        assert_iptables(&name, &case, &plan);
        let desired = compile(&plan, Form::Istio(Dialect::Nftables));
        let text = nft::render(&desired);
        assert_eq!(nft_chains(text.lines()), nft_chains(strings(&case["nftables"])), "{name} nft");
    }
}

#[test]
fn ambient_cases_are_istios() {
    let mut compared = 0;
    for (name, case) in cases("ambient") {
        let config = case["config"].to_string();
        assert!(AmbientCase::is_one(&config), "{name}");
        let options = AmbientCase::parse(&config).unwrap();
        if options.host {
            continue;
        }
        compared += 1;
        let plan = options.plan().unwrap();
        assert_tables(&name, &case, &ambient(&plan, Form::Istio(Dialect::Iptables)));
        let text = nft::render(&ambient(&plan, Form::Istio(Dialect::Nftables)));
        // Istio counts at the rules that decide, ours at the jumps too.
        let uncounted = |line: &str| line.replace(" counter ", " ");
        let got: Vec<String> = text.lines().map(uncounted).collect();
        let want: Vec<String> = strings(&case["nftables"]).map(uncounted).collect();
        let chains = |lines: &[String]| nft_chains(lines.iter().map(String::as_str));
        assert_eq!(chains(&got), chains(&want), "{name} nft");
    }
    println!("{compared} ambient cases");
}

#[test]
fn pod_cases_are_istios() {
    for (name, case) in cases("pod") {
        let plan =
            sidecar::plan(&pod(&case["pod"]), &Config::default(), &["10.0.0.5".parse().unwrap()]);
        assert_iptables(&name, &case, &plan.unwrap());
    }
}

fn pod(value: &Value) -> Pod {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let annotations = value["metadata"]["annotations"].as_object().unwrap();
    let containers = value["spec"]["containers"].as_array().unwrap();
    Pod {
        name: text(&value["metadata"]["name"]),
        namespace: text(&value["metadata"]["namespace"]),
        annotations: annotations.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        containers: containers
            .iter()
            .map(|c| Container {
                name: text(&c["name"]),
                env: c["env"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|e| (text(&e["name"]), text(&e["value"])))
                    .collect(),
                run_as_user: c["securityContext"]["runAsUser"].as_i64(),
                run_as_group: c["securityContext"]["runAsGroup"].as_i64(),
                ..Container::default()
            })
            .collect(),
        ..Pod::default()
    }
}
