//! A node on which the agent installs itself, with everything that a fault can touch.

use crate::clock::Clock;
use crate::fault::{Fault, Rewriter};
use crate::pod::Subject;
use e2e_node::agent::{Agent, NODE_NAME, namespace};
use e2e_node::api::Server;
use e2e_node::cluster::{Cluster, NAMESPACE, Network};
use e2e_node::host::{Disk, Host};
use e2e_node::page::Page;
use e2e_node::process::Running;
use e2e_node::programs::PLUGIN_DIR;
use e2e_node::runtime::{Conflist, Runtime};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const HEALTH: u16 = 8000;

/// No wait for something that must become true is longer.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Stage {
    /// Node, programs and directories.
    pub(crate) cluster: Cluster,
    pub(crate) server: Server,
    pub(crate) host: Host,
    /// Run directory, CNI configuration and plugins, where the fault is about disks.
    pub(crate) disks: Vec<Disk>,
    pub(crate) clock: Option<Clock>,
    pub(crate) rewriter: Mutex<Option<Rewriter>>,
    /// What the primary's owner wrote last.
    pub(crate) primary: Mutex<String>,
    agent: Mutex<Option<Agent>>,
    backend: &'static str,
    /// Releases so far.
    release: AtomicUsize,
    _world: Running,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// A node that is well.
    pub(crate) fn set(fault: Fault) -> Self {
        let network = Network { ipv6: false, ..Network::default() };
        let cluster = Cluster::without_agent(fault.name(), &network).unwrap();
        let scratch = cluster.node.host.scratch();
        let host = Host::create(scratch, fault.name(), &cluster.programs).unwrap();
        let server = Server::start_in(cluster.node.host.netns()).unwrap();
        server.put(namespace(NAMESPACE)).unwrap();
        let disks = if fault == Fault::DiskFull {
            let sizes =
                [(&cluster.directories.run, "256k"), (&host.net, "128k"), (&host.bin, "32m")];
            sizes.map(|(path, size)| Disk::mount(path, size).unwrap()).into()
        } else {
            Vec::new()
        };
        let clock = (fault == Fault::ClockJump).then(|| Clock::make(scratch));
        let stage = Self {
            _world: cluster.serve_world(&[80]).unwrap(),
            cluster,
            server,
            host,
            disks,
            clock,
            rewriter: Mutex::default(),
            primary: Mutex::default(),
            agent: Mutex::default(),
            backend: fault.backend(),
            release: AtomicUsize::new(0),
        };
        stage.write_primary(1500);
        stage.start();
        stage.await_ready();
        if let Some(clock) = &stage.clock {
            clock.assert_works_in(lock(&stage.agent).as_ref().unwrap().pid());
        }
        stage
    }

    /// The primary as its owner writes it, with its own ideas of white space.
    pub(crate) fn primary_text(&self, mtu: u64) -> String {
        let mut main = Value::Object(self.cluster.list.plugins[0].config.clone());
        main["mtu"] = json!(mtu);
        format!(
            "{{ \"cniVersion\":\"1.0.0\",\n\t\"name\": \"pods\",\n\"plugins\": [\n  {main} ]\n}}\n"
        )
    }

    pub(crate) fn write_primary(&self, mtu: u64) {
        let text = self.primary_text(mtu);
        self.host.write_primary(&text).unwrap();
        *lock(&self.primary) = text;
    }

    /// Starts the agent as its DaemonSet would, and does not wait.
    pub(crate) fn start(&self) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let url = self.server.url();
        let level = ["info", "warn"][self.release.load(Ordering::Relaxed) % 2];
        let mut args: Vec<String> =
            ["install-cni", "--backend", self.backend, "--api-url", &url].map(str::to_owned).into();
        for (flag, value) in [
            ("node-name", NODE_NAME.to_owned()),
            ("mounted-cni-net-dir", self.host.net.display().to_string()),
            ("mounted-cni-bin-dir", self.host.bin.display().to_string()),
            ("plugin-dir", self.host.image.display().to_string()),
            ("agent-namespace", "istio-system".to_owned()),
            ("exclude-namespaces", "kube-system".to_owned()),
            // Each release has another entry than the one before, so another conflist.
            ("log_output_level", format!("default:info,cni-plugin:{level}")),
            // It looks for namespaces on the whole machine, where other tests run.
            ("repair-enabled", "false".to_owned()),
        ] {
            args.push(format!("--{flag}={value}"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let variables = self.clock.iter().flat_map(Clock::variables).collect::<Vec<_>>();
        let agent = Agent::begin(programs, &node.host, directories, &args, &variables).unwrap();
        *lock(&self.agent) = Some(agent);
    }

    pub(crate) fn kill(&self) {
        if let Some(agent) = lock(&self.agent).take() {
            agent.kill().unwrap();
        }
    }

    pub(crate) fn stop(&self) {
        if let Some(agent) = lock(&self.agent).take() {
            agent.stop().unwrap();
        }
    }

    pub(crate) fn has_agent(&self) -> bool {
        lock(&self.agent).is_some()
    }

    /// The image of the next release is there, and nothing of it installed yet.
    pub(crate) fn next_release(&self) {
        let number = self.release.fetch_add(1, Ordering::Relaxed) + 1;
        self.host.upgrade(number).unwrap();
    }

    /// What the kubelet does about an agent that ended by itself.
    fn keep_agent(&self) {
        let ended = lock(&self.agent).as_ref().is_some_and(|agent| !agent.is_alive());
        if ended {
            self.start();
        }
    }

    pub(crate) fn runtime(&self) -> Runtime<'_> {
        Runtime {
            node: &self.cluster.node.host,
            path: vec![self.host.bin.clone(), PathBuf::from(PLUGIN_DIR)],
            cache: self.cluster.node.host.scratch().path().join("cni-cache"),
        }
    }

    /// What a runtime loads at this moment. It always has us.
    #[track_caller]
    pub(crate) fn chain(&self) -> Conflist {
        let list = self.host.load().unwrap_or_else(|error| panic!("{error:#}: {}", self.log()));
        let kinds: Vec<_> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "istio-cni"], "{}", self.log());
        list
    }

    pub(crate) fn log(&self) -> String {
        let path = self.cluster.directories.run.with_extension("log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        format!("the agent's log:\n{log}")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.cluster.directories.run.clone()
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < end, "never: {what}; {}", self.log());
            self.keep_agent();
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The agent answers and is ready.
    #[track_caller]
    pub(crate) fn await_ready(&self) {
        let ask = || Page::get(self.cluster.node.host.netns(), HEALTH, "/readyz");
        let mut page = ask();
        let end = Instant::now() + PATIENCE;
        while !page.as_ref().is_ok_and(|page| page.status == 200) {
            assert!(Instant::now() < end, "not ready: {page:?}; {}", self.log());
            self.keep_agent();
            std::thread::sleep(Duration::from_millis(30));
            page = ask();
        }
    }

    /// The agent's socket answers.
    #[track_caller]
    pub(crate) fn await_serving(&self) {
        let socket = self.run_dir().join("pluginevent.sock");
        self.eventually("the agent serves", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// The agent has seen these pods, and would be missed.
    #[track_caller]
    pub(crate) fn await_known(&self, subjects: &[Subject]) {
        let path = self.run_dir().join("snapshot.json");
        self.eventually("the pods are in the snapshot", || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            subjects.iter().all(|subject| text.contains(&subject.uid()))
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Before its directories go.
        *lock(&self.rewriter) = None;
        if let Some(agent) = lock(&self.agent).take() {
            agent.kill().ok();
        }
    }
}
