//! Pods of a directory of manifests. It owns the last good content of each file. A file
//! is read again when the kernel says that its writer closed it or that it was renamed
//! into place; one that is broken or empty then keeps what it had, because a pod must not
//! drop out of the mesh while its file is being rewritten. [`watch`] owns the kernel's
//! messages, [`mod@file`] one file.

mod file;
mod watch;

use super::follow::{Listed, Told};
use super::kubernetes::object::PodName;
use super::manifest;
use super::{Found, Missing, Wanted};
use file::{File, SETTLED, Stamp, Unreadable, holds_all, is_manifest, load};
use redirect::pod::{Namespace, Pod};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting lookup looks at the files itself, for file systems that
/// send no messages.
const RESCAN: Duration = Duration::from_millis(100);

/// Pods and namespaces of a directory, kept up to date.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    files: Mutex<BTreeMap<OsString, File>>,
    changed: Condvar,
    /// Number of changes so far.
    changes: AtomicU64,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// It cannot be listed.
    #[error("read pods directory {}: want a directory of Pod and Namespace manifests", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It cannot be watched.
    #[error("watch pods directory {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: nix::errno::Errno,
    },
}

/// How a file is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Its writer is done with it: what it lacks is gone.
    Complete,
    /// Nobody said that its writer is done: it is read only when it has not
    /// changed for [`SETTLED`], and what it lacks may be about to come.
    Partial,
}

impl Directory {
    /// Reads the directory and watches it from now on.
    ///
    /// # Errors
    /// When it cannot be listed or watched. A broken file is only logged.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, SourceError> {
        let directory = Arc::new(Self {
            path: path.to_owned(),
            files: Mutex::default(),
            changed: Condvar::new(),
            changes: AtomicU64::new(0),
        });
        // Watch first, or a file that comes in between is never seen.
        let watcher = watch::Watcher::new(path)?;
        directory.read_all(Trust::Partial)?;
        let shared = Arc::clone(&directory);
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || watcher.run(&shared))
            .map_err(|source| SourceError::List { path: path.to_owned(), source })?;
        Ok(directory)
    }

    /// The pod, waiting for its manifest until `until`, and for one that has changed
    /// until it can be read.
    ///
    /// # Errors
    /// When it has not come by then.
    pub(crate) fn wait(&self, wanted: Wanted<'_>, until: Instant) -> Result<Found, Missing> {
        let caught_up = until.min(Instant::now() + SETTLED + RESCAN);
        let mut files = self.lock();
        loop {
            let (end, otherwise) = match find(&files, wanted) {
                Ok((found, name)) if !self.is_behind(&files, name) => return Ok(found),
                Ok((found, _)) => {
                    let doubt = Some("its manifest has changed and was not read yet".to_owned());
                    (caught_up, Ok(Found { doubt, ..found }))
                }
                Err(missing) => (until, Err(missing)),
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return otherwise;
            }
            let (guard, timeout) = self
                .changed
                .wait_timeout(files, left.min(RESCAN))
                .unwrap_or_else(PoisonError::into_inner);
            files = guard;
            if timeout.timed_out() {
                drop(files);
                // The directory was there at the start; when it is gone now the
                // watcher says so, and the pod is as unknown as before.
                let _ = self.read_all(Trust::Partial);
                files = self.lock();
            }
        }
    }

    /// True when a file has changed since it was read: no message comes when the
    /// target of a link is written, or from some file systems.
    fn is_behind(&self, files: &BTreeMap<OsString, File>, name: &OsStr) -> bool {
        files.get(name).and_then(|file| file.stamp) != Stamp::of(&self.path.join(name))
    }

    /// Everything that is known for certain: not what a manifest was that has changed
    /// or cannot be used by now. Of several of one name, only the last file's counts.
    pub(in crate::source) fn all(&self) -> (Vec<Pod>, Vec<Namespace>) {
        let files = self.lock();
        let (mut pods, mut namespaces) = (BTreeMap::new(), BTreeMap::new());
        for (name, file) in files.iter() {
            let certain = file.broken.is_none() && !self.is_behind(&files, name);
            let File { objects, .. } = file;
            pods.extend(
                objects.pods.iter().map(|p| ((&p.namespace, &p.name), certain.then_some(p))),
            );
            namespaces.extend(objects.namespaces.iter().map(|n| (&n.name, certain.then_some(n))));
        }
        (
            pods.into_values().flatten().cloned().collect(),
            namespaces.into_values().flatten().cloned().collect(),
        )
    }

    /// Every pod and namespace by name; `None` where it is in doubt what it is now.
    pub(in crate::source) fn everything(
        &self,
    ) -> (HashMap<PodName, Option<Listed>>, HashMap<String, Option<Namespace>>) {
        let files = self.lock();
        let (mut pods, mut namespaces) = (HashMap::new(), HashMap::new());
        for (name, file) in files.iter() {
            let certain = file.broken.is_none() && !self.is_behind(&files, name);
            for (pod, workload) in file.objects.pods.iter().zip(&file.objects.workloads) {
                let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
                let listed = || Listed { pod: pod.clone(), workload: workload.clone() };
                pods.insert(name, certain.then(listed));
            }
            for namespace in &file.objects.namespaces {
                namespaces.insert(namespace.name.clone(), certain.then(|| namespace.clone()));
            }
        }
        (pods, namespaces)
    }

    /// The pod of this name, as its last good manifest has it.
    pub(in crate::source) fn told(&self, wanted: &PodName) -> Option<Told> {
        let files = self.lock();
        let all = files.values().rev().flat_map(|file| {
            let objects = &file.objects;
            objects.pods.iter().zip(&objects.workloads).rev()
        });
        let mut named =
            all.filter(|(pod, _)| pod.namespace == wanted.namespace && pod.name == wanted.name);
        named.next().map(|(pod, workload)| Told::listed(pod.clone(), workload.clone()))
    }

    /// Number of changes so far.
    pub(in crate::source) fn generation(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Waits for a change since then, at most so long.
    pub(in crate::source) fn await_change(&self, before: u64, limit: Duration) {
        let until = Instant::now() + limit;
        let mut files = self.lock();
        while self.generation() == before {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(files, left);
            files = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn announce(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Number of pods and namespaces.
    pub(crate) fn count(&self) -> (usize, usize) {
        let files = self.lock();
        files.values().fold((0, 0), |(pods, namespaces), file| {
            (pods + file.objects.pods.len(), namespaces + file.objects.namespaces.len())
        })
    }

    /// Reads every file that changed since it was last read.
    fn read_all(&self, trust: Trust) -> Result<(), SourceError> {
        for name in self.list()? {
            let stamp = Stamp::of(&self.path.join(&name));
            let known = self.lock().get(&name).and_then(|file| file.stamp);
            let settled = trust == Trust::Complete || stamp.is_none_or(Stamp::is_settled);
            if settled && (known.is_none() || known != stamp) {
                self.read(&name, trust);
            }
        }
        Ok(())
    }

    /// There is a manifest that was never looked into.
    pub(in crate::source) fn is_unread(&self) -> bool {
        let names = self.list().unwrap_or_default();
        let files = self.lock();
        names.iter().any(|name| !files.contains_key(name))
    }

    /// What is in some manifest is not known: it is broken, or was never looked into.
    pub(in crate::source) fn is_in_doubt(&self) -> bool {
        self.is_unread() || self.lock().values().any(|file| file.broken.is_some())
    }

    /// Forgets the files that are gone.
    fn forget_gone(&self) -> Result<(), SourceError> {
        let names = self.list()?;
        self.lock().retain(|name, _| names.contains(name));
        Ok(())
    }

    fn list(&self) -> Result<Vec<OsString>, SourceError> {
        let failed = |source| SourceError::List { path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if is_manifest(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Reads one file; logs and keeps what was there when it cannot be used.
    fn read(&self, name: &OsStr, trust: Trust) {
        let path = self.path.join(name);
        // Taken before reading: a write in between is then seen as a change.
        let stamp = Stamp::of(&path);
        let objects = match load(&path) {
            Ok(objects) => objects,
            Err(Unreadable::Gone) => return,
            Err(error) => {
                let mut files = self.lock();
                let file = files.entry(name.to_owned()).or_default();
                // Not read again until it changes: one log line a broken state.
                file.stamp = stamp;
                file.broken = Some(format!("{}: {error}", path.display()));
                tracing::error!(
                    file = %path.display(),
                    reason = %error,
                    kept_pods = file.objects.pods.len(),
                    "manifest cannot be used, its last good content is kept"
                );
                return;
            }
        };
        for kind in &objects.ignored {
            tracing::warn!(file = %path.display(), kind, "neither Pod, Namespace nor List: ignored");
        }
        let mut files = self.lock();
        let file = files.entry(name.to_owned()).or_default();
        if trust == Trust::Partial && !holds_all(&objects, &file.objects) {
            return;
        }
        file.stamp = stamp;
        file.objects = objects;
        file.broken = None;
        drop(files);
        self.announce();
    }

    fn forget(&self, name: &OsStr) {
        if self.lock().remove(name).is_some() {
            self.announce();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OsString, File>> {
        // Every change is one assignment: a panic elsewhere leaves no half state.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last file in name order wins, so that the answer does not depend on when
/// files were read.
fn find<'f>(
    files: &'f BTreeMap<OsString, File>,
    wanted: Wanted<'_>,
) -> Result<(Found, &'f OsStr), Missing> {
    let mut missing = Missing::Unknown;
    let pods = files
        .iter()
        .rev()
        .flat_map(|(name, file)| file.objects.pods.iter().rev().map(move |pod| (name, file, pod)));
    let named = |p: &Pod| p.namespace == wanted.namespace && p.name == wanted.name;
    for (name, file, pod) in pods.filter(|(_, _, pod)| named(pod)) {
        match &pod.uid {
            Some(uid)
                if !wanted.uid.is_empty()
                    && uid != wanted.uid
                    && manifest::static_uid(pod) != Some(wanted.uid) =>
            {
                missing = Missing::OtherUid(uid.clone());
            }
            _ => {
                let namespace = files
                    .values()
                    .rev()
                    .flat_map(|file| file.objects.namespaces.iter().rev())
                    .find(|n| n.name == wanted.namespace)
                    .cloned();
                let doubt = file.broken.clone();
                return Ok((Found { pod: pod.clone(), namespace, doubt }, name));
            }
        }
    }
    Err(missing)
}

#[cfg(test)]
mod tests;
