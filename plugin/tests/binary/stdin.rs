//! Configurations that are none.

use std::time::Duration;

use wire::cni::MAX_STDIN;
use wire::code;

use crate::stand::{Call, Sandbox, answer, config};

fn add(stdin: impl Into<Vec<u8>>) -> crate::stand::Outcome {
    Call::new("ADD", "/nonexistent", stdin).run()
}

#[test]
fn what_cannot_be_decoded() {
    let good = config("1.0.0", "/nonexistent", "");
    let cut = &good[..good.len() / 2];
    let cases: [(&str, Vec<u8>); 17] = [
        ("empty", Vec::new()),
        ("blank", b" \n\t ".to_vec()),
        ("truncated", cut.into()),
        ("no JSON", b"cniVersion: 1.0.0".to_vec()),
        ("trailing garbage", format!("{good} x").into()),
        ("two objects", format!("{good}{good}").into()),
        ("an array", format!("[{good}]").into()),
        ("an array in the order of fields", br#"["1.0.0","mesh"]"#.to_vec()),
        ("a string", b"\"1.0.0\"".to_vec()),
        ("null", b"null".to_vec()),
        ("a byte order mark", [b"\xef\xbb\xbf", good.as_bytes()].concat()),
        ("not UTF-8 in a known key", b"{\"name\":\"\xff\"}".to_vec()),
        (
            "not UTF-8 in an unknown key",
            b"{\"cniVersion\":\"1.0.0\",\"name\":\"mesh\",\"x\":\"\xff\"}".to_vec(),
        ),
        ("a known key twice", config("1.0.0", "/x", r#","name":"other""#).into()),
        ("prevResult twice", config("1.0.0", "/x", r#","prevResult":{},"prevResult":{}"#).into()),
        ("a version that is a number", br#"{"cniVersion":1,"name":"mesh"}"#.to_vec()),
        (
            "namespaces that are no list",
            config("1.0.0", "/x", "").replace(r#"["kube-system"]"#, "\"a\"").into(),
        ),
    ];
    for (what, stdin) in cases {
        let (msg, _) = add(stdin).failure(code::DECODING_FAILURE);
        assert!(msg.starts_with("decode the network configuration on stdin"), "{what}: {msg}");
    }
}

#[test]
fn a_configuration_that_does_not_end_is_cut_off() {
    let mut stdin = config("1.0.0", "/x", ",\"pad\":\"").into_bytes();
    stdin.resize(MAX_STDIN + (1 << 20), b'x');
    let (msg, _) = add(stdin).failure(code::DECODING_FAILURE);
    assert!(msg.contains("longer than 4194304 bytes"), "{msg}");
}

#[test]
fn a_pipe_that_is_not_closed_is_given_up() {
    let outcome =
        Call::new("ADD", "/nonexistent", config("1.0.0", "/x", "")).with_open_stdin().run();
    let (msg, _) = outcome.failure(code::IO_FAILURE);
    assert!(msg.contains("not closed within 4.5s"), "{msg}");
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
}

#[test]
fn prev_result_has_to_be_an_object() {
    let sandbox = Sandbox::new();
    for value in ["\"{}\"", "[]", "1", "true", "[{}]"] {
        let stdin = config("1.0.0", "/nonexistent", &format!(",\"prevResult\":{value}"));
        for (netns, args) in
            [(sandbox.path(), "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b"), (sandbox.path(), "")]
        {
            let outcome = Call::new("ADD", &netns, stdin.clone()).set("CNI_ARGS", args).run();
            let (msg, _) = outcome.failure(code::DECODING_FAILURE);
            assert!(msg.contains("prevResult"), "{value}: {msg}");
        }
    }
    for broken in ["{", "{\"a\":}", "nonsense", "{\"a\":01}"] {
        let outcome = add(config("1.0.0", "/nonexistent", &format!(",\"prevResult\":{broken}")));
        outcome.failure(code::DECODING_FAILURE);
    }
}

#[test]
fn addresses_that_are_none_are_refused() {
    let sandbox = Sandbox::new();
    for ips in [
        "7",
        "{}",
        "[7]",
        "[{}]",
        r#"[{"address":7}]"#,
        r#"[{"address":""}]"#,
        r#"[{"address":"10.0.0.5"}]"#,
        r#"[{"address":"10.0.0.5/33"}]"#,
        r#"[{"address":"fd00::1/129"}]"#,
        r#"[{"address":"10.0.0.5/24","interface":"eth0"}]"#,
        r#"[{"address":"10.0.0.5/24","interface":1e400}]"#,
    ] {
        let fake = answer("200 OK", r#"{"decision":"skip"}"#);
        let stdin = config("1.0.0", fake.run_dir(), &format!(",\"prevResult\":{{\"ips\":{ips}}}"));
        let (msg, _) =
            Call::new("ADD", &sandbox.path(), stdin).run().failure(code::DECODING_FAILURE);
        assert!(msg.starts_with("decode prevResult"), "{ips}: {msg}");
        fake.unasked();
    }
}

#[test]
fn names_are_checked() {
    for (name, cause) in
        [("", "has no name"), ("-a", "\"-a\""), ("a b", "\"a b\""), ("../x", "\"../x\"")]
    {
        let stdin = config("1.0.0", "/x", "").replace("\"mesh\"", &format!("\"{name}\""));
        let (msg, _) = add(stdin).failure(code::INVALID_NETWORK_CONFIG);
        assert!(msg.contains(cause), "{msg}");
    }
    let (msg, _) = add(r#"{"cniVersion":"1.0.0"}"#).failure(code::INVALID_NETWORK_CONFIG);
    assert!(msg.contains("has no name"), "{msg}");
}

#[test]
fn versions_are_negotiated() {
    for version in
        ["0.1.0", "0.2.0", "0.5.0", "1.2.0", "2.0.0", "1.0", "v1.0.0", "1.0.0 ", "latest"]
    {
        let (msg, details) = add(config(version, "/x", "")).failure(code::INCOMPATIBLE_VERSION);
        assert!(msg.contains(version) && details.contains("1.1.0"), "{msg}: {details}");
    }
    for absent in [
        r#"{"name":"mesh"}"#,
        r#"{"name":"mesh","cniVersion":""}"#,
        r#"{"name":"mesh","cniVersion":null}"#,
    ] {
        let (msg, _) = add(absent).failure(code::INCOMPATIBLE_VERSION);
        assert!(msg.contains("0.1.0"), "what absent means: {msg}");
    }
    for (command, version) in
        [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0"), ("GC", "0.4.0")]
    {
        let outcome = Call::new(command, "/nonexistent", config(version, "/x", "")).run();
        let (msg, _) = outcome.failure(code::INCOMPATIBLE_VERSION);
        assert!(msg.contains(command) && msg.contains(version), "{msg}");
    }
}

#[test]
fn an_error_has_the_version_of_its_configuration() {
    for (version, printed) in [("0.3.1", "0.3.1"), ("1.0.0", "1.0.0"), ("9.9.9", "1.1.0")] {
        let outcome = Call::new("ADD", "/nonexistent", config(version, "/x", "")).run();
        let object: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(object["cniVersion"], printed);
    }
}

#[test]
fn unknown_keys_are_ignored() {
    let more = r#","kubernetes":{"kubeconfig":"/x"},"runtimeConfig":null,"capabilities":{"x":true},"n":1e400,"d":1,"d":2"#;
    let outcome =
        Call::new("ADD", "/nonexistent", config("1.0.0", "/x", more)).set("CNI_ARGS", "").run();
    outcome.success();
}
