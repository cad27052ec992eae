//! Where a running pod is: its network namespace, found without the runtime.
//!
//! A namespace is the pod's when it holds one of the pod's addresses and either a
//! process in it is of the pod by its cgroup, or the agent's record of the pod names
//! it, or nothing says otherwise and no other namespace has the address. It is
//! looked for over the processes (reference 4.11), and never the host's.

use crate::failure::causes;
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
}

fn list(found: &[NetnsId]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The namespaces that processes are in, at a moment: looked at once, for any number
/// of pods.
#[derive(Debug)]
pub(crate) struct Survey {
    root: PathBuf,
    occupied: Vec<Occupied>,
}

/// A namespace with what tells whose it is.
#[derive(Debug)]
struct Occupied {
    netns: Arc<Netns>,
    addresses: Vec<IpAddr>,
    processes: Vec<Process>,
}

/// A process that belongs to a pod, or to nobody that is known.
#[derive(Debug)]
struct Process {
    belongs: Belonging,
    started: Option<u64>,
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

impl Survey {
    /// Looks at all processes.
    ///
    /// # Errors
    /// When not all can be listed: who is missing then is not known to be gone.
    pub(crate) fn take(root: &Path, hosts: &[NetnsId]) -> Result<Self, PlaceError> {
        let mut seen: HashMap<NetnsId, Option<Occupied>> = HashMap::new();
        for (process, id) in processes(root)? {
            if hosts.contains(&id) {
                continue;
            }
            if let Some(occupied) = seen.entry(id).or_insert_with(|| open(&process, id)) {
                occupied.processes.push(Process::of(&process));
            }
        }
        let occupied = seen.into_values().flatten().collect();
        Ok(Self { root: root.to_owned(), occupied })
    }

    /// Finds a pod's namespace in it.
    ///
    /// # Errors
    /// When there is none, or more than one may be it.
    pub(crate) fn find(&self, wanted: &Wanted<'_>) -> Result<Place, PlaceError> {
        if wanted.addresses.is_empty() {
            return Err(PlaceError::NoAddress);
        }
        let addresses = || wanted.addresses.to_vec();
        let mut own: Vec<&Occupied> = self
            .occupied
            .iter()
            .filter(|o| !wanted.hosts.contains(&o.netns.id()))
            .filter(|o| wanted.addresses.iter().any(|ip| o.addresses.contains(&ip.to_canonical())))
            .filter(|o| o.is_owned(wanted.uids) || !o.is_foreign(wanted.uids))
            .collect();
        // The better evidence decides: the record, the cgroup, the address alone.
        for is_better in [
            (|o: &Occupied, w: &Wanted<'_>| w.recorded.contains(&o.netns.id())) as fn(&_, &_) -> _,
            |o, w| o.is_owned(w.uids),
        ] {
            if own.iter().any(|occupied| is_better(occupied, wanted)) {
                own.retain(|occupied| is_better(occupied, wanted));
            }
        }
        match own[..] {
            [] => Err(PlaceError::Nowhere { root: self.root.clone(), addresses: addresses() }),
            [one] => Ok(Place {
                netns: Arc::clone(&one.netns),
                sandbox: one.sandbox(wanted.uids).map(ToOwned::to_owned),
            }),
            _ => Err(PlaceError::Ambiguous {
                addresses: addresses(),
                found: own.iter().map(|occupied| occupied.netns.id()).collect(),
            }),
        }
    }
}

impl Occupied {
    /// A process in it is the pod's by its cgroup.
    fn is_owned(&self, uids: &[String]) -> bool {
        self.processes.iter().any(|process| process.is_of(uids))
    }

    /// One is another pod's.
    fn is_foreign(&self, uids: &[String]) -> bool {
        self.processes.iter().any(|process| process.belongs.uid.is_some() && !process.is_of(uids))
    }

    /// Container of the oldest process, if that is the pod's.
    fn sandbox(&self, uids: &[String]) -> Option<&str> {
        let known = self.processes.iter().filter_map(|process| Some((process.started?, process)));
        let (_, oldest) = known.min_by_key(|(started, _)| *started)?;
        oldest.belongs.container.as_deref().filter(|_| oldest.is_of(uids))
    }
}

impl Process {
    fn of(process: &Path) -> Self {
        Self {
            belongs: read(&process.join("cgroup")).map(|t| belonging(&t)).unwrap_or_default(),
            started: read(&process.join("stat")).and_then(|text| started(&text)),
        }
    }

    fn is_of(&self, uids: &[String]) -> bool {
        self.belongs.uid.as_ref().is_some_and(|uid| uids.contains(uid))
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

/// A process of each namespace that one is in.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn entrances(root: &Path) -> Result<HashMap<NetnsId, PathBuf>, PlaceError> {
    let all = processes(root)?.into_iter();
    Ok(all.map(|(process, id)| (id, process.join("ns/net"))).collect())
}

/// The namespace at a path of the host's, if it is that one and has one of the
/// addresses.
pub(crate) fn by_path(path: &str, id: NetnsId, addresses: &[IpAddr]) -> Option<Arc<Netns>> {
    if path.is_empty() {
        return None;
    }
    let mounted = PathBuf::from(format!("{HOST}{path}"));
    let paths = [mounted.as_path(), Path::new(path)];
    let mut found = paths.into_iter().filter_map(|path| Netns::open(path).ok());
    let netns = found.find(|netns| netns.id() == id)?;
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

fn open(process: &Path, id: NetnsId) -> Option<Occupied> {
    let netns = enter(process, id)?;
    let addresses = match within(&netns, sys::routing::addresses) {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return unseen(id, &causes(&error)),
        Err(error) => return unseen(id, &causes(&error)),
    };
    Some(Occupied { netns: Arc::new(netns), addresses, processes: Vec::new() })
}

fn unseen(id: NetnsId, reason: &str) -> Option<Occupied> {
    tracing::debug!(netns = %id, reason, "cannot read a namespace's addresses");
    None
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
