//! A node: containerd, kubelet and kube-proxy, at their default paths.
//!
//! Its disk is held by a process of its own, so that the next boot finds it as it
//! was; everything else of a node, its network too, goes with its first process.

use crate::control_plane::{self, ADDRESS, ControlPlane};
use crate::daemon::Daemon;
use crate::packages::Packages;
use crate::pki::Pki;
use anyhow::{Context, Result};
use e2e_node::containerd::cgroup;
use e2e_node::containerd::image;
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::process::Program;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many there are.
pub const COUNT: u8 = 2;

/// One node.
#[derive(Debug)]
pub struct Node {
    /// What Kubernetes calls it.
    pub name: String,
    number: u8,
    dir: PathBuf,
    path: String,
    running: Option<Running>,
    disk: Daemon,
    scratch: Arc<Scratch>,
    boots: u32,
}

/// What a restart ends; dropped in this order.
#[derive(Debug)]
struct Running {
    init: Daemon,
    _cgroup: cgroup::Parent,
    _network: Namespace,
}

/// Name and address of a node.
#[must_use]
pub fn identity(number: u8) -> (String, String) {
    (format!("node{number}"), format!("172.31.77.{}", 10 + number))
}

impl Node {
    /// Prepares it, without starting it.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn create(
        scratch: &Arc<Scratch>,
        packages: &Packages,
        pki: &Pki,
        number: u8,
    ) -> Result<Self> {
        let (name, _) = identity(number);
        let dir = scratch.dir(&name)?;
        let disk = scratch.dir(&format!("{name}/disk"))?;
        scratch.dir(&format!("{name}/net.d"))?;
        let write = |file: &str, text: String| scratch.file(&format!("{name}/{file}"), &text);
        write("net.d/10-pods.conflist", format!("{:#}\n", conflist(number)))?;
        let config = e2e_node::containerd::CONFIG
            .replace("@SOCKET@", "/run/containerd/containerd.sock")
            .replace("@IMAGE@", image::NAME);
        write("containerd.toml", config)?;
        write("kubelet.json", kubelet_config(pki, &name).to_string())?;
        write("kube-proxy.json", proxy_config(pki).to_string())?;
        std::fs::copy(pki.kubeconfig(&name), dir.join("kubeconfig"))?;
        let machine = Program::new("unshare")
            .args(["--mount", "--", "bash", "-c", include_str!("machine.sh"), "machine.sh"])
            .arg(&disk);
        let runtime = packages.runtimes.containerd_1();
        Ok(Self {
            name,
            number,
            dir,
            path: format!("{}:{}", packages.kubernetes.display(), runtime.path),
            running: None,
            disk: Daemon::adopt(machine.start()?).context("the disk of a node")?,
            scratch: Arc::clone(scratch),
            boots: 0,
        })
    }

    /// Starts it and waits until its kubelet was started.
    ///
    /// # Errors
    /// When something on the way fails.
    pub fn boot(&mut self, plane: &ControlPlane) -> Result<()> {
        self.boots += 1;
        let (_, address) = identity(self.number);
        let network = Namespace::create(&self.scratch, &format!("{}-{}", self.name, self.boots))?;
        let port = format!("{}-{}", self.name, self.boots);
        plane.network.link(&port, &network, "eth0")?;
        plane.network.ip(&format!("link set {port} master br0"))?;
        network.sysctl("ipv4/ip_forward", "1")?;
        let mut routes =
            format!("addr add {address}/24 dev eth0\nroute add default via {ADDRESS}\n");
        for other in (1..=COUNT).filter(|other| *other != self.number) {
            let (_, via) = identity(other);
            routes.push_str(&format!("route add 10.244.{other}.0/24 via {via}\n"));
        }
        network.ip(&routes)?;
        plane.network.ip(&format!("route replace 10.244.{}.0/24 via {address}", self.number))?;

        let cgroup = cgroup::Parent::create();
        let start = network
            .program("bash")
            .args(["-c", include_str!("enter.sh"), "enter.sh"])
            .arg(self.disk.pid().to_string())
            .arg(cgroup.path())
            .arg(include_str!("boot.sh"))
            .arg(&self.dir)
            .args([&self.name, &address])
            .env("PATH", &self.path);
        let init = Daemon::adopt(start.start()?).with_context(|| format!("boot {}", self.name))?;
        self.running = Some(Running { init, _cgroup: cgroup, _network: network });
        Ok(())
    }

    /// Ends everything on it at once; the disk stays.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Kills its kubelet, which is started again.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_kubelet(&self) -> Result<()> {
        self.program(&["pkill", "-9", "-x", "kubelet"])?.check()?;
        Ok(())
    }

    /// A path on the node, as seen from here.
    ///
    /// # Errors
    /// When it does not run.
    pub fn inside(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.pid()?)))
    }

    /// A program that is to run on it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn program(&self, argv: &[&str]) -> Result<Program<'static>> {
        let own = format!("/proc/{}/ns", self.pid()?);
        Ok(Program::new("nsenter")
            .arg(format!("--mount={own}/mnt"))
            .arg(format!("--net={own}/net"))
            .arg(format!("--pid={own}/pid_for_children"))
            .args(["--wd=/", "--"])
            .args(argv.iter().copied())
            .env("PATH", self.path.as_str()))
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().with_context(|| format!("{} is off", self.name))?.init.pid())
    }

    /// Every file below a directory of the node with its content.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn files(&self, dir: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        read(&self.inside(dir)?, Path::new(""), &mut files)?;
        Ok(files)
    }

    /// Makes an image of a file known to it.
    ///
    /// # Errors
    /// When it cannot be imported.
    pub fn import(&self, image: &Path) -> Result<()> {
        self.program(&["ctr", "-n", "k8s.io", "images", "import"])?.arg(image).check()?;
        Ok(())
    }
}

fn read(root: &Path, below: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let dir = root.join(below);
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read(root, &name, files)?;
        } else {
            let content = std::fs::read(root.join(&name))?;
            files.insert(name.display().to_string(), content);
        }
    }
    Ok(())
}

/// The primary network of a node.
fn conflist(number: u8) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": format!("10.244.{number}.0/24")}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet_config(pki: &Pki, name: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.file(&format!("{name}.crt")),
        "tlsPrivateKeyFile": pki.file(&format!("{name}.key")),
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "staticPodPath": "/etc/kubernetes-manifests",
        // Nobody is there; without an address kubelet complains about every pod.
        "clusterDNS": ["10.96.0.10"],
        "resolvConf": "",
        // The machine's disk is not the nodes'.
        "evictionHard": {"memory.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "2s",
        "fileCheckFrequency": "1s",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // -999, the default, needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
    })
}

fn proxy_config(pki: &Pki) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": pki.kubeconfig("proxy")},
        "mode": "iptables",
        "clusterCIDR": control_plane::PODS,
        // These are the machine's.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    })
}
