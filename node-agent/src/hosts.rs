//! Network namespaces that are no pod's: the agent's own and the host's. None of them
//! is ever programmed.

use crate::failure::causes;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use sys::netns::{Netns, NetnsError, NetnsId};

/// The host's processes as Istio's chart mounts them, and those of the agent's own pid
/// namespace.
const HOST_PROC: &str = "/host/proc";
const OWN_PROC: &str = "/proc";

/// Inode of the kernel's first pid namespace (`PID_NS_INIT_INO`, since Linux 3.8): who
/// is in it sees the host's first process as its own.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// What is known of them.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// The agent's own comes first: it proves arrivals from there.
    refused: Vec<NetnsId>,
    /// That of the host's first process, where it can be seen.
    host: Option<NetnsId>,
    /// That of the plugin that asked last, which runs in the host's.
    told: Mutex<Option<NetnsId>>,
}

impl Hosts {
    /// Looks for them.
    ///
    /// # Errors
    /// When not even the agent's own can be seen.
    pub(crate) fn find() -> Result<Self, NetnsError> {
        let pid_namespace = std::fs::metadata(Path::new(OWN_PROC).join("self/ns/pid"));
        let is_first = pid_namespace
            .is_ok_and(|meta| std::os::unix::fs::MetadataExt::ino(&meta) == FIRST_PID_NAMESPACE);
        let hosts =
            Self::look(Netns::current()?.id(), Path::new(HOST_PROC), Path::new(OWN_PROC), is_first);
        if hosts.host.is_none() {
            tracing::warn!(
                "cannot see the network namespace of the host's first process: no pod is programmed until a plugin says which is the host's; mount the host's /proc at {HOST_PROC}"
            );
        }
        Ok(hosts)
    }

    fn look(own: NetnsId, host_proc: &Path, own_proc: &Path, is_first: bool) -> Self {
        let of = |proc: &Path, pid: &str| match Netns::open(&proc.join(pid).join("ns/net")) {
            Ok(netns) => Some(netns.id()),
            Err(error) => {
                tracing::debug!(reason = %causes(&error), "the namespace of a process is not seen");
                None
            }
        };
        let (mounted, mut visible) = (of(host_proc, "1"), of(own_proc, "1"));
        if is_first && visible.is_none() {
            // The kernel's own threads are in the same one, and may be looked at where
            // the first process is protected.
            visible = of(own_proc, "2");
        }
        let mut refused = vec![own];
        for id in [mounted, visible].into_iter().flatten() {
            if !refused.contains(&id) {
                refused.push(id);
            }
        }
        let host = mounted.or(visible.filter(|_| is_first));
        Self { refused, host, told: Mutex::default() }
    }

    /// The agent's own.
    pub(crate) fn own(&self) -> NetnsId {
        self.refused[0]
    }

    /// All that are known.
    pub(crate) fn all(&self) -> &[NetnsId] {
        &self.refused
    }

    /// It is one of them.
    pub(crate) fn contains(&self, id: NetnsId) -> bool {
        self.refused.contains(&id) || self.told() == Some(id)
    }

    /// Some plugin runs in this one. Only the last is remembered: numbers of namespaces
    /// are used again.
    pub(crate) fn tell(&self, id: NetnsId) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// What is none of them is certainly not the host's.
    pub(crate) fn are_certain(&self) -> bool {
        self.host.is_some() || self.told().is_some()
    }

    fn told(&self) -> Option<NetnsId> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes that the agent sees are the host's.
    pub(crate) fn sees_processes(&self) -> bool {
        self.host.is_some()
    }

    /// The agent is known to be in the host's network: it starts on a node where no
    /// pod's network is ready.
    pub(crate) fn agent_is_on_host(&self) -> bool {
        self.host == Some(self.own())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    /// A directory of processes whose first is in this namespace.
    fn processes(netns: &Netns) -> tempfile::TempDir {
        use std::os::fd::AsFd;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("1/ns")).unwrap();
        let target = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        symlink(target, dir.path().join("1/ns/net")).unwrap();
        dir
    }

    #[test]
    fn knows_whether_the_agent_is_on_the_host() {
        let own = Netns::current().unwrap();
        let other = Netns::create().unwrap();
        let (same, elsewhere) = (processes(&own), processes(&other));
        let none = Path::new("/nonexistent");
        let look =
            |host: &Path, visible: &Path, is_first| Hosts::look(own.id(), host, visible, is_first);
        // What is mounted is the host's; the agent's own only in the first pid namespace.
        assert!(look(same.path(), elsewhere.path(), false).agent_is_on_host());
        assert!(look(none, same.path(), true).agent_is_on_host());
        assert!(!look(none, same.path(), false).agent_is_on_host(), "a container's own first");
        assert!(!look(elsewhere.path(), same.path(), true).agent_is_on_host());
        assert!(!look(none, none, true).agent_is_on_host());
        let threads = processes(&own);
        std::fs::rename(threads.path().join("1"), threads.path().join("2")).unwrap();
        assert!(look(none, threads.path(), true).agent_is_on_host());
        assert!(!look(none, threads.path(), false).are_certain());
        // A container without the host's processes knows the host by its plugin alone.
        let blind = look(none, same.path(), false);
        assert!(!blind.are_certain() && !blind.contains(other.id()));
        blind.tell(other.id());
        assert!(blind.are_certain() && blind.contains(other.id()) && !blind.agent_is_on_host());
        blind.tell(own.id());
        assert!(!blind.contains(other.id()));
        let all = look(elsewhere.path(), same.path(), false);
        assert!(all.are_certain());
        assert_eq!(all.all(), [own.id(), other.id()]);
        assert!(all.contains(own.id()) && all.contains(other.id()));
    }
}
