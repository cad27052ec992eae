//! Keeps the plugin's snapshot: what it may decide by while there is no agent.

use crate::source::View;
use crate::source::manifest::static_uid;
use redirect::enroll::{Config, Decision, decide};
use redirect::pod::Namespace;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::snapshot::{
    Ambient, FILE_NAME, KnownPod, MAX_BYTES, REMOVED_MARKER, Snapshot, Source, VERSION, full_name,
};

/// The file and what is in it.
#[derive(Debug)]
pub(crate) struct Keeper {
    run_dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// As far as the file is known to be so.
    current: Option<Arc<Snapshot>>,
    /// The last failure, which is said once.
    failed: Option<String>,
}

impl Keeper {
    /// Of a run directory, with what an agent before left there.
    pub(crate) fn new(run_dir: &Path) -> Self {
        let current = read(&run_dir.join(FILE_NAME)).map(Arc::new);
        let state = Mutex::new(State { current, failed: None });
        Self { run_dir: run_dir.to_owned(), state }
    }

    /// Takes away what a cleanup left: the mesh is on this node again.
    ///
    /// # Errors
    /// When that is not possible; the plugin would let every pod pass.
    pub(crate) fn stay(&self) -> io::Result<()> {
        match fs::remove_file(self.run_dir.join(REMOVED_MARKER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What the file says now.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        self.lock().current.clone()
    }

    /// Makes the file say what is known, if it does not yet.
    pub(crate) fn keep(&self, config: &Config, view: &View) {
        let mut state = self.lock();
        let mut next = build(config, view);
        if let Some(before) = &state.current
            && !view.complete
            && before.policy == next.policy
            && before.source == next.source
        {
            // What is not known yet is not gone.
            inherit(&mut next, before);
        }
        let json = bounded(&mut next);
        if state.current.as_deref() == Some(&next) && self.run_dir.join(FILE_NAME).exists() {
            return;
        }
        match write(&self.run_dir, &json) {
            Ok(()) => {
                tracing::debug!(pods = next.pods.len(), bytes = json.len(), "snapshot written");
                state.current = Some(Arc::new(next));
                state.failed = None;
            }
            Err(error) => {
                // An old one may say of a pod what is not so any more. None means
                // that nobody passes while the agent is away.
                let _ = fs::remove_file(self.run_dir.join(FILE_NAME));
                state.current = None;
                let why = error.to_string();
                if state.failed.as_deref() != Some(&why) {
                    tracing::error!(run_dir = %self.run_dir.display(), reason = why, "cannot write the plugin's snapshot; without the agent no pod would start");
                    state.failed = Some(why);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment or harmless when lost.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that the plugin may go by.
fn build(config: &Config, view: &View) -> Snapshot {
    let namespaces: HashMap<&str, &Namespace> =
        view.namespaces.iter().map(|ns| (ns.name.as_str(), ns)).collect();
    let mut pods = BTreeMap::new();
    let mut statics = BTreeMap::new();
    // The runtime is never asked to attach a pod to the host's network.
    for pod in view.pods.iter().filter(|pod| !pod.host_network) {
        let namespace = namespaces.get(pod.namespace.as_str()).copied();
        let Ok(decision) = decide(pod, namespace, config) else { continue };
        let mesh = !matches!(decision, Decision::Skip(_));
        let known = KnownPod { namespace: pod.namespace.clone(), name: pod.name.clone(), mesh };
        // The runtime knows a static pod by another uid than its mirror's. That one
        // is an annotation, which must not speak for another pod.
        if let Some(uid) = static_uid(pod) {
            statics.insert(uid.to_owned(), known.clone());
        }
        let key = match (&pod.uid, view.source) {
            (Some(uid), _) => uid.clone(),
            (None, Source::Manifests) => full_name(&pod.namespace, &pod.name),
            (None, Source::Kubernetes) => continue,
        };
        pods.insert(key, known);
    }
    for (uid, known) in statics {
        pods.entry(uid).or_insert(known);
    }
    pods.remove("");
    Snapshot {
        version: VERSION,
        policy: policy(config),
        source: view.source,
        agent_namespace: config.agent_namespace.clone(),
        excluded: config.exclude_namespaces.iter().cloned().collect(),
        ambient: ambient(config, &view.namespaces),
        pods,
    }
}

fn ambient(config: &Config, namespaces: &[Namespace]) -> Ambient {
    if !config.ambient_enabled {
        return Ambient::default();
    }
    let selectors = &config.enablement_selectors;
    let by_pod_label = selectors.iter().any(|s| s.namespace_selector.is_empty());
    let is_outside = |ns: &&Namespace| {
        !by_pod_label && !selectors.iter().any(|s| s.namespace_selector.matches(&ns.labels))
    };
    let outside = namespaces.iter().filter(is_outside).map(|ns| ns.name.clone()).collect();
    Ambient { enabled: true, by_pod_label, outside }
}

/// Differs when another agent would decide otherwise.
fn policy(config: &Config) -> String {
    let mut hasher = DefaultHasher::new();
    let Config {
        ambient_enabled, enablement_selectors, exclude_namespaces, agent_namespace, ..
    } = config;
    format!("{ambient_enabled} {enablement_selectors:?} {exclude_namespaces:?} {agent_namespace}")
        .hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Keeps what an agent of the same policy knew.
fn inherit(next: &mut Snapshot, before: &Snapshot) {
    for (uid, pod) in &before.pods {
        next.pods.entry(uid.clone()).or_insert_with(|| pod.clone());
    }
    if next.ambient.outside.is_empty() {
        next.ambient.outside.clone_from(&before.ambient.outside);
    }
}

/// The JSON, of at most [`MAX_BYTES`]: who is left out waits for the agent.
fn bounded(snapshot: &mut Snapshot) -> Vec<u8> {
    // Cannot fail: text and numbers only.
    let json = |snapshot: &Snapshot| serde_json::to_vec(snapshot).unwrap_or_default();
    let mut bytes = json(snapshot);
    if bytes.len() > MAX_BYTES {
        snapshot.ambient.outside = BTreeSet::new();
        bytes = json(snapshot);
    }
    if bytes.len() > MAX_BYTES {
        snapshot.pods = BTreeMap::new();
        bytes = json(snapshot);
    }
    bytes
}

/// What the plugin would read: a file of another owner is written anew.
fn read(path: &Path) -> Option<Snapshot> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    let owner = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if !meta.is_file() || !owner || meta.mode() & 0o022 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    Snapshot::parse(&bytes).ok()
}

fn write(run_dir: &Path, json: &[u8]) -> io::Result<()> {
    let temporary = run_dir.join(format!(".{FILE_NAME}.new"));
    let _ = fs::remove_file(&temporary);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let written = file
        .and_then(|mut file| file.write_all(json))
        .and_then(|()| fs::rename(&temporary, run_dir.join(FILE_NAME)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests;
