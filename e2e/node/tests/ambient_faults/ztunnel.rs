//! ztunnel is silent, slow, refuses, or ends under load. No pod is said to be in the mesh
//! that is not, and none waits for another.

use crate::stage::{Stage, Started, records};
use e2e_node::ztunnel::{Config, Faults, Ztunnel};
use std::time::Duration;

const ENABLED: Option<&str> = Some("enabled");

/// Longer than ztunnel has for an answer.
const WHILE: Duration = Duration::from_secs(5);

fn pods(stage: &Stage, count: usize) -> Vec<Started> {
    let pod = |n| stage.start(stage.manifest(&format!("p{n}"))).unwrap();
    (0..count).map(pod).collect()
}

fn all_are_up(stage: &Stage, ztunnel: &Ztunnel, pods: &[Started]) {
    let up = |s: &e2e_node::ztunnel::Status| {
        s.snapshot && pods.iter().all(|pod| s.workloads.get(pod.uid()).is_some_and(|v| v.up))
    };
    ztunnel
        .wait("all pods", up)
        .unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    for pod in pods {
        stage.eventually("it is said", |stage| stage.redirection(pod).as_deref() == ENABLED);
    }
}

/// Pods that run are to be enrolled while ztunnel is broken.
fn nothing_is_claimed(name: &str, faults: Faults) {
    let stage = Stage::with_api(name, "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods = pods(&stage, 3);
    ztunnel.fail(faults).unwrap();
    stage.label(Some("ambient"));
    let end = std::time::Instant::now() + WHILE;
    while std::time::Instant::now() < end {
        let said: Vec<_> =
            pods.iter().filter(|p| stage.redirection(p).as_deref() == ENABLED).collect();
        // It may have had one in its hands already.
        assert!(said.len() <= 1, "{}", stage.cluster.agent_log());
        let status = ztunnel.status().unwrap();
        let up = |pod: &&Started| status.workloads.get(pod.uid()).is_some_and(|view| view.up);
        assert!(said.iter().all(up), "{status:#?}; {}", stage.cluster.agent_log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let unverified = ["not-accepted", "not-programmed", "new"]
        .iter()
        .filter_map(|why| stage.metric(&format!("sluice_unverified_pods{{reason=\"{why}\"}}")));
    assert!(unverified.sum::<f64>() >= 2.0, "they are counted");
    ztunnel.fail(Faults::default()).unwrap();
    all_are_up(&stage, &ztunnel, &pods);
    let _servers: Vec<_> = pods.iter().map(|pod| stage.serve(pod)).collect();
    let mut seen = ztunnel.status().unwrap().records.len();
    assert_eq!(stage.answer(&pods[0].pod.sandbox, pods[1].app(true)).peer, pods[0].ip(true));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2);
}

#[test]
fn silent() {
    nothing_is_claimed("silent", Faults { silent: true, ..Faults::default() });
}

#[test]
fn deaf() {
    nothing_is_claimed("deaf", Faults { deaf: true, ..Faults::default() });
}

#[test]
fn refusing_all_at_length() {
    let refuse = [("*".to_owned(), 1_000_000)].into();
    let faults = Faults { refuse, long_errors: true, ..Faults::default() };
    nothing_is_claimed("refusing", faults);
}

#[test]
fn refusing_one_of_many() {
    let stage = Stage::with_api("refusing-one", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods = pods(&stage, 6);
    let refuse = [(pods[2].uid().to_owned(), 1_000_000)].into();
    ztunnel.fail(Faults { refuse, long_errors: true, ..Faults::default() }).unwrap();
    stage.label(Some("ambient"));
    for (n, pod) in pods.iter().enumerate().filter(|(n, _)| *n != 2) {
        let what = format!("p{n} does not wait for p2");
        stage.eventually(&what, |stage| stage.redirection(pod).as_deref() == ENABLED);
    }
    let refused = "sluice_unverified_pods{reason=\"not-accepted\"}";
    stage.eventually("it is counted", |stage| stage.metric(refused) == Some(1.0));
    assert_ne!(stage.redirection(&pods[2]).as_deref(), ENABLED);
    ztunnel.fail(Faults::default()).unwrap();
    all_are_up(&stage, &ztunnel, &pods);
}

#[test]
fn slow_with_everything() {
    let stage = Stage::with_api("slow", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods = pods(&stage, 5);
    // Within what it has for one answer, and all together far beyond it.
    let delay_ms = [("*".to_owned(), 500)].into();
    ztunnel.fail(Faults { delay_ms, ..Faults::default() }).unwrap();
    stage.label(Some("ambient"));
    all_are_up(&stage, &ztunnel, &pods);
    assert_eq!(ztunnel.status().unwrap().stopped, 0, "none is begun anew");
}

#[test]
fn restarted_while_pods_are_enrolled() {
    let stage = Stage::with_api("restarted", "nftables");
    let mut ztunnel = stage.ztunnel("zt-0");
    let pods = pods(&stage, 12);
    stage.label(Some("ambient"));
    for n in 1..4 {
        let more = ztunnel.wait("some", |s| s.active() >= 2).unwrap().active();
        // As the kernel's out-of-memory killer would.
        drop(ztunnel);
        println!("ztunnel {n} after {more} pods");
        ztunnel = stage.ztunnel(&format!("zt-{n}"));
    }
    all_are_up(&stage, &ztunnel, &pods);
    let _servers: Vec<_> = pods.iter().map(|pod| stage.serve(pod)).collect();
    let mut seen = ztunnel.status().unwrap().records.len();
    for (pod, next) in pods.iter().zip(&pods[1..]) {
        assert_eq!(stage.answer(&pod.pod.sandbox, next.app(false)).peer, pod.ip(false));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2);
    }
}

#[test]
fn closing_and_ending_in_the_middle() {
    let stage = Stage::with_api("closing", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods = pods(&stage, 6);
    ztunnel.fail(Faults { close_at: Some(4), ..Faults::default() }).unwrap();
    stage.label(Some("ambient"));
    all_are_up(&stage, &ztunnel, &pods);
    assert!(ztunnel.status().unwrap().connections >= 2);
    assert_eq!(ztunnel.status().unwrap().stopped, 0, "none is begun anew");
}

/// A rolling upgrade to a ztunnel that hangs: pods start by the old one, which is still
/// there, as soon as the new one has shown what it is.
#[test]
fn a_new_one_hangs_beside_a_good_one() {
    let stage = Stage::with_manifests("hanging", "nftables");
    let good = stage.ztunnel("good");
    let a = stage.start(stage.manifest("a")).unwrap();
    let scratch = stage.cluster.node.host.scratch();
    let mut config = Config::new(scratch, "bad", stage.cluster.directories.ztunnel());
    config.faults.silent = true;
    let _bad = Ztunnel::start(&config, Some(&stage.cluster.node.host)).unwrap();
    stage.eventually("both are connected", |stage| stage.metric("ztunnel_connected") == Some(2.0));
    let b = stage.manifest("b");
    let mut tries = 0;
    let b = loop {
        tries += 1;
        match stage.start(b.clone()) {
            Ok(pod) => break pod,
            Err(why) => assert!(tries < 8, "{why:#}"),
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    println!("started with try {tries}");
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let mut seen = good.status().unwrap().records.len();
    assert_eq!(stage.answer(&b.pod.sandbox, a.app(false)).peer, b.ip(false));
    assert_eq!(records(&good, &mut seen).len(), 2);
}
