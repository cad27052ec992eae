//! A node whose agent is away: who starts, who waits, and what the agent makes of
//! it when it is back. The real chain, plugin and agent.

#![expect(clippy::unwrap_used, reason = "a test")]

use e2e_node::agent::{Agent, NODE_NAME, namespace, plain_pod, sidecar_pod};
use e2e_node::api::{Fault, Server};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod, attempt};
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::packet::Transport;
use e2e_node::process::Identity;
use e2e_node::runtime::{CniError, Conflist, cni_error};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The annotations that kubelet gives a sandbox.
fn annotations(pod: &Value) -> Map<String, Value> {
    let mut annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert("kubernetes.io/config.source".to_owned(), json!("api"));
    annotations
}

/// A node whose runtime passes annotations to us.
fn node(name: &str) -> Cluster {
    let mut cluster = Cluster::without_agent(name, &Network::default()).unwrap();
    let ours = json!({
        "type": "istio-cni",
        "capabilities": {ANNOTATIONS: true, "cgroupPath": true},
        "cni_agent_run_dir": cluster.directories.run,
        "exclude_namespaces": ["kube-system"],
        "pod_namespace": "istio-system",
    });
    let text = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [ours]}).to_string();
    let list = Conflist::parse(&text).unwrap();
    cluster.list.plugins[1] = list.plugins[0].clone();
    cluster
}

/// A node whose agent follows an API server.
struct Stage {
    server: Server,
    cluster: Cluster,
}

impl Stage {
    fn create(name: &str) -> Self {
        let stage = Self::bare(name);
        stage.with_agent(&[])
    }

    fn bare(name: &str) -> Self {
        let cluster = node(name);
        let server = Server::start_in(cluster.node.host.netns()).unwrap();
        server.put(namespace(NAMESPACE)).unwrap();
        Self { server, cluster }
    }

    fn with_agent(mut self, args: &[&str]) -> Self {
        self.start(args);
        left(&self.cluster, "");
        self
    }

    fn start(&mut self, args: &[&str]) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let args = [&["--backend", "nftables"], args].concat();
        let url = self.server.url();
        let agent = Agent::follow(programs, &node.host, directories, &url, &args).unwrap();
        self.cluster.agent = Some(agent);
    }

    fn put(&self, mut manifest: Value) {
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        self.server.put(manifest).unwrap();
    }
}

/// A node whose agent has manifests.
fn with_manifests(name: &str) -> Cluster {
    let mut cluster = node(name);
    cluster.start_agent("nftables").unwrap();
    left(&cluster, "");
    cluster
}

/// Waits for a snapshot with this text in it.
#[track_caller]
fn left(cluster: &Cluster, text: &str) {
    let path = cluster.directories.run.join("snapshot.json");
    eventually("the agent writes its snapshot", || {
        std::fs::read_to_string(&path).is_ok_and(|all| all.contains(text))
    });
}

/// A sandbox as the runtime makes it, of a pod that the agent never saw.
fn unseen(cluster: &Cluster, manifest: &Value, said: bool) -> Pod {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("unseen-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let scratch = cluster.node.host.scratch();
    let sandbox = e2e_node::lab::Namespace::create(scratch, &name).unwrap();
    let mut pod = cluster.pod_in(manifest, sandbox).unwrap();
    if said {
        pod.attachment.capabilities.insert(ANNOTATIONS.to_owned(), annotations(manifest).into());
    }
    pod
}

fn kill(cluster: &mut Cluster) {
    cluster.agent.take().unwrap().kill().unwrap();
}

fn refused(cluster: &Cluster, pod: &mut Pod) -> CniError {
    let err = cluster.attach(pod).unwrap_err();
    cni_error(&err).unwrap_or_else(|| panic!("no CNI error: {err:#}")).clone()
}

fn passed(cluster: &Cluster) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cluster.directories.run.join("passed"));
    entries.map_or_else(|_| Vec::new(), |all| all.map(|entry| entry.unwrap().path()).collect())
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(90);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_captured(cluster: &Cluster, pod: &Pod) -> bool {
    let _world = cluster.serve_world(&[80]).unwrap();
    let _proxy = pod.serve_proxy(&cluster.programs, false).unwrap();
    let to = SocketAddr::new(OUTSIDE_V4.into(), 80);
    let attempt = attempt(Transport::Tcp, Identity::APP, to);
    let fates = cluster.send(&pod.sandbox, std::slice::from_ref(&attempt)).unwrap();
    fates[&attempt.label].is_by("proxy", 15001)
}

#[test]
fn pods_outside_the_mesh_start_and_pods_of_it_wait() {
    let mut stage = Stage::create("away");
    stage.put(plain_pod(NAMESPACE, "seen"));
    left(&stage.cluster, "uid-of-seen");
    kill(&mut stage.cluster);
    let cluster = &stage.cluster;

    // By its annotations.
    let mut plain = unseen(cluster, &plain_pod(NAMESPACE, "plain"), true);
    cluster.attach(&mut plain).unwrap();
    assert!(!is_captured(cluster, &plain));
    // By its uid; its runtime passes nothing.
    let mut seen = unseen(cluster, &plain_pod(NAMESPACE, "seen"), false);
    cluster.attach(&mut seen).unwrap();
    assert_eq!(passed(cluster).len(), 2);

    let manifest = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    let error = refused(cluster, &mut unseen(cluster, &manifest, true));
    assert_eq!(error.code, 100, "{error}");
    assert!(error.msg.contains("pod of the mesh"), "{error}");
    let error = refused(cluster, &mut unseen(cluster, &plain_pod(NAMESPACE, "mute"), false));
    assert!(error.msg.contains("passed no annotations"), "{error}");
    let agent = plain_pod("istio-system", "istio-cni-node-new");
    cluster.attach(&mut unseen(cluster, &agent, false)).unwrap();
    cluster.attach(&mut unseen(cluster, &plain_pod("kube-system", "dns"), false)).unwrap();
    assert_eq!(passed(cluster).len(), 2, "those four are not written down");

    // The agent is back and finds that all of it was right.
    stage.put(plain_pod(NAMESPACE, "plain"));
    stage.start(&[]);
    let cluster = &stage.cluster;
    eventually("both are audited", || passed(cluster).is_empty());
    let log = cluster.agent_log();
    assert_eq!(log.matches("rightly passed unseen").count(), 2, "{log}");
    assert!(!log.contains("passed uncaptured"), "{log}");
}

/// Beside manifests the runtime's annotations make nobody pass: only who was known by
/// name to be outside does, and not by a manifest that cannot be used.
#[test]
fn where_manifests_count_only_known_pods_pass() {
    let mut cluster = with_manifests("manifests");
    let mut nameless = plain_pod(NAMESPACE, "nameless");
    nameless["metadata"].as_object_mut().unwrap().remove("uid");
    let spoiled = plain_pod(NAMESPACE, "spoiled");
    let meshed = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    for manifest in [&plain_pod(NAMESPACE, "seen"), &nameless, &spoiled, &meshed] {
        cluster.directories.publish(manifest).unwrap();
    }
    for text in ["uid-of-seen", "shop/nameless", "uid-of-spoiled", "uid-of-meshed"] {
        left(&cluster, text);
    }
    let file = cluster.directories.pods.join(format!("Pod-{NAMESPACE}-spoiled.json"));
    std::fs::write(file, "{\"kind\": \"Pod\", ").unwrap();
    let snapshot = cluster.directories.run.join("snapshot.json");
    eventually("the spoiled one is in doubt", || {
        !std::fs::read_to_string(&snapshot).unwrap().contains("spoiled")
    });
    kill(&mut cluster);

    let mut unknown = unseen(&cluster, &plain_pod(NAMESPACE, "plain"), true);
    let error = refused(&cluster, &mut unknown);
    assert!(error.code == 100 && error.msg.contains("manifest"), "{error}");
    let error = refused(&cluster, &mut unseen(&cluster, &spoiled, true));
    assert!(error.msg.contains("manifest"), "{error}");
    // The runtime's word is enough to wait.
    let lied = sidecar_pod(NAMESPACE, "seen", &json!({}), &[]);
    let error = refused(&cluster, &mut unseen(&cluster, &lied, true));
    assert!(error.msg.contains("pod of the mesh"), "{error}");
    for said in [true, false] {
        let lied = plain_pod(NAMESPACE, "meshed");
        let error = refused(&cluster, &mut unseen(&cluster, &lied, said));
        assert!(error.msg.contains("pod of the mesh"), "{error}");
    }
    assert_eq!(passed(&cluster).len(), 0);
    let mut pods = [
        unseen(&cluster, &plain_pod(NAMESPACE, "seen"), true),
        unseen(&cluster, &plain_pod(NAMESPACE, "seen"), false),
        unseen(&cluster, &nameless, true),
        // The runtime makes a uid up where a manifest has none.
        unseen(&cluster, &plain_pod(NAMESPACE, "nameless"), true),
    ];
    for pod in &mut pods {
        cluster.attach(pod).unwrap();
    }
    assert_eq!(passed(&cluster).len(), pods.len());
    cluster.start_agent("nftables").unwrap();
    eventually("all are audited", || passed(&cluster).is_empty());
    assert!(!cluster.agent_log().contains("passed uncaptured"), "{}", cluster.agent_log());
}

/// The runtime told the plugin something else than the pod says: it passed, and
/// that is found, counted and mended.
#[test]
fn what_should_not_have_passed_is_found_and_captured() {
    let mut stage = Stage::create("wrong");
    kill(&mut stage.cluster);
    let cluster = &stage.cluster;
    let manifest = sidecar_pod(NAMESPACE, "lied", &json!({}), &[]);
    let mut pod = unseen(cluster, &plain_pod(NAMESPACE, "lied"), true);
    cluster.attach(&mut pod).unwrap();
    assert!(!is_captured(cluster, &pod));
    let mut gone = unseen(cluster, &plain_pod(NAMESPACE, "gone"), true);
    cluster.attach(&mut gone).unwrap();
    let record = cluster.directories.run.join(format!("passed/{}.json", gone.attachment.container));
    let kept = std::fs::read(&record).unwrap();
    cluster.runtime().delete(&cluster.list, &gone.attachment).unwrap();
    assert!(!record.exists(), "DEL takes it away");
    // As if the plugin had been killed before.
    std::fs::write(&record, kept).unwrap();
    drop(gone);

    stage.put(manifest);
    stage.start(&[]);
    let cluster = &stage.cluster;
    eventually("both are audited", || passed(cluster).is_empty());
    let log = cluster.agent_log();
    assert!(log.contains("captured late"), "its note goes once that is said: {log}");
    assert!(log.contains("passed uncaptured") && log.contains("escaped_total=1"), "{log}");
    assert!(log.contains("hint contradicted"), "{log}");
    assert!(log.contains("pod and sandbox are gone"), "{log}");
    assert!(is_captured(cluster, &pod));
    cluster.runtime().check(&cluster.list, &pod.attachment).unwrap();
}

/// With Istio's selectors a pod's own label can make it ambient, and no runtime
/// passes labels.
#[test]
fn who_could_be_ambient_waits() {
    let mut stage = Stage::bare("ambient");
    let start = |stage: &mut Stage, by_pod_label: bool, more: &[&str]| {
        stage.start(&[&["--ambient-enabled", "true"], more].concat());
        let outside = if by_pod_label { "[]" } else { "[\"shop\"]" };
        left(&stage.cluster, &format!("\"by_pod_label\":{by_pod_label},\"outside\":{outside}"));
    };
    start(&mut stage, true, &[]);
    kill(&mut stage.cluster);
    let mut pod = unseen(&stage.cluster, &plain_pod(NAMESPACE, "maybe"), true);
    let error = refused(&stage.cluster, &mut pod);
    assert_eq!(error.code, 100, "{error}");
    assert!(error.msg.contains("its own labels"), "{error}");

    let selector = "[{namespaceSelector: {matchLabels: {mode: ambient}}}]";
    start(&mut stage, false, &["--ambient-enablement-selector", selector]);
    kill(&mut stage.cluster);
    stage
        .cluster
        .attach(&mut unseen(&stage.cluster, &plain_pod(NAMESPACE, "surely"), true))
        .unwrap();
    let elsewhere = plain_pod("elsewhere", "unknown");
    let error = refused(&stage.cluster, &mut unseen(&stage.cluster, &elsewhere, true));
    assert!(error.msg.contains("its namespace's labels"), "{error}");
}

#[test]
fn a_snapshot_that_cannot_be_trusted_lets_nobody_pass() {
    let mut stage = Stage::create("distrust");
    kill(&mut stage.cluster);
    let cluster = &stage.cluster;
    let path = cluster.directories.run.join("snapshot.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let plain = plain_pod(NAMESPACE, "plain");
    for (number, bad) in [
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\":1", "\"version\":9"),
        format!("{good}{}", " ".repeat(2 << 20)),
    ]
    .iter()
    .enumerate()
    {
        std::fs::write(&path, bad).unwrap();
        let error = refused(cluster, &mut unseen(cluster, &plain, true));
        assert!(error.msg.contains("no snapshot"), "{number}: {error}");
    }
    std::fs::write(&path, &good).unwrap();
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    let error = refused(cluster, &mut unseen(cluster, &plain, true));
    assert!(error.msg.contains("only root can write"), "{error}");
    // An agent does not read it either: it writes its own.
    stage.start(&[]);
    let owner = || std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    eventually("the snapshot is root's", || owner() == 0);
    kill(&mut stage.cluster);
    let cluster = &stage.cluster;
    cluster.attach(&mut unseen(cluster, &plain, true)).unwrap();
}

/// A frozen agent is given a moment, and what it would have said is audited.
#[test]
fn a_frozen_agent_keeps_nobody_outside_waiting() {
    let stage = Stage::create("frozen");
    let cluster = &stage.cluster;
    let frozen = Frozen::new(cluster.agent.as_ref().unwrap().pid());
    // It would be refused had the plugin waited until its deadline.
    let mut pod = unseen(cluster, &plain_pod(NAMESPACE, "plain"), true);
    cluster.attach(&mut pod).unwrap();
    assert_eq!(passed(cluster).len(), 1);
    drop(frozen);
    stage.put(plain_pod(NAMESPACE, "plain"));
    eventually("it is audited", || passed(cluster).is_empty());
}

/// Stops a process until it is dropped.
struct Frozen(nix::unistd::Pid);

impl Frozen {
    fn new(pid: u32) -> Self {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT).ok();
    }
}

/// The agent knows a pod of the mesh by the runtime's word, and captures none by it.
#[test]
fn hints_tell_the_agent_why_but_never_what() {
    let cluster = with_manifests("hints");
    let manifest = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    let mut pod = unseen(&cluster, &manifest, true);
    let err = cluster.attach(&mut pod).unwrap_err();
    let error = cni_error(&err).unwrap();
    assert_eq!(error.code, 103, "{error}");
    assert!(error.msg.contains("it is a pod of the mesh"), "{error}");
    // The pod itself decides, whatever the runtime says.
    let manifest = sidecar_pod(NAMESPACE, "lied", &json!({}), &[]);
    cluster.directories.publish(&manifest).unwrap();
    let mut pod = unseen(&cluster, &plain_pod(NAMESPACE, "lied"), true);
    cluster.attach(&mut pod).unwrap();
    assert!(is_captured(&cluster, &pod));
    assert!(cluster.agent_log().contains("hint contradicted"));
}

/// A runtime may hold a chain with us in it for longer than there is an agent.
#[test]
fn a_node_that_is_cleaned_up_runs_everything() {
    let mut cluster = with_manifests("cleanup");
    kill(&mut cluster);
    std::fs::write(cluster.directories.run.join("removed"), "").unwrap();
    let manifest = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    let mut pod = unseen(&cluster, &manifest, true);
    cluster.attach(&mut pod).unwrap();
    cluster.runtime().check(&cluster.list, &pod.attachment).unwrap();
    cluster.runtime().delete(&cluster.list, &pod.attachment).unwrap();
    cluster.start_agent("nftables").unwrap();
    let marker = cluster.directories.run.join("removed");
    eventually("the mesh is back", || !marker.exists());
    kill(&mut cluster);
    let error = refused(&cluster, &mut unseen(&cluster, &manifest, true));
    assert_eq!(error.code, 100, "{error}");
}

/// Full: nobody would ever look at what passes then.
#[test]
fn what_cannot_be_written_down_waits() {
    let Stage { server: _server, mut cluster } = Stage::create("full");
    kill(&mut cluster);
    let directory = cluster.directories.run.join("passed");
    std::fs::create_dir_all(&directory).unwrap();
    // As many files as the file system lets there be, the directory itself counted.
    let full = Full::mount(&directory);
    let plain = plain_pod(NAMESPACE, "plain");
    let error = refused(&cluster, &mut unseen(&cluster, &plain, true));
    assert_eq!(error.code, 108, "{error}");
    assert!(error.msg.contains("No space left"), "{error}");
    drop(full);
    cluster.attach(&mut unseen(&cluster, &plain, true)).unwrap();
}

/// A file system without room for another file.
struct Full(PathBuf);

impl Full {
    fn mount(at: &std::path::Path) -> Self {
        use nix::mount::{MsFlags, mount};
        let options = Some("nr_inodes=1,mode=0700");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).ok();
    }
}

/// Printed, with a bound that only a wait would break: the machine is shared.
#[test]
fn a_pass_without_the_agent_takes_milliseconds() {
    let mut stage = Stage::create("fast");
    for number in 0..110 {
        stage.put(plain_pod(NAMESPACE, &format!("pod-{number}")));
    }
    let snapshot = stage.cluster.directories.run.join("snapshot.json");
    eventually("the snapshot has all of them", || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        text.matches("uid-of-pod-").count() == 110
    });
    kill(&mut stage.cluster);
    let cluster = &stage.cluster;
    let ours = Conflist { plugins: vec![cluster.list.plugins[1].clone()], ..cluster.list.clone() };
    let mut took: Vec<Duration> = (0..50)
        .map(|number| {
            let pod = unseen(cluster, &plain_pod(NAMESPACE, &format!("new-{number}")), true);
            let begun = Instant::now();
            cluster.runtime().add(&ours, &pod.attachment).unwrap();
            begun.elapsed()
        })
        .collect();
    took.sort();
    println!("ADD without the agent: p50 {:?}, slowest {:?}", took[25], took[49]);
    assert!(took[25] < Duration::from_secs(1), "{:?}", took[25]);
}

/// The agent serves and its API server does not answer. Who is outside the mesh by
/// the runtime's word starts at once and is looked at later; the mesh waits.
#[test]
fn a_silent_api_server_keeps_nobody_outside_waiting() {
    let stage = Stage::bare("silent");
    stage.server.fail(Fault::Hang.into());
    let stage = stage.with_agent(&[]);
    let cluster = &stage.cluster;

    let mut plain = unseen(cluster, &plain_pod(NAMESPACE, "plain"), true);
    cluster.attach(&mut plain).unwrap();
    let mut lied = unseen(cluster, &plain_pod(NAMESPACE, "lied"), true);
    cluster.attach(&mut lied).unwrap();
    assert_eq!(passed(cluster).len(), 2);
    let manifest = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    let err = cluster.attach(&mut unseen(cluster, &manifest, true)).unwrap_err();
    let error = cni_error(&err).unwrap();
    assert!(error.code == 103 && error.msg.contains("it is a pod of the mesh"), "{error}");
    let mute = plain_pod(NAMESPACE, "mute");
    let err = cluster.attach(&mut unseen(cluster, &mute, false)).unwrap_err();
    assert_eq!(cni_error(&err).unwrap().code, 103, "{err:#}");

    stage.put(plain_pod(NAMESPACE, "plain"));
    stage.put(sidecar_pod(NAMESPACE, "lied", &json!({}), &[]));
    stage.server.heal();
    stage.server.drop_watches();
    eventually("both are audited", || passed(cluster).is_empty());
    let log = cluster.agent_log();
    assert!(log.contains("captured late"), "its note goes once that is said: {log}");
    assert_eq!(log.matches("rightly passed unseen").count(), 1, "{log}");
    assert!(is_captured(cluster, &lied) && !is_captured(cluster, &plain));
}
