//! The cgroups of a run's sandboxes: the one thing of them that no namespace takes
//! along.

use crate::trace;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long the kernel may need until a cgroup whose processes died is empty.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name below the roots of all hierarchies, removed with this value.
#[derive(Debug)]
pub struct Parent {
    name: String,
}

impl Parent {
    /// A new name. Removes what killed runs left.
    #[must_use]
    pub fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        if next == 0 {
            sweep();
        }
        Self { name: trace::name(next) }
    }

    /// As CRI wants it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        for hierarchy in hierarchies() {
            let path = hierarchy.join(&self.name);
            while path.exists() && !remove(&path) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn sweep() {
    for hierarchy in hierarchies() {
        for path in trace::left(&hierarchy) {
            remove(&path);
        }
    }
}

/// Where cgroups are mounted, of either version.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let cgroups = fields.filter(|fields| matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))));
    cgroups.filter_map(|fields| fields.get(1).map(PathBuf::from)).collect()
}

/// Removes a cgroup with those below it; their files go by themselves.
fn remove(path: &Path) -> bool {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(path).is_ok()
}
