//! Rules that somebody takes away come back, and it is counted.

use crate::stage::{Stage, records};
use e2e_node::agent::sidecar_pod;
use e2e_node::cluster::NAMESPACE;
use serde_json::json;

/// What is done to the pod, and what of it must be there again.
fn comes_back(name: &str, backend: &'static str, argv: &[&str]) {
    let stage = Stage::with_manifests(name, backend);
    let ztunnel = stage.ztunnel("zt");
    let a = stage.start(stage.manifest("a")).unwrap();
    let b = stage.start(stage.manifest("b")).unwrap();
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let mut seen = 0;
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).peer, a.ip(false));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2);
    let repaired = || stage.metric("sluice_drift_repaired_total{reason=\"rules\"}");
    assert_eq!(repaired().unwrap_or_default(), 0.0);

    for pod in [&a, &b] {
        pod.pod.sandbox.load(argv, "").unwrap();
    }
    stage.eventually("both are found changed", |_| repaired() == Some(2.0));
    let runtime = stage.cluster.runtime();
    stage.eventually("both are put right", |stage| {
        let check = |pod: &crate::stage::Started| {
            runtime.check(&stage.cluster.list, &pod.pod.attachment).is_ok()
        };
        check(&a) && check(&b)
    });
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(true)).peer, a.ip(true));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2, "captured again");
    let exposed = "sluice_bypass_seconds_total{reason=\"drifted\"}";
    assert!(stage.metric(exposed).is_some_and(|seconds| seconds > 0.0));
    // Nothing more is found, and nothing more is written.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(repaired(), Some(2.0), "{}", stage.cluster.agent_log());
}

/// What is changed while no agent is there is counted by the next one.
#[test]
fn flushed_without_an_agent() {
    for (backend, argv) in [
        ("nftables", &["nft", "flush", "ruleset"] as &[&str]),
        ("iptables", &["iptables", "-t", "nat", "-F"]),
    ] {
        let mut stage = Stage::with_manifests(&format!("away-{backend}"), backend);
        let ztunnel = stage.ztunnel("zt");
        let (a, b) =
            (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
        let _servers = [stage.serve(&a), stage.serve(&b)];
        let repaired =
            |stage: &Stage| stage.metric("sluice_drift_repaired_total{reason=\"rules\"}");
        stage.cluster.agent.take().unwrap().kill().unwrap();
        a.pod.sandbox.load(argv, "").unwrap();
        stage.start_agent();
        stage.eventually("one of the two is found changed", |stage| repaired(stage) == Some(1.0));
        let mut seen = ztunnel.status().unwrap().records.len();
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).peer, a.ip(false));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "{backend}: captured again");
        let said = stage.cluster.agent_log().matches("while the agent was away").count();
        assert_eq!(said, 1, "{}", stage.cluster.agent_log());
        // An upgrade finds nothing.
        stage.cluster.agent.take().unwrap().stop().unwrap();
        stage.start_agent();
        let look = "sluice_audit_looks_total{reason=\"period\"}";
        stage.eventually("both are looked at", |stage| {
            stage.metric(look).is_some_and(|looks| looks >= 2.0)
        });
        assert_eq!(repaired(&stage), Some(0.0), "{}", stage.cluster.agent_log());
    }
}

#[test]
fn flushed_nftables() {
    comes_back("flushed-nft", "nftables", &["nft", "flush", "ruleset"]);
}

#[test]
fn flushed_iptables() {
    comes_back("flushed-ipt", "iptables", &["iptables", "-t", "nat", "-F"]);
}

#[test]
fn a_rule_of_routing() {
    comes_back("routing", "nftables", &["ip", "rule", "del", "priority", "32764"]);
}

/// A pod with a sidecar is looked at by its record, before and after a restart of the
/// agent.
fn sidecar(backend: &'static str, argv: &[&str]) {
    let mut stage = Stage::with_manifests(&format!("sidecar-{backend}"), backend);
    let mut manifest = sidecar_pod(NAMESPACE, "s", &json!({}), &[]);
    manifest["metadata"]["uid"] = stage.manifest("s")["metadata"]["uid"].clone();
    let pod = stage.start(manifest).unwrap();
    for round in ["at once", "after a restart"] {
        let runtime = stage.cluster.runtime();
        runtime.check(&stage.cluster.list, &pod.pod.attachment).unwrap();
        pod.pod.sandbox.load(argv, "").unwrap();
        stage.eventually("it is put right", |stage| {
            stage.metric("sluice_drift_repaired_total{reason=\"rules\"}") == Some(1.0)
        });
        let check = runtime.check(&stage.cluster.list, &pod.pod.attachment);
        check.unwrap_or_else(|error| panic!("{round}: {error:#}"));
        stage.cluster.agent.take().unwrap().kill().unwrap();
        stage.start_agent();
    }
}

#[test]
fn a_flushed_sidecar_with_nftables() {
    sidecar("nftables", &["nft", "flush", "ruleset"]);
}

#[test]
fn a_flushed_sidecar_with_iptables() {
    sidecar("iptables", &["iptables", "-t", "nat", "-F"]);
}
