//! The agent starts anew while the API server is away: what its records say of the pods
//! that run is put right and counted, and nothing is decided about them.

use crate::stage::{Stage, Started, records};
use e2e_node::cluster::NAMESPACE;
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::ztunnel::Direction;
use serde_json::Value;
use std::time::Duration;

const REPAIRED: &str = "sluice_drift_repaired_total{reason=\"rules\"}";
const UNVERIFIED: &str = "sluice_unverified_pods{reason=\"new\"}";
const BYPASS: &str = "sluice_bypass_seconds_total{reason=\"drifted\"}";

/// What `sluice pods` says of a pod: how it stands, and why.
fn told(stage: &Stage, pod: &Started) -> (String, String) {
    let cluster = &stage.cluster;
    let program = cluster.node.host.program(&cluster.programs.sluice);
    let program = program.args(["pods", "--output", "json", "--run-dir"]);
    let output = program.arg(&cluster.directories.run).run().unwrap();
    let all: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    let pods = all["pods"].as_array().unwrap();
    let row = pods.iter().find(|row| row["uid"] == pod.uid()).unwrap();
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    (text("standing"), text("reason"))
}

fn without_the_api(backend: &'static str, flush: &[&[&str]]) {
    let mut stage = Stage::with_api(&format!("unlisted-{backend}"), backend);
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let [a, b] = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    let _server = stage.serve(&b);
    let pause = Duration::from_millis(50);
    let flow = Flow::start(a.pod.sandbox.netns(), b.app(false), pause).unwrap();
    let before = ztunnel.status().unwrap();

    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.server.as_ref().unwrap().down().unwrap();
    let rules = |stage: &Stage| {
        stage.cluster.runtime().check(&stage.cluster.list, &a.pod.attachment).is_ok()
    };
    // Once while nobody is there, and once more when it is back, which the kernel tells of.
    for times in [1.0, 2.0] {
        for argv in flush {
            a.pod.sandbox.load(argv, "").unwrap();
        }
        if stage.cluster.agent.is_none() {
            stage.start_agent();
        }
        stage.eventually("it is put right", |stage| stage.metric(REPAIRED) == Some(times));
        stage.eventually("it is unverified", |stage| stage.metric(UNVERIFIED) == Some(2.0));
        assert!(rules(&stage), "{}", stage.cluster.agent_log());
        let mut seen = ztunnel.status().unwrap().records.len();
        for v6 in [false, true] {
            assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
            let found = records(&ztunnel, &mut seen);
            let out = found.iter().filter(|record| record.direction == Direction::Outbound);
            assert_eq!(out.count(), 1, "IPv6: {v6}: {}", stage.cluster.agent_log());
        }
    }
    assert!(stage.metric(BYPASS).is_some_and(|seconds| seconds > 0.0), "it is counted");
    for pod in [&a, &b] {
        let (standing, reason) = told(&stage, pod);
        assert_eq!(standing, "unverified", "{reason}");
        assert!(reason.contains("API server") && reason.contains("list of pods"), "{reason}");
    }
    let away = ztunnel.status().unwrap();
    assert!(away.connected && !away.snapshot, "{away:#?}");

    stage.server.as_ref().unwrap().up().unwrap();
    ztunnel.wait("the snapshot", |status| status.snapshot).unwrap();
    stage.eventually("all is well", |stage| {
        stage.metric(UNVERIFIED) == Some(0.0) && told(stage, &a).0 == "verified"
    });
    let after = ztunnel.status().unwrap();
    assert_eq!((after.started, after.stopped), (before.started, before.stopped));
    come_on(std::slice::from_ref(&flow)).unwrap();
    assert_eq!(finish(vec![flow]), Vec::<String>::new());
    assert_eq!(stage.metric(REPAIRED), Some(2.0), "nothing was left to do");
}

#[test]
fn nftables_without_the_api() {
    without_the_api("nftables", &[&["nft", "flush", "table", "inet", "istio-ambient-nat"]]);
}

#[test]
fn iptables_without_the_api() {
    let flush: &[&[&str]] = &[&["iptables", "-t", "nat", "-F"], &["ip6tables", "-t", "nat", "-F"]];
    without_the_api("iptables", flush);
}

/// What changed meanwhile holds once it is known: one pod is gone, one is let go.
#[test]
fn what_has_changed_meanwhile() {
    let mut stage = Stage::with_api("unlisted-changed", "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let [gone, leaves, stays] =
        ["gone", "leaves", "stays"].map(|name| stage.start(stage.manifest(name)).unwrap());
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let server = stage.server.as_ref().unwrap();
    server.remove("pods", NAMESPACE, "gone");
    let mut now = stage.seen(&leaves);
    now["metadata"]["labels"][crate::stage::MODE] = "none".into();
    stage.publish(&now);
    server.down().unwrap();
    for pod in [&gone, &leaves, &stays] {
        pod.pod.sandbox.load(&["nft", "flush", "ruleset"], "").unwrap();
    }
    stage.start_agent();
    stage.eventually("all three are put right", |stage| stage.metric(REPAIRED) == Some(3.0));
    stage.server.as_ref().unwrap().up().unwrap();
    ztunnel.wait("one pod", |s| s.snapshot && s.workloads.keys().eq([stays.uid()])).unwrap();
    stage.eventually("it is let go", |_| {
        leaves.pod.sandbox.load(&["nft", "list", "ruleset"], "").unwrap().trim().is_empty()
    });
    stage.eventually("all is well", |stage| {
        stage.metric(UNVERIFIED) == Some(0.0) && told(stage, &stays).0 == "verified"
    });
    drop(gone);
}
