//! The namespaces of pods that run already: where the record says, else among the
//! host's processes; never the host's, and only with one of the pod's addresses in it.

use super::jobs::{Held, Outcome, Outcomes};
use super::node::{Node, id};
use crate::failure::causes;
use crate::place::{self, Place, Survey};
use crate::record::{Record, SandboxId};
use ambient::event::{self, Failure, Identity};
use ambient::id::{PodUid, StepId};
use std::net::IpAddr;
use std::sync::Arc;
use sys::netns::{Netns, NetnsId};

/// A pod that is looked for.
#[derive(Debug)]
pub(super) struct Search {
    /// To be named in the outcome.
    pub(super) step: StepId,
    /// What it is known by.
    pub(super) uid: PodUid,
    /// Uids that its processes may have.
    pub(super) uids: Vec<String>,
    /// Addresses by its status, or those that the chain gave it.
    pub(super) addresses: Vec<IpAddr>,
    /// Names of the records that there may be of it.
    pub(super) records: Vec<SandboxId>,
    /// The sandbox that the runtime made it last.
    pub(super) sandbox: Option<Named>,
}

/// A sandbox as the runtime's request named it.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// `CNI_CONTAINERID`.
    pub(crate) id: String,
    /// `CNI_IFNAME`.
    pub(crate) interface: String,
    /// `CNI_NETNS`.
    pub(crate) path: String,
    /// The namespace that was there then.
    pub(crate) netns: NetnsId,
    /// Addresses that the chain gave it.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Named {
    /// As it is held.
    pub(super) fn of(held: &Held, addresses: &[IpAddr]) -> Self {
        Self {
            id: held.sandbox.clone().unwrap_or_default(),
            interface: held.interface.clone(),
            path: held.path.clone(),
            netns: held.netns.id(),
            addresses: addresses.to_vec(),
        }
    }
}

/// A pod that was captured before the start.
#[derive(Debug)]
pub(super) struct Recalled {
    /// Name of its record.
    pub(super) name: SandboxId,
    /// Its record.
    pub(super) record: Record,
    /// What it is known by.
    pub(super) uid: PodUid,
    /// What ztunnel was told of it.
    pub(super) identity: Identity,
    /// Its sandbox, where the runtime's name of it is known.
    pub(super) sandbox: Option<String>,
    /// Its namespace, if that is there, with an address of the pod.
    pub(super) held: Option<Held>,
}

/// All at once: the processes are looked at once at most.
pub(super) fn find(node: &Node, searches: Vec<Search>) -> Outcomes {
    let mut survey: Option<Result<Survey, String>> = None;
    let mut outcomes = Vec::new();
    for search in searches {
        let own = recorded(node, &search);
        let result = match at_path(node, &search, &own) {
            Some(held) => Ok(held),
            None => {
                let survey = survey.get_or_insert_with(|| {
                    Survey::take(&node.proc, node.hosts.all()).map_err(|error| causes(&error))
                });
                among_processes(node, survey, &search, &own)
            }
        };
        let result = result.map(|held| {
            let sandbox = held.sandbox.as_deref().map(ambient::id::SandboxId::new);
            (event::Place { netns: id(held.netns.id()), sandbox }, held)
        });
        outcomes.push((search.step, Outcome::Found(result)));
    }
    outcomes
}

/// What is written down of the pod.
fn recorded(node: &Node, search: &Search) -> Vec<(SandboxId, Record)> {
    let read = |name: &SandboxId| match node.records.read(name) {
        Ok(record) => record.map(|record| (name.clone(), record)),
        Err(error) => {
            tracing::error!(reason = %causes(&error), "cannot read a record");
            None
        }
    };
    let mut own: Vec<(SandboxId, Record)> = search.records.iter().filter_map(read).collect();
    own.retain(|(_, record)| is_of(record, search.uid.as_str()));
    own
}

/// Where a record or the runtime's request says, if that is still so.
fn at_path(node: &Node, search: &Search, own: &[(SandboxId, Record)]) -> Option<Held> {
    let recorded = own.iter().find_map(|(name, record)| {
        let addresses =
            if search.addresses.is_empty() { &record.addresses } else { &search.addresses };
        open(node, &record.path, netns_of(record), addresses).map(|netns| held(netns, name, record))
    });
    recorded.or_else(|| {
        let Named { id, interface, path, netns, .. } = search.sandbox.clone()?;
        let netns = open(node, &path, netns, &search.addresses)?;
        Some(Held { netns, path, interface, sandbox: Some(id).filter(|id| !id.is_empty()) })
    })
}

fn among_processes(
    node: &Node,
    survey: &Result<Survey, String>,
    search: &Search,
    own: &[(SandboxId, Record)],
) -> Result<Held, Failure> {
    let survey = survey.as_ref().map_err(|why| Failure::Transient(why.clone()))?;
    let recorded: Vec<NetnsId> = own.iter().map(|(_, record)| netns_of(record)).collect();
    let written: Vec<IpAddr> =
        own.iter().flat_map(|(_, record)| record.addresses.iter().copied()).collect();
    let addresses = if search.addresses.is_empty() { &written } else { &search.addresses };
    let wanted = place::Wanted {
        uids: &search.uids,
        addresses,
        recorded: &recorded,
        hosts: node.hosts.all(),
    };
    let Place { netns, .. } =
        survey.find(&wanted).map_err(|error| Failure::Transient(causes(&error)))?;
    let record = own.iter().find(|(_, record)| netns_of(record) == netns.id());
    Ok(match record {
        Some((name, record)) => held(netns, name, record),
        // The container of its oldest process need not be the sandbox (CRI-O without
        // a pause process), and by a wrong name the runtime would seem to say that it
        // is gone.
        None => Held { netns, path: String::new(), interface: String::new(), sandbox: None },
    })
}

/// Everything that is written down, with the namespaces that are still there.
pub(super) fn recall(node: &Node) -> Vec<Recalled> {
    let mut survey: Option<Option<Survey>> = None;
    let mut recalled = Vec::new();
    for (name, record) in node.recorded() {
        let by_path = open(node, &record.path, netns_of(&record), &record.addresses);
        let netns = by_path.or_else(|| {
            let survey = survey.get_or_insert_with(|| {
                let taken = Survey::take(&node.proc, node.hosts.all());
                let failed = |error: &place::PlaceError| {
                    tracing::error!(reason = %causes(error), "cannot look for the namespaces of pods");
                };
                taken.inspect_err(failed).ok()
            });
            let uids = [record.key()];
            let recorded = [netns_of(&record)];
            let wanted = place::Wanted {
                uids: &uids,
                addresses: &record.addresses,
                recorded: &recorded,
                hosts: node.hosts.all(),
            };
            let found = survey.as_ref()?.find(&wanted).ok()?.netns;
            (found.id() == netns_of(&record)).then_some(found)
        });
        if netns.is_none() {
            tracing::info!(
                ns = record.pod.namespace,
                pod = record.pod.name,
                uid = record.pod.uid,
                netns = %netns_of(&record),
                "the network namespace of a record is not to be seen"
            );
        }
        let account = record.ambient.as_ref().map(|facts| facts.service_account.clone());
        recalled.push(Recalled {
            uid: PodUid::new(&record.key()),
            identity: Identity {
                namespace: record.pod.namespace.clone(),
                name: record.pod.name.clone(),
                service_account: account.unwrap_or_default(),
            },
            sandbox: sandbox_of(&name, &record),
            held: netns.map(|netns| held(netns, &name, &record)),
            name,
            record,
        });
    }
    recalled
}

fn sandbox_of(name: &SandboxId, record: &Record) -> Option<String> {
    (!name.is_of_found()).then(|| record.sandbox.clone())
}

/// A record is of ambient capture, and of this pod.
pub(super) fn is_of(record: &Record, uid: &str) -> bool {
    record.ambient.is_some() && record.key() == uid
}

fn netns_of(record: &Record) -> NetnsId {
    NetnsId { dev: record.netns.dev, ino: record.netns.ino }
}

fn held(netns: Arc<Netns>, name: &SandboxId, record: &Record) -> Held {
    Held {
        netns,
        path: record.path.clone(),
        interface: record.interface.clone(),
        sandbox: sandbox_of(name, record),
    }
}

/// The namespace at a path, if it is that one, has an address of the pod, and is not
/// the host's.
fn open(node: &Node, path: &str, id: NetnsId, addresses: &[IpAddr]) -> Option<Arc<Netns>> {
    if node.hosts.contains(id) {
        return None;
    }
    place::by_path(path, id, addresses)
}
