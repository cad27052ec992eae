//! The host's root, mounted somewhere else.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Links in a row before a path is taken as it is.
const LINKS: usize = 40;

/// Where the host's `/` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The agent's path of a path of the host. Links are followed here: the kernel
    /// would follow an absolute one (`/var/run` to `/run`) into the agent's own root.
    pub(super) fn resolve(&self, host: &Path) -> PathBuf {
        let mut left: Vec<PathBuf> = parts(host);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part.as_os_str() == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            match fs::read_link(self.0.join(&next)) {
                Ok(target) if links < LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    left.extend(parts(&target));
                }
                _ => done = next,
            }
        }
        self.0.join(done)
    }

    pub(super) fn exists(&self, host: &Path) -> bool {
        self.resolve(host).exists()
    }

    pub(super) fn is_dir(&self, host: &Path) -> bool {
        self.resolve(host).is_dir()
    }

    /// True for a directory with something in it.
    pub(super) fn is_filled(&self, host: &Path) -> bool {
        fs::read_dir(self.resolve(host)).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// A file's text; `None` when there is none.
    pub(super) fn read(&self, host: &Path) -> Result<Option<String>, String> {
        match fs::read_to_string(self.resolve(host)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Names in a directory, in byte order.
    pub(super) fn names(&self, host: &Path) -> Vec<String> {
        let entries = fs::read_dir(self.resolve(host)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut parts: Vec<PathBuf> = parts.collect();
    parts.reverse();
    parts
}
