//! One file of the directory: its state, and what it holds.

use crate::source::manifest::{self, ManifestError, Objects};
use redirect::pod::Pod;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Largest manifest file. Kubernetes' objects are at most 1.5 MiB each.
const MAX_FILE: u64 = 16 << 20;

/// A file that nobody announced counts as written when it is as old as this. Half
/// a manifest can be a whole YAML document: a pod without its last containers
/// would look as if it were outside the mesh.
pub(super) const SETTLED: Duration = Duration::from_millis(200);

/// One manifest and what it last held.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) stamp: Option<Stamp>,
    pub(super) objects: Objects,
    /// Why `objects` are of an earlier state of the file.
    pub(super) broken: Option<String>,
}

/// What tells one state of a file from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    size: u64,
}

impl Stamp {
    /// That of now; `None` when there is no file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self { modified: meta.modified().ok(), size: meta.len() })
    }

    /// Its writer is done with it, or has died.
    pub(super) fn is_settled(self) -> bool {
        // A clock that was set back must not keep a file out for ever.
        let age = self.modified.and_then(|at| at.elapsed().ok());
        age.is_none_or(|age| age >= SETTLED)
    }
}

/// True for the names that are read: what an editor or a tool leaves beside a
/// manifest is not.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

/// Why a file's content is not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("file is gone")]
    Gone,
    #[error("read: {0}")]
    Io(std::io::Error),
    #[error("not a regular file")]
    NotRegular,
    #[error("larger than {} MiB", MAX_FILE >> 20)]
    TooLarge,
    #[error("not UTF-8 text at byte {0}")]
    NotText(usize),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// What a file holds.
pub(super) fn load(path: &Path) -> Result<Objects, Unreadable> {
    use std::os::unix::fs::OpenOptionsExt;
    // Not blocking: a FIFO must not stop the watcher.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Unreadable::Gone,
            _ => Unreadable::Io(error),
        })?;
    if !file.metadata().map_err(Unreadable::Io)?.is_file() {
        return Err(Unreadable::NotRegular);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Unreadable::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| Unreadable::NotText(e.valid_up_to()))?;
    Ok(manifest::parse(text)?)
}

/// True when `new` still has every pod and namespace of `old`.
pub(super) fn holds_all(new: &Objects, old: &Objects) -> bool {
    let pod = |p: &Pod| new.pods.iter().any(|n| (&n.namespace, &n.name) == (&p.namespace, &p.name));
    old.pods.iter().all(pod)
        && old.namespaces.iter().all(|o| new.namespaces.iter().any(|n| n.name == o.name))
}
