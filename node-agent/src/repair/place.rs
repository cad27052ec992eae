//! Where a running pod is: its network namespace, found without the runtime.
//!
//! A namespace is the pod's when it holds one of the pod's addresses and either a
//! process in it is of the pod by its cgroup, or the agent's record of the pod names
//! it, or nothing says otherwise and no other namespace has the address. It is
//! looked for over the processes (reference 4.11), and never the host's.

use crate::failure::causes;
use nix::sys::stat::stat;
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use sys::netns::{Netns, NetnsId, within};

/// The host's processes, as Istio's chart mounts them, and as they are without.
const ROOTS: [&str; 2] = ["/host/proc", "/proc"];

/// Longest file of a process that is read.
const MAX_CGROUP: usize = 64 << 10;

/// Field 22 of `stat`, counted after the command's name.
const START_TIME: usize = 19;

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
    pub(crate) netns: Netns,
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
}

fn list(found: &[NetnsId]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A namespace with one of the addresses.
#[derive(Debug)]
struct Candidate {
    netns: Netns,
    /// A process in it is the pod's by its cgroup.
    owned: bool,
    /// One is another pod's.
    foreign: bool,
    /// The oldest process' container, and when that one started.
    oldest: Option<(u64, Option<String>)>,
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
    let addresses = || wanted.addresses.to_vec();
    let all = candidates(root, wanted)?;
    let mut own: Vec<Candidate> = all.into_iter().filter(|c| c.owned || !c.foreign).collect();
    // The better evidence decides: the record, the cgroup, the address alone.
    for is_better in [
        (|c: &Candidate, w: &Wanted<'_>| w.recorded.contains(&c.netns.id())) as fn(&_, &_) -> bool,
        |c, _| c.owned,
    ] {
        if own.iter().any(|candidate| is_better(candidate, wanted)) {
            own.retain(|candidate| is_better(candidate, wanted));
        }
    }
    let found: Vec<NetnsId> = own.iter().map(|candidate| candidate.netns.id()).collect();
    match (own.pop(), own.is_empty()) {
        (None, _) => Err(PlaceError::Nowhere { root: root.to_owned(), addresses: addresses() }),
        (Some(last), true) => {
            let container = last.oldest.and_then(|(_, container)| container);
            Ok(Place { netns: last.netns, sandbox: container.filter(|_| last.owned) })
        }
        (Some(_), false) => Err(PlaceError::Ambiguous { addresses: addresses(), found }),
    }
}

/// Opens a namespace that some process is in; `None` when none is.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn by_id(root: &Path, id: NetnsId) -> Result<Option<Netns>, PlaceError> {
    let mut own = processes(root)?.into_iter().filter(|(_, found)| *found == id);
    Ok(own.find_map(|(process, _)| enter(&process, id)))
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

fn candidates(root: &Path, wanted: &Wanted<'_>) -> Result<Vec<Candidate>, PlaceError> {
    let mut seen: HashMap<NetnsId, Option<Candidate>> = HashMap::new();
    for (process, id) in processes(root)? {
        if wanted.hosts.contains(&id) {
            continue;
        }
        let candidate = seen.entry(id).or_insert_with(|| open(&process, id, wanted));
        if let Some(candidate) = candidate {
            candidate.join(&process, wanted.uids);
        }
    }
    Ok(seen.into_values().flatten().collect())
}

fn open(process: &Path, id: NetnsId, wanted: &Wanted<'_>) -> Option<Candidate> {
    let netns = enter(process, id)?;
    let held = match within(&netns, sys::routing::addresses) {
        Ok(Ok(held)) => held,
        Ok(Err(error)) => return unseen(id, &causes(&error)),
        Err(error) => return unseen(id, &causes(&error)),
    };
    let has = wanted.addresses.iter().any(|ip| held.contains(&ip.to_canonical()));
    has.then_some(Candidate { netns, owned: false, foreign: false, oldest: None })
}

fn unseen(id: NetnsId, reason: &str) -> Option<Candidate> {
    tracing::debug!(netns = %id, reason, "cannot read a namespace's addresses");
    None
}

impl Candidate {
    fn join(&mut self, process: &Path, uids: &[String]) {
        let cgroup = read(&process.join("cgroup")).map(|text| belonging(&text)).unwrap_or_default();
        let own = cgroup.uid.as_ref().is_some_and(|uid| uids.contains(uid));
        self.owned |= own;
        self.foreign |= cgroup.uid.is_some() && !own;
        let Some(started) = read(&process.join("stat")).and_then(|text| started(&text)) else {
            return;
        };
        if self.oldest.as_ref().is_none_or(|(oldest, _)| started < *oldest) {
            self.oldest = Some((started, cgroup.container.filter(|_| own)));
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().filter(|text| text.len() <= MAX_CGROUP)
}

fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(START_TIME)?.parse().ok()
}

/// Whose a process is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Belonging {
    uid: Option<String>,
    container: Option<String>,
}

/// Reads a process' cgroups. What is contradictory says nothing.
fn belonging(text: &str) -> Belonging {
    let mut found = Belonging::default();
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        let path = path.strip_suffix(".scope").unwrap_or(path);
        let Some(uid) = pod_uid(path) else { continue };
        let container = container(path);
        let differs =
            |known: &Option<String>, new: &str| known.as_deref().is_some_and(|k| k != new);
        if differs(&found.uid, &uid)
            || container.as_ref().is_some_and(|new| differs(&found.container, new))
        {
            return Belonging::default();
        }
        found.uid = Some(uid);
        found.container = found.container.or(container);
    }
    found
}

/// `pod`, then a uid whose parts are joined by `-` or, with systemd, by `_`. A
/// static pod's is a hash without parts.
fn pod_uid(path: &str) -> Option<String> {
    path.split('/').find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match part.strip_prefix("pod") {
            Some(uid) => uid,
            None => part.rsplit_once("-pod")?.1,
        };
        let uid = uid.replace('_', "-");
        let hex = uid.bytes().filter(|b| *b != b'-').count();
        let valid = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (valid && hex == 32).then_some(uid)
    })
}

/// The last part, without the runtime's name before it.
fn container(path: &str) -> Option<String> {
    let last = path.rsplit('/').next()?;
    let last = last.rsplit(['-', ':']).next()?;
    let valid = last.len() >= 32 && last.bytes().all(|b| b.is_ascii_hexdigit());
    (valid && pod_uid(path.rsplit('/').next()?).is_none()).then(|| last.to_owned())
}

#[cfg(test)]
mod tests;
