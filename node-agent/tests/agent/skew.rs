//! Plugins and agents of other releases: what version 1 says and left, and what a
//! newer plugin may say and a newer agent may have left, before it was taken back.

use crate::lab::{Lab, Pod};
use serde_json::{Value, json};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::code;
use wire::request::Endpoint;

/// What version 1 said or wrote, with the wire crate. It is about this pod.
fn recorded(name: &str) -> Vec<u8> {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates");
    std::fs::read(crates.join("wire/tests/version1").join(name)).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&recorded(name)).unwrap()
}

/// The pod of the recordings.
fn cart(lab: &Lab) -> Pod {
    lab.manifest(
        "cart",
        r#"{"kind": "Pod", "metadata": {"name": "cart", "namespace": "demo", "uid": "u-1", "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"]}]}}"#,
    );
    let pod = lab.pod("cart");
    assert_eq!((pod.id.as_str(), pod.address.as_str()), ("cart-1", "10.9.1.2"));
    pod
}

/// The recorded note of a pod that passed, with the sandbox that the pod has now.
fn note(lab: &Lab, pod: &Pod, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut passed = json("passed.json");
    let (id, fd) = (pod.ns.id(), pod.ns.as_fd().as_raw_fd());
    passed["container"] = json!(pod.id);
    passed["netns"] = json!(format!("/proc/{}/fd/{fd}", std::process::id()));
    (passed["dev"], passed["ino"]) = (json!(id.dev), json!(id.ino));
    change(&mut passed);
    let directory = lab.run_dir().join("passed");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("{}.json", pod.id));
    std::fs::write(&path, passed.to_string()).unwrap();
    path
}

#[track_caller]
fn until(lab: &Lab, what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}; {}", lab.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_plugin_of_version_1_is_served() {
    let lab = Lab::with_agent(&[]);
    let pod = cart(&lab);
    assert_eq!(lab.raw(&recorded("status.http"), None).decision().0, "done");
    let answer = lab.raw(&recorded("add.http"), Some(pod.ns.as_fd()));
    assert_eq!(answer.decision().0, "sidecar");
    assert!(pod.nft().contains("istio-proxy-nat"));
    // Later agents read it, with all that is needed.
    let record: Value = serde_json::from_slice(&std::fs::read(lab.record(&pod)).unwrap()).unwrap();
    for key in json("record.json").as_object().unwrap().keys() {
        assert!(record.get(key).is_some(), "{key}: {record}");
    }
    assert_eq!(record["version"], 1, "a new format needs a reader of the old one, and tests");
    assert_eq!(lab.raw(&recorded("check.http"), Some(pod.ns.as_fd())).decision().0, "sidecar");
    lab.raw(&recorded("gc.http"), None).decision();
    assert_eq!(lab.records(), ["cart-1.json"]);
    assert_eq!(lab.raw(&recorded("del.http"), None).decision(), ("done", "removed"));
}

#[test]
fn what_an_agent_of_version_1_left_is_read() {
    let mut lab = Lab::with_agent(&[]);
    let pod = cart(&lab);
    lab.add(&pod).decision();
    lab.stop(nix::sys::signal::Signal::SIGTERM);
    std::fs::write(lab.record(&pod), recorded("record.json")).unwrap();
    std::fs::write(lab.run_dir().join("snapshot.json"), recorded("snapshot.json")).unwrap();
    // The manifest says another thing by now: what was planned then holds.
    lab.sidecar("cart", &[("sidecar.istio.io/interceptionMode", "TPROXY")], &[]);
    // A pod that passed, with the sandbox that it has now.
    let batch = lab.pod("batch");
    lab.manifest("batch", r#"{"kind": "Pod", "metadata": {"name": "batch", "namespace": "demo", "uid": "u-2"}, "spec": {"containers": [{"name": "app"}]}}"#);
    let note = note(&lab, &batch, |passed| {
        (passed["name"], passed["uid"]) = (json!("batch"), json!("u-2"));
    });

    lab.start();
    assert_eq!(lab.check(&pod).decision(), ("sidecar", "the rules hold"));
    until(&lab, "the note is read", || !note.exists());
    assert!(lab.log().contains("rightly passed unseen"), "{}", lab.log());
    assert_eq!(lab.del(&pod).decision().1, "removed");
}

#[test]
fn a_newer_plugin_is_served_as_far_as_it_is_understood() {
    let lab = Lab::with_agent(&[]);
    let pod = cart(&lab);
    let mut request = pod.request();
    request["Sluice"]["Version"] = json!(9);
    request["Sluice"]["Wishes"] = json!({"proof": ["udp"], "n": 1});
    request["Also"] = json!([null]);
    let answer = lab.ask(Endpoint::Add, &request, Some(pod.ns.as_fd()));
    assert_eq!(answer.decision().0, "sidecar");
    assert!(pod.nft().contains("istio-proxy-nat"));
    let answer = lab.ask(Endpoint::Check, &request, Some(pod.ns.as_fd()));
    assert_eq!(answer.decision().0, "sidecar");
    lab.ask(
        Endpoint::Gc,
        &json!({"Sluice": {"Version": 9}, "Attachments": null, "Scope": 1}),
        None,
    )
    .decision();
    assert_eq!(lab.records(), ["cart-1.json"]);
    lab.ask(Endpoint::Status, &json!({"Sluice": {"Version": 9}, "Depth": 2}), None).decision();
    assert_eq!(lab.ask(Endpoint::Del, &request, None).decision().1, "removed");
    // What it asks for in a way of its own is refused in words.
    let body = pod.request().to_string();
    let other = format!(
        "POST /cmdrenew HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = lab.raw(other.as_bytes(), None);
    assert_eq!(answer.status, 404);
    assert!(answer.body["msg"].as_str().unwrap().contains("/cmdrenew"), "{answer:?}");
    request["Sluice"] = json!("of another type");
    let answer = lab.ask(Endpoint::Add, &request, Some(pod.ns.as_fd()));
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[test]
fn what_a_newer_agent_left_is_not_believed() {
    let mut lab = Lab::with_agent(&[]);
    let pod = cart(&lab);
    lab.add(&pod).decision();
    lab.stop(nix::sys::signal::Signal::SIGTERM);
    let mut record: Value =
        serde_json::from_slice(&std::fs::read(lab.record(&pod)).unwrap()).unwrap();
    record["version"] = json!(2);
    std::fs::write(lab.record(&pod), record.to_string()).unwrap();
    let snapshot = lab.run_dir().join("snapshot.json");
    std::fs::write(&snapshot, r#"{"version":2,"all":"outside"}"#).unwrap();
    // Of a newer plugin: enough to find the pod by.
    let note = note(&lab, &pod, |passed| {
        (passed["version"], passed["more"]) = (json!(2), json!({}));
    });

    lab.start();
    let check = lab.check(&pod);
    let words = check.failure(code::IO_FAILURE);
    assert!(words.contains("format 2") && words.contains("cart-1.json"), "{words}");
    until(&lab, "a snapshot of our own", || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        text.contains("\"version\":1") && text.contains("u-1")
    });
    // It should have been captured, as far as this agent can see.
    until(&lab, "the note is looked at", || lab.log().contains("passed uncaptured"));
    // Captured again, with a record that is understood.
    assert_eq!(lab.add(&pod).decision().0, "sidecar");
    assert_eq!(lab.check(&pod).decision().0, "sidecar");
    assert_eq!(lab.del(&pod).decision().1, "removed");
    assert!(!note.exists() && lab.records().is_empty());
}
