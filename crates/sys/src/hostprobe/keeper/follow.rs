//! Who kubelet is, over time: it starts again, in a cgroup that is made again, and
//! is looked for with every audit.

use super::Event;
use super::state::State;
use crate::hostprobe::kubelet::{Cgroup, find, look};
use crate::hostprobe::watch::Directory;
use crate::hostprobe::{Caller, HostError, Kubelet};
use redirect::host::Facts;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often kubelet is seen outside of its cgroup until that is believed, and how
/// long after one another.
const LOOKS: u8 = 5;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl State<'_> {
    pub(super) fn find_kubelet(&self) -> Result<Kubelet, HostError> {
        let process = find(&self.config.proc, self.config.host.id())?;
        let path = process.as_ref().and_then(|process| process.cgroup.clone());
        let outside = path.as_deref().is_some_and(|path| path.starts_with("/.."));
        let (cgroup_id, holds_pods) = match path.map(|path| look(&self.mounts, &path)) {
            Some(Ok(Cgroup { id, holds_pods, .. })) => (Ok(id), holds_pods),
            Some(Err(why)) => (Err(why), false),
            None => (Err("its cgroup is not known".to_owned()), false),
        };
        let level_offset = self.level_offset.clone();
        let mut kubelet = Kubelet::choose(Facts { process, cgroup_id, holds_pods, level_offset });
        if outside && let (Some(why), Some(namespace)) = (&mut kubelet.why, &self.namespace) {
            why.push_str(": ");
            why.push_str(namespace);
        }
        Ok(kubelet)
    }

    /// Looks for kubelet again; writes rules when it is another. While it is away,
    /// the rules stay as narrow as they are, and that it is no longer in a cgroup of
    /// its own is believed after [`LOOKS`] looks: between two of its lives it is
    /// easily seen half started.
    pub(super) fn refresh_kubelet(&mut self) {
        self.look_again = None;
        let mut found = match self.find_kubelet() {
            Ok(found) => found,
            Err(error) => return self.tell(Event::Failed(error)),
        };
        let known = match &self.kubelet.caller {
            Caller::Cgroup { path, level, .. } => Some((path.clone(), *level)),
            Caller::Uid(_) => None,
        };
        match (known, &found.caller) {
            (Some((path, level)), Caller::Uid(_))
                if found.process.is_none() || self.doubts < LOOKS =>
            {
                if found.process.is_some() {
                    self.doubts += 1;
                    self.look_again = Some(Instant::now() + LOOK_AGAIN);
                }
                let Ok(Cgroup { id, .. }) = look(&self.mounts, &path) else { return };
                let caller = Caller::Cgroup { path, level, id };
                found = Kubelet { caller, ..self.kubelet.clone() };
            }
            _ => self.doubts = 0,
        }
        if found == self.kubelet {
            return;
        }
        let rewrite = found.caller != self.kubelet.caller;
        let before = std::mem::replace(&mut self.kubelet, found);
        if rewrite && let Err(error) = self.rewrite() {
            self.tell(Event::Failed(error));
            self.kubelet = before;
            self.look_again = Some(Instant::now() + LOOK_AGAIN);
            return;
        }
        self.watch_parent();
        self.tell(Event::Kubelet(self.kubelet.clone()));
    }

    /// Writes the rules for another kubelet, with the elements that are there.
    fn rewrite(&self) -> Result<(), HostError> {
        let rules = self.rules();
        let there = self.config.programmer.observe(&rules)?.elements;
        self.install(&rules, &there, &self.set.reconcile(&there))
    }

    pub(super) fn cgroup_moved(&mut self) {
        let name = match &self.kubelet.caller {
            Caller::Cgroup { path, .. } => path.rsplit('/').next().map(str::to_owned),
            Caller::Uid(_) => None,
        };
        let concerns = |(_, directory): &(PathBuf, Directory)| directory.concerns(name.as_deref());
        if self.parent.as_ref().is_some_and(concerns) {
            self.refresh_kubelet();
            // The directory may be gone itself.
            self.watch_parent();
        }
    }

    pub(super) fn watch_parent(&mut self) {
        let dir = match &self.kubelet.caller {
            Caller::Cgroup { path, .. } => look(&self.mounts, path).ok().map(|found| found.dir),
            Caller::Uid(_) => None,
        };
        let Some(parent) = dir.as_deref().and_then(Path::parent) else {
            // Kubelet's is away; what is watched already hears when it comes.
            return;
        };
        if self.parent.as_ref().is_none_or(|(watched, _)| watched != parent || !watched.exists()) {
            self.parent = Directory::watch(parent).map(|watch| (parent.to_owned(), watch));
        }
    }
}
