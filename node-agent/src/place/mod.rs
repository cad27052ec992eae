//! Where a running pod is: its network namespace, found without the runtime.
//!
//! A namespace is the pod's when it holds one of the pod's addresses and either a
//! process in it is of the pod by its cgroup, or the agent's record of the pod names
//! it, or nothing says otherwise and no other namespace has the address. It is
//! looked for over the processes (reference 4.11), and never the host's.

mod cgroup;
pub(crate) mod successor;
mod survey;

pub(crate) use survey::Survey;

use nix::sys::stat::stat;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::netns::{Netns, NetnsId, within};

/// The host's processes, as Istio's chart mounts them, and as they are without.
const ROOTS: [&str; 2] = ["/host/proc", "/proc"];

/// Where paths of the host are seen from the agent's container.
const HOST: &str = "/host";

/// What is known of the pod that is looked for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Its uid, and that of the static pod that it mirrors.
    pub(crate) uids: &'a [String],
    /// Its addresses.
    pub(crate) addresses: &'a [IpAddr],
    /// Namespaces that were programmed for it, by the agent's records.
    pub(crate) recorded: &'a [NetnsId],
    /// Namespaces that are no pod's.
    pub(crate) hosts: &'a [NetnsId],
}

/// A pod's namespace.
#[derive(Debug)]
pub(crate) struct Place {
    /// The namespace.
    pub(crate) netns: Arc<Netns>,
    /// Container of its oldest process, by the cgroup: the sandbox.
    pub(crate) sandbox: Option<String>,
}

/// Why a pod's namespace is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// The processes cannot be listed.
    #[error("list processes in {}", root.display())]
    List {
        /// The directory.
        root: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A pod that has no address yet.
    #[error("the pod has no address yet: want one in status.podIPs")]
    NoAddress,
    /// No process of the pod is to be seen.
    #[error(
        "no process in {} is in a network namespace of the pod's own with one of its addresses {addresses:?}: its sandbox is gone, or the host's processes are not mounted at /host/proc",
        root.display()
    )]
    Nowhere {
        /// Where it was looked for.
        root: PathBuf,
        /// What the pod has.
        addresses: Vec<IpAddr>,
    },
    /// Nobody knows which.
    #[error(
        "{} network namespaces have one of the pod's addresses {addresses:?} ({}), and nothing tells which is its own: want one",
        found.len(), list(found)
    )]
    Ambiguous {
        /// What the pod has.
        addresses: Vec<IpAddr>,
        /// Where that is.
        found: Vec<NetnsId>,
    },
    /// Its processes are in more than one, and nobody knows in which its address is.
    #[error("processes of the pod are in {} network namespaces ({}): want one", found.len(), list(found))]
    Scattered {
        /// Where they are.
        found: Vec<NetnsId>,
    },
}

fn list(found: &[NetnsId]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The directory of the host's processes.
pub(crate) fn root() -> PathBuf {
    let [host, own] = ROOTS.map(PathBuf::from);
    if host.join("1").exists() { host } else { own }
}

/// Finds the pod's namespace.
///
/// # Errors
/// When there is none, or more than one may be it.
pub(crate) fn find(root: &Path, wanted: &Wanted<'_>) -> Result<Place, PlaceError> {
    if wanted.addresses.is_empty() {
        return Err(PlaceError::NoAddress);
    }
    Survey::take(root, wanted.hosts)?.find(wanted)
}

/// Opens a namespace that some process is in; `None` when none is.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn by_id(root: &Path, id: NetnsId) -> Result<Option<Netns>, PlaceError> {
    let mut own = processes(root)?.into_iter().filter(|(_, found)| *found == id);
    Ok(own.find_map(|(process, _)| enter(&process, id)))
}

/// A process of each namespace that one is in.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn entrances(root: &Path) -> Result<HashMap<NetnsId, PathBuf>, PlaceError> {
    let all = processes(root)?.into_iter();
    Ok(all.map(|(process, id)| (id, process.join("ns/net"))).collect())
}

/// The namespace at a path of the host's, if it is that one.
pub(crate) fn named(path: &str, id: NetnsId) -> Option<Netns> {
    if path.is_empty() {
        return None;
    }
    let mounted = PathBuf::from(format!("{HOST}{path}"));
    let paths = [mounted.as_path(), Path::new(path)];
    let mut found = paths.into_iter().filter_map(|path| Netns::open(path).ok());
    found.find(|netns| netns.id() == id)
}

/// [`named`], if it has one of the addresses.
pub(crate) fn by_path(path: &str, id: NetnsId, addresses: &[IpAddr]) -> Option<Arc<Netns>> {
    let netns = named(path, id)?;
    let has = within(&netns, sys::routing::addresses).ok()?.ok()?;
    addresses.iter().any(|ip| has.contains(&ip.to_canonical())).then(|| Arc::new(netns))
}

/// The namespaces that some process is in.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn occupied(root: &Path) -> Result<HashSet<NetnsId>, PlaceError> {
    Ok(processes(root)?.into_iter().map(|(_, id)| id).collect())
}

/// All processes with their namespaces. One that ends while it is looked at is passed
/// over, as are the kernel's threads.
fn processes(root: &Path) -> Result<Vec<(PathBuf, NetnsId)>, PlaceError> {
    let listed = |source| PlaceError::List { root: root.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(listed)? {
        let Ok(name) = entry.map_err(listed)?.file_name().into_string() else { continue };
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let process = root.join(name);
        let Ok(stat) = stat(&process.join("ns/net")) else { continue };
        found.push((process, NetnsId { dev: stat.st_dev, ino: stat.st_ino }));
    }
    Ok(found)
}

/// The namespace of a process, if it is still that one.
fn enter(process: &Path, id: NetnsId) -> Option<Netns> {
    Netns::open(&process.join("ns/net")).ok().filter(|netns| netns.id() == id)
}

#[cfg(test)]
mod tests;
