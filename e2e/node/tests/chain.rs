//! The chain that a container runtime runs: the real `bridge` and `host-local`,
//! then ours, with the real agent. What counts is who accepts packets.

#![expect(clippy::unwrap_used, reason = "a test")]

use e2e_node::agent::{Agent, plain_pod, sidecar_pod};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod, attempt};
use e2e_node::lab::node::{OUTSIDE_V4, OUTSIDE_V6, RESOLVER_V4, RESOLVER_V6};
use e2e_node::packet::{Fate, Transport};
use e2e_node::process::{Identity, Running};
use e2e_node::runtime::{Attachment, CniError, Conflist, cni_error};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};

const BACKENDS: [&str; 2] = ["nftables", "iptables"];

/// What one pod's traffic must do: who accepts, and at which port.
struct Expectation {
    inside: bool,
    transport: Transport,
    who: Identity,
    to: SocketAddr,
    by: &'static str,
    port: u16,
}

fn out(
    transport: Transport,
    to: impl Into<IpAddr>,
    port: u16,
    by: &'static str,
    at: u16,
) -> Expectation {
    Expectation {
        inside: true,
        transport,
        who: Identity::APP,
        to: SocketAddr::new(to.into(), port),
        by,
        port: at,
    }
}

fn into(to: IpAddr, port: u16, by: &'static str, at: u16) -> Expectation {
    Expectation { inside: false, ..out(Transport::Tcp, to, port, by, at) }
}

fn assert_fates(cluster: &Cluster, pod: &Pod, expectations: Vec<Expectation>) {
    for inside in [true, false] {
        let mine = expectations.iter().filter(|each| each.inside == inside);
        let mine: Vec<_> = mine.collect();
        let attempts: Vec<_> =
            mine.iter().map(|each| attempt(each.transport, each.who, each.to)).collect();
        let from = if inside { &pod.sandbox } else { &cluster.node.world };
        let fates = cluster.send(from, &attempts).unwrap();
        for (each, attempt) in mine.iter().zip(&attempts) {
            let (fate, label) = (&fates[&attempt.label], &attempt.label);
            let by = (each.by, each.port);
            assert!(fate.is_by(each.by, each.port), "{label}: {fate}, want {by:?}");
            if let Fate::Answered(answer) = fate
                && let Some(original) = answer.original
            {
                assert_eq!(original, each.to, "{label}: original destination");
            }
        }
    }
}

/// Proxy and application in the pod.
fn serve(cluster: &Cluster, pod: &Pod, transparent: bool) -> [Running; 2] {
    [
        pod.serve_proxy(&cluster.programs, transparent).unwrap(),
        pod.serve_app(&cluster.programs, &[8080, 9090, 15021]).unwrap(),
    ]
}

fn captured_v4(pod: &Pod) -> Vec<Expectation> {
    use Transport::{Tcp, Udp};
    let own = pod.address(false).unwrap();
    vec![
        out(Tcp, OUTSIDE_V4, 80, "proxy", 15001),
        out(Tcp, OUTSIDE_V4, 8443, "world", 8443),
        out(Udp, OUTSIDE_V4, 80, "world", 80),
        out(Tcp, [127, 0, 0, 1], 8080, "app", 8080),
        out(Tcp, own, 8080, "app", 8080),
        Expectation { who: Identity::PROXY, ..out(Tcp, OUTSIDE_V4, 80, "world", 80) },
        Expectation { who: Identity::PROXY, ..out(Tcp, own, 8080, "proxy", 15006) },
        into(own, 8080, "proxy", 15006),
        into(own, 9090, "app", 9090),
        into(own, 15021, "app", 15021),
    ]
}

fn captured_v6(pod: &Pod) -> Vec<Expectation> {
    let own = pod.address(true).unwrap();
    vec![
        out(Transport::Tcp, OUTSIDE_V6, 80, "proxy", 15001),
        out(Transport::Tcp, OUTSIDE_V6, 8443, "world", 8443),
        out(Transport::Tcp, own, 8080, "app", 8080),
        into(own, 8080, "proxy", 15006),
        into(own, 9090, "app", 9090),
    ]
}

fn captured_dns() -> Vec<Expectation> {
    use Transport::{Tcp, Udp};
    vec![
        out(Udp, RESOLVER_V4, 53, "proxy", 15053),
        out(Tcp, RESOLVER_V4, 53, "proxy", 15053),
        out(Udp, RESOLVER_V6, 53, "proxy", 15053),
        out(Tcp, RESOLVER_V6, 53, "proxy", 15053),
    ]
}

fn annotations(mode: &str) -> Value {
    json!({
        "sidecar.istio.io/interceptionMode": mode,
        "traffic.sidecar.istio.io/excludeOutboundPorts": "8443",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
    })
}

const DUAL: (&str, &str) = ("ISTIO_DUAL_STACK", "true");
const DNS: (&str, &str) = ("ISTIO_META_DNS_CAPTURE", "true");

/// A dual stack pod with DNS capture: everything is captured that should be, and
/// CHECK notices when it no longer is.
fn dual_stack(backend: &str, mode: &str) {
    let cluster = unaudited("chain", backend);
    let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
    let manifest = sidecar_pod(NAMESPACE, "dual", &annotations(mode), &[DUAL, DNS]);
    let pod = cluster.run_pod(&manifest).unwrap();
    let runtime = cluster.runtime();
    runtime.check(&cluster.list, &pod.attachment).unwrap();
    // Again, as a runtime does that lost the answer: nothing changes, nothing fails.
    again(&cluster, &pod).unwrap();
    runtime.check(&cluster.list, &pod.attachment).unwrap();

    let servers = serve(&cluster, &pod, mode == "TPROXY");
    assert_fates(&cluster, &pod, captured_v4(&pod));
    assert_fates(&cluster, &pod, captured_v6(&pod));
    assert_fates(&cluster, &pod, captured_dns());
    drop(servers);

    sabotage(&pod, backend);
    let err = runtime.check(&cluster.list, &pod.attachment).unwrap_err();
    assert_eq!(cni_error(&err).unwrap().code, 110, "{err:#}");
    // ADD repairs what CHECK found.
    again(&cluster, &pod).unwrap();
    runtime.check(&cluster.list, &pod.attachment).unwrap();
    let _servers = serve(&cluster, &pod, mode == "TPROXY");
    assert_fates(&cluster, &pod, captured_v4(&pod));
    assert_fates(&cluster, &pod, captured_v6(&pod));

    runtime.delete(&cluster.list, &pod.attachment).unwrap();
    // containerd's second DEL: the sandbox is gone, and so is the result.
    let mut late = pod.attachment.clone();
    late.netns.clear();
    runtime.delete(&cluster.list, &late).unwrap();
}

/// ADD of our plugin alone, with what `bridge` said before.
fn again(cluster: &Cluster, pod: &Pod) -> anyhow::Result<()> {
    again_at(cluster, pod, &pod.attachment)
}

/// The same for the sandbox that a runtime takes for the pod's.
fn again_at(cluster: &Cluster, pod: &Pod, at: &Attachment) -> anyhow::Result<()> {
    let ours = Conflist { plugins: vec![cluster.list.plugins[1].clone()], ..cluster.list.clone() };
    let mut config = serde_json::Map::from_iter(ours.plugins[0].config.clone());
    let previous: Value = serde_json::from_str(pod.added.as_ref().unwrap().last())?;
    config.insert("prevResult".to_owned(), previous);
    let ours = Conflist {
        name: "again".to_owned(),
        plugins: vec![e2e_node::runtime::Entry { kind: "istio-cni".to_owned(), config }],
        ..ours
    };
    cluster.runtime().add(&ours, at)?;
    Ok(())
}

/// A runtime that mixes two sandboxes up would have one pod's traffic go out under the
/// other's settings.
#[test]
fn another_pods_namespace_is_refused() {
    let cluster = Cluster::create("mixed-up", "nftables", &Network::default()).unwrap();
    let run = |name| cluster.run_pod(&sidecar_pod(NAMESPACE, name, &json!({}), &[])).unwrap();
    let (one, other) = (run("one"), run("other"));
    let rules = || one.sandbox.load(&["nft", "list", "ruleset"], "").unwrap();
    let before = rules();
    let mixed = Attachment { netns: one.attachment.netns.clone(), ..other.attachment.clone() };
    let error = again_at(&cluster, &other, &mixed).unwrap_err();
    let error = cni_error(&error).unwrap();
    assert_eq!(error.code, 105, "{error}");
    for pod in [&one, &other] {
        let address = pod.address(false).unwrap().to_string();
        assert!(error.msg.contains(&address), "{address}: {error}");
    }
    assert_eq!(rules(), before);
    again(&cluster, &other).unwrap();
}

/// A cluster in which what is taken away stays away.
fn unaudited(name: &str, backend: &str) -> Cluster {
    let mut cluster = Cluster::without_agent(name, &Network::default()).unwrap();
    let args = ["--backend", backend, "--audit-on-change=false", "--audit-seconds=3600"];
    let Cluster { programs, node, directories, .. } = &cluster;
    cluster.agent = Some(Agent::launch(programs, &node.host, directories, &args).unwrap());
    cluster
}

/// What a careless person or another program might do.
fn sabotage(pod: &Pod, backend: &str) {
    match backend {
        "nftables" => {
            let flush = "flush chain inet istio-proxy-nat istio-output\n";
            pod.sandbox.load(&["nft", "-f", "-"], flush).unwrap();
        }
        _ => {
            let flush = ["iptables", "-t", "nat", "-F", "ISTIO_OUTPUT"];
            pod.sandbox.load(&flush, "").unwrap();
        }
    }
}

/// Each thing that capture needs, taken away alone, is noticed by CHECK and put
/// back by ADD.
#[test]
fn check_notices_what_is_missing() {
    for backend in BACKENDS {
        let cluster = unaudited("check", backend);
        let manifest = sidecar_pod(NAMESPACE, "checked", &annotations("TPROXY"), &[DUAL, DNS]);
        let pod = cluster.run_pod(&manifest).unwrap();
        let check = || cluster.runtime().check(&cluster.list, &pod.attachment);
        check().unwrap();
        let first: &[&str] = match backend {
            "nftables" => &["nft", "insert rule inet istio-proxy-nat istio-output accept"],
            _ => &["iptables", "-t", "nat", "-I", "ISTIO_OUTPUT", "-j", "ACCEPT"],
        };
        let raw: &[&str] = match backend {
            "nftables" => &["nft", "delete table inet istio-proxy-raw"],
            _ => &["iptables", "-t", "raw", "-F", "ISTIO_OUTPUT_DNS"],
        };
        let v6: &[&str] = match backend {
            "nftables" => &["nft", "flush chain inet istio-proxy-nat istio-in-redirect"],
            _ => &["ip6tables", "-t", "nat", "-F", "ISTIO_IN_REDIRECT"],
        };
        for harm in [
            first,
            raw,
            v6,
            &["ip", "rule", "del", "fwmark", "1337", "lookup", "133"],
            &["ip", "-6", "rule", "del", "fwmark", "1337", "lookup", "133"],
            &["ip", "route", "flush", "table", "133"],
            &["ip", "-6", "route", "flush", "table", "133"],
            &["ip", "addr", "del", "::6/128", "dev", "lo"],
        ] {
            pod.sandbox.load(harm, "").unwrap();
            let Err(err) = check() else {
                panic!("{backend}: {harm:?} was not noticed");
            };
            assert_eq!(code(&err).code, 110, "{backend} {harm:?}: {err:#}");
            again(&cluster, &pod).unwrap();
            check().unwrap();
        }
    }
}

#[test]
fn dual_stack_redirect_nftables() {
    dual_stack("nftables", "REDIRECT");
}

#[test]
fn dual_stack_redirect_iptables() {
    dual_stack("iptables", "REDIRECT");
}

#[test]
fn dual_stack_tproxy_nftables() {
    dual_stack("nftables", "TPROXY");
}

#[test]
fn dual_stack_tproxy_iptables() {
    dual_stack("iptables", "TPROXY");
}

#[test]
fn ipv4_only() {
    for backend in BACKENDS {
        let network = Network { ipv6: false, ..Network::default() };
        let cluster = Cluster::create("v4", backend, &network).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let manifest = sidecar_pod(NAMESPACE, "four", &annotations("REDIRECT"), &[]);
        let pod = cluster.run_pod(&manifest).unwrap();
        let _servers = serve(&cluster, &pod, false);
        assert_fates(&cluster, &pod, captured_v4(&pod));
        // DNS was not asked for.
        let dns = [Transport::Udp, Transport::Tcp];
        let direct = out(dns[0], RESOLVER_V4, 53, "world", 53);
        let tcp = out(dns[1], RESOLVER_V4, 53, "proxy", 15001);
        assert_fates(&cluster, &pod, vec![direct, tcp]);
    }
}

#[test]
fn ipv6_only() {
    for backend in BACKENDS {
        let network = Network { ipv4: false, ..Network::default() };
        let cluster = Cluster::create("v6", backend, &network).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let manifest = sidecar_pod(NAMESPACE, "six", &annotations("REDIRECT"), &[DNS]);
        let pod = cluster.run_pod(&manifest).unwrap();
        let _servers = serve(&cluster, &pod, false);
        assert_fates(&cluster, &pod, captured_v6(&pod));
        let dns = out(Transport::Udp, RESOLVER_V6, 53, "proxy", 15053);
        assert_fates(&cluster, &pod, vec![dns]);
    }
}

/// The lab saves the second or two that addresses are tentative; here is one pod
/// for which they are.
#[test]
fn with_detection_of_duplicate_addresses() {
    let cluster = Cluster::create("dad", "nftables", &Network::default()).unwrap();
    let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
    let manifest = sidecar_pod(NAMESPACE, "slow", &annotations("REDIRECT"), &[DUAL]);
    let mut pod = cluster.sandbox(&manifest).unwrap();
    for interface in ["all", "default"] {
        pod.sandbox.sysctl(&format!("ipv6/conf/{interface}/accept_dad"), "1").unwrap();
    }
    cluster.attach(&mut pod).unwrap();
    let _servers = serve(&cluster, &pod, false);
    assert_fates(&cluster, &pod, captured_v4(&pod));
    assert_fates(&cluster, &pod, captured_v6(&pod));
}

#[test]
fn many_pods_at_once() {
    for backend in BACKENDS {
        let cluster = Cluster::create("many", backend, &Network::default()).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let names: Vec<_> = (0..8).map(|number| format!("many-{number}")).collect();
        let pods: Vec<Pod> = std::thread::scope(|scope| {
            let cluster = &cluster;
            let start = |name: &String| {
                let manifest = sidecar_pod(NAMESPACE, name, &annotations("REDIRECT"), &[DUAL]);
                scope.spawn(move || cluster.run_pod(&manifest).unwrap())
            };
            let started: Vec<_> = names.iter().map(start).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for pod in &pods {
            let _servers = serve(&cluster, pod, false);
            assert_fates(&cluster, pod, captured_v4(pod));
            assert_fates(&cluster, pod, captured_v6(pod));
        }
        assert_eq!(records(&cluster).len(), pods.len());
    }
}

/// A runtime that lost patience asks again while the first request still runs.
#[test]
fn four_adds_at_once_for_one_sandbox() {
    for backend in BACKENDS {
        let cluster = Cluster::create("twice", backend, &Network::default()).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let manifest = sidecar_pod(NAMESPACE, "twice", &annotations("TPROXY"), &[DUAL]);
        let mut pod = cluster.sandbox(&manifest).unwrap();
        cluster.runtime().delete(&cluster.list, &pod.attachment).unwrap();
        cluster.attach(&mut pod).unwrap();
        sabotage(&pod, backend);
        std::thread::scope(|scope| {
            let tries: Vec<_> = (0..4).map(|_| scope.spawn(|| again(&cluster, &pod))).collect();
            tries.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        let _servers = serve(&cluster, &pod, true);
        assert_fates(&cluster, &pod, captured_v4(&pod));
        assert_fates(&cluster, &pod, captured_v6(&pod));
        cluster.runtime().check(&cluster.list, &pod.attachment).unwrap();
        assert_eq!(records(&cluster).len(), 1);
    }
}

/// Killed at any moment of an ADD: it fails with a reason, or what it said holds,
/// and the next try in the same namespace succeeds.
#[test]
fn an_agent_killed_in_the_middle_of_an_add() {
    for backend in BACKENDS {
        let mut cluster = Cluster::create("middle", backend, &Network::default()).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let all = cluster.list.clone();
        let mut codes = Vec::new();
        for moment in 0..8 {
            let name = format!("middle-{moment}");
            let manifest = sidecar_pod(NAMESPACE, &name, &annotations("TPROXY"), &[DUAL]);
            cluster.list.plugins.truncate(1);
            let pod = cluster.run_pod(&manifest).unwrap();
            cluster.list.plugins.clone_from(&all.plugins);

            let agent = cluster.agent.take().unwrap();
            let first = std::thread::scope(|scope| {
                let first = scope.spawn(|| again(&cluster, &pod));
                std::thread::sleep(Duration::from_millis(moment * 4));
                agent.kill().unwrap();
                first.join().unwrap()
            });
            codes.push(first.as_ref().err().map(|err| code(err).code));
            cluster.start_agent(backend).unwrap();
            if first.is_err() {
                again(&cluster, &pod).unwrap();
            }
            let _servers = serve(&cluster, &pod, true);
            assert_fates(&cluster, &pod, captured_v4(&pod));
            assert_fates(&cluster, &pod, captured_v6(&pod));
            cluster.runtime().check(&all, &pod.attachment).unwrap();
        }
        println!("{backend}: first tries ended with {codes:?}");
        let expected = |code: &Option<u32>| matches!(code, None | Some(100..=102));
        assert!(codes.iter().all(expected), "{codes:?}");
    }
}

#[test]
fn a_pod_outside_of_the_mesh_is_left_alone() {
    for backend in BACKENDS {
        let cluster = Cluster::create("plain", backend, &Network::default()).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let pod = cluster.run_pod(&plain_pod(NAMESPACE, "plain")).unwrap();
        let _servers = serve(&cluster, &pod, false);
        let own = [pod.address(false).unwrap(), pod.address(true).unwrap()];
        assert_fates(
            &cluster,
            &pod,
            vec![
                out(Transport::Tcp, OUTSIDE_V4, 80, "world", 80),
                out(Transport::Tcp, OUTSIDE_V6, 80, "world", 80),
                out(Transport::Udp, RESOLVER_V4, 53, "world", 53),
                into(own[0], 8080, "app", 8080),
                into(own[1], 8080, "app", 8080),
            ],
        );
        let rules = pod.sandbox.program("nft").args(["list", "ruleset"]).check().unwrap();
        assert_eq!(rules, "", "{backend}");
        cluster.runtime().check(&cluster.list, &pod.attachment).unwrap();
        cluster.runtime().delete(&cluster.list, &pod.attachment).unwrap();
    }
}

#[test]
fn every_version_of_cni() {
    for (version, main) in
        [("0.3.1", "bridge"), ("0.4.0", "bridge"), ("1.0.0", "bridge"), ("1.1.0", "main-plugin")]
    {
        let network =
            Network { version: version.to_owned(), main: main.to_owned(), ..Network::default() };
        let cluster = Cluster::create("version", "nftables", &network).unwrap();
        let (runtime, list) = (cluster.runtime(), &cluster.list);
        runtime.validate(list).unwrap();
        let status = runtime.status(list);
        assert_eq!(status.is_ok(), version == "1.1.0", "{version}: {status:?}");
        let _world = cluster.serve_world(&[80, 8443]).unwrap();
        let manifest = sidecar_pod(NAMESPACE, "any", &annotations("REDIRECT"), &[DUAL]);
        let pod = cluster.run_pod(&manifest).unwrap();
        let results = &pod.added.as_ref().unwrap().results;
        assert_eq!(results[0].trim(), results[1].trim(), "{version}: prevResult was changed");
        let _servers = serve(&cluster, &pod, false);
        assert_fates(&cluster, &pod, captured_v4(&pod));
        let check = runtime.check(list, &pod.attachment);
        assert_eq!(check.is_ok(), version != "0.3.1", "{version}: {check:?}");
        let keep = [pod.attachment.clone()];
        let gc = runtime.collect(list, Some(&keep));
        assert_eq!(gc.is_ok(), version == "1.1.0", "{version}: {gc:?}");
        runtime.delete(list, &pod.attachment).unwrap();
    }
}

fn records(cluster: &Cluster) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(cluster.directories.run.join("sandboxes")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
}

/// GC forgets attachments that the runtime no longer knows, and only with a list.
#[test]
fn garbage_is_collected_and_nothing_else() {
    let network = Network {
        version: "1.1.0".to_owned(),
        main: "main-plugin".to_owned(),
        ..Network::default()
    };
    let cluster = Cluster::create("gc", "nftables", &network).unwrap();
    let (runtime, list) = (cluster.runtime(), &cluster.list);
    let pods = ["one", "two"].map(|name| {
        let manifest = sidecar_pod(NAMESPACE, name, &json!({}), &[]);
        cluster.run_pod(&manifest).unwrap()
    });
    assert_eq!(records(&cluster).len(), 2);
    runtime.collect(list, None).unwrap();
    assert_eq!(records(&cluster).len(), 2, "no list says nothing about anybody");
    runtime.collect(list, Some(&[pods[0].attachment.clone()])).unwrap();
    let left = records(&cluster);
    let name = format!("{}.json", pods[0].attachment.container);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left.iter().all(|path| path.ends_with(&name)), "{left:?}");
    runtime.check(list, &pods[0].attachment).unwrap();
}

fn code(err: &anyhow::Error) -> &CniError {
    cni_error(err).unwrap_or_else(|| panic!("no CNI error: {err:#}"))
}

/// Captured or not started, also while there is nobody to capture.
#[test]
fn without_its_agent_no_meshed_pod_starts() {
    for backend in BACKENDS {
        let network = Network {
            version: "1.1.0".to_owned(),
            main: "main-plugin".to_owned(),
            ..Network::default()
        };
        let mut cluster = Cluster::create("dead", backend, &network).unwrap();
        let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
        let manifest = sidecar_pod(NAMESPACE, "before", &annotations("REDIRECT"), &[DUAL]);
        let before = cluster.run_pod(&manifest).unwrap();
        let _before = serve(&cluster, &before, false);

        cluster.agent.take().unwrap().kill().unwrap();
        assert_fates(&cluster, &before, captured_v4(&before));
        let manifest = sidecar_pod(NAMESPACE, "during", &annotations("REDIRECT"), &[DUAL]);
        let mut during = cluster.sandbox(&manifest).unwrap();
        let err = cluster.attach(&mut during).unwrap_err();
        assert_eq!(code(&err).code, 100, "{err:#}");
        let links = during.sandbox.program("ip").args(["-o", "link"]).check().unwrap();
        assert_eq!(links.lines().count(), 1, "only lo: {links}");
        // One that could be on the pod network must not keep itself from starting.
        cluster.runtime().status(&cluster.list).unwrap();
        let mut on_host = cluster.list.clone();
        on_host.plugins[1].config.insert("agent_host_network".to_owned(), json!(true));
        let err = cluster.runtime().status(&on_host).unwrap_err();
        assert_eq!(code(&err).code, 50, "{err:#}");
        cluster.runtime().delete(&cluster.list, &during.attachment).unwrap();

        cluster.start_agent(backend).unwrap();
        cluster.runtime().status(&on_host).unwrap();
        cluster.attach(&mut during).unwrap();
        let _during = serve(&cluster, &during, false);
        assert_fates(&cluster, &during, captured_v4(&during));
        cluster.runtime().check(&cluster.list, &before.attachment).unwrap();
    }
}

/// containerd runs the plugin `loopback` at the same time as the chain. That one fails
/// when `lo` has an address that is not of the loopback, as the `::6` of a pod with IPv6.
#[test]
fn a_loopback_plugin_beside_the_chain_finds_lo_as_it_wants_it() {
    let network = Network { main: "main-plugin".to_owned(), ..Network::default() };
    let cluster = Cluster::create("beside", "nftables", &network).unwrap();
    let _world = cluster.serve_world(&[53, 80, 8443]).unwrap();
    let loopback = r#"{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}"#;
    let loopback = Conflist::parse(loopback).unwrap();
    // The agent waits half a second. A machine that is slower than that tells nothing.
    let mut late = Vec::new();
    for attempt in 0..8 {
        let name = format!("beside-{attempt}");
        let manifest = sidecar_pod(NAMESPACE, &name, &annotations("REDIRECT"), &[DUAL]);
        let mut pod = cluster.sandbox(&manifest).unwrap();
        pod.sandbox.ip("link set lo down\n").unwrap();
        let lo = Attachment { interface: "lo".to_owned(), ..pod.attachment.clone() };
        let (runtime, path) = (cluster.runtime(), pod.sandbox.path().to_owned());
        let (added, took) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let begun = await_our_plugin(&path);
                (runtime.add(&loopback, &lo).map(drop), begun.elapsed())
            });
            cluster.attach(&mut pod).unwrap();
            beside.join().unwrap()
        });
        if let Err(error) = added {
            // Too slow to come first, or to look in the tenth of a second that it has then.
            late.push(format!("after {took:?}: {error}"));
            continue;
        }
        let addresses = pod.sandbox.program("ip").args(["-6", "addr", "show", "dev", "lo"]);
        let addresses = addresses.check().unwrap();
        assert!(addresses.contains("inet6 ::6/128"), "{addresses}");
        let _servers = serve(&cluster, &pod, false);
        assert_fates(&cluster, &pod, captured_v4(&pod));
        return;
    }
    panic!("no loopback plugin came to an end within the agent's patience: {late:?}");
}

/// Waits until our plugin is at its work in a namespace, and for what it would have done
/// by then; returns when it began, or a little before.
fn await_our_plugin(path: &Path) -> Instant {
    let netns = Netns::open(path).unwrap();
    let addressed = || !sys::routing::addresses().unwrap().is_empty();
    let end = Instant::now() + Duration::from_secs(60);
    while !within(&netns, addressed).unwrap() {
        assert!(Instant::now() < end, "the chain gave no address");
        std::thread::sleep(Duration::from_millis(2));
    }
    let begun = Instant::now();
    let ours = || {
        let inet6 = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        inet6.starts_with("00000000000000000000000000000006")
            || inet6.contains("\n00000000000000000000000000000006")
    };
    while begun.elapsed() < Duration::from_millis(200) && !within(&netns, ours).unwrap() {
        std::thread::sleep(Duration::from_millis(2));
    }
    begun
}

/// A pod the agent has never heard of is not "outside the mesh".
#[test]
fn an_unknown_pod_does_not_start() {
    let cluster = Cluster::create("unknown", "nftables", &Network::default()).unwrap();
    let manifest = sidecar_pod(NAMESPACE, "stranger", &json!({}), &[]);
    let sandbox =
        e2e_node::lab::Namespace::create(cluster.node.host.scratch(), "stranger").unwrap();
    let mut pod = cluster.pod_in(&manifest, sandbox).unwrap();
    let err = cluster.attach(&mut pod).unwrap_err();
    assert_eq!(code(&err).code, 103, "{err:#}");
}

/// The agent refuses to program the host, whatever the runtime says.
#[test]
fn the_host_is_never_programmed() {
    let cluster = Cluster::create("host", "nftables", &Network::default()).unwrap();
    let manifest = sidecar_pod(NAMESPACE, "confused", &json!({}), &[]);
    let mut pod = cluster.sandbox(&manifest).unwrap();
    pod.attachment.netns = cluster.node.host.path().display().to_string();
    let ours = Conflist { plugins: vec![cluster.list.plugins[1].clone()], ..cluster.list.clone() };
    let err = cluster.runtime().add(&ours, &pod.attachment).unwrap_err();
    assert_eq!(code(&err).code, 105, "{err:#}");
    let rules = cluster.node.host.program("nft").args(["list", "ruleset"]).check().unwrap();
    assert!(!rules.contains("istio"), "{rules}");
}
