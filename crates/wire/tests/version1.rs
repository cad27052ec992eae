//! What version 1 of plugin and agent said and wrote, byte for byte, as it may still
//! be said and lie about when either is of a newer release. Those files never change;
//! a newer release must read each, and write what an older one reads.

#![expect(clippy::unwrap_used, reason = "a test")]

use serde::Serialize;
use serde_json::{Value, json};
use wire::cni::{Command, Config, Error};
use wire::http;
use wire::passed::Passed;
use wire::request::{Answer, Decision, Endpoint, GcRequest, PodRequest, StatusRequest};
use wire::snapshot::{Certainty, Doubt, Snapshot, SnapshotError, Subject, Verdict};

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("version1/", $name)).as_slice()
    };
}

/// The body of a recorded request, whose head is what is sent today.
#[track_caller]
fn body(endpoint: Endpoint, recorded: &'static [u8]) -> &'static [u8] {
    let end = recorded.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let body = &recorded[end + 4..];
    assert_eq!(http::request(endpoint, body), recorded, "the head of {endpoint:?}");
    body
}

/// Everything that an older reader looks for is there, as it was.
#[track_caller]
fn is_in(old: &Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                is_in(value, new.get(key).unwrap_or_else(|| panic!("{key} is gone: {new:?}")));
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len());
            old.iter().zip(new).for_each(|(old, new)| is_in(old, new));
        }
        _ => assert_eq!(old, new),
    }
}

#[track_caller]
fn says_as_much(recorded: &[u8], today: &impl Serialize) {
    is_in(&serde_json::from_slice(recorded).unwrap(), &serde_json::to_value(today).unwrap());
}

#[test]
fn requests() {
    for (endpoint, recorded) in
        [(Endpoint::Add, recorded!("add.http")), (Endpoint::Check, recorded!("check.http"))]
    {
        let body = body(endpoint, recorded);
        let request: PodRequest = serde_json::from_slice(body).unwrap();
        says_as_much(body, &request);
        assert_eq!(
            (request.pod_namespace.as_str(), request.pod_name.as_str()),
            ("demo", "cart"),
            "{endpoint:?}"
        );
        let addresses: Vec<_> = request.ips.unwrap().iter().map(|ip| ip.address.addr()).collect();
        assert_eq!(addresses, ["10.9.1.2", "fd09:1::2"].map(|ip| Some(ip.parse().unwrap())));
        let sluice = request.sluice.unwrap();
        assert_eq!((sluice.version, sluice.deadline_ms), (1, 4500));
        assert_eq!((sluice.container_id.as_str(), sluice.if_name.as_str()), ("cart-1", "eth0"));
        assert_eq!(
            (sluice.pod_uid.as_str(), sluice.cgroup_path.as_str()),
            ("u-1", "/kubepods/pod7")
        );
        assert!(sluice.pod_annotations.unwrap().contains_key("sidecar.istio.io/status"));
    }
    let del = body(Endpoint::Del, recorded!("del.http"));
    let request: PodRequest = serde_json::from_slice(del).unwrap();
    says_as_much(del, &request);
    assert_eq!(request.sluice.unwrap().container_id, "cart-1");
    let gc = body(Endpoint::Gc, recorded!("gc.http"));
    let request: GcRequest = serde_json::from_slice(gc).unwrap();
    says_as_much(gc, &request);
    assert_eq!(request.attachments.unwrap()[0].container_id, "cart-1");
    let status = body(Endpoint::Status, recorded!("status.http"));
    says_as_much(status, &serde_json::from_slice::<StatusRequest>(status).unwrap());
}

#[test]
fn answers() {
    let read = |recorded: &'static [u8]| http::response(recorded, false).unwrap().unwrap();
    for (recorded, decision) in [
        (recorded!("answer-sidecar.http"), Decision::Sidecar),
        (recorded!("answer-skip.http"), Decision::Skip),
        (recorded!("answer-done.http"), Decision::Done),
    ] {
        let response = read(recorded);
        assert_eq!(response.status, 200);
        let answer: Answer = serde_json::from_slice(response.body).unwrap();
        assert_eq!(answer.decision, decision);
        says_as_much(response.body, &answer);
    }
    let response = read(recorded!("answer-refused.http"));
    let error: Error = serde_json::from_slice(response.body).unwrap();
    assert_eq!((response.status, error.code), (500, wire::code::UNKNOWN_POD));
    assert_eq!(error.details, "the runtime tries again");
}

fn subject<'a>(name: &'a str, uid: &'a str) -> Subject<'a> {
    Subject { namespace: "demo", name, uid, annotations: None }
}

#[test]
fn what_lies_in_the_run_directory() {
    let bytes = recorded!("snapshot.json");
    let snapshot = Snapshot::parse(bytes).unwrap();
    says_as_much(bytes, &snapshot);
    assert_eq!(snapshot.judge(subject("cart", "u-1")), Verdict::Wait(Doubt::Known));
    assert_eq!(snapshot.judge(subject("batch", "u-2")), Verdict::Outside(Certainty::Known));
    let none = std::collections::BTreeMap::new();
    let new = Subject { annotations: Some(&none), ..subject("new", "u-3") };
    assert_eq!(snapshot.judge(new), Verdict::Outside(Certainty::NotInjected));

    let bytes = recorded!("passed.json");
    let passed: Passed = serde_json::from_slice(bytes).unwrap();
    says_as_much(bytes, &passed);
    assert_eq!((passed.container.as_str(), passed.ino), ("cart-1", 4026533000));
}

/// The plugin's entry in a conflist outlives the installer that wrote it.
#[test]
fn entry_of_a_chain() {
    let config = Config::parse(recorded!("entry.json")).unwrap();
    config.check(Command::Status).unwrap();
    assert_eq!(config.run_dir(), "/var/run/istio-cni");
    assert_eq!(config.agent_namespace(), "istio-system");
    assert!(config.excludes("kube-system") && !config.excludes("demo"));
    assert_eq!(config.timeout().as_millis(), 4500);
}

/// A newer agent left it: what it means by now is not known, so nobody passes by it.
#[test]
fn a_newer_snapshot_is_none() {
    let mut newer: Value = serde_json::from_slice(recorded!("snapshot.json")).unwrap();
    newer["version"] = json!(2);
    let parse = |value: &Value| Snapshot::parse(value.to_string().as_bytes());
    let words = parse(&newer).unwrap_err().to_string();
    assert!(words.contains("format 2") && words.contains("knows 1"), "{words}");
    newer["pods"] = json!("elsewhere");
    assert!(matches!(parse(&newer), Err(SnapshotError::Version(2))));
    // Of the same version, with more in it.
    newer = serde_json::from_slice(recorded!("snapshot.json")).unwrap();
    newer["more"] = json!({"a": []});
    newer["pods"]["u-1"]["also"] = json!(1);
    parse(&newer).expect("unknown fields are for others");
}
