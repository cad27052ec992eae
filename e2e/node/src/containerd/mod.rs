//! containerd itself as the node's runtime: what it really asks plugins, in what
//! order, and what it makes of their answers.
//!
//! It runs in the node's network namespace and in mount and pid namespaces of its
//! own, at its default places, with the packages that `scripts/fetch-containerd`
//! unpacked; nothing is installed. When the first process of these ends, all of it
//! is gone: shims, sandboxes, mounts. Cgroups are removed after it.
//!
//! [`packages`] finds the programs, [`cri`] and [`grpc`] are kubelet's side,
//! [`image`] makes the sandbox's image, [`record`] reads what plugins were asked.
//! gRPC is h2 with prost's derive, without a code generator: a client of 100 lines
//! and five crates, where tonic wants protoc and Python's grpcio a second language.

pub mod cgroup;
pub mod cri;
pub mod grpc;
pub mod image;
mod kubelet;
pub mod packages;
pub mod podman;
pub mod record;

use crate::lab::Namespace;
use crate::process::{Program, Running};
use crate::programs::{PLUGIN_DIR, own_dir};
use crate::runtime::Conflist;
use anyhow::{Context, Result};
use cri::{Empty, RuntimeCondition, SERVICE, SandboxId};
use grpc::Client;
use packages::{Packages, Runtime};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use sys::netns::Netns;

/// containerd's configuration, with `@SOCKET@` and `@IMAGE@` of the sandboxes to fill in.
pub const CONFIG: &str = include_str!("config.toml");
/// How long containerd may take until it answers.
const START: Duration = Duration::from_secs(90);
/// How long all of it may take to end.
const END: Duration = Duration::from_secs(60);

/// containerd on a node.
#[derive(Debug)]
pub struct Containerd {
    client: Client,
    runtime: Runtime,
    dir: PathBuf,
    image: PathBuf,
    attempts: AtomicU32,
    /// Above [`Self::cgroup`], as its members are dropped in this order.
    node: Node,
    cgroup: cgroup::Parent,
}

/// `unshare`, whose child is the first process of the namespaces.
#[derive(Debug)]
struct Node(Running);

impl Drop for Node {
    fn drop(&mut self) {
        self.0.close_input();
        // When this is not enough, the value inside kills `unshare`, and the kernel
        // its child.
        self.0.wait(END).ok();
    }
}

/// A pod's sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// containerd's id of it: CNI_CONTAINERID.
    pub id: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Sandbox {
    /// A program that is to run in it.
    pub fn program(&self, program: impl Into<std::ffi::OsString>) -> Program<'_> {
        Program::new(program).within(&self.netns)
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let mut own = self.addresses.iter();
        let own = own.find(|ip| ip.is_ipv6() == ipv6).copied();
        own.with_context(|| format!("no such address among {:?}", self.addresses))
    }
}

impl Containerd {
    /// Starts it on a node with a network, and waits until it answers. `plugin` is ours,
    /// if it is installed already.
    ///
    /// # Errors
    /// When it does not; the message has its log.
    pub fn start(
        host: &Namespace,
        plugin: Option<&Path>,
        (packages, runtime): (&Packages, &Runtime),
        list: &Conflist,
    ) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = host.scratch().dir(&format!("containerd-{number}"))?;
        let image = image::build(&host.scratch().dir("image")?, &packages.busybox())?;
        let bin = host.scratch().dir(&format!("containerd-{number}/bin"))?;
        for plugin in ["bridge", "host-local", "loopback", "portmap"] {
            symlink(Path::new(PLUGIN_DIR).join(plugin), bin.join(plugin))?;
        }
        for plugin in ["main-plugin", "recorder"] {
            symlink(own_dir()?.join(plugin), bin.join(plugin))?;
        }
        let socket = dir.join("containerd.sock");
        let config = CONFIG.replace("@SOCKET@", &socket.display().to_string());
        std::fs::write(dir.join("config.toml"), config.replace("@IMAGE@", image::NAME))?;
        std::fs::create_dir_all(dir.join("net.d"))?;
        plugin.map(|plugin| install(plugin, &bin)).transpose()?;
        write_conflist(&dir, list)?;

        let containerd = Self {
            node: start_node(host, runtime, &dir)?,
            cgroup: cgroup::Parent::create(),
            client: Client::new(socket),
            runtime: runtime.clone(),
            attempts: AtomicU32::new(0),
            dir,
            image,
        };
        containerd.wait_ready(host).with_context(|| containerd.log())?;
        Ok(containerd)
    }

    fn wait_ready(&self, host: &Namespace) -> Result<()> {
        let end = Instant::now() + START;
        while let Err(err) = self.network() {
            if Instant::now() > end {
                return Err(err.context(format!("containerd does not answer after {START:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ctr = self.ctr(host).args(["-n", "k8s.io", "images", "import"]).arg(&self.image);
        ctr.check()?;
        Ok(())
    }

    /// All that it logged, the plugins' stderr included.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("containerd's log ends with:\n{last}")
    }

    /// Which version it is.
    #[must_use]
    pub fn name(&self) -> &str {
        self.runtime.name
    }

    /// Runs a pod's sandbox, as kubelet does for a pod with this manifest.
    ///
    /// # Errors
    /// [`grpc::Status`] when the runtime refuses.
    pub fn run(&self, manifest: &Value) -> Result<Sandbox> {
        let id = self.start_sandbox(manifest).or_else(|error| {
            // With IPv6, on a machine that is slower than the agent's patience (README.md,
            // Limits): kubelet tries again.
            let again = format!("{error:#}").contains("non-loopback address");
            if again { self.start_sandbox(manifest) } else { Err(error) }
        })?;
        self.sandbox(&id).with_context(|| self.log())
    }

    /// [`Self::run`] without a look at what came out: what the runtime needs alone.
    ///
    /// # Errors
    /// The same.
    pub fn start_sandbox(&self, manifest: &Value) -> Result<String> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let config = kubelet::sandbox_config(manifest, attempt, self.cgroup.path())?;
        let question = cri::RunPodSandboxRequest { config: Some(config) };
        let answer: SandboxId = self.call("RunPodSandbox", &question)?;
        Ok(answer.id)
    }

    fn sandbox(&self, id: &str) -> Result<Sandbox> {
        let question = cri::PodSandboxStatusRequest { id: id.to_owned(), verbose: true };
        let answer: cri::PodSandboxStatusResponse = self.call("PodSandboxStatus", &question)?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let own = network.additional_ips.iter().map(|more| more.ip.as_str());
        let own = std::iter::once(network.ip.as_str()).chain(own).filter(|ip| !ip.is_empty());
        let addresses = own.map(str::parse).collect::<Result<_, _>>()?;
        let info = answer.info.get("info").context("no info")?;
        let info: Value = serde_json::from_str(info)?;
        let namespaces = info.pointer("/runtimeSpec/linux/namespaces").and_then(Value::as_array);
        let network = namespaces.into_iter().flatten().find(|one| one["type"] == "network");
        let path = network.and_then(|one| one["path"].as_str()).context("no network namespace")?;
        // A symbolic link to /run there would lead to ours.
        let netns = Netns::open(&self.inside(&path.replacen("/var/run/", "/run/", 1)))?;
        Ok(Sandbox { id: id.to_owned(), netns, addresses })
    }

    /// Ends a sandbox; its network goes. The runtime still lists it.
    ///
    /// # Errors
    /// [`grpc::Status`] when the runtime refuses.
    pub fn stop(&self, id: &str) -> Result<()> {
        let _: Empty = self.call("StopPodSandbox", &SandboxId { id: id.to_owned() })?;
        Ok(())
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// [`grpc::Status`] when the runtime refuses.
    pub fn remove(&self, id: &str) -> Result<()> {
        let _: Empty = self.call("RemovePodSandbox", &SandboxId { id: id.to_owned() })?;
        Ok(())
    }

    /// The sandboxes that it knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn list(&self) -> Result<Vec<String>> {
        let answer: cri::ListPodSandboxResponse = self.call("ListPodSandbox", &Empty {})?;
        Ok(answer.items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// What it says about its network: kubelet makes the node's readiness of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn network(&self) -> Result<RuntimeCondition> {
        let answer = self.status(false)?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let network = conditions.into_iter().find(|one| one.kind == "NetworkReady");
        network.context("no condition NetworkReady")
    }

    /// The plugins of the network that it would run now, in their order.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn chain(&self) -> Result<Vec<String>> {
        let status = self.status(true)?;
        let config: Value =
            serde_json::from_str(status.info.get("cniconfig").context("no cniconfig")?)?;
        let networks = config["Networks"].as_array().context("no networks")?;
        // The first is `lo`, which containerd adds.
        let last = networks.last().context("no network")?;
        let plugins = last.pointer("/Config/Plugins").and_then(Value::as_array);
        let kind = |plugin: &Value| {
            let kind = plugin.pointer("/Network/type").and_then(Value::as_str);
            Ok(kind.with_context(|| format!("no type in {plugin}"))?.to_owned())
        };
        plugins.context("no plugins")?.iter().map(kind).collect()
    }

    fn status(&self, verbose: bool) -> Result<cri::StatusResponse> {
        self.call("Status", &cri::StatusRequest { verbose })
    }

    /// Its directory of CNI configurations.
    #[must_use]
    pub fn net_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// Its directory of CNI plugins.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn call<Answer: prost::Message + Default>(
        &self,
        method: &str,
        question: &impl prost::Message,
    ) -> Result<Answer> {
        self.client.call(&format!("{SERVICE}/{method}"), question)
    }

    /// Puts a plugin's binary in the place of the installed one, at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn install(&self, plugin: &Path) -> Result<()> {
        install(plugin, &self.dir.join("bin"))
    }

    /// A path of the runtime's mount namespace, as seen from outside.
    #[must_use]
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.node.0.pid()))
    }

    /// A program that is to run on the node, where the runtime is.
    #[must_use]
    pub fn program<'a>(&self, host: &'a Namespace, argv: &[&str]) -> Program<'a> {
        let own = format!("/proc/{}/ns", self.node.0.pid());
        host.program("nsenter")
            .arg(format!("--mount={own}/mnt"))
            .arg(format!("--pid={own}/pid_for_children"))
            .args(["--wd=/", "--"])
            .args(argv.iter().copied())
            .env("PATH", self.runtime.path.as_str())
    }

    /// Its own command line tool.
    #[must_use]
    pub fn ctr<'a>(&self, host: &'a Namespace) -> Program<'a> {
        let socket = self.dir.join("containerd.sock");
        self.program(host, &["ctr", "--address"]).arg(socket)
    }

    /// The suite's image, as a tarball.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The cgroup of all its sandboxes.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        self.cgroup.path()
    }
}

fn start_node(host: &Namespace, runtime: &Runtime, dir: &Path) -> Result<Node> {
    let program = host
        .program("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        // bash, as it waits for the orphans that become its children.
        .args(["bash", "-c", include_str!("node.sh"), "node.sh"])
        .arg(dir)
        .env("PATH", runtime.path.as_str());
    let mut node = Node(program.start()?);
    node.0.wait_ready().context("a node for containerd")?;
    Ok(node)
}

/// As the agent's installer does it: complete, then renamed over the old one.
fn install(plugin: &Path, bin: &Path) -> Result<()> {
    let hidden = bin.join(".istio-cni.part");
    // Not in this process: a program that another thread starts meanwhile would have it
    // open for writing too, and nobody could execute it for a moment.
    Program::new("cp").arg(plugin).arg(&hidden).check()?;
    Ok(std::fs::rename(&hidden, bin.join("istio-cni"))?)
}

fn write_conflist(dir: &Path, list: &Conflist) -> Result<()> {
    let plugins = list.plugins.iter().map(|entry| Value::Object(entry.config.clone()));
    let value = json!({
        "cniVersion": list.version,
        "name": list.name,
        "plugins": plugins.collect::<Vec<_>>(),
    });
    let path = dir.join("net.d/10-pods.conflist");
    std::fs::write(&path, serde_json::to_string_pretty(&value)?)?;
    Ok(())
}
