//! A sidecar pod that runs: with a process in its namespace, which is the pod's by its
//! cgroup, as a runtime's are.

use crate::stage::Stage;
use e2e_node::agent::{NODE_NAME, sidecar_pod};
use e2e_node::cluster::{NAMESPACE, Pod};
use e2e_node::containerd::cgroup::Parent;
use e2e_node::lab::Namespace;
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::process::Running;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where the world answers.
const PORT: u16 = 80;

/// Where cgroups of the second version are mounted.
fn unified() -> String {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut mounts = mounts.lines().filter_map(|line| line.split_once(" - cgroup2 "));
    mounts.next().unwrap().0.split(' ').nth(4).unwrap().to_owned()
}

/// A process, and the pod's cgroup that it is in.
pub(crate) struct Process {
    // Ends before its cgroup is removed.
    running: Running,
    _cgroup: Parent,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(pod: &Pod, uid: &str) -> Self {
        let cgroup = Parent::create();
        let container = &pod.attachment.container;
        let dir = PathBuf::from(format!("{}{}/pod{uid}/{container}", unified(), cgroup.path()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs && echo ready && exec cat >/dev/null",
            dir.display()
        );
        let program = pod.sandbox.program("sh").args(["-c", script.as_str()]);
        let mut running = program.timeout(Duration::from_secs(900)).start().unwrap();
        running.wait_ready().unwrap();
        Self { running, _cgroup: cgroup }
    }

    /// Ends it.
    pub(crate) fn end(mut self) {
        self.running.close_input();
        self.running.wait(Duration::from_secs(60)).unwrap();
    }
}

/// A manifest with a sidecar. Its uid is no other test's: processes are found by it on
/// the whole machine.
pub(crate) fn manifest(name: &str) -> Value {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut manifest = sidecar_pod(NAMESPACE, name, &json!({}), &[]);
    let uid = format!("0a1b2c3d-0000-4000-9000-{:08x}{next:04x}", std::process::id());
    manifest["metadata"]["uid"] = json!(uid);
    manifest["spec"]["nodeName"] = json!(NODE_NAME);
    manifest
}

pub(crate) fn uid(manifest: &Value) -> &str {
    manifest["metadata"]["uid"].as_str().unwrap()
}

/// The kubelet reports.
pub(crate) fn report(stage: &Stage, manifest: &mut Value, addresses: &[IpAddr]) {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    manifest["status"] = json!({"phase": "Running", "podIPs": ips});
    stage.publish(manifest);
}

/// A sandbox after its ADD, without a process.
pub(crate) fn attached(stage: &Stage, manifest: &Value) -> Pod {
    stage.publish(manifest);
    stage.cluster.run_pod(manifest).unwrap()
}

/// A sandbox that the chain without our plugin has made, without a process.
fn unasked(stage: &Stage, manifest: &Value, addresses: &[IpAddr]) -> Pod {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let host = &stage.cluster.node.host;
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let sandbox = Namespace::create(host.scratch(), &format!("anew-{next}")).unwrap();
    let link = format!("anew{next}");
    host.link(&link, &sandbox, "eth0").unwrap();
    host.ip(&format!("link set {link} master cni0")).unwrap();
    let lines = addresses.iter().map(|ip| match ip {
        IpAddr::V4(own) => {
            let [a, b, c, _] = own.octets();
            format!("addr add {ip}/24 dev eth0\nroute add default via {a}.{b}.{c}.1\n")
        }
        IpAddr::V6(own) => {
            let [a, b, c, d, ..] = own.segments();
            let gateway = IpAddr::from([a, b, c, d, 0, 0, 0, 1]);
            format!("-6 addr add {ip}/64 dev eth0 nodad\n-6 route add default via {gateway}\n")
        }
    });
    sandbox.ip(&lines.collect::<String>()).unwrap();
    let mut pod = stage.cluster.pod_in(manifest, sandbox).unwrap();
    pod.addresses = addresses.to_vec();
    pod
}

/// The same in the place of another sandbox, which is gone then. Its namespace is another
/// one, and has another number: those are used again.
pub(crate) fn anew(stage: &Stage, manifest: &Value, old: Pod, addresses: &[IpAddr]) -> Pod {
    let pod = unasked(stage, manifest, addresses);
    drop(old);
    // Its neighbours learn where it is by now.
    stage.cluster.node.host.ip("neigh flush all\n-6 neigh flush all").unwrap();
    pod
}

/// Who takes the pod's connections to the world: the proxy, or the world.
#[track_caller]
pub(crate) fn is_captured(stage: &Stage, pod: &Pod) -> bool {
    let _proxy = pod.serve_proxy(&stage.cluster.programs, false).unwrap();
    let fate = stage.fate(&pod.sandbox, SocketAddr::new(OUTSIDE_V4.into(), PORT));
    let captured = fate.is_by("proxy", 15001);
    assert!(captured || fate.is_by("world", PORT), "{fate}; {}", stage.cluster.agent_log());
    captured
}

/// The world, which answers.
pub(crate) fn world(stage: &Stage) -> Running {
    stage.cluster.serve_world(&[PORT]).unwrap()
}

/// What is written down of a pod.
pub(crate) fn records(stage: &Stage, uid: &str) -> Vec<(PathBuf, Value)> {
    let dir = stage.cluster.directories.run.join("sandboxes");
    let paths = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        // What is being written, or removed just now, is looked at the next time.
        let text = std::fs::read_to_string(&path).ok()?;
        Some((path, serde_json::from_str::<Value>(&text).ok()?))
    };
    let all = paths.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    all.filter_map(read).filter(|(_, record)| record["pod"]["uid"] == uid).collect()
}

/// The one record of the pod is of this sandbox.
pub(crate) fn is_recorded(stage: &Stage, uid: &str, pod: &Pod) -> bool {
    let ino = pod.sandbox.netns().id().ino;
    let all = records(stage, uid);
    all.len() == 1 && all.iter().all(|(_, record)| record["netns"]["ino"] == ino)
}

/// A sample, 0 where there is none.
pub(crate) fn count(stage: &Stage, name: &str, reason: &str) -> f64 {
    stage.metric(&format!("{name}{{reason=\"{reason}\"}}")).unwrap_or_default()
}

/// Waits for more of the period's looks at pods.
#[track_caller]
pub(crate) fn await_looks(stage: &Stage, more: u32) {
    let looks = |stage: &Stage| count(stage, "sluice_audit_looks_total", "period");
    let enough = looks(stage) + f64::from(more);
    stage.eventually("there are more looks", |stage| looks(stage) >= enough);
}

/// No pod is in doubt.
pub(crate) fn is_quiet(stage: &Stage) -> bool {
    let reasons = ["new", "namespace-not-found", "namespace-gone", "not-programmed", "drifted"];
    let all = reasons.into_iter().chain(["unreadable"]);
    all.map(|reason| stage.metric(&format!("sluice_unverified_pods{{reason=\"{reason}\"}}")))
        .all(|count| count == Some(0.0))
}
