//! What passed unseen is looked at once the pod is seen; a pod that should have
//! been captured is said so loudly, counted, and captured now, or as soon as that
//! can be done.

mod attempts;

use super::hints::compare;
use super::{Agent, target};
use crate::failure::Failure;
use crate::health::Beat;
use crate::notice::{State, Trouble};
use crate::record::SandboxId;
use crate::source::View;
use attempts::Attempts;
use redirect::enroll::{self, decide};
use redirect::pod::Pod;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wire::passed::{DIRECTORY, MAX_BYTES, MAX_FILES, Passed, TEMPORARY, file_name};
use wire::request::{Extension, PodRequest};
use wire::snapshot::INJECTED;

/// How often the agent looks at what is known and at what passed. It is also how
/// long a change may take until it is in the plugin's snapshot.
const TICK: Duration = Duration::from_millis(500);

/// Time for a late capture.
const LIMIT: Duration = Duration::from_secs(4);

/// How long a sandbox without a process is waited for whose pod is not known: its
/// first one comes after ADD, and the pod's own object may be late too.
const SETTLED: Duration = Duration::from_secs(60);

/// What passed, and how often it should not have.
#[derive(Debug)]
pub(super) struct Audit {
    directory: PathBuf,
    escaped: AtomicU64,
    next: AtomicU64,
    attempts: Attempts,
}

/// Pods that passed unseen although they were to be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Escaped {
    /// So far.
    pub(crate) total: u64,
    /// Of these, those that still run uncaptured.
    pub(crate) uncaptured: usize,
}

/// What becomes of a file.
enum Done {
    Remove,
    Keep,
}

impl Audit {
    /// Of a run directory.
    pub(super) fn new(run_dir: &Path) -> Self {
        Self {
            directory: run_dir.join(DIRECTORY),
            escaped: AtomicU64::new(0),
            next: AtomicU64::new(0),
            attempts: Attempts::default(),
        }
    }

    /// Writes down that a pod passes, whole or not at all. As the plugin does it.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn write_down(&self, passed: &Passed) -> io::Result<()> {
        self.prepare()?;
        let path = self.directory.join(file_name(&passed.container));
        // With Multus the chain runs for each interface; the sandbox is there already.
        if is_of_another(&path, &passed.interface) {
            return Ok(());
        }
        if fs::read_dir(&self.directory)?.take(MAX_FILES).count() >= MAX_FILES && !path.exists() {
            return Err(io::Error::other(format!("{} is full", self.directory.display())));
        }
        let json = serde_json::to_vec(passed).map_err(io::Error::other)?;
        if json.len() > MAX_BYTES {
            return Err(io::Error::other("its annotations are too large"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{TEMPORARY}agent-{number}"));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let written = file
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn prepare(&self) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what a writer that was killed left. Plugins write for moments only,
    /// so one that loses its file by this fails one ADD, which is tried again.
    fn sweep(&self) {
        for name in self.names().iter().filter(|name| name.starts_with(TEMPORARY)) {
            let _ = fs::remove_file(self.directory.join(name));
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.take(MAX_FILES).filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Forgets a sandbox when the interface goes that it passed with.
    pub(super) fn detach(&self, id: &SandboxId, interface: &str) {
        if !is_of_another(&self.directory.join(file_name(id.as_str())), interface) {
            self.forget(id);
        }
    }

    /// Forgets a sandbox that is gone, or captured.
    pub(super) fn forget(&self, id: &SandboxId) {
        let _ = fs::remove_file(self.directory.join(file_name(id.as_str())));
    }
}

impl Agent {
    /// See [`Escaped`].
    pub(crate) fn escaped(&self) -> Escaped {
        Escaped {
            total: self.audit.escaped.load(Ordering::Relaxed),
            uncaptured: self.audit.attempts.failing(),
        }
    }

    /// Starts to serve: keeps the plugin's snapshot and audits what passed, on a
    /// thread of its own that ends with the agent. Where an installer runs, a cleanup's
    /// mark is its to take away: it knows which installation was removed.
    ///
    /// # Errors
    /// When a cleanup's mark cannot be taken away or no thread can be had.
    pub(crate) fn keep_house(
        self: &Arc<Self>,
        has_installer: bool,
        beat: Arc<Beat>,
    ) -> io::Result<()> {
        if !has_installer {
            self.keeper.stay()?;
        }
        self.audit.sweep();
        // The policy before may have been another one.
        self.keeper.keep(&self.config, &self.source.view(self.config.ambient_enabled));
        let agent = Arc::downgrade(self);
        std::thread::Builder::new().name("house".to_owned()).spawn(move || {
            while let Some(agent) = agent.upgrade() {
                let view = agent.source.view(agent.config.ambient_enabled);
                agent.keeper.keep(&agent.config, &view);
                agent.look(&view);
                drop((agent, view));
                beat.beat();
                std::thread::sleep(TICK);
            }
        })?;
        Ok(())
    }

    /// Looks at everything that passed.
    fn look(&self, view: &View) {
        let names = self.audit.names();
        self.audit.attempts.retain(&names);
        for name in names.iter().filter(|name| !name.starts_with(TEMPORARY)) {
            if !self.audit.attempts.is_due(name) {
                continue;
            }
            let path = self.audit.directory.join(name);
            let done = match read(&path) {
                Ok(Some(passed)) => self.judge(name, &passed, view),
                Ok(None) => Done::Keep,
                Err(error) => {
                    tracing::error!(file = %path.display(), reason = %error, "cannot read which pod passed");
                    // What is no such file stays none; out of descriptors is a moment's.
                    let link = error.raw_os_error() == Some(nix::libc::ELOOP);
                    if link || error.kind() == io::ErrorKind::Other {
                        Done::Remove
                    } else {
                        Done::Keep
                    }
                }
            };
            if matches!(done, Done::Remove) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn judge(&self, name: &str, passed: &Passed, view: &View) -> Done {
        let Passed { namespace: ns, name: pod_name, uid, .. } = passed;
        let Some(pod) = view.pods.iter().find(|pod| is_that(pod, passed)) else {
            if view.complete && self.is_gone(name, passed) {
                tracing::info!(ns, pod = pod_name, uid, "passed unseen; pod and sandbox are gone");
                return Done::Remove;
            }
            return Done::Keep;
        };
        if self.audit.attempts.is_first(name) {
            compare(pod, passed.annotations.as_ref().map(|all| all.contains_key(INJECTED)));
        }
        let namespace = view.namespaces.iter().find(|namespace| namespace.name == pod.namespace);
        match decide(pod, namespace, &self.config) {
            Ok(enroll::Decision::Skip(reason)) => {
                tracing::info!(
                    ns,
                    pod = pod_name,
                    uid,
                    reason = reason.code(),
                    passed = passed.reason,
                    "rightly passed unseen"
                );
                Done::Remove
            }
            Ok(decision) => self.mend(name, passed, pod, decision),
            // Its namespace's labels are to come.
            Err(_) => Done::Keep,
        }
    }

    /// True when the sandbox of a pod that is not known is certainly no more. Where its
    /// directory is not mounted, nobody of the host's processes must be in it.
    fn is_gone(&self, name: &str, passed: &Passed) -> bool {
        if target::of_passed(passed).is_ok() {
            return false;
        }
        target::has_left(passed)
            || self.hosts.sees_processes() && self.audit.attempts.known_for(name) >= SETTLED
    }

    /// A pod runs that should have been captured: tried until it is, or is gone. What
    /// is said is each change.
    fn mend(&self, name: &str, passed: &Passed, pod: &Pod, wanted: enroll::Decision) -> Done {
        let (ns, pod_name, uid) = (&pod.namespace, &pod.name, &pod.uid);
        if self.audit.attempts.is_first(name) {
            let total = self.audit.escaped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(
                ns,
                pod = pod_name,
                uid,
                passed = passed.reason,
                escaped_total = total,
                "a pod of the mesh passed uncaptured while the agent was not asked"
            );
        }
        let result = match wanted {
            enroll::Decision::Sidecar => self.capture_late(passed, pod),
            // Found and captured as every other that runs.
            _ if self.is_ambient_verified(pod) => Ok(()),
            _ => Err("it is being captured for ztunnel".to_owned()),
        };
        let Err(why) = result else {
            tracing::warn!(
                ns,
                pod = pod_name,
                uid,
                "captured late; connections from before go on uncaptured"
            );
            self.say(pod, State::Well);
            return Done::Remove;
        };
        if self.audit.attempts.failed(name, &why) {
            if matches!(wanted, enroll::Decision::Sidecar) {
                self.say(pod, State::Stuck(Trouble::Rules, why.clone()));
            }
            tracing::error!(
                ns,
                pod = pod_name,
                uid,
                reason = why,
                "cannot capture a pod that runs uncaptured: delete it; it is tried again until it is gone"
            );
        }
        Done::Keep
    }

    fn is_ambient_verified(&self, pod: &Pod) -> bool {
        // As ambient capture calls it: a manifest may have no uid.
        let uid = pod.uid.clone().unwrap_or_else(|| format!("{}/{}", pod.namespace, pod.name));
        self.ambient.get().is_some_and(|ambient| ambient.figures().is_verified(&uid))
    }

    fn capture_late(&self, passed: &Passed, pod: &Pod) -> Result<(), String> {
        let text = |failure: Failure| failure.to_string();
        let sandbox = SandboxId::new(&passed.container).map_err(|error| error.to_string())?;
        let netns = target::of_passed(passed)?;
        if self.hosts.contains(netns.id()) {
            return Err("its network namespace is the host's".to_owned());
        }
        let request = PodRequest {
            netns: passed.netns.clone(),
            pod_name: passed.name.clone(),
            pod_namespace: passed.namespace.clone(),
            ips: None,
            sluice: Some(Extension {
                container_id: passed.container.clone(),
                if_name: passed.interface.clone(),
                pod_uid: passed.uid.clone(),
                ..Extension::default()
            }),
        };
        let deadline = Instant::now() + LIMIT;
        self.capture(&request, Some(&sandbox), &netns, pod, deadline).map(drop).map_err(text)
    }
}

/// The pod that passed, and no other of its name.
fn is_that(pod: &Pod, passed: &Passed) -> bool {
    let uid = passed.uid.as_str();
    let same_uid = pod.uid.as_deref().is_none_or(|own| own == uid)
        || crate::source::manifest::static_uid(pod) == Some(uid);
    pod.namespace == passed.namespace && pod.name == passed.name && (uid.is_empty() || same_uid)
}

/// There is a file already, of another interface. One that cannot be read does not count.
fn is_of_another(path: &Path, interface: &str) -> bool {
    let is_another = |noted: Passed| !noted.interface.is_empty() && noted.interface != interface;
    read(path).is_ok_and(|noted| noted.is_some_and(is_another))
}

/// A file, of whatever version as long as it has what is needed here; `None` when
/// it is gone by now.
fn read(path: &Path) -> io::Result<Option<Passed>> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    let passed: Passed = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    if path.file_name().and_then(|name| name.to_str()) != Some(&file_name(&passed.container)) {
        return Err(io::Error::other("it is about another sandbox"));
    }
    Ok(Some(passed))
}

#[cfg(test)]
mod tests;
