//! The namespaces that processes are in, at a moment: for any number of pods. Little is
//! read at first, and the rest only where it is needed to tell: which processes are
//! whose when a pod is looked for, addresses of a namespace when it may be the pod's.

use super::cgroup::{Belonging, belonging, started};
use super::{Place, PlaceError, Wanted, enter, processes};
use crate::failure::causes;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::netns::{Netns, NetnsId, within};

/// Longest file of a process that is read.
const MAX_FILE: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Survey {
    root: PathBuf,
    occupied: Vec<Occupied>,
    by_id: HashMap<NetnsId, usize>,
    /// Namespaces by the pods that processes in them are of.
    by_uid: OnceCell<HashMap<String, Vec<usize>>>,
    /// Those without a process of a pod, by address.
    by_address: OnceCell<HashMap<IpAddr, Vec<usize>>>,
}

/// A namespace with what tells whose it is.
#[derive(Debug)]
struct Occupied {
    id: NetnsId,
    /// Directories of its processes.
    processes: Vec<PathBuf>,
    /// Whose each of them is.
    belongs: OnceCell<Vec<Belonging>>,
    /// Open, and its addresses; `None` when that cannot be had.
    inside: OnceCell<Option<(Arc<Netns>, Vec<IpAddr>)>>,
}

impl Survey {
    /// Looks which namespaces processes are in.
    ///
    /// # Errors
    /// When not all can be listed: who is missing then is not known to be gone.
    pub(crate) fn take(root: &Path, hosts: &[NetnsId]) -> Result<Self, PlaceError> {
        let mut occupied: Vec<Occupied> = Vec::new();
        let mut by_id = HashMap::new();
        for (process, id) in processes(root)? {
            if hosts.contains(&id) {
                continue;
            }
            let number = *by_id.entry(id).or_insert_with(|| {
                occupied.push(Occupied::new(id));
                occupied.len() - 1
            });
            if let Some(occupied) = occupied.get_mut(number) {
                occupied.processes.push(process);
            }
        }
        let root = root.to_owned();
        Ok(Self { root, occupied, by_id, by_uid: OnceCell::new(), by_address: OnceCell::new() })
    }

    /// Finds a pod's namespace in it.
    ///
    /// # Errors
    /// When there is none, or more than one may be it.
    pub(crate) fn find(&self, wanted: &Wanted<'_>) -> Result<Place, PlaceError> {
        if wanted.addresses.is_empty() {
            return Err(PlaceError::NoAddress);
        }
        // The better evidence decides: the record, the cgroup, the address alone.
        let recorded = wanted.recorded.iter().filter_map(|id| self.by_id.get(id));
        let mut own = self.among(wanted, recorded);
        if own.is_empty() {
            let owned = wanted.uids.iter().filter_map(|uid| self.by_uid().get(uid));
            own = self.among(wanted, owned.flatten());
        }
        if own.is_empty() {
            let alike = |ip: &IpAddr| self.by_address().get(&ip.to_canonical());
            own = self.among(wanted, wanted.addresses.iter().filter_map(alike).flatten());
        }
        if own.iter().any(|occupied| occupied.is_owned(wanted.uids)) {
            own.retain(|occupied| occupied.is_owned(wanted.uids));
        }
        let addresses = wanted.addresses.to_vec();
        match own[..] {
            [] => Err(PlaceError::Nowhere { root: self.root.clone(), addresses }),
            [one] => one
                .place(wanted.uids)
                .ok_or(PlaceError::Nowhere { root: self.root.clone(), addresses }),
            _ => Err(PlaceError::Ambiguous {
                addresses,
                found: own.iter().map(|occupied| occupied.id).collect(),
            }),
        }
    }

    /// Finds a pod's namespace by its processes alone, where nobody tells the pod's
    /// addresses: the one with an address of its own that has some.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub(crate) fn find_owned(&self, uids: &[String]) -> Result<Place, PlaceError> {
        let mut numbers: Vec<usize> =
            uids.iter().filter_map(|uid| self.by_uid().get(uid)).flatten().copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let all = numbers.into_iter().filter_map(|number| self.occupied.get(number));
        let own: Vec<&Occupied> = all.filter(|o| !o.addresses().is_empty()).collect();
        let addresses = Vec::new();
        match own[..] {
            [one] => {
                one.place(uids).ok_or(PlaceError::Nowhere { root: self.root.clone(), addresses })
            }
            [] => Err(PlaceError::Nowhere { root: self.root.clone(), addresses }),
            _ => Err(PlaceError::Scattered {
                found: own.iter().map(|occupied| occupied.id).collect(),
            }),
        }
    }

    /// Those of them that may be the pod's, each once.
    fn among<'a>(
        &'a self,
        wanted: &Wanted<'_>,
        numbers: impl Iterator<Item = &'a usize>,
    ) -> Vec<&'a Occupied> {
        let mut numbers: Vec<usize> = numbers.copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let all = numbers.iter().filter_map(|number| self.occupied.get(*number));
        all.filter(|o| !wanted.hosts.contains(&o.id))
            .filter(|o| o.is_owned(wanted.uids) || !o.is_anybodys())
            .filter(|o| {
                wanted.addresses.iter().any(|ip| o.addresses().contains(&ip.to_canonical()))
            })
            .collect()
    }

    fn by_uid(&self) -> &HashMap<String, Vec<usize>> {
        self.by_uid.get_or_init(|| {
            let mut found: HashMap<String, Vec<usize>> = HashMap::new();
            for (number, occupied) in self.occupied.iter().enumerate() {
                for uid in occupied.belongs().iter().filter_map(|b| b.uid.clone()) {
                    found.entry(uid).or_default().push(number);
                }
            }
            found
        })
    }

    fn by_address(&self) -> &HashMap<IpAddr, Vec<usize>> {
        self.by_address.get_or_init(|| {
            let mut found: HashMap<IpAddr, Vec<usize>> = HashMap::new();
            let all = self.occupied.iter().enumerate();
            for (number, occupied) in all.filter(|(_, o)| !o.is_anybodys()) {
                for address in occupied.addresses() {
                    found.entry(*address).or_default().push(number);
                }
            }
            found
        })
    }
}

impl Occupied {
    fn new(id: NetnsId) -> Self {
        Self { id, processes: Vec::new(), belongs: OnceCell::new(), inside: OnceCell::new() }
    }

    fn belongs(&self) -> &[Belonging] {
        self.belongs.get_or_init(|| {
            let of = |process: &PathBuf| read(&process.join("cgroup")).map(|t| belonging(&t));
            self.processes.iter().map(|process| of(process).unwrap_or_default()).collect()
        })
    }

    /// A process in it is the pod's by its cgroup.
    fn is_owned(&self, uids: &[String]) -> bool {
        self.belongs().iter().any(|belongs| is_of(belongs, uids))
    }

    /// One is some pod's.
    fn is_anybodys(&self) -> bool {
        self.belongs().iter().any(|belongs| belongs.uid.is_some())
    }

    fn inside(&self) -> Option<&(Arc<Netns>, Vec<IpAddr>)> {
        self.inside.get_or_init(|| self.open()).as_ref()
    }

    fn open(&self) -> Option<(Arc<Netns>, Vec<IpAddr>)> {
        let netns = self.processes.iter().find_map(|process| enter(process, self.id))?;
        match within(&netns, sys::routing::addresses) {
            Ok(Ok(addresses)) => Some((Arc::new(netns), addresses)),
            Ok(Err(error)) => unseen(self.id, &causes(&error)),
            Err(error) => unseen(self.id, &causes(&error)),
        }
    }

    fn addresses(&self) -> &[IpAddr] {
        self.inside().map_or(&[], |(_, addresses)| addresses)
    }

    fn place(&self, uids: &[String]) -> Option<Place> {
        let (netns, _) = self.inside()?;
        Some(Place { netns: Arc::clone(netns), sandbox: self.sandbox(uids) })
    }

    /// Container of the oldest process, if that is the pod's.
    fn sandbox(&self, uids: &[String]) -> Option<String> {
        let since = |process: &PathBuf| read(&process.join("stat")).and_then(|text| started(&text));
        let known = self.processes.iter().zip(self.belongs());
        let known = known.filter_map(|(process, belongs)| Some((since(process)?, belongs)));
        let (_, oldest) = known.min_by_key(|(started, _)| *started)?;
        oldest.container.clone().filter(|_| is_of(oldest, uids))
    }
}

fn is_of(belongs: &Belonging, uids: &[String]) -> bool {
    belongs.uid.as_ref().is_some_and(|uid| uids.contains(uid))
}

fn unseen<T>(id: NetnsId, reason: &str) -> Option<T> {
    tracing::debug!(netns = %id, reason, "cannot read a namespace's addresses");
    None
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().filter(|text| text.len() <= MAX_FILE)
}
