//! Agent and ztunnel come and go; pods stay captured, and connections open.

use crate::stage::{Stage, Started, records};
use e2e_node::cluster::NAMESPACE;
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::ztunnel::Status;
use std::time::Duration;

/// Connections that are open meanwhile.
const FLOWS: usize = 20;
/// Between exchanges of one.
const PAUSE: Duration = Duration::from_millis(20);

fn pair(stage: &Stage) -> (Started, Started) {
    (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap())
}

fn restart_agent(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("restart-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let (a, b) = pair(&stage);
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let flows: Vec<Flow> = (0..FLOWS)
        .map(|n| Flow::start(a.pod.sandbox.netns(), b.app(n % 2 == 1), PAUSE).unwrap())
        .collect();
    come_on(&flows).unwrap();
    let before = ztunnel.status().unwrap();

    stage.cluster.agent.take().unwrap().kill().unwrap();
    come_on(&flows).unwrap();
    stage.start_agent();
    let more = before.connections + 1;
    let after =
        ztunnel.wait("the new agent's snapshot", |s| s.connections >= more && s.snapshot).unwrap();
    assert_eq!(
        (after.started, after.stopped),
        (before.started, before.stopped),
        "no proxy was touched: {}",
        stage.cluster.agent_log()
    );
    come_on(&flows).unwrap();
    assert_eq!(finish(flows), Vec::<String>::new());
    let mut seen = ztunnel.status().unwrap().records.len();
    assert_eq!(stage.answer(&b.pod.sandbox, a.app(false)).peer, b.ip(false));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2, "still captured");
    stage.start(stage.manifest("c")).unwrap();
}

#[test]
fn the_agent_restarts_under_traffic_with_nftables() {
    restart_agent("nftables");
}

#[test]
fn the_agent_restarts_under_traffic_with_iptables() {
    restart_agent("iptables");
}

/// Of such a pod the new agent knows no more than its record.
#[test]
fn a_pod_whose_manifest_is_broken_keeps_its_proxy_over_a_restart() {
    let mut stage = Stage::with_manifests("restart-broken", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let (a, b) = pair(&stage);
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let before = ztunnel.status().unwrap();

    stage.cluster.agent.take().unwrap().kill().unwrap();
    let file = format!("Pod-{NAMESPACE}-a.json");
    std::fs::write(stage.cluster.directories.pods.join(file), "{").unwrap();
    stage.start_agent();
    let more = before.connections + 1;
    let taken = |s: &Status| s.connections >= more && s.snapshot;
    let after = ztunnel.wait("the new agent's snapshot", taken).unwrap();
    assert_eq!(
        (after.started, after.stopped),
        (before.started, before.stopped),
        "no proxy was touched: {}",
        stage.cluster.agent_log()
    );
    assert_eq!(stage.answer(&b.pod.sandbox, a.app(false)).by, "app");
    let doubtful = "sluice_unverified_pods{reason=\"unreadable\"}";
    stage.eventually("it is told of", |stage| stage.metric(doubtful) == Some(1.0));

    stage.publish(&a.manifest);
    stage.eventually("it is known again", |stage| stage.metric(doubtful) == Some(0.0));
    assert_eq!(ztunnel.status().unwrap().stopped, before.stopped);
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");
}

#[test]
fn ztunnel_is_replaced() {
    let stage = Stage::with_manifests("replaced", "nftables");
    let mut old = stage.ztunnel("old");
    let (a, b) = pair(&stage);
    let _servers = [stage.serve(&a), stage.serve(&b)];
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");

    // As a rolling upgrade: the new one is there before the old one goes.
    let new = stage.ztunnel("new");
    new.wait("both pods", |s| s.workloads.values().filter(|w| w.up).count() == 2).unwrap();
    old.terminate().unwrap();
    old.wait_end(Duration::from_secs(90)).unwrap();
    let mut seen = 0;
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(true)).peer, a.ip(true));
    assert_eq!(records(&new, &mut seen).len(), 2);
    let c = stage.start(stage.manifest("c")).unwrap();
    assert!(new.status().unwrap().workloads[c.uid()].up);

    // And as a crash: captured pods reach nothing, and all is well with the next.
    drop(new);
    let to = b.app(false);
    assert!(!matches!(stage.fate(&a.pod.sandbox, to), e2e_node::packet::Fate::Answered(_)));
    let last = stage.ztunnel("last");
    last.wait("all pods", |s| s.workloads.values().filter(|w| w.up).count() == 3).unwrap();
    assert_eq!(stage.answer(&a.pod.sandbox, to).peer, a.ip(false));
}
