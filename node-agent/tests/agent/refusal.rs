//! Requests that are refused, each with its code, and nothing done.

use crate::lab::{Answer, Lab, run};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use wire::code;
use wire::http;
use wire::request::{Endpoint, MAX_BODY};

/// Where the helper below finds the socket.
const SOCKET: &str = "SLUICE_TEST_SOCKET";

/// Not a test: what another user runs.
#[test]
#[ignore = "run by a_stranger_is_closed_before_a_byte_is_read, as another user"]
fn stranger() {
    #[expect(clippy::disallowed_methods, reason = "the argument of this helper")]
    let Ok(path) = std::env::var(SOCKET) else { return };
    let mut stream = UnixStream::connect(path).unwrap();
    let _ = stream.write_all(&http::request(Endpoint::Status, b"{}"));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_stranger_is_closed_before_a_byte_is_read() {
    let lab = Lab::with_agent(&[]);
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&lab.run_dir()), mode(&lab.socket())), (0o700, 0o600));
    // Each socket that is bound makes the directory private again: it answers after all.
    assert_eq!(lab.ask(Endpoint::Status, &json!({}), None).status, 200);
    // The modes keep strangers out; this is about the second line.
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(lab.run_dir().parent().unwrap(), 0o755);
    open(&lab.run_dir(), 0o755);
    open(&lab.socket(), 0o666);
    #[expect(clippy::disallowed_methods, reason = "this test as another user")]
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "refusal::stranger", "--ignored", "--nocapture"])
        .env(SOCKET, lab.socket())
        .uid(1000)
        .gid(1000)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert!(lab.log().contains("not root"), "{}", lab.log());
    assert_eq!(lab.ask(Endpoint::Status, &json!({}), None).status, 200);
}

#[test]
fn bytes_that_are_no_request() {
    let lab = Lab::with_agent(&[]);
    assert_eq!(lab.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01", None).status, 400);
    assert_eq!(lab.raw(b"GET /status HTTP/1.1\r\n\r\n", None).status, 405);
    assert_eq!(lab.raw(b"POST /../cmdadd HTTP/1.1\r\n\r\n", None).status, 404);
    assert_eq!(lab.raw(&[b'x'; 100_000], None).status, 431);
    let head = format!("POST /cmdadd HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(70_000));
    assert_eq!(lab.raw(head.as_bytes(), None).status, 431);
    let large = format!("POST /cmdadd HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    assert_eq!(lab.raw(large.as_bytes(), None).status, 413);
    for body in
        ["", "{", "[]", "null", "{\"PodName\":5}", "{\"Sluice\":{\"Version\":\"x\"}}", "\u{0}"]
    {
        let answer = lab.raw(&http::request(Endpoint::Add, body.as_bytes()), None);
        answer.failure(code::DECODING_FAILURE);
    }
    let deep = "[".repeat(100_000);
    lab.raw(&http::request(Endpoint::Add, deep.as_bytes()), None).failure(code::DECODING_FAILURE);
    // Half a request, then silence: told after two seconds, and nobody else waits.
    let mut slow: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(lab.socket()).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /cmdadd HTTP/1.1\r\nContent-").unwrap();
    }
    let answer = lab.ask(Endpoint::Status, &json!({}), None);
    assert!(answer.took < Duration::from_secs(20), "{answer:?}");
    let mut text = String::new();
    slow[0].read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    // Gone in the middle.
    let mut gone = UnixStream::connect(lab.socket()).unwrap();
    gone.write_all(b"POST /cmdadd HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").unwrap();
    drop(gone);
    assert_eq!(lab.ask(Endpoint::Status, &json!({}), None).status, 200);
}

#[test]
fn more_requests_than_there_is_room_for() {
    let lab = Lab::with_agent(&[]);
    let waiting: Vec<UnixStream> =
        (0..256).map(|_| UnixStream::connect(lab.socket()).unwrap()).collect();
    for mut stream in &waiting {
        stream.write_all(b"P").unwrap();
    }
    // Until it has accepted them all; and then until it has seen that they are gone.
    let end = Instant::now() + Duration::from_secs(60);
    let ask_until = |status| loop {
        let answer = lab.ask(Endpoint::Status, &json!({}), None);
        if answer.status == status {
            return answer;
        }
        assert!(Instant::now() < end, "{answer:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    ask_until(503).failure(code::AGENT_OVERLOADED);
    drop(waiting);
    ask_until(200);
}

#[test]
fn namespaces_that_are_no_pods() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    let null = File::open("/dev/null").unwrap();
    let uts = File::open("/proc/self/ns/uts").unwrap();
    for (fd, what) in [
        (Some(null.as_fd()), "no namespace"),
        (Some(uts.as_fd()), "uts"),
        (Some(lab.host.as_fd()), "host's own"),
        (None, "none"),
    ] {
        let answer = lab.ask(Endpoint::Add, &pod.request(), fd);
        assert!(answer.failure(code::INVALID_NETNS).contains(what), "{what}: {answer:?}");
        lab.ask(Endpoint::Check, &pod.request(), fd).failure(code::INVALID_NETNS);
    }
    let mut nothing = pod.request();
    nothing["Netns"] = json!("");
    lab.ask(Endpoint::Add, &nothing, None).failure(code::INVALID_NETNS);
    assert_eq!(run(&lab.host, "nft", &["list", "ruleset"], ""), "");
    assert_eq!(pod.nft(), "");
    assert!(lab.records().is_empty());
}

#[test]
fn names_that_would_leave_the_directory() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    for id in ["", "../../x", "a/b", ".", "..", ".new-1-1", "a\u{0}b", &"x".repeat(300)] {
        let mut request = pod.request();
        request["Sluice"]["ContainerID"] = json!(id);
        for endpoint in [Endpoint::Add, Endpoint::Check, Endpoint::Del] {
            lab.ask(endpoint, &request, Some(pod.ns.as_fd())).failure(code::INVALID_ENVIRONMENT);
        }
    }
    assert!(lab.records().is_empty());
}

#[test]
fn a_pod_that_nobody_described() {
    let lab = Lab::with_agent(&[]);
    let pod = lab.pod("ghost");
    let answer = lab.add(&pod);
    assert!(answer.failure(code::UNKNOWN_POD).contains("demo/ghost"), "{answer:?}");
    assert!(answer.took >= Duration::from_millis(900), "{answer:?}");
    let mut hurried = pod.request();
    hurried["Sluice"]["DeadlineMs"] = json!(200);
    let answer = lab.ask(Endpoint::Add, &hurried, Some(pod.ns.as_fd()));
    assert_ne!(answer.status, 200, "{answer:?}");
    assert_eq!(pod.nft(), "");

    // Comes late, is found.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.add(&pod));
        std::thread::sleep(Duration::from_millis(100));
        lab.sidecar("ghost", &[], &[]);
        let answer = waiting.join().unwrap();
        assert_eq!(answer.decision().0, "sidecar");
    });
}

/// A Pod manifest without a sidecar, or with one.
fn manifest(name: &str, injected: bool) -> String {
    let annotations = if injected { json!({"sidecar.istio.io/status": "{}"}) } else { json!({}) };
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": "demo", "annotations": annotations},
        "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}})
    .to_string()
}

#[test]
fn no_pod_passes_by_a_view_that_is_behind() {
    let lab = Lab::with_agent(&[]);
    let pod = lab.pod("p");

    // The target of a link is written in place, of which no message tells.
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("p.yaml");
    std::fs::write(&target, manifest("p", false)).unwrap();
    std::os::unix::fs::symlink(&target, lab.pods_dir().join("p.yaml")).unwrap();
    assert_eq!(lab.add(&pod).decision().0, "skip");
    std::fs::write(&target, manifest("p", true)).unwrap();
    assert_eq!(lab.add(&pod).decision().0, "sidecar");

    // Broken by now: enough to capture, not to let pass.
    for (name, injected) in [("meshed", true), ("plain", false)] {
        let pod = lab.pod(name);
        lab.manifest(name, &manifest(name, injected));
        let decision = if injected { "sidecar" } else { "skip" };
        assert_eq!(lab.add(&pod).decision().0, decision);
        lab.manifest(name, "kind: Pod\nmetadata: {name: [");
        if injected {
            assert_eq!(lab.add(&pod).decision().0, "sidecar");
        } else {
            let text = lab.add(&pod).failure(code::UNKNOWN_POD).to_owned();
            assert!(text.contains("could be read last"), "{text}");
        }
    }

    // The runtime knows better.
    let pod = lab.pod("stale");
    lab.manifest("stale", &manifest("stale", false));
    assert_eq!(lab.add(&pod).decision().0, "skip");
    let mut request = pod.request();
    request["Sluice"]["PodAnnotations"] = json!({"sidecar.istio.io/status": "{}"});
    let answer = lab.ask(Endpoint::Add, &request, Some(pod.ns.as_fd()));
    let text = answer.failure(code::UNKNOWN_POD);
    assert!(text.contains("by its annotations"), "{text}");
    // And its word alone lets nothing pass that has no manifest.
    let pod = lab.pod("nobody");
    let mut request = pod.request();
    request["Sluice"]["PodAnnotations"] = json!({"a": "b"});
    let answer = lab.ask(Endpoint::Add, &request, Some(pod.ns.as_fd()));
    answer.failure(code::UNKNOWN_POD);
}

#[test]
fn annotations_that_mean_nothing_or_too_much() {
    let lab = Lab::with_agent(&[]);
    let pod = lab.pod("p");
    let key = "traffic.sidecar.istio.io/";
    for (name, value) in [
        ("excludeInterfaces", "eth0; reboot"),
        ("excludeInterfaces", "$(touch /tmp/x)"),
        ("excludeInterfaces", "eth0\" accept; add table inet evil; #"),
        ("excludeInterfaces", "-j"),
        ("excludeInboundPorts", "80 -j ACCEPT"),
        ("excludeInboundPorts", "80\n-A PREROUTING -j ACCEPT"),
        ("excludeOutboundPorts", "*"),
        ("includeOutboundIPRanges", "0.0.0.0/0,`id`"),
        ("excludeOutboundIPRanges", "10.0.0.0/8 } ; flush ruleset"),
        ("kubevirtInterfaces", "a,,b"),
    ] {
        lab.sidecar("p", &[(&format!("{key}{name}"), value)], &[]);
        let named = |answer: &Answer| answer.failure(code::INVALID_ANNOTATION).contains(name);
        lab.add_until(&pod, name, named);
        assert_eq!(pod.nft(), "", "{name} {value}");
    }
    lab.sidecar("p", &[("sidecar.istio.io/interceptionMode", "redirect")], &[]);
    let named =
        |answer: &Answer| answer.failure(code::INVALID_ANNOTATION).contains("interceptionMode");
    lab.add_until(&pod, "interceptionMode", named);
    assert!(lab.records().is_empty());
}

#[test]
fn a_pod_without_an_address() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.bare_pod("p");
    let answer = lab.add(&pod);
    assert!(answer.failure(code::INVALID_NETWORK_CONFIG).contains("no valid local IP address"));
    assert_eq!(pod.nft(), "");
}

#[test]
fn ambient_pods_are_not_started_uncaptured() {
    let lab = Lab::with_agent(&["--ambient-enabled", "true"]);
    lab.manifest(
        "p",
        "kind: Pod\nmetadata: {name: p, namespace: demo}\nspec: {containers: [{name: app}]}\n",
    );
    let pod = lab.pod("p");
    let answer = lab.add(&pod);
    assert!(answer.failure(code::UNKNOWN_POD).contains("namespace demo"), "{answer:?}");
    lab.manifest(
        "ns",
        "kind: Namespace\nmetadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}\n",
    );
    let no_ztunnel = |answer: &Answer| answer.body["code"] == code::ZTUNNEL_NOT_CONNECTED;
    lab.add_until(&pod, "ambient", no_ztunnel);
    lab.manifest("ns", "kind: Namespace\nmetadata: {name: demo}\n");
    let skipped = |answer: &Answer| answer.body["decision"] == "skip";
    lab.add_until(&pod, "not ambient any more", skipped);
}

#[test]
fn rules_that_do_not_capture_fail_the_add() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let hook = |point: &str, rule: &str| {
        format!(
            "table inet other {{ chain c {{ type filter hook {point} priority -400; {rule}; }}\n }}"
        )
    };
    for (script, way) in [
        (hook("output", "ip daddr 192.0.2.1 drop"), "outbound"),
        (hook("output", "ip daddr 127.0.0.6 drop"), "loopback"),
        (hook("input", "iifname \"eth0\" tcp dport 15006 reject with tcp reset"), "inbound"),
        (
            "table ip other { chain c { type nat hook output priority -150; ip daddr 192.0.2.1 dnat to 10.9.9.9; }\n }".to_owned(),
            "outbound",
        ),
    ] {
        let pod = lab.pod("p");
        pod.load(&script);
        let answer = lab.add(&pod);
        let msg = answer.failure(code::CAPTURE_NOT_PROVED);
        assert!(msg.contains(way), "{script}: {msg}");
        assert!(pod.nft().contains("istio-proxy-nat"), "captured or not started: rules stay");
        assert!(!lab.record(&pod).exists());
    }
}

#[test]
fn gc_forgets_what_the_runtime_does_not_list() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let (kept, gone) = (lab.pod("p"), lab.pod("p"));
    lab.add(&kept).decision();
    lab.add(&gone).decision();
    let ask = |attachments: Value| {
        lab.ask(Endpoint::Gc, &json!({"Sluice": {"Version": 1}, "Attachments": attachments}), None)
    };
    ask(Value::Null).decision();
    assert_eq!(lab.records().len(), 2);
    ask(json!([{"ContainerID": kept.id, "IfName": "eth0"}])).decision();
    assert_eq!(lab.records(), [format!("{}.json", kept.id)]);
    assert!(gone.nft().contains("istio-proxy-nat"), "its rules go with its namespace");
}

/// With Multus the chain runs for each interface of a sandbox: one that goes takes
/// nothing of the others along.
#[test]
fn a_sandbox_is_forgotten_with_its_last_interface() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    let call = |endpoint, interface: &str| {
        let mut request = pod.request();
        request["Sluice"]["IfName"] = json!(interface);
        let fd = (endpoint != Endpoint::Del).then(|| pod.ns.as_fd());
        lab.ask(endpoint, &request, fd)
    };
    let record =
        || -> Value { serde_json::from_slice(&std::fs::read(lab.record(&pod)).unwrap()).unwrap() };
    call(Endpoint::Add, "eth0").decision();
    run(&pod.ns, "ip", &["link", "add", "net1", "type", "veth", "peer", "name", "other"], "");
    call(Endpoint::Add, "net1").decision();
    assert_eq!(record()["interfaces"], json!(["eth0", "net1"]));
    assert_eq!(record()["interface"], "eth0");
    assert_eq!(call(Endpoint::Del, "net1").decision().1, "the sandbox has other interfaces");
    assert_eq!(record()["interfaces"], json!(["eth0"]));
    call(Endpoint::Check, "eth0").decision();

    call(Endpoint::Add, "net1").decision();
    let gc = |live: &[&str]| {
        let attachments: Vec<Value> =
            live.iter().map(|name| json!({"ContainerID": pod.id, "IfName": name})).collect();
        let body = json!({"Sluice": {"Version": 1}, "Attachments": attachments});
        lab.ask(Endpoint::Gc, &body, None).decision().1.to_owned()
    };
    assert_eq!(gc(&["eth0", "net1"]), "removed 0");
    assert_eq!(gc(&["eth0"]), "removed 0");
    assert_eq!(record()["interfaces"], json!(["eth0"]));
    assert_eq!(gc(&["net1"]), "removed 1", "the sandbox has eth0 only");
    assert!(!lab.record(&pod).exists());

    call(Endpoint::Add, "eth0").decision();
    assert_eq!(call(Endpoint::Del, "eth0").decision().1, "removed");
    assert_eq!(call(Endpoint::Del, "eth0").decision().1, "not known");
}
