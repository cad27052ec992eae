//! A real container runtime runs the chain: containerd's CRI as kubelet calls it,
//! and the odd calls of `ctr` and podman. `scripts/fetch-containerd` fetches them;
//! without, these tests are left out, or fail with REQUIRE_CONTAINERD=1.

#![expect(clippy::unwrap_used, reason = "a test")]

use e2e_node::agent::{Agent, plain_pod, sidecar_pod};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, attempt};
use e2e_node::containerd::packages::{Packages, Runtime};
use e2e_node::containerd::podman::Podman;
use e2e_node::containerd::record::{ANNOTATIONS, Call, Record};
use e2e_node::containerd::{Containerd, Sandbox, grpc, image};
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::packet::{Transport, send};
use e2e_node::process::{Identity, Program, Running};
use e2e_node::stand_in::StandIn;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::passed;
use wire::snapshot::{self, Ambient, Snapshot, Source};

/// Every version that was fetched; none, with a message, when none was.
fn runtimes() -> Option<(Packages, Vec<Runtime>)> {
    let Some(packages) = Packages::find().unwrap() else {
        say("skipped: no container runtime here, run scripts/fetch-containerd");
        return None;
    };
    let mut runtimes = vec![packages.containerd_1()];
    match packages.containerd_2() {
        Some(two) => runtimes.push(two),
        None => say("left out: containerd 2 could not be fetched"),
    }
    Some((packages, runtimes))
}

#[expect(clippy::print_stdout, reason = "what a test leaves out is to be seen")]
fn say(what: &str) {
    println!("{what}");
}

/// A connection: from inside the sandbox, as whom, to where, and who must accept it.
type Expected = (bool, Identity, IpAddr, u16, (&'static str, u16));

/// One backend behind each version: what a runtime does is the same for both.
fn backend(runtime: &Runtime) -> &'static str {
    if runtime.name == "containerd-2" { "iptables" } else { "nftables" }
}

/// A node with containerd, agent and chain, and a record of what is asked.
struct Scene {
    containerd: Containerd,
    record: Record,
    backend: &'static str,
    _world: Running,
    cluster: Cluster,
}

impl Scene {
    fn create(packages: &Packages, runtime: &Runtime, network: &Network) -> Self {
        Self::with_keys(packages, runtime, network, json!({}))
    }

    /// With more keys in our entry of the chain.
    fn with_keys(packages: &Packages, runtime: &Runtime, network: &Network, keys: Value) -> Self {
        let mut cluster = Cluster::without_agent("cri", network).unwrap();
        let scratch = cluster.node.host.scratch();
        let record = scratch.path().join("calls.jsonl");
        // The agent too is replaced while it runs: a copy of its own.
        let sluice = scratch.dir("bin").unwrap().join("sluice");
        replace(&cluster.programs.sluice, &sluice, "");
        cluster.programs.sluice = sluice;
        let ours = &mut cluster.list.plugins[1].config;
        ours.insert("capabilities".to_owned(), json!({ANNOTATIONS: true, "cgroupPath": true}));
        ours.extend(keys.as_object().unwrap().clone());
        let record = Record::of(&mut cluster.list, record);
        let backend = backend(runtime);
        cluster.start_agent(backend).unwrap();
        let world = cluster.serve_world(&[80, 8443]).unwrap();
        let (host, plugin) = (&cluster.node.host, Some(cluster.programs.plugin.as_path()));
        let start = Containerd::start(host, plugin, (packages, runtime), &cluster.list);
        let containerd = start.unwrap();
        Self { containerd, record, backend, _world: world, cluster }
    }

    fn start_agent(&mut self) {
        self.cluster.start_agent(self.backend).unwrap();
    }

    fn kill_agent(&mut self) {
        self.cluster.agent.take().unwrap().kill().unwrap();
    }

    /// Publishes a pod and runs its sandbox.
    fn run(&self, manifest: &Value) -> anyhow::Result<Sandbox> {
        self.cluster.directories.publish(manifest)?;
        self.containerd.run(manifest)
    }

    /// Ends a sandbox and forgets it: two DELs. They wait for the agent for a moment only,
    /// which then still does it.
    fn end(&self, id: &str) {
        self.containerd.stop(id).unwrap();
        self.containerd.remove(id).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while self.has_record(id) {
            assert!(Instant::now() < end, "{:?}", self.records());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wants a sandbox refused, and returns the runtime's words.
    fn refused(&self, manifest: &Value) -> String {
        let err = self.run(manifest).unwrap_err();
        let status: &grpc::Status = err.downcast_ref().unwrap_or_else(|| panic!("{err:#}"));
        status.message.clone()
    }

    /// Proxy and application in a sandbox.
    fn serve(&self, sandbox: &Sandbox) -> [Running; 2] {
        let start = |server: StandIn, who| {
            let program = sandbox.program(&self.cluster.programs.stand_in);
            server.start_as(program.as_user(who)).unwrap()
        };
        [
            start(StandIn::proxy(false), Identity::PROXY),
            start(StandIn::direct("app", &[8080, 9090], Vec::new()), Identity::APP),
        ]
    }

    /// Who accepts what the sandbox sends, and what is sent to it.
    fn assert_fates(&self, sandbox: &Sandbox, captured: bool) {
        let own: IpAddr = sandbox.address(false).unwrap();
        let either = |ours: (&'static str, u16), direct| if captured { ours } else { direct };
        let (app, proxy) = (Identity::APP, Identity::PROXY);
        let outside = OUTSIDE_V4.into();
        let fates: [Expected; 5] = [
            (true, app, outside, 80, either(("proxy", 15001), ("world", 80))),
            (true, app, outside, 8443, ("world", 8443)),
            (true, proxy, outside, 80, ("world", 80)),
            (false, app, own, 8080, either(("proxy", 15006), ("app", 8080))),
            (false, app, own, 9090, ("app", 9090)),
        ];
        for inside in [true, false] {
            let mine: Vec<_> = fates.iter().filter(|fate| fate.0 == inside).collect();
            let attempts: Vec<_> = mine
                .iter()
                .map(|(_, who, to, port, _)| {
                    attempt(Transport::Tcp, *who, SocketAddr::new(*to, *port))
                })
                .collect();
            let packet = &self.cluster.programs.packet;
            let program = if inside {
                sandbox.program(packet)
            } else {
                self.cluster.node.world.program(packet)
            };
            let came = send(program, &attempts).unwrap();
            for ((.., by), attempt) in mine.iter().zip(&attempts) {
                let fate = &came[&attempt.label];
                assert!(fate.is_by(by.0, by.1), "{}: {fate}, want {by:?}", attempt.label);
            }
        }
    }

    fn records(&self) -> Vec<PathBuf> {
        let dir = self.cluster.directories.run.join("sandboxes");
        let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
    }

    fn has_record(&self, id: &str) -> bool {
        self.records().iter().any(|path| path.ends_with(format!("{id}.json")))
    }

    /// Interfaces of the node that lead to pods.
    fn links(&self) -> usize {
        let host = &self.cluster.node.host;
        let links = host.program("ip").args(["-o", "link", "show", "type", "veth"]);
        links.check().unwrap().lines().filter(|line| line.contains("master cni0")).count()
    }

    /// Network namespaces that the runtime holds.
    fn namespaces(&self) -> usize {
        std::fs::read_dir(self.containerd.inside("/run/netns")).map_or(0, Iterator::count)
    }

    fn commands(&self, id: &str) -> Vec<String> {
        self.record.calls(id).unwrap().into_iter().map(|call| call.command).collect()
    }
}

fn annotations() -> Value {
    json!({
        "traffic.sidecar.istio.io/excludeOutboundPorts": "8443",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
    })
}

/// A program in the place of another, as an upgrade does it, also while that runs.
fn replace(from: &Path, to: &Path, more: &str) {
    // By another process: whoever starts a program while this one writes a file has it
    // open too for a moment, and nobody can execute it ("Text file busy").
    let script = "cp \"$1\" \"$2.part\" && printf %s \"$3\" >>\"$2.part\" && mv \"$2.part\" \"$2\"";
    let program = Program::new("sh").args(["-c", script, "replace"]).arg(from).arg(to);
    program.arg(more).check().unwrap();
}

/// A sandbox from its start to its end: what containerd asks, and what is left.
#[test]
fn a_sandbox_comes_and_goes() {
    let Some((packages, runtimes)) = runtimes() else { return };
    for runtime in runtimes {
        let scene = Scene::create(&packages, &runtime, &Network::default());
        let version = scene.containerd.name().to_owned();
        let network = scene.containerd.network().unwrap();
        assert!(network.status, "{version}: {network:?}");
        let manifest = sidecar_pod(NAMESPACE, "meshed", &annotations(), &[]);
        let meshed = scene.run(&manifest).unwrap();
        let plain = scene.run(&plain_pod(NAMESPACE, "plain")).unwrap();
        {
            let _servers = (scene.serve(&meshed), scene.serve(&plain));
            scene.assert_fates(&meshed, true);
            scene.assert_fates(&plain, false);
        }
        assert!(scene.has_record(&meshed.id), "{version}: {:?}", scene.records());
        assert_eq!((scene.links(), scene.namespaces()), (2, 2), "{version}");
        assert_added(&scene, &meshed, &manifest);

        let (id, plain) = (meshed.id.clone(), plain.id.clone());
        drop(meshed);
        scene.end(&id);
        assert_deleted_twice(&scene, &id);
        // As kubelet does when it has lost count.
        scene.containerd.stop(&plain).unwrap();
        scene.containerd.stop(&plain).unwrap();
        scene.containerd.remove(&plain).unwrap();
        scene.containerd.remove(&plain).unwrap();
        assert_eq!(scene.containerd.list().unwrap(), Vec::<String>::new(), "{version}");
        assert_eq!((scene.links(), scene.namespaces()), (0, 0), "{version}");
        assert_eq!(scene.records(), Vec::<PathBuf>::new(), "{version}");
    }
}

/// The runtime gave what our entry asks for by its capabilities, and our plugin passed
/// on what `bridge` had said.
fn assert_added(scene: &Scene, sandbox: &Sandbox, manifest: &Value) {
    let version = scene.containerd.name();
    let calls = scene.record.calls(&sandbox.id).unwrap();
    let [add]: &[Call] = &calls else { panic!("{version}: {calls:?}") };
    assert_eq!((add.command.as_str(), add.interface.as_str()), ("ADD", "eth0"));
    let (passed, own) = (add.annotations().unwrap(), &manifest["metadata"]["annotations"]);
    for (key, value) in own.as_object().unwrap() {
        assert_eq!(&passed[key], value, "{version}: {key}");
    }
    for pair in [
        format!("K8S_POD_NAMESPACE={NAMESPACE}"),
        "K8S_POD_NAME=meshed".to_owned(),
        format!("K8S_POD_INFRA_CONTAINER_ID={}", sandbox.id),
        "K8S_POD_UID=uid-of-meshed".to_owned(),
    ] {
        assert!(add.args.split(';').any(|one| one == pair), "{version}: {}", add.args);
    }
    // What containerd 1.6 has not yet, and what it is in 2: the pod's, not the sandbox's.
    let cgroup = add.config.pointer("/runtimeConfig/cgroupPath").and_then(Value::as_str);
    let parent = scene.containerd.cgroup_parent();
    assert!(cgroup.is_none_or(|path| path == parent), "{version}: {cgroup:?}");
    assert_eq!(cgroup.is_some(), version != "containerd-1.6");
    let previous = add.previous().unwrap();
    assert_eq!(previous["ips"].as_array().unwrap().len(), 2, "{version}: {previous}");
    assert_eq!(sandbox.addresses.len(), 2, "{version}");
}

/// DEL comes when the sandbox stops, and again when it is removed: with nothing left
/// to say about it.
fn assert_deleted_twice(scene: &Scene, id: &str) {
    let version = scene.containerd.name();
    assert_eq!(scene.commands(id), ["ADD", "DEL", "DEL"], "{version}");
    let calls = scene.record.calls(id).unwrap();
    let (first, second) = (&calls[1], &calls[2]);
    assert!(!first.netns.is_empty() && first.previous().is_some(), "{version}: {first:?}");
    assert!(second.netns.is_empty() && second.previous().is_none(), "{version}: {second:?}");
    assert_eq!(first.previous(), calls[0].previous(), "{version}");
    assert_eq!(second.annotations(), calls[0].annotations(), "{version}");
}

/// Captured or not started, with the runtime's own cleaning up; then an upgrade of
/// agent and plugin under sandboxes that stay.
#[test]
fn agent_and_plugin_are_replaced_under_running_sandboxes() {
    let Some((packages, runtimes)) = runtimes() else { return };
    for runtime in runtimes {
        let mut scene = Scene::create(&packages, &runtime, &Network::default());
        let version = scene.containerd.name().to_owned();
        let pod = |name: &str| sidecar_pod(NAMESPACE, name, &annotations(), &[]);
        let (old, other) = (scene.run(&pod("old")).unwrap(), scene.run(&pod("other")).unwrap());

        scene.kill_agent();
        let said = scene.refused(&pod("early"));
        let socket = scene.cluster.directories.run.join("pluginevent.sock");
        for word in ["type=\"istio-cni\"", "agent", &socket.display().to_string(), "kubectl"] {
            assert!(said.contains(word), "{version}: no {word} in: {said}");
        }
        assert_refused_cleanly(&scene, 2);
        // Pods end without the agent.
        let other_id = other.id.clone();
        drop(other);
        scene.containerd.stop(&other_id).unwrap();
        scene.containerd.remove(&other_id).unwrap();
        assert_eq!(scene.links(), 1, "{version}");

        // The same programs by content, but not by file or hash.
        let plugin = scene.cluster.node.host.scratch().path().join("bin/istio-cni");
        replace(&scene.cluster.programs.plugin, &plugin, "\n");
        scene.containerd.install(&plugin).unwrap();
        let sluice = scene.cluster.programs.sluice.clone();
        replace(&sluice, &sluice, "\n");
        scene.start_agent();
        let new = scene.run(&pod("early")).unwrap();
        {
            let _servers = (scene.serve(&old), scene.serve(&new));
            scene.assert_fates(&old, true);
            scene.assert_fates(&new, true);
        }
        assert!(scene.has_record(&old.id) && scene.has_record(&new.id), "{version}");

        // The next upgrade comes while the agent of this one still runs.
        replace(&sluice, &sluice, "\n");
        replace(&plugin, &plugin, "\n");
        scene.containerd.install(&plugin).unwrap();
        let between = scene.run(&pod("between")).unwrap();
        scene.kill_agent();
        scene.start_agent();
        for sandbox in [old, new, between] {
            let id = sandbox.id.clone();
            drop(sandbox);
            scene.end(&id);
            assert_eq!(scene.commands(&id), ["ADD", "DEL", "DEL"], "{version}");
        }
        assert_eq!((scene.links(), scene.namespaces()), (0, 0), "{version}");
    }
}

/// Of a sandbox that was refused the runtime keeps nothing; `others` it does.
fn assert_refused_cleanly(scene: &Scene, others: usize) {
    let version = scene.containerd.name();
    assert_eq!(scene.containerd.list().unwrap().len(), others, "{version}");
    assert_eq!(scene.links(), others, "{version}");
    assert_eq!(scene.namespaces(), others, "{version}");
    // Ours failed, so the recorder was never asked to ADD; the DEL that containerd
    // sends at once goes through the whole chain backwards.
    let all = scene.record.all().unwrap();
    let adds: Vec<_> = all.iter().filter(|call| call.command == "ADD").collect();
    assert_eq!(adds.len(), others, "{version}: {adds:?}");
    let deleted = all.iter().filter(|call| call.command == "DEL");
    let unknown = deleted.filter(|call| adds.iter().all(|add| add.container != call.container));
    assert_eq!(unknown.count(), 1, "{version}");
}

/// The agent is dead: what it left and what the runtime passes tell who is outside of
/// the mesh. They start; the others are told why they wait.
#[test]
fn without_the_agent_pods_outside_of_the_mesh_start() {
    let Some((packages, runtimes)) = runtimes() else { return };
    for runtime in runtimes {
        let mut scene = Scene::create(&packages, &runtime, &Network::default());
        let version = scene.containerd.name().to_owned();
        scene.kill_agent();
        leave_snapshot(&scene);
        let plain = scene.run(&plain_pod(NAMESPACE, "plain")).unwrap();
        {
            let _servers = scene.serve(&plain);
            scene.assert_fates(&plain, false);
        }
        let said = scene.refused(&sidecar_pod(NAMESPACE, "meshed", &annotations(), &[]));
        assert!(said.contains("sidecar.istio.io/status"), "{version}: {said}");
        let passed = scene.cluster.directories.run.join(passed::DIRECTORY);
        let passed = std::fs::read_dir(passed).unwrap().map(|entry| entry.unwrap().file_name());
        let wanted = passed::file_name(&plain.id);
        assert_eq!(passed.collect::<Vec<_>>(), [OsString::from(wanted)], "{version}");
        scene.containerd.stop(&plain.id).unwrap();
        scene.containerd.remove(&plain.id).unwrap();
        assert_eq!((scene.links(), scene.namespaces()), (0, 0), "{version}");
    }
}

/// What an agent leaves that follows an API server and knows no pod; ours has manifests,
/// beside which the runtime's word does not count.
fn leave_snapshot(scene: &Scene) {
    let file = scene.cluster.directories.run.join(snapshot::FILE_NAME);
    let snapshot = Snapshot {
        version: snapshot::VERSION,
        policy: "e2e".to_owned(),
        source: Source::Kubernetes,
        agent_namespace: "istio-system".to_owned(),
        excluded: BTreeSet::new(),
        ambient: Ambient::default(),
        pods: BTreeMap::new(),
    };
    std::fs::write(file, serde_json::to_vec(&snapshot).unwrap()).unwrap();
}

/// A chain of CNI 1.1.0: containerd 2 asks for STATUS, and the node is ready only
/// while an agent of the host's network is.
#[test]
fn the_network_is_ready_when_the_agent_is() {
    let Some((packages, _)) = runtimes() else { return };
    let Some(two) = packages.containerd_2() else { return };
    let network = Network {
        version: "1.1.0".to_owned(),
        main: "main-plugin".to_owned(),
        ..Network::default()
    };
    // Of an agent on the pods' network STATUS says nothing while it is away: the node
    // would start nothing, so neither the agent.
    let mut scene = Scene::create(&packages, &two, &network);
    scene.kill_agent();
    assert!(scene.containerd.network().unwrap().status);
    drop(scene);
    let on_host = json!({"agent_host_network": true});
    let mut scene = Scene::with_keys(&packages, &two, &network, on_host);
    assert!(scene.containerd.network().unwrap().status);
    let asked = |scene: &Scene| {
        scene.record.all().unwrap().iter().filter(|call| call.command == "STATUS").count()
    };
    assert!(asked(&scene) > 0, "no STATUS");
    let sandbox = scene.run(&sidecar_pod(NAMESPACE, "meshed", &annotations(), &[])).unwrap();
    {
        let _servers = scene.serve(&sandbox);
        scene.assert_fates(&sandbox, true);
    }

    scene.kill_agent();
    let before = asked(&scene);
    let network = scene.containerd.network().unwrap();
    assert!(!network.status, "{network:?}");
    assert!(network.message.contains("istio-cni"), "{network:?}");
    // Ours said no, so the plugin after it was not asked.
    assert_eq!(asked(&scene), before);

    scene.start_agent();
    let end = Instant::now() + Duration::from_secs(60);
    while !scene.containerd.network().unwrap().status {
        assert!(Instant::now() < end, "{:?}", scene.containerd.network());
    }
    scene.containerd.stop(&sandbox.id).unwrap();
    scene.containerd.remove(&sandbox.id).unwrap();
    assert_eq!(scene.commands(&sandbox.id), ["ADD", "DEL", "DEL"]);
}

/// The agent puts itself into the network of a runtime that runs, stays in it when it
/// dies, and goes when it is told to.
#[test]
fn the_agent_installs_itself_and_is_taken_out() {
    let Some((packages, runtimes)) = runtimes() else { return };
    for runtime in runtimes {
        let mut cluster = Cluster::without_agent("install", &Network::default()).unwrap();
        cluster.list.plugins.truncate(1);
        let host = &cluster.node.host;
        let list = &cluster.list;
        let containerd = Containerd::start(host, None, (&packages, &runtime), list).unwrap();
        let version = containerd.name().to_owned();
        let chain = |wanted: &[&str]| {
            let end = Instant::now() + Duration::from_secs(60);
            while containerd.chain().unwrap() != wanted {
                assert!(Instant::now() < end, "{version}: {:?}", containerd.chain());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        chain(&["bridge"]);

        let source = host.scratch().dir("plugin").unwrap();
        replace(&cluster.programs.plugin, &source.join("istio-cni"), "");
        let mut args = vec![format!("--plugin-dir={}", source.display())];
        args.push(format!("--mounted-cni-net-dir={}", containerd.net_dir().display()));
        args.push(format!("--mounted-cni-bin-dir={}", containerd.bin_dir().display()));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let install = [&["--install=true", "--backend", backend(&runtime)], &args[..]].concat();
        let directories = &cluster.directories;
        let agent = Agent::launch(&cluster.programs, host, directories, &install).unwrap();
        chain(&["bridge", "istio-cni"]);
        let entry = std::fs::read_dir(containerd.net_dir())
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
        // The lab's node is not in the network of the machine's first process.
        assert!(entry.into_iter().all(|text| !text.contains("agent_host_network")), "{version}");
        let manifest = |name: &str| sidecar_pod(NAMESPACE, name, &annotations(), &[]);
        cluster.directories.publish(&manifest("meshed")).unwrap();
        let meshed = containerd.run(&manifest("meshed")).unwrap();
        let rules = Program::new("nft").args(["list", "ruleset"]).within(&meshed.netns);
        assert!(rules.check().unwrap().to_lowercase().contains("istio"), "{version}");

        agent.kill().unwrap();
        chain(&["bridge", "istio-cni"]);
        containerd.run(&manifest("refused")).unwrap_err();
        let run = format!("--run-dir={}", cluster.directories.run.display());
        let cache = format!("--cni-cache-dir={}", containerd.inside("/var/lib/cni").display());
        let cleanup = host.program(&cluster.programs.sluice).args(["cleanup", &run, &cache]);
        cleanup.args(args.iter().copied()).check().unwrap();
        chain(&["bridge"]);
        let unmeshed = containerd.run(&manifest("unmeshed")).unwrap();
        for id in [meshed.id, unmeshed.id] {
            containerd.stop(&id).unwrap();
            containerd.remove(&id).unwrap();
        }
        assert_eq!(containerd.list().unwrap(), Vec::<String>::new(), "{version}");
    }
}

/// What uses the node's chain without being a pod starts, also without the agent.
#[test]
fn what_is_no_pod_is_let_pass() {
    let Some((packages, _)) = runtimes() else { return };
    let one = packages.containerd_1();
    let mut scene = Scene::create(&packages, &one, &Network::default());
    scene.kill_agent();
    let host = &scene.cluster.node.host;
    let host_network = json!({
        "metadata": {"name": "host", "namespace": NAMESPACE, "uid": "host"},
        "spec": {"hostNetwork": true},
    });
    let on_host = scene.containerd.start_sandbox(&host_network).unwrap();
    scene.containerd.stop(&on_host).unwrap();
    scene.containerd.remove(&on_host).unwrap();
    assert!(scene.record.all().unwrap().is_empty(), "the node's own network needs no chain");

    let ctr = |args: &[&str]| {
        scene.containerd.ctr(host).args(["-n", "k8s.io"]).args(args.iter().copied()).check()
    };
    let command = ["/bin/busybox", "ip", "-o", "addr", "show", "eth0"];
    let run = ["run", "--rm", "--cni", image::NAME, "odd"];
    let printed = ctr(&[run.as_slice(), command.as_slice()].concat()).unwrap();
    assert!(printed.contains("10.244.1."), "{printed}");
    let calls = scene.record.all().unwrap();
    let commands: Vec<_> = calls.iter().map(|call| call.command.as_str()).collect();
    assert_eq!(commands, ["ADD", "DEL"]);
    assert!(calls.iter().all(|call| call.args.is_empty()), "{calls:?}");
    assert!(calls[0].netns.starts_with("/proc/") && calls[0].path.contains(':'), "{calls:?}");
    podman(&packages, &scene, calls.len());
}

fn podman(packages: &Packages, scene: &Scene, before: usize) {
    let host = &scene.cluster.node.host;
    let Some(podman) = Podman::prepare(packages, &scene.containerd, host).unwrap() else {
        say("left out: podman could not be fetched");
        return;
    };
    podman.load().unwrap();
    podman.run(&["run", "-d", "--name", "odd", "--network", "pods", image::NAME]).unwrap();
    let command = ["exec", "odd", "/bin/busybox", "ip", "-o", "addr", "show", "eth0"];
    let printed = podman.run(&command).unwrap();
    assert!(printed.contains("10.244.1."), "{printed}");
    podman.run(&["rm", "--force", "--time", "0", "odd"]).unwrap();
    let calls = scene.record.all().unwrap().split_off(before);
    let of =
        |command: &str| calls.iter().filter(|call| call.command == command).collect::<Vec<_>>();
    // A name, but no namespace: not a pod.
    assert_eq!(of("ADD")[0].args, "IgnoreUnknown=1;K8S_POD_NAME=odd");
    assert_eq!((of("ADD").len(), of("DEL").len()), (1, 1), "{calls:?}");
}
