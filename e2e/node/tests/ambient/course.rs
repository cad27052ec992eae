//! What becomes of a captured pod by what the cluster says of it: addresses, its end,
//! annotations of others, a namespace that is excluded.

use crate::stage::{Stage, Started, records};
use e2e_node::api::{Fault, Rule};
use serde_json::{Value, json};
use std::time::Duration;

/// Time from a write to its answer.
const LATE: Duration = Duration::from_secs(2);

const REDIRECTION: &str = "ambient.istio.io/redirection";

fn enabled(stage: &Stage, pod: &Started) -> bool {
    stage.redirection(pod).as_deref() == Some("enabled")
}

/// The exemption of kubelet's probes, as the host has it; empty while it changes.
fn exempted(stage: &Stage) -> String {
    let argv = ["nft", "list", "table", "inet", "sluice-probe"];
    stage.cluster.node.host.load(&argv, "").unwrap_or_default()
}

#[test]
fn addresses_that_change_and_a_pod_that_ends() {
    let stage = Stage::with_api("course", "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    stage.await_host_rules(1);
    let pod = stage.start(stage.probed("a")).unwrap();
    stage.eventually("enabled", |stage| enabled(stage, &pod));
    let (former, kept) = (pod.ip(false).to_string(), pod.ip(true).to_string());
    let has = |all: &str, ip: &str| all.contains(&format!("{ip} . "));
    assert!(has(&exempted(&stage), &former) && has(&exempted(&stage), &kept));

    let mut now = stage.seen(&pod);
    now["status"]["podIPs"] = json!([{"ip": "192.0.2.77"}, {"ip": kept}]);
    stage.publish(&now);
    stage.eventually("the probes follow", |stage| {
        let all = exempted(stage);
        has(&all, "192.0.2.77") && has(&all, &kept) && !has(&all, &former)
    });

    let mut now = stage.seen(&pod);
    now["status"]["phase"] = json!("Succeeded");
    stage.publish(&now);
    stage.eventually("it is not said any more", |stage| stage.redirection(&pod).is_none());
    ztunnel.wait("its proxy's end", |s| !s.workloads.contains_key(pod.uid())).unwrap();
    stage.eventually("nothing is exempted", |stage| {
        let all = exempted(stage);
        all.contains("sluice-probe-v4") && !has(&all, "192.0.2.77") && !has(&all, &kept)
    });
}

#[test]
fn what_others_write_is_put_right() {
    let stage = Stage::with_api("course-others", "nftables");
    let _ztunnel = stage.ztunnel("zt");
    let pod = stage.start(stage.manifest("a")).unwrap();
    let server = stage.server.as_ref().unwrap();
    let write = |value: Value| {
        let mut now = stage.seen(&pod);
        now["metadata"]["annotations"] = json!({REDIRECTION: value});
        stage.publish(&now);
    };
    for value in ["enabled", "pending", "rubbish"] {
        // The next comes about while the agent waits for the answer to its own write.
        server.fail(Rule::from(Fault::Late(LATE)).on("patch").times(1));
        write(json!(value));
        stage.eventually("it is taken back", |stage| stage.redirection(&pod).is_none());
        write(json!(value));
        stage.eventually("it is taken back again", |stage| stage.redirection(&pod).is_none());
    }
    stage.label(Some("ambient"));
    stage.eventually("enabled", |stage| enabled(stage, &pod));
    for value in [json!("pending"), json!("rubbish"), Value::Null] {
        server.fail(Rule::from(Fault::Late(LATE)).on("patch").times(1));
        for _ in 0..2 {
            write(value.clone());
            stage.eventually("enabled again", |stage| enabled(stage, &pod));
        }
    }
}

/// Of the pods a new agent has their records and nothing else.
fn api_server_away(backend: &'static str) {
    let mut stage = Stage::with_api(&format!("course-away-{backend}"), backend);
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let pods = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    let _servers = [stage.serve(&pods[0]), stage.serve(&pods[1])];
    let before = ztunnel.status().unwrap();
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.server.as_ref().unwrap().down().unwrap();
    stage.start_agent();
    let unverified = "sluice_unverified_pods{reason=\"new\"}";
    stage.eventually("they are counted", |stage| stage.metric(unverified) == Some(2.0));

    let flush: &[&str] = match backend {
        "nftables" => &["nft", "flush", "table", "inet", "istio-ambient-nat"],
        _ => &["iptables", "-t", "nat", "-F"],
    };
    pods[0].pod.sandbox.load(flush, "").unwrap();
    let repaired = "sluice_drift_repaired_total{reason=\"rules\"}";
    stage.eventually("its rules are put right", |stage| stage.metric(repaired) == Some(1.0));
    let mut seen = ztunnel.status().unwrap().records.len();
    let answer = stage.answer(&pods[0].pod.sandbox, pods[1].app(false));
    assert_eq!(answer.peer, pods[0].ip(false));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2, "captured");
    assert!(!ztunnel.status().unwrap().snapshot, "nobody knows which pods there are");

    stage.server.as_ref().unwrap().up().unwrap();
    stage.eventually("all is well", |stage| stage.metric(unverified) == Some(0.0));
    let after = ztunnel.wait("the snapshot", |s| s.snapshot).unwrap();
    assert_eq!((after.started, after.stopped), (before.started, before.stopped));
}

#[test]
fn rules_are_kept_while_the_api_server_is_away_with_nftables() {
    api_server_away("nftables");
}

#[test]
fn rules_are_kept_while_the_api_server_is_away_with_iptables() {
    api_server_away("iptables");
}

#[test]
fn a_namespace_that_is_excluded_is_left() {
    let mut stage = Stage::with_manifests("course-excluded", "nftables");
    let [one, other] = ["one", "other"].map(|name| stage.ztunnel(name));
    let pod = stage.start(stage.manifest("a")).unwrap();
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.audit = &["--audit-seconds=1", "--exclude-namespaces=shop"];
    stage.start_agent();
    let list = |pod: &Started| pod.pod.sandbox.load(&["nft", "list", "ruleset"], "");
    stage.eventually("its rules are out", |_| list(&pod).is_ok_and(|list| !list.contains("istio")));
    for ztunnel in [&one, &other] {
        ztunnel.wait("its proxy's end", |s| s.snapshot && s.workloads.is_empty()).unwrap();
    }
    // Nor is it waited for.
    drop((one, other));
    stage.start(stage.manifest("b")).unwrap();
}
