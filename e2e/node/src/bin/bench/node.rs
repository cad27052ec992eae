//! A node to measure on: agents with their manifests, and pods as a runtime
//! leaves them when it is our plugin's turn.

use anyhow::{Context, Result, ensure};
use e2e_node::agent::{self, Directories, plain_pod, sidecar_pod};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::programs::Programs;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use sys::netns::within;
use sys::process::Command;

/// Kubernetes namespace of the pods that are in the mesh.
pub(crate) const MESH: &str = "mesh";
/// Namespace of the meshed pods with an injected sidecar's defaults: IPv4, no DNS.
pub(crate) const DEFAULTS: &str = "defaults";
/// Kubernetes namespace of those that are not.
pub(crate) const PLAIN: &str = "plain";

const BRIDGE: &str = "cni0";
const GATEWAY_V4: &str = "10.88.0.1";
const GATEWAY_V6: &str = "fd88::1";

/// Until an agent must know a new manifest, and until a sandbox must be reached.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod of the cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    /// [`MESH`], [`DEFAULTS`] or [`PLAIN`].
    pub(crate) namespace: &'static str,
    /// Its number there.
    pub(crate) number: usize,
}

impl Pod {
    /// Its name.
    pub(crate) fn name(self) -> String {
        format!("{}-{}", self.namespace, self.number)
    }

    /// Its uid.
    pub(crate) fn uid(self) -> String {
        format!("uid-of-{}", self.name())
    }

    /// Without a sidecar.
    pub(crate) fn plain(self) -> Value {
        plain_pod(self.namespace, &self.name())
    }

    /// As Istio's injector leaves a dual-stack pod with DNS capture, a pod with its
    /// defaults, or one that it leaves alone.
    pub(crate) fn manifest(self) -> Value {
        let env = [("ISTIO_DUAL_STACK", "true"), ("ISTIO_META_DNS_CAPTURE", "true")];
        match self.namespace {
            MESH => sidecar_pod(MESH, &self.name(), &json!({}), &env),
            DEFAULTS => sidecar_pod(DEFAULTS, &self.name(), &json!({}), &[]),
            other => plain_pod(other, &self.name()),
        }
    }
}

/// A node: the bridge of its pods, as the plugin `bridge` makes it. The agents that
/// run there reach the pods, and so prove what arrives too.
pub(crate) fn create(scratch: &Arc<Scratch>, name: &str) -> Result<Namespace> {
    let node = Namespace::create(scratch, name)?;
    node.ip(&format!(
        "link add {BRIDGE} type bridge\n\
         addr add {GATEWAY_V4}/16 dev {BRIDGE}\n\
         addr add {GATEWAY_V6}/64 dev {BRIDGE} nodad\n\
         link set {BRIDGE} up\n"
    ))?;
    Ok(node)
}

/// A pod's network namespace on the bridge of its node.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The namespace.
    pub(crate) netns: Namespace,
    number: usize,
}

impl Sandbox {
    /// Makes one on the node. No two have the same number: the kernel takes a
    /// namespace apart later, and its links with it.
    pub(crate) fn create(node: &Namespace) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Namespace::create(node.scratch(), &format!("pod{number}"))?;
        node.link(&format!("v{number}"), &netns, "eth0")?;
        node.ip(&format!("link set v{number} master {BRIDGE}"))?;
        let (v4, v6) = addresses(number);
        netns.ip(&format!(
            "addr add {v4}/16 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {GATEWAY_V4}\n\
             route add default via {GATEWAY_V6}\n"
        ))?;
        reach(node, [v4.parse()?, v6.parse()?])?;
        Ok(Self { netns, number })
    }

    /// Its number, by which [`addresses`] are.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    fn container_id(&self) -> String {
        format!("{:064x}", self.number)
    }
}

/// Waits until the node reaches a sandbox: the kernel brings links and IPv6 addresses
/// up later, which is the time of the plugins before ours and not to be measured.
fn reach(node: &Namespace, addresses: [IpAddr; 2]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for address in addresses {
        // Nobody listens on the port, so an answer is a refusal.
        let target = SocketAddr::new(address, 9);
        let refused = || {
            let dialled = TcpStream::connect_timeout(&target, Duration::from_secs(3));
            dialled.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        while !within(node.netns(), refused)? {
            ensure!(Instant::now() < end, "the node does not reach {address}");
        }
    }
    Ok(())
}

/// The addresses of a sandbox.
pub(crate) fn addresses(number: usize) -> (String, String) {
    let (high, low) = (number / 250 % 250, number % 250 + 2);
    (format!("10.88.{high}.{low}"), format!("fd88::1:{high:x}:{low:x}"))
}

/// An agent that serves one directory of manifests with one backend.
#[derive(Debug)]
pub(crate) struct Agent {
    running: agent::Agent,
    directories: Directories,
    plugin: PathBuf,
}

impl Agent {
    /// Starts it on a node, without manifests.
    pub(crate) fn start(
        programs: &Programs,
        node: &Namespace,
        name: &str,
        backend: &str,
    ) -> Result<Self> {
        let directories = Directories::create(node.scratch(), name)?;
        let running = agent::Agent::start(programs, node, &directories, backend)?;
        Ok(Self { running, directories, plugin: programs.plugin.clone() })
    }

    /// Starts it on a node, with pods from an API server.
    pub(crate) fn follow(
        programs: &Programs,
        node: &Namespace,
        name: &str,
        api: &str,
    ) -> Result<Self> {
        let directories = Directories::create(node.scratch(), name)?;
        let running = agent::Agent::follow(programs, node, &directories, api, &[])?;
        Ok(Self { running, directories, plugin: programs.plugin.clone() })
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        self.running.log()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Gives it manifests and waits until it knows the pod `last`.
    pub(crate) fn learn(&self, node: &Namespace, objects: &[Value], last: Pod) -> Result<()> {
        for object in objects {
            self.directories.publish(object)?;
        }
        let sandbox = Sandbox::create(node)?;
        let end = Instant::now() + PATIENCE;
        while let Err(error) = self.add(&sandbox, last) {
            if Instant::now() > end {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.del(&sandbox, last)
    }

    /// Runs ADD and says how long it took, from before the plugin is started
    /// until its answer is there and it is gone.
    pub(crate) fn add(&self, sandbox: &Sandbox, pod: Pod) -> Result<Duration> {
        self.run("ADD", &addition(&self.directories.run, sandbox), sandbox, pod)
    }

    /// Runs DEL.
    pub(crate) fn del(&self, sandbox: &Sandbox, pod: Pod) -> Result<()> {
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "bench",
            "type": "istio-cni",
            "plugin_log_level": "error",
            "cni_agent_run_dir": self.directories.run,
        });
        self.run("DEL", &config, sandbox, pod).map(drop)
    }

    fn run(&self, verb: &str, config: &Value, sandbox: &Sandbox, pod: Pod) -> Result<Duration> {
        let called = call(&self.plugin, verb, config, sandbox, pod);
        called.with_context(|| format!("{verb} of {}; {}", pod.name(), self.last_words()))
    }

    fn last_words(&self) -> String {
        let log = self.running.log();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        format!("the agent's log ends with:\n{last}")
    }
}

/// Configuration of an ADD, with the result of the plugins before.
pub(crate) fn addition(run_dir: &Path, sandbox: &Sandbox) -> Value {
    let (v4, v6) = addresses(sandbox.number);
    json!({
        "cniVersion": "1.1.0",
        "name": "bench",
        "type": "istio-cni",
        "plugin_log_level": "error",
        "cni_agent_run_dir": run_dir,
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": sandbox.netns.path()}],
            "ips": [
                {"address": format!("{v4}/32"), "interface": 0},
                {"address": format!("{v6}/128"), "interface": 0},
            ],
            "dns": {},
        },
    })
}

/// Runs a plugin, and says how long that took.
pub(crate) fn call(
    plugin: &Path,
    verb: &str,
    config: &Value,
    sandbox: &Sandbox,
    pod: Pod,
) -> Result<Duration> {
    let stdin = config.to_string();
    let id = sandbox.container_id();
    let args = [
        "IgnoreUnknown=1".to_owned(),
        format!("K8S_POD_NAMESPACE={}", pod.namespace),
        format!("K8S_POD_NAME={}", pod.name()),
        format!("K8S_POD_INFRA_CONTAINER_ID={id}"),
        format!("K8S_POD_UID={}", pod.uid()),
    ];
    let command = Command::new(plugin)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", sandbox.netns.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", args.join(";"))
        .stdin(stdin.as_bytes());
    let start = Instant::now();
    command.run()?;
    Ok(start.elapsed())
}

/// Where the programs are that are measured. The suite's own are not used.
pub(crate) fn programs(dist: &Path) -> Programs {
    Programs {
        dir: dist.to_owned(),
        plugin: dist.join("istio-cni"),
        sluice: dist.join("sluice"),
        stand_in: PathBuf::new(),
        packet: PathBuf::new(),
    }
}
