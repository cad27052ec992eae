//! No annotation, whatever a pod's creator writes into it, yields a rule outside our
//! own tables and chains: it is refused, or it becomes rules of the known grammar.

use proptest::prelude::*;
use redirect::annotation;
use redirect::compile::compile;
use redirect::desired::{Dialect, Form};
use redirect::enroll::Config;
use redirect::net::Family;
use redirect::pod::{Container, Pod};
use redirect::sidecar::plan;

const KEYS: [&str; 10] = [
    annotation::INTERCEPTION_MODE,
    annotation::INCLUDE_OUTBOUND_IP_RANGES,
    annotation::EXCLUDE_OUTBOUND_IP_RANGES,
    annotation::EXCLUDE_INBOUND_PORTS,
    annotation::INCLUDE_INBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_PORTS,
    annotation::INCLUDE_OUTBOUND_PORTS,
    annotation::EXCLUDE_INTERFACES,
    annotation::REROUTE_VIRTUAL_INTERFACES,
    annotation::KUBEVIRT_INTERFACES,
];

const VARIABLES: [&str; 3] = ["ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"];

/// Values near the valid ones, with what shells, iptables-restore and nft give a
/// meaning to.
fn value() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("80"),
        Just("65535"),
        Just("*"),
        Just("10.0.0.0/8"),
        Just("::/0"),
        Just("eth0"),
        Just("br-*"),
        Just("TPROXY"),
        Just("REDIRECT"),
        Just(","),
        Just(" "),
        Just("\n"),
        Just("\r"),
        Just("\0"),
        Just("\""),
        Just("'"),
        Just("`id`"),
        Just("$(id)"),
        Just(";"),
        Just("#"),
        Just("{"),
        Just("}"),
        Just("-A OUTPUT -j ACCEPT"),
        Just("COMMIT"),
        Just("*filter"),
        Just("; flush ruleset"),
        Just("accept"),
        Just("\\"),
        Just("-"),
        Just("!"),
        Just("0x50"),
        Just("\u{202e}"),
        Just("٣"),
        Just("/"),
        Just(":"),
        Just("|"),
        Just("&"),
    ];
    prop_oneof![
        3 => prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

fn pod(annotations: Vec<(usize, String)>, env: Vec<(usize, String)>, ids: [Option<i64>; 2]) -> Pod {
    Pod {
        name: "p".into(),
        namespace: "n".into(),
        annotations: annotations.into_iter().map(|(i, v)| (KEYS[i].to_owned(), v)).collect(),
        containers: vec![Container {
            name: "istio-proxy".into(),
            env: env.into_iter().map(|(i, v)| (VARIABLES[i].to_owned(), v)).collect(),
            run_as_user: ids[0],
            run_as_group: ids[1],
            ..Container::default()
        }],
        ..Pod::default()
    }
}

/// A line of iptables-restore input.
fn is_iptables(line: &str) -> bool {
    let chain = |name: &str| {
        matches!(name, "PREROUTING" | "OUTPUT")
            || name
                .strip_prefix("ISTIO_")
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
    };
    let target = |name: &str| {
        chain(name)
            || matches!(
                name,
                "RETURN" | "ACCEPT" | "DROP" | "REDIRECT" | "TPROXY" | "MARK" | "CONNMARK" | "CT"
            )
    };
    let words: Vec<&str> = line.split(' ').collect();
    let plain = |word: &&str| {
        !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./:,!-*+".contains(&b))
    };
    if !words.iter().all(plain) {
        return false;
    }
    match words.as_slice() {
        ["*nat" | "*mangle" | "*raw" | "COMMIT"] => true,
        ["-N", name] => chain(name) && name.starts_with("ISTIO_"),
        ["-A" | "-I", name, rest @ ..] => {
            let jumps: Vec<_> = rest.windows(2).filter(|w| w[0] == "-j").map(|w| w[1]).collect();
            chain(name) && jumps.len() == 1 && target(jumps[0])
        }
        _ => false,
    }
}

/// A line of an nft script.
fn is_nft(line: &str) -> bool {
    let quoted: Vec<&str> = line.split('"').collect();
    // Names of interfaces are the only text in quotes.
    let quotes = quoted.len() % 2 == 1
        && quoted.iter().skip(1).step_by(2).all(|name| {
            !name.is_empty()
                && name.len() <= 15
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-*".contains(&b))
        });
    let bare = quoted.iter().step_by(2).all(|text| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b" _./:,!=-{};&|()".contains(&b))
    });
    let words: Vec<&str> = line.split(' ').collect();
    let table =
        |name: &str| matches!(name, "istio-proxy-nat" | "istio-proxy-mangle" | "istio-proxy-raw");
    let hook = line.ends_with('}') && line.contains(" { type ");
    let shape = match words.as_slice() {
        ["add" | "flush", "table", "inet", name] => table(name),
        ["add", "chain", "inet", name, _] => table(name),
        ["add", "chain", "inet", name, ..] => table(name) && hook,
        // Braces and separators: sets of ports only, which have no semicolon.
        ["add" | "insert", "rule", "inet", name, ..] => table(name) && !line.contains(';'),
        _ => false,
    };
    quotes && bare && shape
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn annotations_are_refused_or_become_our_rules(
        annotations in prop::collection::vec((0..KEYS.len(), value()), 0..5),
        env in prop::collection::vec((0..VARIABLES.len(), value()), 0..3),
        ids in prop::array::uniform2(prop::option::of(any::<i64>())),
        v6_first in any::<bool>(),
    ) {
        let pod = pod(annotations, env, ids);
        let mut addresses = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        if v6_first {
            addresses.reverse();
        }
        if let Ok(plan) = plan(&pod, &Config::default(), &addresses) {
            for form in [Form::Sluice, Form::Istio(Dialect::Iptables), Form::Istio(Dialect::Nftables)] {
                let desired = compile(&plan, form);
                for family in [Family::V4, Family::V6] {
                    for line in redirect::iptables::render(&desired, family).lines() {
                        prop_assert!(is_iptables(line), "{line:?}");
                    }
                }
                for line in redirect::nft::render(&desired).lines() {
                    prop_assert!(is_nft(line), "{line:?}");
                }
            }
        }
    }
}

#[test]
fn the_grammar_is_not_too_wide() {
    for bad in [
        "-A OUTPUT -j ACCEPT -j DROP",
        "-A FORWARD -j ACCEPT",
        "*filter",
        "-F",
        "-A OUTPUT -j `id`",
        "-A OUTPUT -o \"a b\" -j RETURN",
        ":OUTPUT ACCEPT [0:0]",
        "-N X",
        "-P OUTPUT DROP",
        "",
    ] {
        assert!(!is_iptables(bad), "{bad}");
    }
    for bad in [
        "flush ruleset",
        "add table inet evil",
        "add rule inet evil c accept",
        "add table ip istio-proxy-nat",
        "add rule inet istio-proxy-nat c accept; flush ruleset",
        "delete table inet istio-proxy-nat",
        "add rule inet istio-proxy-nat c iifname \"a b\" accept",
        "include \"/etc/x\"",
        "",
        "add rule inet istio-proxy-nat c iifname \"abcdefghijklmnop\" accept",
    ] {
        assert!(!is_nft(bad), "{bad}");
    }
    assert!(is_iptables(
        "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT"
    ));
    assert!(is_nft(
        "add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }"
    ));
}
