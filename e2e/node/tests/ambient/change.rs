//! What is changed in a captured pod's namespace is put right because the kernel says
//! so: the period of these agents is ten minutes, but where it is said.

use crate::stage::{Stage, Started};
use e2e_node::agent::sidecar_pod;
use e2e_node::cluster::NAMESPACE;
use e2e_node::ztunnel::Ztunnel;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Nothing is found by it.
const PERIOD: &[&str] = &["--audit-seconds=600"];

/// Which mode a pod is captured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sidecar,
    Ambient,
}

fn manifest(stage: &Stage, name: &str, mode: Mode) -> Value {
    let plain = stage.manifest(name);
    if mode == Mode::Ambient {
        return plain;
    }
    // With rules and routes of routing, too.
    let annotations = json!({"sidecar.istio.io/interceptionMode": "TPROXY"});
    let mut manifest = sidecar_pod(NAMESPACE, name, &annotations, &[]);
    manifest["metadata"]["uid"] = plain["metadata"]["uid"].clone();
    manifest
}

/// A node, and pods that were looked at after their capture: from then on all is heard.
fn stage(
    name: &str,
    backend: &'static str,
    mode: Mode,
    pods: &[&str],
) -> (Stage, Vec<Started>, Ztunnel) {
    let stage = Stage::with_audit(name, backend, PERIOD);
    let ztunnel = stage.ztunnel("zt");
    let start = |name: &&str| stage.start(manifest(&stage, name, mode)).unwrap();
    let started: Vec<Started> = pods.iter().map(start).collect();
    stage.eventually("each pod is looked at", |stage| looks(stage) >= pods.len() as f64);
    settled(&stage);
    (stage, started, ztunnel)
}

/// How often pods were looked at because something was heard of them.
fn looks(stage: &Stage) -> f64 {
    stage.metric("sluice_audit_looks_total{reason=\"heard\"}").unwrap_or_default()
}

/// How often because it was time.
fn periodic(stage: &Stage) -> f64 {
    stage.metric("sluice_audit_looks_total{reason=\"period\"}").unwrap_or_default()
}

fn repaired(stage: &Stage) -> f64 {
    stage.metric("sluice_drift_repaired_total{reason=\"rules\"}").unwrap_or_default()
}

/// Waits until no look follows another any more, and says how many there were.
#[track_caller]
fn settled(stage: &Stage) -> f64 {
    let end = Instant::now() + Duration::from_secs(120);
    let mut seen = (looks(stage), Instant::now());
    while seen.1.elapsed() < Duration::from_secs(3) {
        assert!(Instant::now() < end, "looks never end: {}", stage.cluster.agent_log());
        std::thread::sleep(Duration::from_millis(100));
        let now = looks(stage);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
    seen.0
}

fn is_whole(stage: &Stage, pod: &Started) -> bool {
    stage.cluster.runtime().check(&stage.cluster.list, &pod.pod.attachment).is_ok()
}

/// Does this to the pod, again and again, and waits each time until it is put right.
/// Each repair is one look that finds it and one that sees that it holds.
fn comes_back(backend: &'static str, mode: Mode, changes: &[&[&str]]) {
    let name = format!("ch-{}-{}", &backend[..3], if mode == Mode::Sidecar { "s" } else { "a" });
    let (stage, pods, _ztunnel) = stage(&name, backend, mode, &["a"]);
    let pod = &pods[0];
    let before = looks(&stage);
    assert!(before <= 2.0, "{before} looks at one new pod; {}", stage.cluster.agent_log());
    let mut count = 0.0;
    for change in changes {
        pod.pod.sandbox.load(change, "").unwrap();
        count += 1.0;
        stage.eventually(&format!("{change:?} is found"), |stage| repaired(stage) == count);
        stage.eventually(&format!("{change:?} is put right"), |stage| is_whole(stage, pod));
        // So that the next change is not one with what the repair did.
        settled(&stage);
    }
    let after = settled(&stage) - before;
    assert!(after <= 3.0 * count, "{after} looks for {count} changes");
    assert_eq!(repaired(&stage), count, "nothing is put right that was not changed");
    let exposed = stage.metric("sluice_bypass_seconds_total{reason=\"drifted\"}").unwrap();
    assert!(exposed > 0.0, "counted from the notification");
    assert_eq!(periodic(&stage), 0.0);
}

const FLUSH_NFT: &[&str] = &["nft", "flush", "ruleset"];
const FLUSH_IPT: &[&str] = &["iptables-nft", "-t", "nat", "-F"];
const FLUSH_IPT6: &[&str] = &["ip6tables-nft", "-t", "mangle", "-F"];

#[test]
fn a_sidecar_pod_with_nftables() {
    let rule: &[&str] = &["ip", "rule", "del", "fwmark", "1337", "lookup", "133"];
    let route: &[&str] = &["ip", "route", "flush", "table", "133"];
    let lo: &[&str] = &["ip", "link", "set", "lo", "down"];
    comes_back("nftables", Mode::Sidecar, &[FLUSH_NFT, rule, route, lo]);
}

#[test]
fn a_sidecar_pod_with_iptables() {
    let mangle: &[&str] = &["iptables-nft", "-t", "mangle", "-F"];
    let rule: &[&str] = &["ip", "rule", "del", "fwmark", "1337", "lookup", "133"];
    comes_back("iptables", Mode::Sidecar, &[FLUSH_IPT, mangle, rule]);
}

#[test]
fn an_ambient_pod_with_nftables() {
    let rule: &[&str] = &["ip", "rule", "del", "priority", "32764"];
    let route: &[&str] = &["ip", "-6", "route", "flush", "table", "100"];
    comes_back("nftables", Mode::Ambient, &[FLUSH_NFT, rule, route]);
}

#[test]
fn an_ambient_pod_with_iptables() {
    let rule: &[&str] = &["ip", "-6", "rule", "del", "priority", "32764"];
    comes_back("iptables", Mode::Ambient, &[FLUSH_IPT, FLUSH_IPT6, rule]);
}

/// What we write ourselves is not looked at at once. What somebody else changes right
/// behind that is found all the same, by the next look and not by the period: behind an
/// ADD, of which nothing is heard yet, and behind a repair, which is heard of like any
/// other change.
fn right_behind_ours(mode: Mode) {
    let name = format!("behind-{}", if mode == Mode::Sidecar { "s" } else { "a" });
    let stage = Stage::with_audit(&name, "nftables", PERIOD);
    let _ztunnel = stage.ztunnel("zt");
    let pods: Vec<Started> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let pod = stage.start(manifest(&stage, name, mode)).unwrap();
            pod.pod.sandbox.load(FLUSH_NFT, "").unwrap();
            pod
        })
        .collect();
    let mut longest = Duration::ZERO;
    for round in 1..=3 {
        for pod in &pods {
            let begun = Instant::now();
            stage.eventually("it is put right", |stage| is_whole(stage, pod));
            longest = longest.max(begun.elapsed());
            if round < 3 {
                // Its proof may be under way.
                pod.pod.sandbox.load(FLUSH_NFT, "").unwrap();
            }
        }
    }
    settled(&stage);
    assert!(pods.iter().all(|pod| is_whole(&stage, pod)), "{}", stage.cluster.agent_log());
    assert!(repaired(&stage) >= 3.0, "each pod at least once");
    assert_eq!(periodic(&stage), 0.0, "nothing was found by the period");
    println!("{name}: put right within {longest:?} behind a write of ours");
}

#[test]
fn a_change_right_behind_ours_in_a_sidecar_pod() {
    right_behind_ours(Mode::Sidecar);
}

#[test]
fn a_change_right_behind_ours_in_an_ambient_pod() {
    right_behind_ours(Mode::Ambient);
}

/// Somebody changes one pod's rules without an end: another pod's are put right all the
/// same, and neither is looked at more often than once a second.
fn flapping(backend: &'static str, mode: Mode) {
    let name = format!("flap-{}", if mode == Mode::Sidecar { "s" } else { "a" });
    let (stage, pods, _ztunnel) = stage(&name, backend, mode, &["flaps", "other"]);
    let [flaps, other] = &pods[..] else { panic!("two pods") };
    let (before, begun) = (looks(&stage), Instant::now());
    let (stop, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let (looked, took) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(300) {
                let script = "add table inet flap\ndelete table inet flap\n";
                flaps.pod.sandbox.load(&["nft", "-f", "-"], script).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut fixed = 0.0;
        let enough = |fixed: f64| fixed >= 3.0 && count.load(Ordering::Relaxed) >= 300;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while !enough(fixed) {
                other.pod.sandbox.load(FLUSH_NFT, "").unwrap();
                fixed += 1.0;
                stage.eventually("the other is found changed", |stage| repaired(stage) == fixed);
                stage.eventually("the other is put right", |stage| is_whole(stage, other));
            }
            (looks(&stage) - before, begun.elapsed())
        }));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let (count, seconds) = (count.into_inner(), took.as_secs_f64());
    println!("{name}: {looked} looks in {seconds:.1} s, {count} changes of one pod");
    assert!(looked <= 2.0 * (seconds + 2.0), "{looked} looks at two pods in {seconds} s");
    assert!(looked >= 3.0, "{looked}");
}

#[test]
fn a_pod_that_flaps_starves_no_sidecar_pod() {
    flapping("nftables", Mode::Sidecar);
}

#[test]
fn a_pod_that_flaps_starves_no_ambient_pod() {
    flapping("nftables", Mode::Ambient);
}

/// Interfaces of the node that lead to pods.
fn links(stage: &Stage) -> usize {
    let names = sys::netns::within(stage.cluster.node.host.netns(), || {
        sys::routing::interface_names().unwrap()
    });
    names.unwrap().iter().filter(|(_, name)| name.starts_with("veth")).count()
}

/// A sandbox is taken down and no DEL says so: its namespace dies, and its interface on
/// the node with it. Nothing of what looks after it holds it.
fn dies(name: &str, mode: Mode, audit: &'static [&'static str]) {
    let stage = Stage::with_audit(name, "nftables", audit);
    let ztunnel = stage.ztunnel("zt");
    let start = |name: &str| stage.start(manifest(&stage, name, mode)).unwrap();
    let (a, b) = (start("a"), start("b"));
    // Looked at, and so watched; the period may come first.
    let all = |stage: &Stage| looks(stage) + periodic(stage);
    let enough = if audit == PERIOD { 2.0 } else { all(&stage) + 4.0 };
    stage.eventually("both are looked at", |stage| all(stage) >= enough);
    settled(&stage);
    assert_eq!(links(&stage), 2);
    let uid = a.uid().to_owned();
    drop(a);
    stage.eventually("its interface is gone", |stage| links(stage) == 1);
    if mode == Mode::Ambient {
        let left = ztunnel.wait("ztunnel has let go", |s| !s.workloads.contains_key(&uid));
        left.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    }
    assert!(is_whole(&stage, &b));
    b.pod.sandbox.load(FLUSH_NFT, "").unwrap();
    stage.eventually("the other is looked after", |stage| repaired(stage) == 1.0);
}

#[test]
fn a_sidecar_pods_sandbox_dies_without_a_del() {
    dies("dies-s", Mode::Sidecar, PERIOD);
}

#[test]
fn an_ambient_pods_sandbox_dies_without_a_del() {
    dies("dies-a", Mode::Ambient, &["--audit-seconds=1"]);
}
