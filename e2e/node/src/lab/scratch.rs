//! The private directory of one run, and the sweep of what killed runs left.

use crate::trace;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A private directory, removed with the last holder of it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a new one, and removes those whose process is gone.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn create() -> Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir();
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        if next == 0 {
            trace::left(&base).for_each(|path| remove(&path));
        }
        let path = base.join(trace::name(next));
        std::fs::create_dir_all(path.join("netns"))
            .with_context(|| format!("make {}", path.display()))?;
        Ok(Arc::new(Self { path }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// When that fails.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// When that fails.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    // Namespaces, and small file systems in place of its directories.
    for directory in [path.join("netns"), path.to_owned()] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // Most are nothing that is mounted.
            nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
    std::fs::remove_dir_all(path).ok();
}
