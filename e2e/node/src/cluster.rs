//! A node at work: agent, runtime and the real chain, and pods on it.

use crate::agent::{Agent, Directories, namespace};
use crate::lab::node::Node;
use crate::lab::{Namespace, Scratch};
use crate::packet::{Attempt, Fates, Transport, send};
use crate::process::{Identity, Running};
use crate::programs::{PLUGIN_DIR, Programs};
use crate::runtime::{Added, Attachment, Conflist, Runtime};
use crate::stand_in::StandIn;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Namespace of the lab's pods.
pub const NAMESPACE: &str = "shop";

/// What a cluster's network is like.
#[derive(Debug, Clone)]
pub struct Network {
    /// CNI version of the list.
    pub version: String,
    /// Pods have IPv4 addresses.
    pub ipv4: bool,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
    /// First plugin: the real `bridge`, or one that wraps it.
    pub main: String,
}

impl Default for Network {
    fn default() -> Self {
        Self { version: "1.0.0".to_owned(), ipv4: true, ipv6: true, main: "bridge".to_owned() }
    }
}

/// The node, its agent and its network.
#[derive(Debug)]
pub struct Cluster {
    /// The agent; absent while it is dead.
    pub agent: Option<Agent>,
    /// Its directories.
    pub directories: Directories,
    /// The node.
    pub node: Node,
    /// The network of all pods.
    pub list: Conflist,
    /// The programs.
    pub programs: Programs,
    scratch: Arc<Scratch>,
    next: AtomicU32,
}

/// A pod's sandbox on the node.
#[derive(Debug)]
pub struct Pod {
    /// Its network namespace.
    pub sandbox: Namespace,
    /// How it is attached.
    pub attachment: Attachment,
    /// Its addresses, in the order of the result; empty before ADD.
    pub addresses: Vec<IpAddr>,
    /// What ADD printed.
    pub added: Option<Added>,
}

impl Cluster {
    /// Builds the node and starts the agent with a backend.
    ///
    /// # Errors
    /// When a part cannot be had.
    pub fn create(name: &str, backend: &str, network: &Network) -> Result<Self> {
        let mut cluster = Self::without_agent(name, network)?;
        cluster.start_agent(backend)?;
        Ok(cluster)
    }

    /// Builds the node only.
    ///
    /// # Errors
    /// When a part cannot be had.
    pub fn without_agent(name: &str, network: &Network) -> Result<Self> {
        let scratch = Scratch::create()?;
        let programs = Programs::find()?;
        let directories = Directories::create(&scratch, name)?;
        directories.publish(&namespace(NAMESPACE))?;
        let node = Node::create(&scratch, name)?;
        let list = conflist(network, &scratch, &directories)?;
        Ok(Self {
            agent: None,
            directories,
            node,
            list,
            programs,
            scratch,
            next: AtomicU32::new(0),
        })
    }

    /// Starts the agent, again after it was killed.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn start_agent(&mut self, backend: &str) -> Result<()> {
        let host = &self.node.host;
        self.agent = Some(Agent::start(&self.programs, host, &self.directories, backend)?);
        Ok(())
    }

    /// The container runtime of the node.
    #[must_use]
    pub fn runtime(&self) -> Runtime<'_> {
        let own = crate::programs::own_dir().unwrap_or_default();
        Runtime {
            node: &self.node.host,
            path: vec![self.programs.dir.clone(), PathBuf::from(PLUGIN_DIR), own],
            cache: self.scratch.path().join("cni-cache"),
        }
    }

    /// Publishes a pod and makes its sandbox, not yet attached.
    ///
    /// # Errors
    /// When that fails.
    pub fn sandbox(&self, manifest: &Value) -> Result<Pod> {
        self.directories.publish(manifest)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let sandbox = Namespace::create(&self.scratch, &format!("pod-{number}"))?;
        self.pod_in(manifest, sandbox)
    }

    /// A pod in a namespace that the caller made.
    ///
    /// # Errors
    /// When the manifest has no name.
    pub fn pod_in(&self, manifest: &Value, sandbox: Namespace) -> Result<Pod> {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
        let name = text("/metadata/name").context("pod without a name")?;
        let namespace = text("/metadata/namespace").context("pod without a namespace")?;
        let uid = text("/metadata/uid").unwrap_or_default();
        // Inode numbers of namespaces are used again.
        let number = u64::from(self.next.fetch_add(1, Ordering::Relaxed));
        let container = format!("{:032x}{number:032x}", sandbox.netns().id().ino);
        Ok(Pod {
            attachment: Attachment::of_pod(&container, sandbox.path(), namespace, name, uid),
            sandbox,
            addresses: Vec::new(),
            added: None,
        })
    }

    /// Attaches a sandbox. A failed ADD is followed by DEL, as runtimes do.
    ///
    /// # Errors
    /// What the runtime says; the pod is as it was left.
    pub fn attach(&self, pod: &mut Pod) -> Result<()> {
        let runtime = self.runtime();
        let added = runtime.add(&self.list, &pod.attachment).inspect_err(|_| {
            runtime.delete(&self.list, &pod.attachment).ok();
        });
        let added = added.with_context(|| self.agent_log())?;
        pod.addresses = added.addresses()?;
        pod.added = Some(added);
        Ok(())
    }

    /// A published, attached pod.
    ///
    /// # Errors
    /// When ADD fails.
    pub fn run_pod(&self, manifest: &Value) -> Result<Pod> {
        let mut pod = self.sandbox(manifest)?;
        self.attach(&mut pod)?;
        Ok(pod)
    }

    /// What the agent said so far, for messages.
    #[must_use]
    pub fn agent_log(&self) -> String {
        let log = self.agent.as_ref().map(Agent::log).unwrap_or_default();
        format!("agent's log:\n{log}")
    }

    /// Starts servers in the world that answer as `world`.
    ///
    /// # Errors
    /// When they cannot listen.
    pub fn serve_world(&self, ports: &[u16]) -> Result<Running> {
        let udp = Node::outside().into_iter();
        let udp = udp.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)));
        let server = StandIn::direct("world", ports, udp.collect());
        server.start(&self.programs.stand_in, &self.node.world, Identity::APP)
    }

    /// Sends attempts from a namespace.
    ///
    /// # Errors
    /// When they cannot be sent.
    pub fn send(&self, from: &Namespace, attempts: &[Attempt]) -> Result<Fates> {
        send(from.program(&self.programs.packet), attempts)
    }
}

impl Pod {
    /// Starts the sidecar's stand-in.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn serve_proxy(&self, programs: &Programs, transparent: bool) -> Result<Running> {
        let proxy = StandIn::proxy(transparent);
        let who = if transparent { Identity::TPROXY } else { Identity::PROXY };
        proxy.start(&programs.stand_in, &self.sandbox, who)
    }

    /// Starts an application that answers as `app`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn serve_app(&self, programs: &Programs, ports: &[u16]) -> Result<Running> {
        let own = self.addresses.iter().copied();
        let own = own.chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        let udp = own.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)));
        let app = StandIn::direct("app", ports, udp.collect());
        app.start(&programs.stand_in, &self.sandbox, Identity::APP)
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

/// An attempt of the application, labelled by what it is.
#[must_use]
pub fn attempt(transport: Transport, who: Identity, to: SocketAddr) -> Attempt {
    Attempt {
        label: format!("{transport:?} {}:{} to {to}", who.uid, who.gid),
        transport,
        uid: who.uid,
        gid: who.gid,
        from: None,
        to,
        mark: None,
        spoofed: false,
    }
}

fn conflist(network: &Network, scratch: &Scratch, directories: &Directories) -> Result<Conflist> {
    let families =
        [(network.ipv4, "10.244.1.0/24", "0.0.0.0/0"), (network.ipv6, "fd00:244:1::/64", "::/0")];
    let families = families.into_iter().filter(|(wanted, ..)| *wanted);
    let (ranges, routes): (Vec<_>, Vec<_>) =
        families.map(|(_, subnet, all)| (json!([{"subnet": subnet}]), json!({"dst": all}))).unzip();
    let list = json!({
        "cniVersion": network.version,
        "name": "pods",
        "plugins": [
            {
                "type": network.main,
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": scratch.dir("ipam")?,
                    "ranges": ranges,
                    "routes": routes,
                },
            },
            {
                "type": "istio-cni",
                "cni_agent_run_dir": directories.run,
                "plugin_log_level": "info",
                "ambient_enabled": false,
                "exclude_namespaces": ["kube-system"],
                "pod_namespace": "istio-system",
            },
        ],
    });
    Conflist::parse(&list.to_string())
}
