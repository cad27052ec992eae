//! Pods that run are enrolled and un-enrolled by a label, and the API says so.

use crate::stage::{Stage, records};
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::ztunnel::identity;
use std::time::Duration;

/// Connections that are open meanwhile.
const FLOWS: usize = 20;
/// Between exchanges of one.
const PAUSE: Duration = Duration::from_millis(20);

fn label(backend: &'static str) {
    let stage = Stage::with_api(&format!("label-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let (a, b) =
        (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let mut seen = 0;
    // Open before anything is captured, and after.
    let flows: Vec<Flow> = (0..FLOWS)
        .map(|n| Flow::start(a.pod.sandbox.netns(), b.app(n % 2 == 1), PAUSE).unwrap())
        .collect();
    come_on(&flows).unwrap();
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");
    assert!(records(&ztunnel, &mut seen).is_empty(), "not in the mesh yet");

    stage.label(Some("ambient"));
    for pod in [&a, &b] {
        stage.eventually("a pod that runs is enrolled", |stage| {
            stage.redirection(pod).as_deref() == Some("enabled")
        });
    }
    for v6 in [false, true] {
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
        let found = records(&ztunnel, &mut seen);
        let peers: Vec<_> = found.iter().filter_map(|r| r.peer_identity.as_deref()).collect();
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(peers.contains(&identity("shop", "a").as_str()), "{found:#?}");
    }
    come_on(&flows).unwrap();
    assert_eq!(stage.metric("ztunnel_connected"), Some(1.0));
    for reason in ["new", "not-accepted", "not-programmed"] {
        let sample = format!("sluice_unverified_pods{{reason=\"{reason}\"}}");
        stage.eventually(reason, |stage| stage.metric(&sample) == Some(0.0));
    }

    stage.label(None);
    for pod in [&a, &b] {
        stage
            .eventually("a pod that runs is un-enrolled", |stage| stage.redirection(pod).is_none());
        ztunnel.wait("the end", |s| !s.workloads.contains_key(pod.uid())).unwrap();
    }
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");
    assert!(records(&ztunnel, &mut seen).is_empty(), "out of the mesh again");
    come_on(&flows).unwrap();
    assert_eq!(finish(flows), Vec::<String>::new());
}

#[test]
fn a_namespace_is_labelled_and_unlabelled_by_nftables() {
    label("nftables");
}

#[test]
fn a_namespace_is_labelled_and_unlabelled_by_iptables() {
    label("iptables");
}

#[test]
fn an_add_is_annotated_and_a_pod_of_an_excluded_label_is_not() {
    let stage = Stage::with_api("annotated", "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let a = stage.start(stage.manifest("a")).unwrap();
    stage.eventually("enabled", |stage| stage.redirection(&a).as_deref() == Some("enabled"));
    let mut none = stage.manifest("none");
    none["metadata"]["labels"] = serde_json::json!({crate::stage::MODE: "none"});
    let none = stage.start(none).unwrap();
    assert_eq!(stage.redirection(&none), None);
    let status = ztunnel.status().unwrap();
    assert_eq!(status.workloads.keys().collect::<Vec<_>>(), [a.uid()]);
}
