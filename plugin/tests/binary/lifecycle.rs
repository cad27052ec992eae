//! CHECK, DEL, STATUS, GC and VERSION.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};
use wire::code;

use crate::stand::{Call, Fake, Sandbox, answer, config, own_netns};

const DONE: &str = r#"{"decision":"done","reason":""}"#;

#[test]
fn check_asks_with_the_namespace() {
    let sandbox = Sandbox::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let fake = answer("200 OK", r#"{"decision":"sidecar","reason":"all there"}"#);
        let stdin =
            config(version, fake.run_dir(), r#","prevResult":{"ips":[{"address":"10.0.0.5/24"}]}"#);
        assert_eq!(Call::new("CHECK", &sandbox.path(), stdin).run().success(), "");
        let seen = fake.seen();
        assert_eq!(seen.path, "/cmdcheck");
        assert_eq!(seen.passed, [(0, sandbox.id())]);
        assert_eq!(seen.body["Sluice"]["ContainerID"], "0123abcd");
    }
}

#[test]
fn check_fails_when_rules_are_missing_or_nobody_answers() {
    let sandbox = Sandbox::new();
    let fake = answer(
        "409 Conflict",
        r#"{"code":110,"msg":"3 rules are missing","details":"delete the pod"}"#,
    );
    let outcome = Call::new("CHECK", &sandbox.path(), config("1.0.0", fake.run_dir(), "")).run();
    outcome.failure(code::RULES_MISSING);
    let outcome = Call::new("CHECK", &sandbox.path(), config("1.0.0", "/nonexistent", "")).run();
    outcome.failure(code::AGENT_UNREACHABLE);
}

#[test]
fn check_of_a_pod_that_passed_through_asks_nobody() {
    let outcome =
        Call::new("CHECK", "/gone", config("1.0.0", "/nonexistent", "")).set("CNI_ARGS", "").run();
    assert_eq!(outcome.success(), "");
}

#[test]
fn del_tells_the_agent() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", DONE);
    let outcome = Call::new("DEL", &sandbox.path(), config("0.3.1", fake.run_dir(), "")).run();
    assert_eq!(outcome.success(), "");
    let seen = fake.seen();
    assert_eq!(seen.path, "/cmddel");
    assert!(seen.passed.is_empty());
    assert_eq!(seen.body["Netns"], sandbox.path());
    assert_eq!(seen.body["Sluice"]["ContainerID"], "0123abcd");
    assert!(seen.body["Sluice"]["DeadlineMs"].as_u64().unwrap() <= 200);
    // containerd's second one has neither namespace nor prevResult.
    let fake = answer("200 OK", DONE);
    let outcome = Call::new("DEL", "", config("0.3.1", fake.run_dir(), "")).run();
    assert_eq!(outcome.success(), "");
    assert_eq!(fake.seen().body["Netns"], "");
}

#[test]
fn del_never_fails() {
    let nowhere = config("1.0.0", "/nonexistent", "");
    let call = |stdin: &str| Call::new("DEL", "/gone", stdin);
    let calls: Vec<(&str, Call)> = vec![
        ("no agent", call(&nowhere)),
        ("stdin empty", call("")),
        ("stdin truncated", call("{\"cniVersion\":")),
        ("stdin not UTF-8", Call::new("DEL", "/gone", b"\xff\xfe".to_vec())),
        ("stdin too long", Call::new("DEL", "/gone", vec![b' '; 5 << 20])),
        ("stdin open", call(&nowhere).with_open_stdin()),
        ("version unknown", call(&config("9.9.9", "/nonexistent", ""))),
        ("version absent", call("{}")),
        ("name invalid", call(&nowhere.replace("mesh", "../x"))),
        ("prevResult no object", call(&config("1.0.0", "/nonexistent", ",\"prevResult\":7"))),
        ("container id missing", call(&nowhere).unset("CNI_CONTAINERID")),
        ("container id invalid", call(&nowhere).set("CNI_CONTAINERID", "../../etc")),
        ("interface missing", call(&nowhere).unset("CNI_IFNAME")),
        ("path missing", call(&nowhere).unset("CNI_PATH")),
        ("namespace missing", call(&nowhere).unset("CNI_NETNS")),
        ("namespace the host's", call(&nowhere).set("CNI_NETNS", &own_netns())),
        ("arguments nonsense", call(&nowhere).set("CNI_ARGS", "nonsense")),
        (
            "everything missing",
            call("")
                .unset("CNI_CONTAINERID")
                .unset("CNI_NETNS")
                .unset("CNI_IFNAME")
                .unset("CNI_ARGS"),
        ),
        ("run directory too long", call(&config("1.0.0", &"/x".repeat(100), ""))),
    ];
    for (what, call) in calls {
        let outcome = call.run();
        assert_eq!(outcome.status, Some(0), "{what}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, b"", "{what}");
        assert_eq!(outcome.log()["level"], "warn", "{what}");
    }
}

#[test]
fn del_never_fails_for_what_the_agent_says_and_does_not_wait() {
    for (status, body) in
        [("500 Oops", "no"), ("500 Oops", r#"{"code":106,"msg":"no"}"#), ("200 OK", "junk")]
    {
        let fake = answer(status, body);
        let outcome = Call::new("DEL", "/gone", config("1.0.0", fake.run_dir(), "")).run();
        assert_eq!(outcome.success(), "");
    }
    let fake = Fake::serve(|stream| {
        let _ = stream.read(&mut [0]);
    });
    let outcome = Call::new("DEL", "/gone", config("1.0.0", fake.run_dir(), "")).run();
    assert_eq!(outcome.success(), "");
    // Not the deadline of the configuration.
    assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
    assert_eq!(outcome.log()["code"], code::AGENT_TIMED_OUT);
}

/// As containerd 2.1 asks: nothing but the command.
fn bare(command: &str, stdin: String) -> Call {
    let call = Call::new(command, "", stdin);
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
        .into_iter()
        .fold(call, |call, name| call.set(name, ""))
}

#[test]
fn status_is_the_agents() {
    let fake = answer("200 OK", DONE);
    assert_eq!(bare("STATUS", config("1.1.0", fake.run_dir(), "")).run().success(), "");
    let seen = fake.seen();
    assert_eq!((seen.path.as_str(), seen.passed.len()), ("/status", 0));
    assert_eq!(seen.body["Sluice"]["Version"], 1);
    let fake =
        answer("503 Busy", r#"{"code":50,"msg":"pods are not listed yet","details":"wait"}"#);
    let (msg, _) =
        bare("STATUS", config("1.1.0", fake.run_dir(), "")).run().failure(code::NOT_AVAILABLE);
    assert_eq!(msg, "pods are not listed yet");
}

#[test]
fn status_without_an_agent_is_not_available() {
    let status = |run_dir: &str, more: &str| bare("STATUS", config("1.1.0", run_dir, more)).run();
    let on_host = r#","agent_host_network":true"#;
    let (msg, _) = status("/nonexistent", on_host).failure(code::NOT_AVAILABLE);
    assert!(msg.contains("/nonexistent/pluginevent.sock"), "{msg}");
    // One that is there and talks nonsense is not absent.
    for more in ["", on_host] {
        let fake = answer("200 OK", "");
        status(fake.run_dir(), more).failure(code::NOT_AVAILABLE);
    }
}

/// It could not start if the node's network were said not to be ready.
#[test]
fn status_waits_for_no_agent_on_the_pod_network() {
    for more in ["", r#","agent_host_network":false"#, r#","agent_host_network":null"#] {
        let outcome = bare("STATUS", config("1.1.0", "/nonexistent", more)).run();
        assert_eq!(outcome.success(), "", "{more}");
        let log = outcome.log();
        assert_eq!((&log["level"], &log["code"]), (&json!("warn"), &json!(100)));
    }
}

#[test]
fn gc_passes_the_attachments_on() {
    for (key, expected) in [
        ("", Value::Null),
        (r#","cni.dev/valid-attachments":null"#, Value::Null),
        (r#","cni.dev/valid-attachments":[]"#, json!([])),
        // libcni 1.2 writes its list under a misspelled key as well.
        (
            r#","cni.dev/attachments":[],"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0","more":1}]"#,
            json!([{"ContainerID": "a", "IfName": "eth0"}]),
        ),
        (r#","cni.dev/attachments":[]"#, Value::Null),
    ] {
        let fake = answer("200 OK", DONE);
        assert_eq!(bare("GC", config("1.1.0", fake.run_dir(), key)).run().success(), "");
        let seen = fake.seen();
        assert_eq!((seen.path.as_str(), seen.passed.len()), ("/cmdgc", 0));
        assert_eq!(seen.body["Attachments"], expected, "{key}");
    }
}

#[test]
fn gc_needs_a_path_as_the_specification_says() {
    let outcome = bare("GC", config("1.1.0", "/nonexistent", "")).set("CNI_PATH", "").run();
    let (msg, _) = outcome.failure(code::INVALID_ENVIRONMENT);
    assert!(msg.ends_with(": CNI_PATH"), "{msg}");
}

#[test]
fn gc_refuses_a_list_that_is_none() {
    for list in ["7", "{}", r#"[{"containerID":"a"}]"#, r#"["a"]"#] {
        let fake = answer("200 OK", DONE);
        let stdin =
            config("1.1.0", fake.run_dir(), &format!(",\"cni.dev/valid-attachments\":{list}"));
        let (msg, _) = bare("GC", stdin).run().failure(code::DECODING_FAILURE);
        assert!(msg.contains("cni.dev/valid-attachments"), "{msg}");
        fake.unasked();
    }
}

#[test]
fn gc_does_without_an_agent_but_not_without_its_consent() {
    let outcome = bare("GC", config("1.1.0", "/nonexistent", "")).run();
    assert_eq!(outcome.success(), "");
    assert_eq!(outcome.log()["level"], "warn");
    let fake = answer("500 Oops", r#"{"code":5,"msg":"remove a record","details":"see the disk"}"#);
    bare("GC", config("1.1.0", fake.run_dir(), "")).run().failure(5);
}

#[test]
fn version_answers_whatever_it_is_asked_with() {
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [
        (r#"{"cniVersion":"0.3.1"}"#, "0.3.1"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
        ("garbage", "1.1.0"),
    ] {
        // podman's dummies.
        let call = Call::new("VERSION", "dummy", stdin)
            .set("CNI_IFNAME", "dummy")
            .set("CNI_PATH", "dummy")
            .unset("CNI_ARGS");
        for call in
            [call, Call::new("VERSION", "", stdin).unset("CNI_CONTAINERID").unset("CNI_PATH")]
        {
            let outcome = call.run();
            let reply: Value = serde_json::from_str(outcome.success()).unwrap();
            assert_eq!(reply, json!({"cniVersion": version, "supportedVersions": supported}));
            assert_eq!(outcome.stderr, "");
        }
    }
    let outcome = Call::new("VERSION", "", "").with_open_stdin().run();
    outcome.success();
}
