//! What cannot be put right, or looked at, is said in the cluster.

use crate::pod::{Process, attached, count, manifest, records, report, uid};
use crate::stage::Stage;
use e2e_node::cluster::NAMESPACE;
use serde_json::{Value, json};

const STUCK: &str = "sluice_stuck_pods";

/// Types and reasons of the Events about a pod, and what they say.
fn events(stage: &Stage, uid: &str) -> Vec<(String, String, String)> {
    let all = stage.server.as_ref().unwrap().objects("events", NAMESPACE);
    let own = all.iter().filter(|event| event["involvedObject"]["uid"] == uid);
    let word = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    own.map(|event| (word(event, "type"), word(event, "reason"), word(event, "message"))).collect()
}

/// A pod is stuck, and an Event says why; then it is not any more.
#[track_caller]
fn is_said(stage: &Stage, uid: &str, why: &str) {
    stage.eventually("it is said that it is stuck", |stage| {
        let said = events(stage, uid);
        said.iter().any(|(kind, reason, message)| {
            kind == "Warning" && reason == "CaptureRulesFailed" && message.contains(why)
        }) && count(stage, STUCK, "not-programmed") == 1.0
    });
}

#[track_caller]
fn is_taken_back(stage: &Stage, uid: &str) {
    stage.eventually("it is said that it is well", |stage| {
        let said = events(stage, uid);
        let is_said = said
            .iter()
            .any(|(kind, reason, _)| (kind.as_str(), reason.as_str()) == ("Normal", "Captured"));
        is_said && count(stage, STUCK, "not-programmed") == 0.0
    });
}

/// Somebody takes the rules away, and drops what would prove those that come back.
#[test]
fn rules_that_cannot_be_proved() {
    const DROP: &str = "flush ruleset\n\
        table inet other { chain first { type filter hook output priority -500; tcp flags syn drop; }; }\n";
    let stage = Stage::with_api("loud-rules", "nftables");
    let mut manifest = manifest("s");
    let uid = uid(&manifest).to_owned();
    let pod = attached(&stage, &manifest);
    let _process = Process::start(&pod, &uid);
    report(&stage, &mut manifest, &pod.addresses);
    pod.sandbox.load(&["nft", "-f", "-"], DROP).unwrap();
    is_said(&stage, &uid, "not proved");
    // That they are in is no proof: it stays so, and is counted as no repair.
    crate::pod::await_looks(&stage, 5);
    assert_eq!(count(&stage, STUCK, "not-programmed"), 1.0, "{}", stage.cluster.agent_log());
    assert_eq!(count(&stage, "sluice_unverified_pods", "drifted"), 1.0);
    assert_eq!(count(&stage, "sluice_drift_repaired_total", "rules"), 0.0);
    pod.sandbox.load(&["nft", "delete", "table", "inet", "other"], "").unwrap();
    is_taken_back(&stage, &uid);
    assert_eq!(count(&stage, "sluice_drift_repaired_total", "rules"), 1.0);
    assert_eq!(count(&stage, "sluice_unverified_pods", "drifted"), 0.0);
}

/// The record has something that no plan can be made of.
#[test]
fn a_pod_that_cannot_be_looked_at() {
    let stage = Stage::with_api("loud-blind", "nftables");
    let mut manifest = manifest("s");
    let uid = uid(&manifest).to_owned();
    let pod = attached(&stage, &manifest);
    let _process = Process::start(&pod, &uid);
    report(&stage, &mut manifest, &pod.addresses);
    let (path, record) = records(&stage, &uid).pop().unwrap();
    let mut wrong = record.clone();
    let annotation = "traffic.sidecar.istio.io/excludeInboundPorts";
    wrong["facts"]["annotations"][annotation] = json!("none of them");
    wrong["rules"] = json!("another");
    std::fs::write(&path, wrong.to_string()).unwrap();
    stage.eventually("it is counted", |stage| {
        count(stage, "sluice_unverified_pods", "unreadable") == 1.0
    });
    is_said(&stage, &uid, annotation);
    std::fs::write(&path, record.to_string()).unwrap();
    is_taken_back(&stage, &uid);
    assert_eq!(count(&stage, "sluice_unverified_pods", "unreadable"), 0.0);
}
