//! One file a captured sandbox: which pod, which namespace, which rules.
//!
//! A restarted agent reads from here what it programmed, and CHECK compares with
//! what was planned then, whatever the pod's manifest says by now. The directory
//! is on the run directory's file system, which a reboot empties together with
//! the sandboxes; so a write is renamed into place, but not synced.

use redirect::pod::{Container, PROXY_CONTAINER, Pod};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::request::Attachment;

/// Directory below the run directory.
const DIRECTORY: &str = wire::passed::RECORDS;
/// Sandboxes that were found without their name are called so, and the pod's uid.
const FOUND: &str = "found-";
/// Files that are being written begin so; no sandbox's name does.
const TEMPORARY: &str = ".new-";
/// Format of the file.
const VERSION: u32 = 1;
/// Longest sandbox name: with `.json` it must fit a file name.
const MAX_ID: usize = 200;

/// A sandbox's name, fit to be a file name: letters, digits, `_`, `.` and `-`,
/// the first a letter or digit (the CNI specification's own rule).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SandboxId(String);

/// Why a text names no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "container id {0:?} is not valid: want a letter or digit, then letters, digits, '_', '.' and '-', at most {MAX_ID}"
)]
pub(crate) struct SandboxIdError(String);

impl SandboxId {
    /// Of a pod whose sandbox's own name is not known: it was found running.
    pub(crate) fn of_found(uid: &str) -> Result<Self, SandboxIdError> {
        Self::new(&format!("{FOUND}{uid}"))
    }

    /// Checks a container id.
    pub(crate) fn new(text: &str) -> Result<Self, SandboxIdError> {
        let mut bytes = text.bytes();
        let valid = text.len() <= MAX_ID
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(SandboxIdError(text.chars().take(MAX_ID).collect()))
        }
    }

    /// It is [`Self::of_found`].
    pub(crate) fn is_of_found(&self) -> bool {
        self.0.starts_with(FOUND)
    }

    /// The id.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

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
    pub(crate) const VERSION: u32 = VERSION;

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

/// Why a record could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The system refused.
    #[error("{action} record {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("record {} is not valid", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is from a newer agent.
    #[error("record {} has format {version}, this agent knows {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
}

/// What became of a sandbox's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// There was none.
    Unknown,
    /// Other interfaces have it.
    Stays,
    /// It is gone.
    Removed,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    next: AtomicU64,
}

impl Records {
    /// Opens the records below a run directory, makes their directory private, and
    /// removes what an agent that was killed in the middle of a write left.
    ///
    /// # Errors
    ///
    /// When the directory cannot be had.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, crate::server::SocketError> {
        let directory = run_dir.join(DIRECTORY);
        crate::server::private_directory(&directory)?;
        let records = Self { directory, next: AtomicU64::new(0) };
        for name in records.names() {
            if name.starts_with(TEMPORARY) {
                // One that stays costs a few hundred bytes until the next start.
                let _ = fs::remove_file(records.directory.join(name));
            }
        }
        Ok(records)
    }

    /// The records below a run directory, to be read only: nothing is made or swept,
    /// since an agent may be using them.
    pub(crate) fn look(run_dir: &Path) -> Self {
        Self { directory: run_dir.join(DIRECTORY), next: AtomicU64::new(0) }
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    ///
    /// For example on a full disk; then the record is as it was before.
    pub(crate) fn write(&self, id: &SandboxId, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let json = serde_json::to_vec_pretty(record)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let written = create(&temporary)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            RecordError::Io { action: "write", path, source }
        })
    }

    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be read.
    pub(crate) fn read(&self, id: &SandboxId) -> Result<Option<Record>, RecordError> {
        let path = self.path(id);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { action: "read", path, source }),
        };
        let record: Record = serde_json::from_slice(&json)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        if record.version > VERSION {
            return Err(RecordError::Version { path, version: record.version });
        }
        Ok(Some(record))
    }

    /// Removes a record; true when there was one.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be removed.
    pub(crate) fn remove(&self, id: &SandboxId) -> Result<bool, RecordError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(RecordError::Io { action: "remove", path, source }),
        }
    }

    /// Takes an interface from a sandbox, and its record with the last one.
    ///
    /// # Errors
    ///
    /// When the record cannot be changed.
    pub(crate) fn detach(&self, id: &SandboxId, interface: &str) -> Result<Detached, RecordError> {
        self.reduce(id, |attached| attached != interface)
    }

    /// Takes away the interfaces, and the records of sandboxes, that are not among
    /// `live`, and says which records. Goes on past errors.
    pub(crate) fn retain(&self, live: &[Attachment]) -> (Vec<SandboxId>, Vec<RecordError>) {
        let live: BTreeSet<(&str, &str)> =
            live.iter().map(|a| (a.container_id.as_str(), a.if_name.as_str())).collect();
        let (mut removed, mut errors) = (Vec::new(), Vec::new());
        for id in self.ids() {
            // The runtime knows such a sandbox by another name.
            if id.is_of_found() {
                continue;
            }
            match self.reduce(&id, |attached| live.contains(&(id.as_str(), attached))) {
                Ok(Detached::Removed) => removed.push(id),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        (removed, errors)
    }

    fn reduce(
        &self,
        id: &SandboxId,
        stays: impl Fn(&str) -> bool,
    ) -> Result<Detached, RecordError> {
        // One that cannot be read is of no use to the interfaces that stay.
        if let Ok(Some(mut record)) = self.read(id) {
            let before = record.attached();
            let left: BTreeSet<String> =
                before.iter().filter(|name| stays(name)).cloned().collect();
            if !left.is_empty() {
                if left != before {
                    record.keep(left);
                    self.write(id, &record)?;
                }
                return Ok(Detached::Stays);
            }
        }
        Ok(if self.remove(id)? { Detached::Removed } else { Detached::Unknown })
    }

    /// The sandboxes that have a record.
    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.names()
            .iter()
            .filter_map(|name| SandboxId::new(name.strip_suffix(".json")?).ok())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{}.json", id.as_str()))
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
