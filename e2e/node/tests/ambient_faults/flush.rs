//! Somebody takes rules away, once and again and again (`firewall-cmd --reload`).

use crate::stage::{KUBELET, Stage, records};
use e2e_node::packet::Fate;
use e2e_node::ztunnel::Direction;
use std::net::IpAddr;
use std::time::Duration;

const REPAIRED: &str = "sluice_drift_repaired_total{reason=\"rules\"}";

/// What is done to a running pod, and how often; its traffic is captured again and it is
/// counted.
fn is_repaired(name: &str, backend: &'static str, rounds: u32, argv: &[&[&str]]) {
    let stage = Stage::with_manifests(name, backend);
    let ztunnel = stage.ztunnel("zt");
    let [a, b, other] = ["a", "b", "other"].map(|n| stage.start(stage.manifest(n)).unwrap());
    let _servers = [stage.serve(&a), stage.serve(&b), stage.serve(&other)];
    let mut seen = 0;
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");
    assert_eq!(records(&ztunnel, &mut seen).len(), 2);

    for round in 0..rounds {
        for argv in argv {
            // Some of it may still be away.
            let done = a.pod.sandbox.load(argv, "");
            assert!(round > 0 || done.is_ok(), "{done:?}");
        }
        // Nobody else is the worse for it.
        let answer = stage.answer(&other.pod.sandbox, b.app(round % 2 == 1));
        assert_eq!(answer.peer, other.ip(round % 2 == 1));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "another pod in round {round}");
        std::thread::sleep(Duration::from_millis(50 + 90 * u64::from(round % 5)));
    }
    stage.eventually("it is counted", |stage| {
        stage.metric(REPAIRED).is_some_and(|repaired| repaired >= 1.0)
    });
    let runtime = stage.cluster.runtime();
    stage.eventually("it is put right", |stage| {
        runtime.check(&stage.cluster.list, &a.pod.attachment).is_ok()
    });
    records(&ztunnel, &mut seen);
    for v6 in [false, true] {
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "out of it, IPv6: {v6}");
        assert_eq!(stage.answer(&b.pod.sandbox, a.app(v6)).peer, b.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "into it, IPv6: {v6}");
    }
    let repaired = stage.metric(REPAIRED).unwrap();
    // The agent may be as fast as to see each step of a round.
    let most = f64::from(rounds) * argv.len() as f64;
    assert!(repaired <= most, "{repaired} repairs of {rounds} rounds");
    println!("{name}: {repaired} repairs of {rounds} rounds");
}

#[test]
fn nftables_in_a_loop() {
    is_repaired("floop-nft", "nftables", 20, &[&["nft", "flush", "ruleset"]]);
}

#[test]
fn iptables_in_a_loop() {
    let argv: &[&[&str]] = &[
        &["iptables", "-t", "nat", "-F"],
        &["iptables", "-t", "mangle", "-F"],
        &["ip6tables", "-t", "nat", "-F"],
    ];
    is_repaired("floop-ipt", "iptables", 20, argv);
}

#[test]
fn one_family_of_iptables() {
    is_repaired("f-ipt6", "iptables", 1, &[&["ip6tables", "-t", "mangle", "-F"]]);
}

#[test]
fn rules_before_ours() {
    // They let connections past ztunnel; the chains of ours are as they were.
    let argv: &[&[&str]] =
        &[&["nft", "insert", "rule", "inet", "istio-ambient-nat", "istio-output", "accept"]];
    is_repaired("f-before", "nftables", 1, argv);
}

#[test]
fn rules_of_routing() {
    let argv: &[&[&str]] = &[
        &["ip", "rule", "del", "priority", "32764"],
        &["ip", "-6", "rule", "del", "priority", "32764"],
    ];
    is_repaired("f-rule", "nftables", 1, argv);
}

#[test]
fn routes() {
    let argv: &[&[&str]] = &[
        &["ip", "route", "flush", "table", "100"],
        &["ip", "-6", "route", "flush", "table", "100"],
    ];
    is_repaired("f-route", "iptables", 1, argv);
}

/// The host's rules go in a loop, and kubelet's probes pass soon after.
fn host(backend: &'static str, argv: &[&[&str]]) {
    let stage = Stage::with_manifests(&format!("fhost-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    stage.await_host_rules(1);
    let a = stage.start(stage.probed("a")).unwrap();
    let _server = stage.serve(&a);
    let node = &stage.cluster.node.host;
    let source = IpAddr::from([169, 254, 7, 127]);
    let passes = || {
        let fate = stage.fate_as(KUBELET, node, a.app(false));
        matches!(fate, Fate::Answered(answer) if answer.by == "app" && answer.peer == source)
    };
    assert!(passes());
    for round in 0..20 {
        for argv in argv {
            node.load(argv, "").ok();
        }
        std::thread::sleep(Duration::from_millis(20 + 60 * (round % 5)));
    }
    stage.eventually("probes pass again", |_| passes());
    let repaired = stage.metric("sluice_drift_repaired_total{reason=\"host-rules\"}");
    assert!(repaired.is_some_and(|repaired| repaired >= 1.0), "{repaired:?}");
    // The pod was captured all the time.
    let mut seen = ztunnel.status().unwrap().records.len();
    assert_eq!(stage.answer(&stage.cluster.node.world, a.app(false)).by, "app");
    let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("one connection") };
    assert_eq!(record.direction, Direction::InboundPlaintext);
}

#[test]
fn the_hosts_nftables_in_a_loop() {
    host("nftables", &[&["nft", "flush", "ruleset"]]);
}

#[test]
fn the_hosts_iptables_in_a_loop() {
    host("iptables", &[&["iptables", "-t", "nat", "-F"], &["ip6tables", "-t", "nat", "-F"]]);
}
