//! A node with an agent in ambient mode, and what the tests do with it.

use e2e_node::agent::{Agent, NODE_NAME, namespace, plain_pod};
use e2e_node::api::Server;
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod, attempt};
use e2e_node::lab::Namespace;
use e2e_node::packet::{Fate, Transport};
use e2e_node::page::Page;
use e2e_node::process::{Identity, Running};
use e2e_node::runtime::Conflist;
use e2e_node::stand_in::Answer;
use e2e_node::ztunnel::{Config, Record, Ztunnel};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where applications listen.
pub(crate) const PORT: u16 = 8080;

const METRICS: u16 = 15014;

/// There is no kubelet in the lab: every root process of the node may be it.
pub(crate) const KUBELET: Identity = Identity { uid: 0, gid: 0, net_admin: false };

/// The label by which namespaces and pods are ambient.
pub(crate) const MODE: &str = "istio.io/dataplane-mode";

/// A node, its agent, and the world.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// The API server; pods come from manifests where there is none.
    pub(crate) server: Option<Server>,
    pub(crate) backend: &'static str,
    /// How the agent looks after captured pods.
    pub(crate) audit: &'static [&'static str],
    next: AtomicU32,
}

/// A pod that runs.
pub(crate) struct Started {
    pub(crate) pod: Pod,
    pub(crate) manifest: Value,
    pub(crate) _pause: Running,
}

impl Stage {
    /// A node whose pods come from manifests; its namespace is ambient.
    pub(crate) fn with_manifests(name: &str, backend: &'static str) -> Self {
        Self::with_audit(name, backend, crate::AUDIT)
    }

    /// The same, with settings of the audit.
    pub(crate) fn with_audit(
        name: &str,
        backend: &'static str,
        audit: &'static [&'static str],
    ) -> Self {
        let mut stage = Self::set(name, backend);
        stage.audit = audit;
        stage.label(Some("ambient"));
        stage.start_agent();
        stage.eventually("the namespace is known", |stage| {
            stage.metric("sluice_namespaces") == Some(1.0)
        });
        stage
    }

    /// A node whose pods come from the API; its namespace is not ambient.
    pub(crate) fn with_api(name: &str, backend: &'static str) -> Self {
        let mut stage = Self::set(name, backend);
        stage.server = Some(Server::start_in(stage.cluster.node.host.netns()).unwrap());
        stage.label(None);
        stage.start_agent();
        stage
    }

    /// Addresses of its pods are no other test's: namespaces are found by them on the
    /// whole machine.
    fn set(name: &str, backend: &'static str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut cluster = Cluster::without_agent(name, &Network::default()).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let own = 100 + std::process::id() % 100;
        let subnet = format!("10.{own}.{}.0/24", 100 + number);
        let subnet6 = format!("fd00:{own}:{}::/64", 100 + number);
        let text = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": cluster.node.host.scratch().dir("ipam-own").unwrap(),
                    "ranges": [[{"subnet": subnet}], [{"subnet": subnet6}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {
                "type": "istio-cni",
                "cni_agent_run_dir": cluster.directories.run,
                "ambient_enabled": true,
                // What a busy machine needs for many pods at once.
                "agent_timeout_ms": 10_000,
            },
        ]});
        cluster.list = Conflist::parse(&text.to_string()).unwrap();
        let (audit, next) = (crate::AUDIT, AtomicU32::new(0));
        Self { cluster, server: None, backend, audit, next }
    }

    /// Starts the agent, again after it has ended.
    pub(crate) fn start_agent(&mut self) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let args = ["--backend", self.backend, "--ambient-enabled", "--monitoring-port=15014"];
        let args = [&args, self.audit].concat();
        let agent = match &self.server {
            Some(server) => Agent::follow(programs, &node.host, directories, &server.url(), &args),
            None => Agent::launch(programs, &node.host, directories, &args),
        };
        self.cluster.agent = Some(agent.unwrap());
    }

    /// Starts a ztunnel.
    pub(crate) fn ztunnel(&self, name: &str) -> Ztunnel {
        let scratch = self.cluster.node.host.scratch();
        let config = Config::new(scratch, name, self.cluster.directories.ztunnel());
        let ztunnel = Ztunnel::start(&config, Some(&self.cluster.node.host)).unwrap();
        ztunnel.wait("its snapshot", |status| status.snapshot).unwrap();
        ztunnel
    }

    /// Sets the mode of the pods' namespace.
    pub(crate) fn label(&self, mode: Option<&str>) {
        let mut manifest = namespace(NAMESPACE);
        if let Some(mode) = mode {
            manifest["metadata"]["labels"] = json!({MODE: mode});
        }
        self.publish(&manifest);
    }

    /// Tells the source of pods.
    pub(crate) fn publish(&self, manifest: &Value) {
        match &self.server {
            Some(server) => server.put(manifest.clone()).unwrap(),
            None => self.cluster.directories.publish(manifest).unwrap(),
        }
    }

    /// A pod without a sidecar, of an account of its own name.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        let mut manifest = plain_pod(NAMESPACE, name);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let uid = format!("0a1b2c3d-0000-4000-8000-{:08x}{number:04x}", std::process::id());
        manifest["metadata"]["uid"] = json!(uid);
        manifest["spec"]["serviceAccountName"] = json!(name);
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        manifest
    }

    /// A pod that kubelet probes on [`PORT`].
    pub(crate) fn probed(&self, name: &str) -> Value {
        let mut manifest = self.manifest(name);
        let container = &mut manifest["spec"]["containers"][0];
        container["ports"] = json!([{"name": "web", "containerPort": PORT}]);
        container["readinessProbe"] = json!({"httpGet": {"port": "web"}});
        manifest
    }

    /// The host's rules are there, as often as agents have made them.
    #[track_caller]
    pub(crate) fn await_host_rules(&self, times: u64) {
        let known = "kubelet's probes are known by this";
        self.eventually("the host's rules are there", |stage| {
            stage.cluster.agent_log().matches(known).count() as u64 >= times
        });
    }

    /// Starts a pod: ADD, its first process, and what the kubelet says of it.
    pub(crate) fn start(&self, manifest: Value) -> anyhow::Result<Started> {
        self.publish(&manifest);
        let mut pod = self.cluster.sandbox(&manifest)?;
        self.cluster.attach(&mut pod)?;
        let mut pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
        pause = pause.timeout(Duration::from_secs(900));
        let mut pause = pause.start()?;
        pause.wait_ready()?;
        let mut started = Started { pod, manifest, _pause: pause };
        if self.server.is_some() {
            let ips: Vec<Value> =
                started.pod.addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            started.manifest["status"] = json!({"phase": "Running", "podIPs": ips});
            let mut now = self.seen(&started);
            now["status"] = started.manifest["status"].clone();
            self.publish(&now);
        }
        Ok(started)
    }

    /// The pod as the API has it.
    pub(crate) fn seen(&self, pod: &Started) -> Value {
        let name = pod.manifest["metadata"]["name"].as_str().unwrap();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
        let port = self.server.as_ref().unwrap().port();
        let page = Page::get(self.cluster.node.host.netns(), port, &path).unwrap();
        serde_json::from_str(&page.body).unwrap()
    }

    /// The annotation that istiod reads.
    pub(crate) fn redirection(&self, pod: &Started) -> Option<String> {
        let value = &self.seen(pod)["metadata"]["annotations"]["ambient.istio.io/redirection"];
        value.as_str().map(ToOwned::to_owned)
    }

    /// Value of a sample; `None` too while no agent answers.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        Page::get(self.cluster.node.host.netns(), METRICS, "/metrics").ok()?.sample(sample)
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !holds(self) {
            assert!(Instant::now() < end, "never: {what}; {}", self.cluster.agent_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the pod's application, which says who it is.
    pub(crate) fn serve(&self, pod: &Started) -> Running {
        pod.pod.serve_app(&self.cluster.programs, &[PORT]).unwrap()
    }

    /// What becomes of a connection.
    pub(crate) fn fate(&self, from: &Namespace, to: SocketAddr) -> Fate {
        self.fate_as(Identity::APP, from, to)
    }

    /// What becomes of a connection of somebody.
    pub(crate) fn fate_as(&self, who: Identity, from: &Namespace, to: SocketAddr) -> Fate {
        let attempt = attempt(Transport::Tcp, who, to);
        let mut fates = self.cluster.send(from, std::slice::from_ref(&attempt)).unwrap();
        fates.remove(&attempt.label).unwrap()
    }

    /// Who answers it.
    #[track_caller]
    pub(crate) fn answer(&self, from: &Namespace, to: SocketAddr) -> Answer {
        match self.fate(from, to) {
            Fate::Answered(answer) => answer,
            other => panic!("to {to}: {other}; {}", self.cluster.agent_log()),
        }
    }
}

impl Started {
    pub(crate) fn uid(&self) -> &str {
        self.manifest["metadata"]["uid"].as_str().unwrap()
    }

    pub(crate) fn ip(&self, ipv6: bool) -> IpAddr {
        self.pod.address(ipv6).unwrap()
    }

    pub(crate) fn app(&self, ipv6: bool) -> SocketAddr {
        SocketAddr::new(self.ip(ipv6), PORT)
    }
}

/// Records since the last look.
pub(crate) fn records(ztunnel: &Ztunnel, seen: &mut usize) -> Vec<Record> {
    let all = ztunnel.status().unwrap().records;
    let new = all[*seen..].to_vec();
    *seen = all.len();
    new
}
