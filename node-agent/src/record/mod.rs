//! One file a captured sandbox: which pod, which namespace, which rules.
//!
//! A restarted agent reads from here what it programmed, and CHECK compares with
//! what was planned then, whatever the pod's manifest says by now. The directory
//! is on the run directory's file system, which a reboot empties together with
//! the sandboxes; so a write is renamed into place, but not synced.

mod directory;
mod sandbox;

pub(crate) use directory::{Detached, RecordError, Records};
pub(crate) use sandbox::SandboxId;

use redirect::pod::{Container, PROXY_CONTAINER, Pod};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is known of a captured sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Format of the file.
    pub(crate) version: u32,
    /// The sandbox.
    pub(crate) sandbox: String,
    /// The interface it was added with first, of those that it still has.
    pub(crate) interface: String,
    /// All of them: with Multus the chain runs for each. An older record has one.
    #[serde(default)]
    pub(crate) interfaces: BTreeSet<String>,
    /// The pod.
    pub(crate) pod: PodKey,
    /// Its network namespace.
    pub(crate) netns: Namespace,
    /// The backend that programmed it.
    pub(crate) backend: String,
    /// Hash of the rules.
    pub(crate) rules: String,
    /// The addresses that the plan was made with.
    pub(crate) addresses: Vec<IpAddr>,
    /// What the plan was made of.
    pub(crate) facts: Facts,
    /// `CNI_NETNS`, where a request said it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
    /// It is captured for ztunnel, and not for a sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ambient: Option<AmbientFacts>,
    /// Its rules are being taken out, or are out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) leaving: bool,
}

/// What ztunnel was told of an ambient pod, and what of its plan is in no annotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AmbientFacts {
    /// Its service account.
    pub(crate) service_account: String,
    /// Ports of its probes.
    pub(crate) probe_ports: Vec<u16>,
}

impl AmbientFacts {
    /// Of a pod.
    pub(crate) fn of(workload: &crate::source::workload::Workload) -> Self {
        Self {
            service_account: workload.service_account.to_string(),
            probe_ports: workload.probe_ports.to_vec(),
        }
    }
}

/// Which pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodKey {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, as far as known.
    pub(crate) uid: Option<String>,
}

/// Which network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// Device of the namespace file.
    pub(crate) dev: u64,
    /// Its inode.
    pub(crate) ino: u64,
}

/// The facts of a pod that its plan is made of, and nothing else: a pod's
/// environment holds secrets, which have no business in another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    annotations: BTreeMap<String, String>,
    env: Vec<(String, String)>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
}

/// Switches of the proxy's environment that a plan depends on (reference 2.6).
fn is_switch(name: &str) -> bool {
    matches!(name, "ISTIO_META_DNS_CAPTURE" | "ISTIO_DUAL_STACK" | "INVALID_DROP")
}

impl Facts {
    /// Of a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        let proxy = pod.proxy().unwrap_or_default();
        let env = proxy.env.iter().filter(|(name, _)| is_switch(name));
        Self {
            annotations: pod
                .annotations
                .iter()
                .filter(|(key, _)| key.contains("istio.io/"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            env: env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            run_as_user: proxy.run_as_user,
            run_as_group: proxy.run_as_group,
        }
    }
}

impl Record {
    /// Format of the file that this version writes.
    pub(crate) const VERSION: u32 = 1;

    /// What its pod is known by.
    pub(crate) fn key(&self) -> String {
        let pod = &self.pod;
        pod.uid.clone().unwrap_or_else(|| format!("{}/{}", pod.namespace, pod.name))
    }

    /// The interfaces, whoever wrote them.
    pub(crate) fn attached(&self) -> BTreeSet<String> {
        let mut all = self.interfaces.clone();
        all.insert(self.interface.clone());
        all
    }

    /// Has these interfaces only, of which there is one at least.
    fn keep(&mut self, interfaces: BTreeSet<String>) {
        if !interfaces.contains(&self.interface)
            && let Some(first) = interfaces.first()
        {
            self.interface.clone_from(first);
        }
        self.interfaces = interfaces;
    }

    /// What an earlier record of the same namespace says besides: its interfaces.
    pub(crate) fn join(&mut self, before: &Self) {
        if self.netns == before.netns {
            let mut all = self.attached();
            self.interface.clone_from(&before.interface);
            all.extend(before.attached());
            self.interfaces = all;
        }
    }

    /// The pod as the plan saw it.
    pub(crate) fn pod(&self) -> Pod {
        Pod {
            name: self.pod.name.clone(),
            namespace: self.pod.namespace.clone(),
            uid: self.pod.uid.clone(),
            annotations: self.facts.annotations.clone(),
            containers: vec![Container {
                name: PROXY_CONTAINER.to_owned(),
                env: self.facts.env.clone(),
                run_as_user: self.facts.run_as_user,
                run_as_group: self.facts.run_as_group,
                ..Container::default()
            }],
            ..Pod::default()
        }
    }
}

#[cfg(test)]
mod tests;
