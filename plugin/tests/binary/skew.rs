//! Agents of other releases: what version 1 says, which never changes, and what a
//! newer one may say. Where the plugin does not understand, no pod of the mesh starts,
//! and a pod passes only when it is certain to be outside without the agent's word.

use std::path::PathBuf;

use serde_json::{Value, json};
use wire::code;

use crate::stand::{Call, Fake, Outcome, Sandbox, answer, answers, config};

const INJECTED: &str = r#"{"sidecar.istio.io/status":"{}"}"#;
const PLAIN: &str = r#"{"kubernetes.io/config.source":"api"}"#;

/// What version 1 said or wrote, with the wire crate.
fn recorded(name: &str) -> Vec<u8> {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates");
    std::fs::read(crates.join("wire/tests/version1").join(name)).unwrap()
}

fn leave(fake: &Fake, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(format!("{}/{name}", fake.run_dir()), bytes).unwrap();
}

fn passed(fake: &Fake) -> usize {
    std::fs::read_dir(format!("{}/passed", fake.run_dir())).map_or(0, Iterator::count)
}

fn add(fake: &Fake, annotations: &str) -> Outcome {
    let hints = format!(
        r#","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{annotations}}},"prevResult":{{"ips":[{{"address":"10.9.1.2/24"}}]}}"#
    );
    let sandbox = Sandbox::new();
    Call::new("ADD", &sandbox.path(), config("1.0.0", fake.run_dir(), &hints)).run()
}

#[test]
fn answers_of_version_1() {
    for name in ["answer-sidecar.http", "answer-skip.http"] {
        let outcome = add(&answers(recorded(name)), INJECTED);
        assert_eq!(outcome.success(), r#"{"ips":[{"address":"10.9.1.2/24"}]}"#, "{name}");
    }
    let (msg, _) = add(&answers(recorded("answer-refused.http")), INJECTED).failure(103);
    assert!(msg.contains("demo/cart is not known"), "{msg}");
    // Which decides nothing.
    add(&answers(recorded("answer-done.http")), INJECTED).failure(code::AGENT_ANSWERED_NONSENSE);
    let fake = answers(recorded("answer-done.http"));
    for command in ["DEL", "STATUS", "GC"] {
        let stdin = config("1.1.0", fake.run_dir(), "");
        Call::new(command, &Sandbox::new().path(), stdin).run().success();
    }
}

#[test]
fn files_of_version_1() {
    // Nobody answers: it closes the connection.
    let fake = Fake::serve(|_| {});
    leave(&fake, "snapshot.json", recorded("snapshot.json"));
    add(&fake, PLAIN).success();
    assert_eq!(passed(&fake), 1);
    let (msg, _) = add(&fake, INJECTED).failure(code::AGENT_UNREACHABLE);
    assert!(msg.contains("pod of the mesh"), "{msg}");
}

#[test]
fn more_in_an_answer_than_is_known() {
    let body =
        json!({"decision": "sidecar", "reason": "captured", "proof": {"v4": [1]}, "n": null});
    add(&answer("200 OK", &body.to_string()), INJECTED).success();
    let body =
        json!({"code": 250, "msg": "not on this node", "details": "see the runbook", "more": []});
    let (msg, details) = add(&answer("460 New", &body.to_string()), INJECTED).failure(250);
    assert!(msg.contains("not on this node") && details.contains("runbook"), "{msg} {details}");
}

/// It may have captured the pod in a way that this plugin has no word for, or not.
#[test]
fn a_decision_that_is_not_known() {
    for body in [
        r#"{"decision":"waypoint","reason":"new"}"#,
        r#"{"decision":{"kind":"sidecar"},"reason":"new"}"#,
        r#"{"verdict":"skip"}"#,
    ] {
        let fake = answer("200 OK", body);
        leave(&fake, "snapshot.json", recorded("snapshot.json"));
        let (msg, details) = add(&fake, INJECTED).failure(code::AGENT_ANSWERED_NONSENSE);
        assert!(msg.contains("pod of the mesh") && msg.contains("decision"), "{msg}");
        assert!(details.contains("same product and release"), "{details}");
        assert_eq!(passed(&fake), 0);
        // Certain without it, and written down.
        add(&fake, PLAIN).success();
        assert_eq!(passed(&fake), 1);
    }
}

#[test]
fn a_snapshot_that_is_not_known() {
    let fake = Fake::serve(|_| {});
    let mut newer: Value = serde_json::from_slice(&recorded("snapshot.json")).unwrap();
    newer["version"] = json!(2);
    leave(&fake, "snapshot.json", newer.to_string());
    for annotations in [INJECTED, PLAIN] {
        let (msg, _) = add(&fake, annotations).failure(code::AGENT_UNREACHABLE);
        assert!(msg.contains("not started") && msg.contains("format 2"), "{msg}");
    }
    assert_eq!(passed(&fake), 0);
    // The agent's own pod starts, or nobody ever would.
    let stdin = config("1.0.0", fake.run_dir(), "");
    let own = "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istio-cni-node-x";
    Call::new("ADD", &Sandbox::new().path(), stdin).set("CNI_ARGS", own).run().success();
}

/// Deletions go through whatever is said.
#[test]
fn del_whoever_answers() {
    for body in [r#"{"decision":"later"}"#, "", "[1]"] {
        let fake = answer("299 Other", body);
        let stdin = config("1.1.0", fake.run_dir(), "");
        Call::new("DEL", &Sandbox::new().path(), stdin).run().success();
    }
}
