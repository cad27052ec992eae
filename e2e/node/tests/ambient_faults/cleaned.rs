//! The mesh is removed from a node: what exempts kubelet's probes on the host goes too,
//! with the agent that keeps it or by `sluice cleanup` where none is alive, in either
//! dialect. Pods that run stay captured.

use crate::kubelet::Kubelet;
use crate::stage::{PORT, Stage, Started};
use e2e_node::lab::Namespace;
use std::time::{Duration, Instant};

/// A line of an agent that has found kubelet.
const KNOWN: &str = "kubelet's probes are known by this";

/// Everything of ours that may be on the host.
fn ours(host: &Namespace) -> String {
    let lists: [&[&str]; 4] = [
        &["nft", "list", "ruleset"],
        &["iptables-legacy-save"],
        &["ip6tables-legacy-save"],
        &["ipset", "list", "-n"],
    ];
    let all: Vec<String> = lists.iter().map(|argv| host.load(argv, "").unwrap()).collect();
    let all = all.join("\n");
    all.lines().filter(|line| line.to_lowercase().contains("sluice")).collect()
}

/// `sluice cleanup`, as somebody on the node calls it.
fn clean_up(stage: &Stage) -> String {
    let scratch = stage.cluster.node.host.scratch().path();
    let directories = ["conf", "bin"].map(|name| scratch.join(format!("cleanup-{name}")));
    for directory in &directories {
        std::fs::create_dir_all(directory).unwrap();
    }
    let [conf, bin] = directories;
    let program = stage.cluster.node.host.program(&stage.cluster.programs.sluice).args([
        "cleanup".to_owned(),
        format!("--run-dir={}", stage.cluster.directories.run.display()),
        format!("--mounted-cni-net-dir={}", conf.display()),
        format!("--mounted-cni-bin-dir={}", bin.display()),
    ]);
    program.check().unwrap()
}

/// Waits until kubelet's probes are exempt.
fn await_exemption(kubelet: &mut Kubelet, pod: &Started) {
    let end = Instant::now() + Duration::from_secs(60);
    while !kubelet.passes(pod.app(false)) {
        assert!(Instant::now() < end, "kubelet's probes are captured");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The next agent, once it keeps the host's rules.
fn start_again(stage: &mut Stage) {
    // Of the agents before.
    let log = stage.cluster.directories.run.with_extension("log");
    let told = std::fs::read_to_string(log).unwrap().matches(KNOWN).count();
    stage.start_agent();
    stage.await_host_rules(told as u64 + 1);
}

fn cleaned(name: &str, backend: &'static str) {
    let mut stage = Stage::with_api(name, backend);
    stage.label(Some("ambient"));
    let _ztunnel = stage.ztunnel("zt");
    let mut kubelet = Kubelet::start(&stage);
    let pod = stage.start(stage.probed("a")).unwrap();
    let _server = pod.pod.serve_app(&stage.cluster.programs, &[PORT]).unwrap();
    await_exemption(&mut kubelet, &pod);

    // An agent that ends in an upgrade leaves all.
    stage.cluster.agent.take().unwrap().stop().unwrap();
    assert_ne!(ours(&stage.cluster.node.host), "");
    assert!(kubelet.passes(pod.app(false)));

    // One that is alive keeps its rules for as long as it lives.
    start_again(&mut stage);
    clean_up(&stage);
    assert_ne!(ours(&stage.cluster.node.host), "");
    stage.cluster.agent.take().unwrap().stop().unwrap();
    assert_eq!(ours(&stage.cluster.node.host), "");
    let rules =
        |argv: &[&str]| pod.pod.sandbox.load(argv, "").unwrap().to_lowercase().contains("istio");
    let is_captured = rules(&["nft", "list", "ruleset"]) || rules(&["iptables-legacy-save"]);
    assert!(is_captured, "{name}: the pod was not un-enrolled");

    // What an agent left that was killed.
    start_again(&mut stage);
    await_exemption(&mut kubelet, &pod);
    stage.cluster.agent.take().unwrap().kill().unwrap();
    assert_ne!(ours(&stage.cluster.node.host), "");
    clean_up(&stage);
    assert_eq!(ours(&stage.cluster.node.host), "");
    clean_up(&stage);
}

#[test]
fn the_hosts_nftables_rules_go_with_the_mesh() {
    cleaned("cleaned-nft", "nftables");
}

#[test]
fn the_hosts_iptables_rules_go_with_the_mesh() {
    cleaned("cleaned-iptables", "iptables");
}
