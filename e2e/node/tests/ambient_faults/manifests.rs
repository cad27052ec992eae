//! Pods of a directory of manifests: nobody tells their addresses, and a file may be
//! broken when the agent starts.

use crate::stage::{MODE, Stage, records};
use e2e_node::cluster::NAMESPACE;
use e2e_node::flow::{Flow, come_on, finish};
use serde_json::json;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(50);

fn joins_and_leaves(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("manifests-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let a = stage.start(stage.manifest("a")).unwrap();
    let mut outside = stage.manifest("b");
    outside["metadata"]["labels"] = json!({MODE: "none"});
    let b = stage.start(outside.clone()).unwrap();
    let _servers = [stage.serve(&a), stage.serve(&b)];
    // From before it joins: goes on uncaptured.
    let flow = Flow::start(b.pod.sandbox.netns(), a.app(false), PAUSE).unwrap();
    let mut seen = 0;
    for _ in 0..2 {
        records(&ztunnel, &mut seen);
        assert_eq!(stage.answer(&b.pod.sandbox, a.app(true)).by, "app");
        let found = records(&ztunnel, &mut seen);
        assert!(found.iter().all(|record| record.uid == a.uid()), "{found:#?}");

        let mut inside = outside.clone();
        inside["metadata"].as_object_mut().unwrap().remove("labels");
        stage.publish(&inside);
        let is_up =
            |s: &e2e_node::ztunnel::Status| s.workloads.get(b.uid()).is_some_and(|view| view.up);
        ztunnel.wait("the pod that joins", is_up).unwrap();
        for v6 in [false, true] {
            records(&ztunnel, &mut seen);
            assert_eq!(stage.answer(&b.pod.sandbox, a.app(v6)).peer, b.ip(v6));
            assert_eq!(records(&ztunnel, &mut seen).len(), 2, "captured on both sides");
        }

        stage.publish(&outside);
        ztunnel.wait("its end", |s| !s.workloads.contains_key(b.uid())).unwrap();
    }
    let flows = vec![flow];
    come_on(&flows).unwrap();
    assert_eq!(finish(flows), Vec::<String>::new());
}

#[test]
fn a_pod_that_started_outside_joins_by_its_manifest_with_nftables() {
    joins_and_leaves("nftables");
}

#[test]
fn a_pod_that_started_outside_joins_by_its_manifest_with_iptables() {
    joins_and_leaves("iptables");
}

/// Nobody knows what the pod is while its file is broken: it stays what it was, and
/// others are served meanwhile.
#[test]
fn a_manifest_that_is_broken_at_the_agents_start_ends_no_capture() {
    let mut stage = Stage::with_manifests("manifests-broken", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let [a, b] = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let flow = Flow::start(a.pod.sandbox.netns(), b.app(false), PAUSE).unwrap();
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let file = stage.cluster.directories.pods.join(format!("Pod-{NAMESPACE}-b.json"));
    assert!(file.is_file(), "{}", file.display());
    std::fs::write(&file, "{\"kind\": \"Pod\", \"metadata\": {").unwrap();
    let before = ztunnel.status().unwrap();
    stage.start_agent();
    let more = before.connections + 1;
    ztunnel.wait("the snapshot", |s| s.connections >= more && s.snapshot).unwrap();
    // It is in order otherwise.
    let c = stage.start(stage.manifest("c")).unwrap();
    let after = ztunnel.status().unwrap();
    assert_eq!(after.stopped, before.stopped, "{}", stage.cluster.agent_log());
    for pod in [&a, &b, &c] {
        assert!(after.workloads[pod.uid()].up, "{after:#?}");
    }
    let mut seen = after.records.len();
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(true)).peer, a.ip(true));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2, "captured on both sides");
    let flows = vec![flow];
    come_on(&flows).unwrap();
    assert_eq!(finish(flows), Vec::<String>::new());

    // And it is known again, and then gone.
    stage.publish(&b.manifest);
    let d = stage.start(stage.manifest("d")).unwrap();
    assert!(ztunnel.status().unwrap().workloads[b.uid()].up);
    assert!(ztunnel.status().unwrap().workloads[d.uid()].up);
    std::fs::remove_file(&file).unwrap();
    ztunnel.wait("the end of the pod", |s| !s.workloads.contains_key(b.uid())).unwrap();
}
