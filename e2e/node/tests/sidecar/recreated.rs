//! A pod's namespace goes and comes back under the same uid, and no ADD says so.

use crate::pod::{
    Process, anew, attached, await_looks, count, is_captured, is_quiet, is_recorded, manifest,
    records, report, uid, world,
};
use crate::stage::Stage;
use e2e_node::cluster::Pod;
use e2e_node::process::Output;
use serde_json::{Value, json};
use std::net::IpAddr;

const REPAIRED: &str = "sluice_drift_repaired_total";

fn repaired(stage: &Stage) -> f64 {
    count(stage, REPAIRED, "namespace")
}

/// Another address of the same network.
fn other(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 200])
        }
        IpAddr::V6(ip) => {
            let mut segments = ip.segments();
            segments[7] = 0x200;
            IpAddr::from(segments)
        }
    }
}

fn sluice(stage: &Stage, args: &[&str]) -> Output {
    let cluster = &stage.cluster;
    let program = cluster.node.host.program(&cluster.programs.sluice).args(args.iter().copied());
    program.arg("--run-dir").arg(&cluster.directories.run).run().unwrap()
}

/// The pod's row of `sluice pods`.
fn row(stage: &Stage, uid: &str) -> Value {
    let output = sluice(stage, &["pods", "--output", "json"]);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    let mut rows = answer["pods"].as_array().unwrap().iter().filter(|row| row["uid"] == uid);
    let row = rows.next().unwrap_or_else(|| panic!("{answer:#}")).clone();
    assert!(rows.next().is_none(), "{answer:#}");
    row
}

/// It is captured, and all who look at it say so.
#[track_caller]
fn is_well(stage: &Stage, uid: &str, pod: &Pod) {
    assert!(is_captured(stage, pod), "{}", stage.cluster.agent_log());
    assert!(is_recorded(stage, uid, pod), "{:#?}", records(stage, uid));
    stage.eventually("no pod is in doubt", is_quiet);
    let row = row(stage, uid);
    assert_eq!(row["standing"], "verified", "{row:#}");
    assert_eq!(row["netns"]["ino"], pod.sandbox.netns().id().ino, "{row:#}");
}

fn recreated(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("anew-{}", &backend[..3]), backend);
    let _world = world(&stage);
    let manifest = manifest("s");
    let uid = uid(&manifest);
    let first = attached(&stage, &manifest);
    let mut process = Process::start(&first, uid);
    let addresses = first.addresses.clone();
    let mut pod = first;
    assert!(is_captured(&stage, &pod));
    let moved: Vec<IpAddr> = addresses.iter().copied().map(other).collect();
    // What was found once may be made anew, too; and with other addresses.
    let mut times = 0.0;
    for addresses in [&addresses, &moved, &addresses] {
        process.end();
        let old = pod.attachment.clone();
        pod = anew(&stage, &manifest, pod, addresses);
        assert!(!is_captured(&stage, &pod), "nobody was asked");
        process = Process::start(&pod, uid);
        times += 1.0;
        stage.eventually("it is found and captured", |stage| repaired(stage) == times);
        is_well(&stage, uid, &pod);
        let exposed = count(&stage, "sluice_bypass_seconds_total", "namespace-gone");
        assert!(exposed > 0.0, "{exposed}");
        // The runtime takes the old one down at last.
        stage.cluster.runtime().delete(&stage.cluster.list, &old).unwrap();
        await_looks(&stage, 3);
        is_well(&stage, uid, &pod);
        assert_eq!(repaired(&stage), times, "{}", stage.cluster.agent_log());
    }
    // It is looked after where it is now.
    let flush: &[&str] = match backend {
        "nftables" => &["nft", "flush", "ruleset"],
        _ => &["iptables", "-t", "nat", "-F"],
    };
    pod.sandbox.load(flush, "").unwrap();
    stage.eventually("its rules are put right", |stage| count(stage, REPAIRED, "rules") == 1.0);
    is_well(&stage, uid, &pod);

    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent();
    await_looks(&stage, 3);
    is_well(&stage, uid, &pod);
    let all = repaired(&stage) + count(&stage, REPAIRED, "rules");
    assert_eq!(all, 0.0, "{}", stage.cluster.agent_log());
    // And forgotten with its sandbox.
    stage.cluster.runtime().delete(&stage.cluster.list, &pod.attachment).unwrap();
    assert!(records(&stage, uid).is_empty());
}

#[test]
fn found_by_the_audit_with_nftables() {
    recreated("nftables");
}

#[test]
fn found_by_the_audit_with_iptables() {
    recreated("iptables");
}

/// Until the audit comes, those who ask are told.
#[test]
fn what_is_said_of_it_meanwhile() {
    // The only look is at the start.
    let stage = Stage::with_audit("anew-told", "nftables", &["--audit-seconds=3600"]);
    let manifest = manifest("s");
    let uid = uid(&manifest);
    let pod = attached(&stage, &manifest);
    Process::start(&pod, uid).end();
    let addresses = pod.addresses.clone();
    let pod = anew(&stage, &manifest, pod, &addresses);
    stage.eventually("it is gone", |stage| row(stage, uid)["standing"] == "unverified");
    let _process = Process::start(&pod, uid);
    let now = format!("net:[{}] now, which was not captured", pod.sandbox.netns().id().ino);
    let row = row(&stage, uid);
    assert_eq!(row["standing"], "exposed", "{row:#}");
    assert!(row["reason"].as_str().unwrap().contains(&now), "{row:#}");
    let output = sluice(&stage, &["verify", "s", "--output", "json"]);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    assert!(!output.status.success() && answer["broken"] == "namespace", "{answer:#}");
    assert!(answer.to_string().contains(&format!("the pod runs in {now}")), "{answer:#}");
}

/// The agent is not there when it happens, and nothing of it knows the old namespace.
#[test]
fn while_the_agent_is_dead() {
    let mut stage = Stage::with_manifests("anew-dead", "nftables");
    let _world = world(&stage);
    let manifest = manifest("s");
    let uid = uid(&manifest);
    let pod = attached(&stage, &manifest);
    Process::start(&pod, uid).end();
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let addresses = pod.addresses.clone();
    let pod = anew(&stage, &manifest, pod, &addresses);
    let _process = Process::start(&pod, uid);
    stage.start_agent();
    stage.eventually("it is found and captured", |stage| repaired(stage) == 1.0);
    is_well(&stage, uid, &pod);
}

/// By the API's word of its address, where cgroups tell nothing; and left alone while it
/// is being deleted.
#[test]
fn by_the_address_that_the_api_tells() {
    let stage = Stage::with_api("anew-api", "nftables");
    let _world = world(&stage);
    let mut manifest = manifest("s");
    let uid = uid(&manifest).to_owned();
    let pod = attached(&stage, &manifest);
    let addresses: Vec<IpAddr> = pod.addresses.iter().copied().map(other).collect();
    report(&stage, &mut manifest, &pod.addresses);
    manifest["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    report(&stage, &mut manifest, &addresses);
    let pod = anew(&stage, &manifest, pod, &addresses);
    let pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    let mut pause = pause.start().unwrap();
    pause.wait_ready().unwrap();
    // Another pod is looked at meanwhile.
    let other = crate::pod::manifest("other");
    let _other = attached(&stage, &other);
    await_looks(&stage, 6);
    assert!(!is_captured(&stage, &pod), "{}", stage.cluster.agent_log());
    assert!(is_quiet(&stage) && repaired(&stage) == 0.0);

    manifest["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    report(&stage, &mut manifest, &addresses);
    stage.eventually("it is found and captured", |stage| repaired(stage) == 1.0);
    is_well(&stage, &uid, &pod);
    // No DEL knows the name of its sandbox: the record goes with the pod.
    pause.close_input();
    drop(pod);
    let name = manifest["metadata"]["name"].as_str().unwrap();
    stage.server.as_ref().unwrap().remove("pods", e2e_node::cluster::NAMESPACE, name);
    stage.eventually("its record is gone", |stage| records(stage, &uid).is_empty());
}

/// What an ADD has captured is no drift, and the record before is dropped.
#[test]
fn a_sandbox_with_an_add_is_none_of_it() {
    let stage = Stage::with_manifests("anew-add", "nftables");
    let _world = world(&stage);
    let manifest = manifest("s");
    let uid = uid(&manifest);
    let pod = attached(&stage, &manifest);
    Process::start(&pod, uid).end();
    let old = pod.attachment.clone();
    drop(pod);
    let pod = attached(&stage, &manifest);
    let _process = Process::start(&pod, uid);
    stage.eventually("one record is left", |stage| is_recorded(stage, uid, &pod));
    await_looks(&stage, 3);
    is_well(&stage, uid, &pod);
    assert_eq!(repaired(&stage), 0.0, "{}", stage.cluster.agent_log());
    stage.cluster.runtime().delete(&stage.cluster.list, &old).unwrap();
    is_well(&stage, uid, &pod);
}
