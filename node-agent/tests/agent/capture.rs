//! Pods that are captured, and what is kept of them.

use crate::lab::Lab;
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use sys::netns::within;
use wire::code;
use wire::http;
use wire::request::Endpoint;

#[test]
fn a_sidecar_is_captured_proved_and_recorded() {
    for backend in ["nftables", "iptables"] {
        let lab = Lab::with_agent(&["--backend", backend]);
        lab.sidecar("web", &[], &[]);
        let pod = lab.pod("web");
        assert_eq!(lab.del(&pod).decision(), ("done", "not known"), "DEL before ADD");
        let answer = lab.add(&pod);
        let (decision, reason) = answer.decision();
        assert_eq!(decision, "sidecar");
        assert_eq!(
            reason,
            format!(
                "outbound IPv4: proved (192.0.2.1:15002); loopback IPv4: proved (127.0.0.6:15002); inbound IPv4: proved ({}:15002)",
                pod.address
            )
        );
        let record: Value =
            serde_json::from_slice(&std::fs::read(lab.record(&pod)).unwrap()).unwrap();
        assert_eq!(record["pod"], json!({"namespace": "demo", "name": "web", "uid": null}));
        assert_eq!(record["netns"]["ino"], pod.ns.id().ino);
        assert_eq!((&record["backend"], &record["interface"]), (&json!(backend), &json!("eth0")));
        let mode = std::fs::metadata(lab.record(&pod)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        assert_eq!(lab.check(&pod).decision().0, "sidecar");
        let before = pod.nft();
        assert_eq!(lab.add(&pod).decision().0, "sidecar", "twice");
        assert_eq!(pod.nft(), before);
        assert!(lab.log().contains("applied=unchanged"), "{}", lab.log());

        assert_eq!(lab.del(&pod).decision(), ("done", "removed"));
        assert!(lab.records().is_empty());
        assert_eq!(lab.del(&pod).decision(), ("done", "not known"));
    }
}

#[test]
fn both_families_are_proved_in_both_modes() {
    let lab = Lab::with_agent(&[]);
    for (name, mode) in [("r", "REDIRECT"), ("t", "TPROXY")] {
        lab.sidecar(
            name,
            &[("sidecar.istio.io/interceptionMode", mode)],
            &[("ISTIO_DUAL_STACK", "true"), ("ISTIO_META_DNS_CAPTURE", "true")],
        );
        let pod = lab.dual_pod(name);
        for round in 0..2 {
            let answer = lab.add(&pod);
            let (_, reason) = answer.decision();
            assert_eq!(reason.matches("proved (").count(), 6, "{mode} {round}: {reason}");
            assert!(!reason.contains("not "), "{reason}");
        }
        assert_eq!(lab.check(&pod).decision().0, "sidecar");
    }
}

#[test]
fn what_the_plan_does_not_capture_is_said() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar(
        "p",
        &[
            ("traffic.sidecar.istio.io/includeInboundPorts", ""),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", ""),
        ],
        &[],
    );
    let answer = lab.add(&lab.pod("p"));
    let reason = answer.decision().1;
    assert!(reason.contains("outbound IPv4: not captured by the plan"), "{reason}");
    assert!(reason.contains("inbound IPv4: not captured by the plan"), "{reason}");
    assert!(reason.contains("loopback IPv4: proved"), "{reason}");

    lab.sidecar("q", &[("traffic.sidecar.istio.io/includeInboundPorts", "8080")], &[]);
    let answer = lab.add(&lab.pod("q"));
    assert!(answer.decision().1.contains(":8080)"), "{answer:?}");
}

#[test]
fn a_pod_without_a_default_route_is_proved_by_a_neighbour() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    crate::lab::run(&pod.ns, "ip", &["route", "del", "default"], "");
    let answer = lab.add(&pod);
    let reason = answer.decision().1;
    assert!(reason.contains("outbound IPv4: proved (10.9."), "{reason}");
}

#[test]
fn a_node_that_cannot_reach_the_pod_proves_nothing_and_says_so() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    crate::lab::run(&lab.host, "ip", &["link", "set", "v1", "down"], "");
    let answer = lab.add(&pod);
    let reason = answer.decision().1;
    assert!(reason.contains("inbound IPv4: not proved (node to"), "{reason}");
}

#[test]
fn a_policy_that_refuses_the_node_is_not_the_pods_refusal() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    let reject = "table inet other { chain out { type filter hook output priority 0; oifname \"v1\" meta l4proto tcp reject with tcp reset; }\n }";
    crate::lab::run(&lab.host, "nft", &["-f", "-"], reject);
    let answer = lab.add(&pod);
    let reason = answer.decision().1;
    assert!(reason.contains("refused on the way, not by the pod"), "{reason}");
}

#[test]
fn check_says_what_is_missing() {
    let lab = Lab::with_agent(&["--audit-on-change=false", "--audit-seconds=3600"]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    lab.add(&pod).decision();
    pod.load("flush chain inet istio-proxy-nat istio-output");
    let answer = lab.check(&pod);
    assert!(answer.failure(code::RULES_MISSING).contains("istio-output"), "{answer:?}");
    // The manifest's change afterwards is not the sandbox's.
    lab.add(&pod).decision();
    lab.sidecar("p", &[("sidecar.istio.io/interceptionMode", "TPROXY")], &[]);
    std::thread::sleep(Duration::from_millis(50));
    lab.check(&pod).decision();
    std::fs::remove_file(lab.pods_dir().join("p.yaml")).unwrap();
    lab.check(&pod).decision();
}

#[test]
fn pods_outside_the_mesh_are_left_alone() {
    let lab = Lab::with_agent(&[]);
    lab.manifest(
        "p",
        "kind: Pod\nmetadata: {name: p, namespace: demo}\nspec: {containers: [{name: app}]}\n",
    );
    let pod = lab.pod("p");
    let answer = lab.add(&pod);
    assert_eq!(answer.decision(), ("skip", "the pod has no istio-proxy container"));
    assert_eq!(pod.nft(), "");
    assert!(lab.records().is_empty());
    assert_eq!(lab.check(&pod).decision().0, "skip");
    // One that cannot be decided for is not guessed.
    lab.sidecar("none", &[("sidecar.istio.io/interceptionMode", "NONE")], &[]);
    assert_eq!(lab.add(&lab.pod("none")).decision().0, "skip");
}

#[test]
fn rules_of_istio_are_recognised_and_other_ones_replaced() {
    let lab = Lab::with_agent(&[]);
    let plugin = |dialect: &str| {
        #[expect(clippy::disallowed_methods, reason = "the program under test")]
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["rules", "--pod", "-", "--compat", "istio", "--format", dialect])
            .stdin(std::fs::File::open(lab.pods_dir().join("p.yaml")).unwrap())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    lab.sidecar("p", &[], &[]);
    let rules = plugin("nft");
    let pod = lab.pod("p");
    pod.load(&rules);
    let before = pod.nft();
    lab.add(&pod).decision();
    assert_eq!(pod.nft(), before);
    assert!(!pod.nft().contains("syn"), "Istio's own rules are left: {}", pod.nft());

    let rules = plugin("iptables");
    let pod = lab.pod("p");
    crate::lab::run(&pod.ns, "iptables-nft-restore", &["--noflush"], &rules);
    lab.add(&pod).decision();
    assert!(!pod.nft().contains("istio-proxy-nat"), "{}", pod.nft());
    assert!(lab.log().contains("backend=iptables"), "{}", lab.log());
    lab.check(&pod).decision();

    // Istio's rules of another plan.
    let pod = lab.pod("p");
    crate::lab::run(&pod.ns, "iptables-nft-restore", &["--noflush"], &rules);
    crate::lab::run(&pod.ns, "iptables-nft", &["-t", "nat", "-F", "ISTIO_INBOUND"], "");
    lab.add(&pod).decision();
    assert!(pod.nft().contains("istio-proxy-nat"), "{}", pod.nft());
    assert!(!pod.nft().contains("ISTIO_"), "{}", pod.nft());
    lab.check(&pod).decision();
}

#[test]
fn an_old_plugin_of_istio_is_served_by_path() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.ns.as_fd().as_raw_fd());
    let body = json!({"Netns": path, "PodName": "p", "PodNamespace": "demo",
        "IPs": [{"Interface": 0, "Address": {"IP": pod.address, "Mask": "////AA=="}, "Gateway": ""}]});
    let body = body.to_string();
    let text = format!(
        "POST /cmdadd HTTP/1.1\r\nHost: unix\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(lab.raw(text.as_bytes(), None).decision().0, "sidecar");
    assert!(lab.records().is_empty());
    let lie = json!({"Netns": "/dev/null", "PodName": "p", "PodNamespace": "demo", "IPs": null});
    lab.ask(Endpoint::Add, &lie, None).failure(code::INVALID_NETNS);
    let fifo = lab.run_dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let lie = json!({"Netns": fifo, "PodName": "p", "PodNamespace": "demo", "IPs": null});
    let answer = lab.raw(&http::request(Endpoint::Add, lie.to_string().as_bytes()), None);
    answer.failure(code::INVALID_NETNS);
}

/// CRI-O names the sandboxes of one network; a pod of the network's former name runs on.
#[test]
fn a_sandbox_that_somebody_is_in_is_not_forgotten_by_gc() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let (busy, idle) = (lab.pod("p"), lab.pod("p"));
    lab.add(&busy).decision();
    lab.add(&idle).decision();
    let mut process = within(&busy.ns, || {
        #[expect(clippy::disallowed_methods, reason = "a pod's own process")]
        Command::new("sleep").arg("600").spawn().unwrap()
    })
    .unwrap();
    let gc = || {
        let body = json!({"Sluice": {"Version": 1}, "Attachments": []});
        lab.ask(Endpoint::Gc, &body, None).decision().1.to_owned()
    };
    let removed = gc();
    let left = lab.records();
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!((removed.as_str(), left), ("removed 1", vec![format!("{}.json", busy.id)]));
    assert_eq!(gc(), "removed 1");
    assert!(lab.records().is_empty());
}
