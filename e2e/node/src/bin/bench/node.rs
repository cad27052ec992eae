//! A node to measure on: agents with their manifests, and pods as a runtime
//! leaves them when it is our plugin's turn.

use anyhow::{Context, Result};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::process::{Program, Running};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::process::Command;

/// Kubernetes namespace of the pods that are in the mesh.
pub(crate) const MESH: &str = "mesh";
/// Kubernetes namespace of those that are not.
pub(crate) const PLAIN: &str = "plain";

/// Until an agent must answer, and until it must know a new manifest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod of the cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    /// [`MESH`] or [`PLAIN`].
    pub(crate) namespace: &'static str,
    /// Its number there.
    pub(crate) number: usize,
}

impl Pod {
    fn name(self) -> String {
        format!("{}-{}", self.namespace, self.number)
    }

    fn uid(self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    /// As Istio's injector leaves a dual-stack pod with DNS capture, or as it was.
    pub(crate) fn manifest(self) -> Value {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name(), "namespace": self.namespace, "uid": self.uid()},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
            "status": {"podIP": "10.88.0.2", "podIPs": [{"ip": "10.88.0.2"}, {"ip": "fd88::2"}]},
        });
        if self.namespace == MESH {
            pod["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
            pod["spec"]["containers"][1] = json!({
                "name": "istio-proxy",
                "image": "proxyv2",
                "args": ["proxy", "sidecar"],
                "env": [
                    {"name": "ISTIO_DUAL_STACK", "value": "true"},
                    {"name": "ISTIO_META_DNS_CAPTURE", "value": "true"},
                ],
                "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
            });
        }
        pod
    }
}

/// A pod's network namespace: eth0 with an address of each family, and default
/// routes into the node.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The namespace.
    pub(crate) netns: Namespace,
    number: usize,
}

impl Sandbox {
    /// Makes number `number` on the node.
    pub(crate) fn create(node: &Namespace, number: usize) -> Result<Self> {
        let netns = Namespace::create(node.scratch(), &format!("pod{number}"))?;
        node.link(&format!("v{number}"), &netns, "eth0")?;
        let (v4, v6) = addresses(number);
        netns.ip(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             route add default dev eth0\n\
             -6 route add default dev eth0\n"
        ))?;
        Ok(Self { netns, number })
    }

    fn container_id(&self) -> String {
        format!("{:064x}", self.number)
    }
}

fn addresses(number: usize) -> (String, String) {
    let (high, low) = (number / 250 % 250, number % 250 + 2);
    (format!("10.88.{high}.{low}"), format!("fd88::{high:x}:{low:x}"))
}

/// An agent that serves one directory of manifests with one backend.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Running,
    plugin: PathBuf,
    run_dir: PathBuf,
    manifests: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts it without manifests, and waits until it answers.
    pub(crate) fn start(
        dist: &Path,
        scratch: &Arc<Scratch>,
        name: &str,
        backend: &str,
    ) -> Result<Self> {
        let manifests = scratch.dir(&format!("{name}-pods"))?;
        let run_dir = scratch.path().join(format!("{name}-run"));
        let log = scratch.path().join(format!("{name}.log"));
        // The shell turns into the agent; it only sends its log to a file.
        let process = Program::new("sh")
            .args(["-c", "exec 2>\"$0\" \"$@\""])
            .arg(&log)
            .arg(dist.join("sluice"))
            .args(["agent", "--backend", backend])
            .arg("--pods")
            .arg(&manifests)
            .arg("--run-dir")
            .arg(&run_dir)
            .start()?;
        let plugin = dist.join("istio-cni");
        let agent = Self { process, plugin, run_dir, manifests, log };
        agent.until(|| agent.run("STATUS", &[]))?;
        Ok(agent)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Adds namespaces, or pods, or both, and waits until it knows the last pod.
    pub(crate) fn learn(&self, node: &Namespace, objects: &[Value], last: Pod) -> Result<()> {
        for (number, object) in objects.iter().enumerate() {
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            let file = format!("{kind}-{name}-{number}.json").replace('"', "");
            std::fs::write(self.manifests.join(file), object.to_string())?;
        }
        let sandbox = Sandbox::create(node, 0)?;
        self.until(|| self.add(&sandbox, last).map(drop))?;
        self.del(&sandbox, last)
    }

    /// Runs ADD and says how long it took, from before the plugin is started
    /// until its answer is there and it is gone.
    pub(crate) fn add(&self, sandbox: &Sandbox, pod: Pod) -> Result<Duration> {
        let (v4, v6) = addresses(sandbox.number);
        let previous = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": sandbox.netns.path()}],
            "ips": [
                {"address": format!("{v4}/32"), "interface": 0},
                {"address": format!("{v6}/128"), "interface": 0},
            ],
            "dns": {},
        });
        let environment = environment(sandbox, pod);
        let config = self.config(Some(&previous));
        let command = self.command("ADD", &environment).stdin(config.as_bytes());
        let start = Instant::now();
        let ran = command.run();
        let time = start.elapsed();
        ran.with_context(|| format!("ADD of {}; the agent's log:\n{}", pod.name(), self.log()))?;
        Ok(time)
    }

    /// Runs DEL.
    pub(crate) fn del(&self, sandbox: &Sandbox, pod: Pod) -> Result<()> {
        self.run("DEL", &environment(sandbox, pod))
    }

    fn run(&self, verb: &str, env: &[(&str, String)]) -> Result<()> {
        let config = self.config(None);
        self.command(verb, env).stdin(config.as_bytes()).run()?;
        Ok(())
    }

    fn command(&self, verb: &str, env: &[(&str, String)]) -> Command<'static> {
        let command = Command::new(&self.plugin).env("CNI_COMMAND", verb);
        env.iter().fold(command, |command, (name, value)| command.env(name, value))
    }

    fn config(&self, previous: Option<&Value>) -> String {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "bench",
            "type": "istio-cni",
            "plugin_log_level": "error",
            "cni_agent_run_dir": self.run_dir,
        });
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config.to_string()
    }

    fn until(&self, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("no success in {PATIENCE:?}; the agent's log:\n{}", self.log())
                    });
                }
            }
        }
    }

    /// The end of its log.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn environment(sandbox: &Sandbox, pod: Pod) -> Vec<(&'static str, String)> {
    let id = sandbox.container_id();
    let args = [
        "IgnoreUnknown=1".to_owned(),
        format!("K8S_POD_NAMESPACE={}", pod.namespace),
        format!("K8S_POD_NAME={}", pod.name()),
        format!("K8S_POD_INFRA_CONTAINER_ID={id}"),
        format!("K8S_POD_UID={}", pod.uid()),
    ];
    vec![
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", sandbox.netns.path().display().to_string()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ("CNI_ARGS", args.join(";")),
    ]
}

/// A Namespace object.
pub(crate) fn namespace(name: &str) -> Value {
    let mut labels = json!({"kubernetes.io/metadata.name": name});
    if name == MESH {
        labels["istio-injection"] = json!("enabled");
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}
