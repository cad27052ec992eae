//! Where the node's container runtime keeps its CNI configuration and plugins.
//!
//! Distributions differ, and a wrong guess installs into a directory that nobody
//! reads. So the runtime's own configuration is asked; well-known places come
//! after it. Paths are the host's; the host's root is mounted at a prefix.

mod containerd;
mod crio;
mod root;

use root::Root;
use std::path::{Path, PathBuf};

/// containerd's and CRI-O's defaults.
const NET_DIR: &str = "/etc/cni/net.d";
const BIN_DIR: &str = "/opt/cni/bin";

/// The two directories, as paths of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Configuration.
    pub(crate) net: PathBuf,
    /// Plugins.
    pub(crate) bin: PathBuf,
    /// Who says so, for the log.
    pub(crate) source: String,
    root: Root,
}

impl Directories {
    /// The configuration directory as the agent sees it.
    pub(crate) fn net_dir(&self) -> PathBuf {
        self.root.resolve(&self.net)
    }

    /// The directory of plugins as the agent sees it.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.root.resolve(&self.bin)
    }
}

/// What is given, as paths of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Configuration.
    pub(crate) net: Option<PathBuf>,
    /// Plugins.
    pub(crate) bin: Option<PathBuf>,
}

/// The directories were not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the container runtime's {what} directory was not found below {}: set {setting}; looked at: {tried}",
    root.display()
)]
pub(crate) struct LocateError {
    what: &'static str,
    setting: &'static str,
    root: PathBuf,
    tried: String,
}

/// What a runtime's configuration says; what it leaves out is the runtime's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    net: Option<PathBuf>,
    bins: Vec<PathBuf>,
}

/// How a runtime is configured.
#[derive(Debug, Clone, Copy)]
enum Reader {
    Containerd,
    Crio,
}

/// A runtime that may be on the node.
struct Runtime {
    name: &'static str,
    reader: Reader,
    config: &'static str,
    socket: &'static str,
}

/// Distributions before the plain runtimes that they contain.
const RUNTIMES: [Runtime; 6] = [
    Runtime {
        name: "k3s",
        reader: Reader::Containerd,
        config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        socket: "/run/k3s/containerd/containerd.sock",
    },
    Runtime {
        name: "RKE2",
        reader: Reader::Containerd,
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        socket: "/run/k3s/containerd/containerd.sock",
    },
    Runtime {
        name: "k0s",
        reader: Reader::Containerd,
        config: "/etc/k0s/containerd.toml",
        socket: "/run/k0s/containerd.sock",
    },
    Runtime {
        name: "MicroK8s",
        reader: Reader::Containerd,
        config: "/var/snap/microk8s/current/args/containerd.toml",
        socket: "/var/snap/microk8s/common/run/containerd.sock",
    },
    Runtime {
        name: "CRI-O",
        reader: Reader::Crio,
        config: "/etc/crio/crio.conf",
        socket: "/run/crio/crio.sock",
    },
    Runtime {
        name: "containerd",
        reader: Reader::Containerd,
        config: "/etc/containerd/config.toml",
        socket: "/run/containerd/containerd.sock",
    },
];

/// Places by distribution, for a runtime that has no configuration file: the plugin
/// directory must hold plugins.
const PLACES: [(&str, &str, &str); 6] = [
    ("OpenShift", "/etc/kubernetes/cni/net.d", "/var/lib/cni/bin"),
    ("k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
    ("k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/current/bin"),
    (
        "MicroK8s",
        "/var/snap/microk8s/current/args/cni-network",
        "/var/snap/microk8s/current/opt/cni/bin",
    ),
    ("GKE", "/etc/cni/net.d", "/home/kubernetes/bin"),
    ("minikube", "/etc/cni/net.mk", "/opt/cni/bin"),
];

/// Finds the directories below the host's root. What is given is taken as it is.
///
/// # Errors
///
/// Names the setting to use and what was looked at.
pub(crate) fn locate(root: &Path, given: &Given) -> Result<Directories, LocateError> {
    let root = Root::new(root);
    if let Given { net: Some(net), bin: Some(bin) } = given {
        let (net, bin) = (net.clone(), bin.clone());
        return Ok(Directories { net, bin, source: "the settings".to_owned(), root });
    }
    let mut tried = Vec::new();
    let mut found = configured(&root, &mut tried);
    found.extend(places(&root, &mut tried));
    let complete = |(source, net, bin): &(String, PathBuf, PathBuf)| {
        let net = given.net.clone().or_else(|| root.is_dir(net).then(|| net.clone()))?;
        let bin = given.bin.clone().or_else(|| root.is_dir(bin).then(|| bin.clone()))?;
        Some(Directories { net, bin, source: source.clone(), root: root.clone() })
    };
    if let Some(directories) = found.iter().find_map(complete) {
        return Ok(directories);
    }
    let has_net = given.net.is_some() || found.iter().any(|(_, net, _)| root.is_dir(net));
    let (what, setting) = if has_net {
        ("CNI plugin", "cniBinDir of the chart to the directory that holds its plugins")
    } else {
        (
            "CNI configuration",
            "cniConfDir of the chart (MOUNTED_CNI_NET_DIR is where the agent sees it)",
        )
    };
    let tried = tried.join(", ");
    Err(LocateError { what, setting, root: root.path().to_owned(), tried })
}

fn parse(text: &str) -> Result<toml::Table, String> {
    text.parse().map_err(|error: toml::de::Error| format!("not valid TOML: {}", error.message()))
}

/// What runtimes say, those first whose socket is there.
fn configured(root: &Root, tried: &mut Vec<String>) -> Vec<(String, PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for runtime in RUNTIMES {
        let Runtime { name, reader, config, socket } = runtime;
        let runs = root.exists(Path::new(socket));
        let said = match reader {
            Reader::Containerd => containerd::read(root, Path::new(config)),
            Reader::Crio => crio::read(root, Path::new(config)),
        };
        let said = match said {
            Ok(Some(said)) => said,
            // Its defaults hold.
            Ok(None) if runs && matches!(name, "containerd" | "CRI-O") => Said::default(),
            Ok(None) => {
                tried.push(format!("{config} (not there)"));
                continue;
            }
            Err(reason) => {
                tried.push(format!("{config} ({reason})"));
                continue;
            }
        };
        let net = said.net.unwrap_or_else(|| NET_DIR.into());
        let bins = if said.bins.is_empty() { vec![BIN_DIR.into()] } else { said.bins };
        for bin in bins {
            tried.push(format!("{config} ({}, {})", net.display(), bin.display()));
            found.push((!runs, format!("{config} of {name}"), net.clone(), bin));
        }
    }
    found.sort_by_key(|(idle, ..)| *idle);
    found.into_iter().map(|(_, source, net, bin)| (source, net, bin)).collect()
}

/// Well-known places that hold something, and at last the defaults.
fn places(root: &Root, tried: &mut Vec<String>) -> Vec<(String, PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for (name, net, bin) in PLACES {
        tried.push(format!("{net} and {bin} ({name})"));
        if root.is_filled(Path::new(net)) && root.is_filled(Path::new(bin)) {
            found.push((format!("the usual places of {name}"), net.into(), bin.into()));
        }
    }
    tried.push(format!("{NET_DIR} and {BIN_DIR}"));
    found.push(("the usual places".to_owned(), NET_DIR.into(), BIN_DIR.into()));
    found
}

#[cfg(test)]
mod tests;
