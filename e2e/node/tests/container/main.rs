//! The agent in a container as the charts make it: it sees no path of the host's but
//! those that are mounted, and no process but through /host/proc. The real chain.

#![expect(clippy::unwrap_used, reason = "a test")]

mod root;

use e2e_node::agent::{Agent, NODE_NAME, namespace, plain_pod, sidecar_pod};
use e2e_node::api::Server;
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod};
use e2e_node::lab::Scratch;
use e2e_node::process::Running;
use e2e_node::programs::Programs;
use e2e_node::runtime::Conflist;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use root::Mount;
use serde_json::{Map, Value, json};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::request::Endpoint;

const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// A node whose agent follows an API server from its container.
struct Stage {
    server: Server,
    cluster: Cluster,
}

impl Stage {
    /// Without an agent yet.
    fn create(name: &str, mounts: &[Mount<'_>]) -> Self {
        let mut cluster = Cluster::without_agent(name, &Network::default()).unwrap();
        let ours = json!({
            "type": "istio-cni",
            "capabilities": {ANNOTATIONS: true},
            "cni_agent_run_dir": cluster.directories.run,
        });
        let text = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [ours]}).to_string();
        cluster.list.plugins[1] = Conflist::parse(&text).unwrap().plugins[0].clone();
        std::fs::create_dir(&cluster.directories.run).unwrap();
        let scratch = cluster.node.host.scratch();
        let same = [cluster.directories.run.as_path()];
        let script = root::script(scratch, &cluster.programs.sluice, &same, mounts);
        cluster.programs.sluice = script;
        let server = Server::start_in(cluster.node.host.netns()).unwrap();
        server.put(namespace(NAMESPACE)).unwrap();
        Self { server, cluster }
    }

    fn start(&mut self, args: &[&str]) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let args = [&["--backend", "nftables"], args].concat();
        let url = self.server.url();
        let agent = Agent::follow(programs, &node.host, directories, &url, &args).unwrap();
        self.cluster.agent = Some(agent);
        let snapshot = self.cluster.directories.run.join("snapshot.json");
        self.eventually("the agent writes its snapshot", || snapshot.exists());
    }

    fn kill(&mut self) {
        self.cluster.agent.take().unwrap().kill().unwrap();
        // The container ends a moment after the process that holds it.
        let socket = self.cluster.directories.run.join("pluginevent.sock");
        self.eventually("the agent is dead", || {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        });
    }

    fn put(&self, mut manifest: Value) {
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        self.server.put(manifest).unwrap();
    }

    /// A sandbox of a pod that has these annotations by the runtime's word.
    fn sandbox(&self, manifest: &Value) -> Pod {
        let mut pod = self.cluster.sandbox(manifest).unwrap();
        let mut said: Map<String, Value> =
            manifest["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        said.insert("kubernetes.io/config.source".to_owned(), json!("api"));
        pod.attachment.capabilities.insert(ANNOTATIONS.to_owned(), said.into());
        pod
    }

    fn passed(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.cluster.directories.run.join("passed"));
        entries.map_or_else(|_| Vec::new(), |all| all.map(|one| one.unwrap().path()).collect())
    }

    #[track_caller]
    fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !holds() {
            assert!(Instant::now() < end, "never: {what}; {}", self.cluster.agent_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process in the sandbox, as each pod has one.
fn pause(pod: &Pod) -> Running {
    let pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    let mut pause = pause.timeout(Duration::from_secs(120)).start().unwrap();
    pause.wait_ready().unwrap();
    pause
}

/// The question of another plugin than ours; `with` is the descriptor that comes along.
fn ask(stage: &Stage, request: &Value, with: Option<&Pod>) -> (u16, Value) {
    let path = stage.cluster.directories.run.join("pluginevent.sock");
    let mut stream = UnixStream::connect(path).unwrap();
    let bytes = wire::http::request(Endpoint::Add, request.to_string().as_bytes());
    let fds: Vec<_> = with.iter().map(|pod| pod.sandbox.netns().as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let first = [IoSlice::new(&bytes)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &first, rights, MsgFlags::empty(), None).unwrap();
    assert_eq!(sent, bytes.len());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = wire::http::response(&answer, true).unwrap().unwrap();
    (answer.status, serde_json::from_slice(answer.body).unwrap())
}

/// As an older plugin of ours asks, which does not say where it runs.
fn older(pod: &Pod, name: &str) -> Value {
    json!({
        "Netns": pod.sandbox.path(), "PodName": name, "PodNamespace": NAMESPACE, "IPs": null,
        "Sluice": {"Version": 1, "ContainerID": pod.attachment.container, "IfName": "eth0",
            "PodUID": format!("uid-of-{name}"), "DeadlineMs": 4500},
    })
}

fn has_rules(pod: &Pod) -> bool {
    pod.sandbox.load(&["nft", "list", "ruleset"], "").unwrap().contains("istio-proxy")
}

/// The runtime's directory of namespaces is mounted by no chart, so the namespace of a
/// pod that escaped is found by its processes; until there is one, it is tried again.
#[test]
fn what_escaped_is_captured_without_its_path() {
    let mut stage = Stage::create("escaped", &[Mount::Processes]);
    stage.start(&[]);
    stage.kill();
    let mut pod = stage.sandbox(&plain_pod(NAMESPACE, "lied"));
    stage.cluster.attach(&mut pod).unwrap();
    let mut gone = stage.sandbox(&plain_pod(NAMESPACE, "gone"));
    stage.cluster.attach(&mut gone).unwrap();
    assert_eq!(stage.passed().len(), 2);
    let _pause = pause(&gone);

    stage.put(sidecar_pod(NAMESPACE, "lied", &json!({}), &[]));
    stage.start(&[]);
    let said = "cannot capture a pod that runs uncaptured";
    stage.eventually("a try fails", || stage.cluster.agent_log().contains(said));
    assert!(!has_rules(&pod));
    let process = pause(&pod);
    stage.eventually("it is captured", || has_rules(&pod));
    stage.eventually("it is written off", || stage.passed().len() == 1);
    let log = stage.cluster.agent_log();
    assert!(log.contains("captured late"), "its note goes once that is said: {log}");
    assert!(log.contains("escaped_total=1"), "{log}");
    assert_eq!(log.matches(said).count(), 1, "{log}");
    // Nobody knows that pod, but its sandbox is there.
    assert!(!log.contains("pod and sandbox are gone"), "{log}");
    stage.cluster.runtime().check(&stage.cluster.list, &pod.attachment).unwrap();
    drop(process);
}

/// STATUS says no for an absent agent only where the agent is known to start without
/// the pods' network.
#[test]
fn the_entry_says_whether_the_agent_is_on_the_host() {
    for (name, is_seen) in [("seen", true), ("unseen", false)] {
        let scratch = Scratch::create().unwrap();
        let dir = |name: &str| scratch.dir(name).unwrap();
        let (net, bin, image) = (dir("net"), dir("bin"), dir("image"));
        let primary = r#"{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
        std::fs::write(net.join("10-pods.conflist"), primary).unwrap();
        let plugin = Programs::find().unwrap().plugin;
        std::fs::copy(plugin, image.join("istio-cni")).unwrap();
        let mut mounts = vec![
            Mount::Directory(&net, "/host/etc/cni/net.d"),
            Mount::Directory(&bin, "/host/opt/cni/bin"),
            Mount::Directory(&image, "/image"),
        ];
        if is_seen {
            mounts.push(Mount::Processes);
        }
        let mut stage = Stage::create(name, &mounts);
        stage.start(&[
            "--install=true",
            "--plugin-dir=/image",
            "--mounted-cni-net-dir=/host/etc/cni/net.d",
            "--mounted-cni-bin-dir=/host/opt/cni/bin",
        ]);
        let mut chain = String::new();
        stage.eventually("the chain has us", || {
            let first = std::fs::read_dir(&net).unwrap().map(|file| file.unwrap().path());
            let first = first.filter(|path| path.extension() == Some("conflist".as_ref())).min();
            chain = std::fs::read_to_string(first.unwrap()).unwrap();
            chain.contains("istio-cni")
        });
        let chain: Value = serde_json::from_str(&chain).unwrap();
        let said = chain["plugins"][1].get("agent_host_network");
        assert_eq!(said, is_seen.then_some(&json!(true)), "{chain}");
    }
}

/// Without the host's processes only the plugin tells which namespace is the host's: it
/// runs in it. Until one does, no pod is programmed.
#[test]
fn the_plugin_says_which_namespace_is_the_hosts() {
    let mut stage = Stage::create("blind", &[]);
    stage.start(&[]);
    let manifest = sidecar_pod(NAMESPACE, "meshed", &json!({}), &[]);
    stage.put(manifest.clone());
    stage.put(plain_pod(NAMESPACE, "plain"));
    let mut pod = stage.sandbox(&manifest);
    let (status, body) = ask(&stage, &older(&pod, "meshed"), Some(&pod));
    assert_eq!((status, &body["code"]), (500, &json!(105)), "{body}");
    assert!(body["msg"].as_str().unwrap().contains("cannot be told"), "{body}");
    let (status, body) = ask(&stage, &older(&pod, "plain"), Some(&pod));
    assert_eq!((status, &body["decision"]), (200, &json!("skip")), "{body}");
    // Its own namespace, and so the host's.
    let mut request = older(&pod, "meshed");
    let id = pod.sandbox.netns().id();
    request["Sluice"]["HostNetns"] = json!({"Dev": id.dev, "Ino": id.ino});
    let (status, body) = ask(&stage, &request, Some(&pod));
    assert_eq!((status, &body["code"]), (500, &json!(105)), "{body}");
    assert!(body["msg"].as_str().unwrap().contains("the host's own"), "{body}");
    assert!(!has_rules(&pod));

    stage.cluster.attach(&mut pod).unwrap();
    assert!(has_rules(&pod));
}

/// A stock plugin during a take-over: its request has a path and no descriptor. With
/// ambient mode Istio's chart mounts the directory, and without it the processes.
#[test]
fn a_stock_plugins_path_is_found() {
    let scratch = Scratch::create().unwrap();
    for (name, is_mounted) in [("mounted", true), ("unmounted", false)] {
        // Where the lab's namespaces are is not known before it is there.
        let link = scratch.path().join(format!("{name}-netns"));
        let mut mounts = vec![Mount::Processes];
        if is_mounted {
            mounts.push(Mount::Directory(&link, "/host/var/run/netns"));
        }
        let mut stage = Stage::create(name, &mounts);
        stage.cluster.list.plugins.truncate(1);
        let manifest = sidecar_pod(NAMESPACE, "stock", &json!({}), &[]);
        let mut pod = stage.cluster.sandbox(&manifest).unwrap();
        stage.cluster.attach(&mut pod).unwrap();
        let file = pod.sandbox.path();
        std::os::unix::fs::symlink(file.parent().unwrap(), &link).unwrap();
        stage.put(manifest);
        stage.start(&[]);
        let path = if is_mounted {
            format!("/var/run/netns/{}", file.file_name().unwrap().display())
        } else {
            file.display().to_string()
        };
        let request = |path: &str| {
            let address = json!({"IP": pod.address(false).unwrap(), "Mask": "////AA=="});
            json!({
                "Netns": path, "PodName": "stock", "PodNamespace": NAMESPACE,
                "IPs": [{"Interface": null, "Address": address, "Gateway": ""}],
            })
        };
        let (status, body) = ask(&stage, &request("/var/run/netns/none"), None);
        assert_eq!((status, &body["code"]), (500, &json!(105)), "{name}: {body}");
        assert!(!has_rules(&pod), "{name}");
        let (status, body) = ask(&stage, &request(&path), None);
        assert_eq!((status, &body["decision"]), (200, &json!("sidecar")), "{name}: {body}");
        assert!(has_rules(&pod), "{name}");
    }
}
