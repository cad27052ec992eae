//! Pods that Istio's own agent enrolled, with its rules and no record of ours, are taken
//! over under traffic.

use crate::stage::{Stage, Started, records};
use e2e_node::conformance::Kind;
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::rules::{Form, Script, Tool, route_replies};
use serde_json::json;
use std::time::Duration;

/// Pods; the conversion of one under many connections is a test of `sys`.
const PODS: usize = 8;
/// Connections from each pod to the next.
const FLOWS: usize = 6;

/// What Istio's agent writes for a pod without options.
pub(crate) fn istios(stage: &Stage, tool: Tool, dns: bool) -> Script {
    let case = json!({"name": "takeover", "config": {
        "redirect_dns": dns, "enable_ipv6": true, "host_probe_snat_v4": "169.254.7.127",
        "host_probe_snat_v6": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "pod": {},
    }});
    let file = stage.cluster.node.host.scratch().file("case.json", &case.to_string()).unwrap();
    let form = (Form::Compat, tool);
    Script::printed(Kind::Ambient, &file, None, form, &stage.cluster.programs).unwrap()
}

/// Gives a running pod the rules that Istio's agent would have written, in place of ours.
pub(crate) fn leave_to_istio(pod: &Started, rules: &Script, tool: Tool) {
    let sandbox = &pod.pod.sandbox;
    sandbox.load(&["nft", "flush", "ruleset"], "").unwrap();
    for family in ["-4", "-6"] {
        sandbox.load(&["ip", family, "rule", "del", "priority", "32764"], "").unwrap();
        sandbox.load(&["ip", family, "route", "flush", "table", "100"], "").unwrap();
    }
    rules.load(sandbox, tool).unwrap();
    route_replies(sandbox, true).unwrap();
}

/// Nothing is written down any more of what our agent did.
pub(crate) fn forget_records(stage: &Stage) {
    let kept = stage.cluster.directories.run.join("sandboxes");
    assert!(kept.is_dir(), "{}", kept.display());
    std::fs::remove_dir_all(&kept).unwrap();
}

/// Rules of the backend's dialect alone, and in our form: only a connection's first
/// packet is redirected.
fn are_ours(stage: &Stage, pod: &Started) -> bool {
    // A tool may fail while what it lists is replaced; then they are not yet.
    let load = |argv: &[&str]| pod.pod.sandbox.load(argv, "").unwrap_or_else(|_| "ISTIO_".into());
    let (nft, legacy) = (load(&["nft", "list", "ruleset"]), load(&["iptables-legacy-save"]));
    let (native, chains) = (nft.contains("istio-ambient-nat"), nft.contains("ISTIO_"));
    let syn = nft.contains("syn") || load(&["iptables-nft-save"]).contains("SYN");
    let expected = if stage.backend == "nftables" { (true, false) } else { (false, true) };
    (native, chains) == expected && syn && !legacy.contains("ISTIO_")
}

fn taken_over(name: &str, backend: &'static str, tool: Tool, dns: bool) {
    let mut stage = Stage::with_api(name, backend);
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let start = |n| stage.start(stage.probed(&format!("p{n}"))).unwrap();
    let pods: Vec<Started> = (0..PODS).map(start).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| stage.serve(pod)).collect();
    // As if Istio's agent had done it: its rules, and no record.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let rules = istios(&stage, tool, dns);
    pods.iter().for_each(|pod| leave_to_istio(pod, &rules, tool));
    forget_records(&stage);
    assert!(!pods.iter().any(|pod| are_ours(&stage, pod)));

    let mut flows = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let next = &pods[(n + 1) % PODS];
        for flow in 0..FLOWS {
            let pause = Duration::from_millis(if flow % 3 == 0 { 20 } else { 150 });
            let to = next.app(flow % 2 == 1);
            flows.push(Flow::start(pod.pod.sandbox.netns(), to, pause).unwrap());
        }
    }
    come_on(&flows).unwrap();
    let before = ztunnel.status().unwrap();
    assert_eq!(before.records.len(), 2 * flows.len(), "all run through ztunnel");

    stage.start_agent();
    for pod in &pods {
        stage.eventually("its rules are ours alone", |stage| are_ours(stage, pod));
    }
    let more = before.connections + 1;
    let after = ztunnel.wait("the snapshot", |s| s.connections >= more && s.snapshot).unwrap();
    assert_eq!((after.started, after.stopped), (before.started, before.stopped), "no proxy ends");
    come_on(&flows).unwrap();
    let total = flows.len();
    let broken = finish(flows);
    println!("{PODS} pods by {tool:?} to {backend}: {} of {total} connections broke", broken.len());
    assert_eq!(broken, Vec::<String>::new());
    let mut seen = ztunnel.status().unwrap().records.len();
    for (pod, next) in pods.iter().zip(&pods[1..]) {
        assert_eq!(stage.answer(&pod.pod.sandbox, next.app(true)).peer, pod.ip(true));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "still captured");
        stage.eventually("said", |s| s.redirection(pod).as_deref() == Some("enabled"));
    }
}

#[test]
fn from_iptables_nft() {
    taken_over("takeover-nft", "nftables", Tool::Iptables, true);
}

#[test]
fn from_iptables_legacy() {
    taken_over("takeover-legacy", "nftables", Tool::Legacy, true);
}

/// Of the same options as ours would be, and of the same backend: they are not left
/// where they are all the same, since they let kubelet's address pass to every port.
#[test]
fn from_rules_that_differ_in_form_only() {
    taken_over("takeover-form", "nftables", Tool::Nft, false);
}

#[test]
fn from_rules_that_differ_in_form_only_with_iptables() {
    taken_over("takeover-form-iptables", "iptables", Tool::Iptables, false);
}
