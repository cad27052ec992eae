//! ADD: what passes through, what is asked, what is printed.

use std::os::unix::fs::MetadataExt;

use crate::stand::{Call, Sandbox, answer, config, own_netns};

const SIDECAR: &str = r#"{"decision":"sidecar","reason":"has a sidecar"}"#;
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Everything that a decoder would change: white space, order, equal keys,
/// escapes, numbers that no type holds, keys that nobody knows.
const NASTY: &str = concat!(
    "{ \"zeta\" : 1,\t\"interfaces\": [ {\"name\":\"eth0\",\"sandbox\":\"/x\",\"mac\":null} ],\n",
    "  \"ips\":[{\"address\":\"10.0.0.5/24\",\"gateway\":\"10.0.0.1\",\"interface\":0,\"interface\":0},",
    "{\"version\":\"6\",\"address\":\"fd00::5/64\"}],\r\n",
    "  \"vendorX\":{\"big\":123456789012345678901234567890,\"huge\":1e400,\"e\":1E+2,\"neg\":-0,\"f\":1.10},\n",
    "  \"dup\":1, \"dup\":2, \"alpha\":\"\\u00e9\\/\\ud83d\\ude00 caf\u{e9} \u{1f600}\", \"\":[],\n",
    "  \"dns\":{}, \"routes\":null, \"cniVersion\" : \"0.3.1\" , \"cniVersion\":\"1.0.0\"  }"
);

#[test]
fn prev_result_is_echoed_byte_for_byte_in_every_version() {
    let sandbox = Sandbox::new();
    for version in VERSIONS {
        let fake = answer("200 OK", SIDECAR);
        let stdin = config(version, fake.run_dir(), &format!(",\"prevResult\":  {NASTY}  "));
        let outcome = Call::new("ADD", &sandbox.path(), stdin).run();
        assert_eq!(outcome.success(), NASTY, "{version}");
    }
}

#[test]
fn the_echo_is_the_same_for_a_pod_that_passes_through() {
    for args in ["", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=kube-system"] {
        let stdin = config("1.0.0", "/nonexistent", &format!(",\"prevResult\":{NASTY}"));
        let outcome = Call::new("ADD", "/nonexistent", stdin).set("CNI_ARGS", args).run();
        assert_eq!(outcome.success(), NASTY);
    }
}

#[test]
fn a_large_result_is_echoed() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", SIDECAR);
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let result = format!(r#"{{"vendor":"{}","deep":{deep}}}"#, "x".repeat(1 << 20));
    let stdin = config("1.0.0", fake.run_dir(), &format!(",\"prevResult\":{result}"));
    assert!(Call::new("ADD", &sandbox.path(), stdin).run().success() == result);
    assert_eq!(fake.seen().body["IPs"], serde_json::json!([]));
}

#[test]
fn without_a_prev_result_an_empty_result_is_printed() {
    let sandbox = Sandbox::new();
    for version in VERSIONS {
        for absent in ["", ",\"prevResult\":null"] {
            let fake = answer("200 OK", SIDECAR);
            let outcome =
                Call::new("ADD", &sandbox.path(), config(version, fake.run_dir(), absent)).run();
            let expected = if version.starts_with('0') {
                format!(r#"{{"cniVersion":"{version}","dns":{{}}}}"#)
            } else {
                format!(r#"{{"cniVersion":"{version}"}}"#)
            };
            assert_eq!(outcome.success(), expected);
            assert_eq!(fake.seen().body["IPs"], serde_json::Value::Null);
        }
    }
}

#[test]
fn the_request_says_what_the_contract_says() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", SIDECAR);
    let stdin = config("1.0.0", fake.run_dir(), &format!(",\"prevResult\":{NASTY}"));
    let outcome = Call::new("ADD", &sandbox.path(), stdin).run();
    outcome.success();
    let seen = fake.seen();
    assert_eq!(seen.path, "/cmdadd");
    assert!(seen.head.starts_with("POST /cmdadd HTTP/1.1\r\n"), "{}", seen.head);
    assert!(seen.head.contains("Connection: close"), "{}", seen.head);
    assert_eq!(seen.passed, [(0, sandbox.id())], "the namespace, with the first byte");
    let left = seen.body["Sluice"]["DeadlineMs"].as_u64().unwrap();
    assert!((1..=15_000).contains(&left), "{left}");
    let mut body = seen.body;
    body["Sluice"]["DeadlineMs"] = 0.into();
    let host = std::fs::metadata(own_netns()).unwrap().ino();
    assert_eq!(body["Sluice"]["HostNetns"]["Ino"], host, "where the plugin runs");
    assert!(body["Sluice"]["HostNetns"]["Dev"].is_u64());
    body["Sluice"].as_object_mut().unwrap().remove("HostNetns");
    assert_eq!(
        body,
        serde_json::json!({
            "Netns": sandbox.path(), "PodName": "cart", "PodNamespace": "shop",
            "IPs": [
                {"Interface": 0, "Address": {"IP": "10.0.0.5", "Mask": "////AA=="}, "Gateway": "10.0.0.1"},
                {"Interface": null, "Address": {"IP": "fd00::5", "Mask": "//////////8AAAAAAAAAAA=="}, "Gateway": ""},
            ],
            "Sluice": {"Version": 1, "ContainerID": "0123abcd", "IfName": "eth0", "PodUID": "u-1", "DeadlineMs": 0},
        })
    );
    let log = outcome.log();
    assert_eq!(log["msg"], "captured for its sidecar");
    assert_eq!((&log["ns"], &log["pod"]), (&"shop".into(), &"cart".into()));
    assert_eq!(log["reason"], "has a sidecar");
}

#[test]
fn the_layout_of_0_2_0_has_its_addresses_read() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", SIDECAR);
    let result = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/32","gateway":"10.0.0.1"},"ip6":{"ip":"fd00::5/128"}}"#;
    let stdin = config("0.3.1", fake.run_dir(), &format!(",\"prevResult\":{result}"));
    assert_eq!(Call::new("ADD", &sandbox.path(), stdin).run().success(), result);
    let ips = &fake.seen().body["IPs"];
    assert_eq!(
        (&ips[0]["Address"]["IP"], &ips[1]["Address"]["IP"]),
        (&"10.0.0.5".into(), &"fd00::5".into())
    );
}

#[test]
fn pods_that_cannot_be_of_the_mesh_do_not_ask() {
    let fake = answer("500 No", "{}");
    for args in [
        "",
        "IgnoreUnknown=1",
        "IgnoreUnknown=1;K8S_POD_NAME=podmans-container",
        "K8S_POD_NAMESPACE=shop",
        "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
        "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istio-cni-node-abcde",
    ] {
        let outcome = Call::new("ADD", "/nonexistent", config("1.0.0", fake.run_dir(), ""))
            .set("CNI_ARGS", args)
            .run();
        outcome.success();
        assert_eq!(outcome.log()["msg"], "passed through");
    }
    fake.unasked();
}

#[test]
fn pods_that_only_look_like_it_do_ask() {
    let sandbox = Sandbox::new();
    for args in [
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=istio-cni-node-abcde",
        "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istio-ingress",
        "K8S_POD_NAMESPACE=kube-system2;K8S_POD_NAME=dns",
    ] {
        let fake = answer("200 OK", r#"{"decision":"skip","reason":"no sidecar"}"#);
        let stdin = config("1.0.0", fake.run_dir(), "");
        let outcome = Call::new("ADD", &sandbox.path(), stdin).set("CNI_ARGS", args).run();
        outcome.success();
        assert_eq!(outcome.log()["msg"], "not of the mesh");
        fake.seen();
    }
}

#[test]
fn the_log_level_is_obeyed() {
    let sandbox = Sandbox::new();
    for (level, lines) in [
        ("none", 0),
        ("fatal", 0),
        ("warn", 0),
        ("info", 1),
        ("", 1),
        ("nonsense", 1),
        ("debug", 1),
    ] {
        let fake = answer("200 OK", SIDECAR);
        let stdin = config("1.0.0", fake.run_dir(), "")
            .replace(r#""plugin_log_level":"debug""#, &format!(r#""plugin_log_level":"{level}""#));
        let outcome = Call::new("ADD", &sandbox.path(), stdin).run();
        outcome.success();
        assert_eq!(outcome.stderr.lines().count(), lines, "{level}: {}", outcome.stderr);
    }
}
