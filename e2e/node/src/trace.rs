//! What a run makes outside of itself bears its process' id, so that a later run can
//! sweep up after one that was killed.

use crate::process::is_alive;
use std::path::{Path, PathBuf};

/// Our own prefix; the process' id follows.
const PREFIX: &str = "sluice-e2e-";

/// A name for this run's `number`th thing of its kind.
pub(crate) fn name(number: u32) -> String {
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// What runs that are gone left in a directory. Best effort: another run may be sweeping
/// at the same time.
pub(crate) fn left(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| !is_alive(pid))
    });
    left.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_what_the_dead_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        // No process has the largest number: the kernel's own limit is 2^22.
        let dead = format!("{PREFIX}{}-0", 1 << 30);
        for name in [dead.as_str(), &name(0), &name(1), "sluice-e2e-x", "of-somebody-else"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(left(dir.path()).collect::<Vec<_>>(), [dir.path().join(&dead)]);
        assert_eq!(left(&dir.path().join("gone")).count(), 0);
    }
}
