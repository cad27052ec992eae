//! A pod's namespace goes and comes back under the same uid, and no ADD says so.

use crate::stage::{KUBELET, PORT, Stage, Started, records};
use e2e_node::lab::Namespace;
use e2e_node::ztunnel::Ztunnel;
use std::net::IpAddr;
use std::time::Duration;

/// The node's own address among the pods, by a pod's.
fn gateway(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 1])
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 1])
        }
    }
}

/// Takes a pod's namespace down, as far as the node is concerned: ztunnel and the agent
/// still have it open.
fn take_down(pod: Started) -> Started {
    let Started { mut pod, manifest, _pause: mut pause } = pod;
    pause.close_input();
    pause.wait(Duration::from_secs(20)).unwrap();
    pod.sandbox.ip("link del eth0").unwrap();
    let scratch = std::sync::Arc::clone(pod.sandbox.scratch());
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("again-{next}");
    // Not yet linked, and nobody is in it.
    pod.sandbox = Namespace::create(&scratch, &name).unwrap();
    Started { pod, manifest, _pause: pause }
}

/// Links the new one up and starts a process in it.
fn bring_up(stage: &Stage, pod: &mut Started) {
    let host = &stage.cluster.node.host;
    let name = format!("v{}", pod.pod.sandbox.netns().id().ino % 1_000_000_000);
    host.link(&name, &pod.pod.sandbox, "eth0").unwrap();
    host.ip(&format!("link set {name} master cni0")).unwrap();
    let lines = pod.pod.addresses.iter().map(|ip| {
        let gateway = gateway(*ip);
        match ip {
            IpAddr::V4(_) => {
                format!("addr add {ip}/24 dev eth0\nroute add default via {gateway}\n")
            }
            IpAddr::V6(_) => {
                format!("-6 addr add {ip}/64 dev eth0 nodad\n-6 route add default via {gateway}\n")
            }
        }
    });
    pod.pod.sandbox.ip(&lines.collect::<String>()).unwrap();
    let pause = pod.pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    pod._pause = pause.start().unwrap();
    pod._pause.wait_ready().unwrap();
}

/// Its neighbours learn where it is by now.
fn forget_neighbours(namespaces: &[&Namespace]) {
    for namespace in namespaces {
        namespace.ip("neigh flush all\n-6 neigh flush all").unwrap();
    }
}

fn is_captured(stage: &Stage, ztunnel: &Ztunnel, a: &Started, b: &Started) {
    let new = a.pod.sandbox.netns().id();
    let status = ztunnel.wait("the pod in its new namespace", |status| {
        let view = status.workloads.get(a.uid());
        view.is_some_and(|view| view.up && view.netns == Some((new.dev, new.ino)))
    });
    let status = status.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    assert_eq!(status.workloads.len(), 2, "nothing is left of the old: {status:#?}");
    forget_neighbours(&[&stage.cluster.node.host, &b.pod.sandbox]);
    let _server = stage.serve(a);
    let mut seen = status.records.len();
    for v6 in [false, true] {
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
        assert_eq!(records(ztunnel, &mut seen).len(), 2, "{}", stage.cluster.agent_log());
        assert_eq!(stage.answer(&b.pod.sandbox, a.app(v6)).peer, b.ip(v6));
        assert_eq!(records(ztunnel, &mut seen).len(), 2, "{}", stage.cluster.agent_log());
    }
}

fn recreated(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("again-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let (a, b) =
        (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
    let _server = stage.serve(&b);
    let mut a = a;
    // Twice: what was found once may be recreated too. And with nothing there for a
    // while.
    for gap in [0, 3] {
        a = take_down(a);
        std::thread::sleep(Duration::from_secs(gap));
        bring_up(&stage, &mut a);
        is_captured(&stage, &ztunnel, &a, &b);
    }
}

#[test]
fn found_by_the_audit_with_nftables() {
    recreated("nftables");
}

#[test]
fn found_by_the_audit_with_iptables() {
    recreated("iptables");
}

#[test]
fn while_the_agent_is_dead() {
    let mut stage = Stage::with_manifests("again-dead", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let (a, b) =
        (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
    let _server = stage.serve(&b);
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let mut a = take_down(a);
    bring_up(&stage, &mut a);
    stage.start_agent();
    is_captured(&stage, &ztunnel, &a, &b);
}

/// Nor are its probes forgotten, although no manifest says its address.
#[test]
fn probes_pass_after_a_restart() {
    let mut stage = Stage::with_manifests("again-probe", "nftables");
    let ztunnel = stage.ztunnel("zt");
    stage.await_host_rules(1);
    let a = stage.start(stage.probed("a")).unwrap();
    let _server = stage.serve(&a);
    for restarts in 0..3 {
        let mut seen = ztunnel.status().unwrap().records.len();
        for v6 in [false, true] {
            let fate = stage.fate_as(KUBELET, &stage.cluster.node.host, a.app(v6));
            assert!(fate.is_by("app", PORT), "{fate}; {}", stage.cluster.agent_log());
            let found = records(&ztunnel, &mut seen);
            assert!(found.is_empty(), "restart {restarts}: {found:#?}");
        }
        stage.cluster.agent.take().unwrap().kill().unwrap();
        stage.start_agent();
        let agents = restarts + 2;
        ztunnel.wait("the snapshot", |s| s.connections >= agents && s.snapshot).unwrap();
        stage.await_host_rules(agents);
        // What nobody claims would be gone by now.
        std::thread::sleep(Duration::from_secs(2));
    }
}
