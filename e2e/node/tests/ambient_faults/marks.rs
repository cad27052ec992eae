//! Who tries to get past ztunnel: with its mark, or as kubelet.

use crate::stage::{MODE, PORT, Stage, records};
use e2e_node::cluster::attempt;
use e2e_node::packet::{Fate, Transport, send};
use e2e_node::process::{Identity, Program, Running, is_alive};
use e2e_node::ztunnel::{Direction, MARK, Via};
use serde_json::json;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Linux lets a process with CAP_NET_RAW mark its packets, and the rules know ztunnel by
/// nothing else: such an application gets past its own ztunnel, as with Istio. Whom it
/// reaches in the mesh does not take it for anybody: the mark does not leave the
/// namespace. Without the capability there is no mark.
fn with_ztunnels_mark(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("mark-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let [a, b] = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    let mut outside = stage.manifest("outside");
    outside["metadata"]["labels"] = json!({MODE: "none"});
    let outside = stage.start(outside).unwrap();
    let _servers = [stage.serve(&a), stage.serve(&b), stage.serve(&outside)];
    let program = || a.pod.sandbox.program(&stage.cluster.programs.packet);
    let marked = |to| {
        let mut attempt = attempt(Transport::Tcp, Identity::APP, to);
        attempt.mark = Some(MARK);
        attempt
    };
    let mut seen = 0;
    for v6 in [false, true] {
        // Without the capability.
        let attempt = marked(b.app(v6));
        let fates = send(program().as_user(Identity::APP), std::slice::from_ref(&attempt)).unwrap();
        let Fate::Failed(why) = &fates[&attempt.label] else { panic!("{fates:?}") };
        assert!(why.contains("EPERM"), "{why}");
        assert!(records(&ztunnel, &mut seen).is_empty());

        // With it, to the mesh: nobody's connection, seen by the other's ztunnel.
        let fates = send(program(), std::slice::from_ref(&attempt)).unwrap();
        assert!(fates[&attempt.label].is_by("app", PORT), "{fates:?}");
        let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("not one connection") };
        assert_eq!((record.uid.as_str(), record.direction), (b.uid(), Direction::InboundPlaintext));
        assert_eq!((record.peer_identity.as_deref(), record.via), (None, Via::Application));

        // And out of it: past ztunnel, which is the limit that the README has.
        let attempt = marked(outside.app(v6));
        let fates = send(program(), std::slice::from_ref(&attempt)).unwrap();
        assert!(fates[&attempt.label].is_by("app", PORT), "{fates:?}");
        assert!(records(&ztunnel, &mut seen).is_empty());

        // Its next connection without the mark is captured as ever.
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2);
    }
}

#[test]
fn an_application_with_ztunnels_mark_with_nftables() {
    with_ztunnels_mark("nftables");
}

#[test]
fn an_application_with_ztunnels_mark_with_iptables() {
    with_ztunnels_mark("iptables");
}

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - cgroup2 ")?;
            let _ = kind;
            mount.split(' ').nth(4)
        });
        let mount = Path::new(mount.unwrap());
        for entry in std::fs::read_dir(mount).unwrap().flatten() {
            // Left by a run that was killed.
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix("sluice-e2e-").and_then(|rest| rest.split('-').next());
            if pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid: u32| !is_alive(pid)) {
                std::fs::remove_dir(entry.path()).ok();
            }
        }
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = mount.join(format!("sluice-e2e-{}-{next}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process that plays kubelet: it connects to what it reads, and says what it is told.
fn kubelet(stage: &Stage, cgroup: &Cgroup, fifo: &Path) -> Running {
    let program = fifo.with_file_name("kubelet");
    // Not by ourselves: a child that another test forks just then would have it open.
    Program::new("cp").arg("/bin/bash").arg(program.as_os_str()).check().unwrap();
    Program::new("mkfifo").arg(fifo.as_os_str()).check().unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs; echo ready; \
         while read -r to port < {}; do {}; done",
        cgroup.0.display(),
        fifo.display(),
        connect("$to", "$port")
    );
    let mut running =
        stage.cluster.node.host.program(program).args(["-c", script.as_str()]).start().unwrap();
    running.wait_ready().unwrap();
    running
}

fn connect(to: &str, port: &str) -> String {
    let inner = "exec 3<>/dev/tcp/$0/$1 && read -r -t 5 line <&3 && echo \"$line\"";
    format!("timeout 8 bash -c '{inner}' {to} {port} 2>/dev/null || echo failed")
}

fn as_kubelet(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("probe-{backend}"), backend);
    let cgroup = Cgroup::create();
    let fifo = stage.cluster.node.host.scratch().path().join(format!("fifo-{backend}"));
    let mut kubelet = kubelet(&stage, &cgroup, &fifo);
    // So that it looks for kubelet at once.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent();
    let ztunnel = stage.ztunnel("zt");
    let own = cgroup.0.file_name().unwrap().to_string_lossy().into_owned();
    stage.eventually("kubelet is known by its cgroup", |stage| {
        stage.cluster.agent_log().contains(&own)
    });
    let a = stage.start(stage.probed("a")).unwrap();
    let _server = stage.serve(&a);
    let sources: [IpAddr; 2] = [
        IpAddr::from([169, 254, 7, 127]),
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff".parse().unwrap(),
    ];
    let mut seen = 0;
    for (v6, source) in [false, true].into_iter().zip(sources) {
        std::fs::write(&fifo, format!("{} {PORT}\n", a.ip(v6))).unwrap();
        let line = kubelet.line().unwrap().unwrap();
        assert!(line.contains(&source.to_string()), "kubelet's probe: {line}");
        assert!(records(&ztunnel, &mut seen).is_empty(), "past ztunnel");
        // Another root process of the host, to the very same port, and one that asks for
        // the exemption's own address.
        let root = Identity { uid: 0, gid: 0, net_admin: true };
        let mut plain = attempt(Transport::Tcp, root, a.app(v6));
        let mut claims = plain.clone();
        plain.label = "plain".to_owned();
        claims.label = "with kubelet's address".to_owned();
        claims.from = Some((source, 0).into());
        claims.spoofed = true;
        let node = &stage.cluster.node.host;
        let fates = stage.cluster.send(node, &[plain, claims]).unwrap();
        assert!(fates["plain"].is_by("app", PORT), "{fates:?}");
        let claimed = matches!(&fates["with kubelet's address"], Fate::Answered(_));
        let found = records(&ztunnel, &mut seen);
        println!(
            "{backend}, IPv6 {v6}: with kubelet's address: {:?}",
            fates["with kubelet's address"]
        );
        assert!(
            found
                .iter()
                .any(|r| r.direction == Direction::InboundPlaintext && r.source.ip() != source),
            "captured: {found:#?}"
        );
        assert!(!claimed, "refused: {fates:?}");
    }
}

#[test]
fn a_root_process_of_the_host_is_not_kubelet_with_nftables() {
    as_kubelet("nftables");
}

#[test]
fn a_root_process_of_the_host_is_not_kubelet_with_iptables() {
    as_kubelet("iptables");
}
