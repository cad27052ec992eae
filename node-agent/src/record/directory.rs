//! The directory of records: one file each, whole or not at all.

use super::{Record, SandboxId};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::request::Attachment;

/// Directory below the run directory.
const DIRECTORY: &str = wire::passed::RECORDS;
/// Files that are being written begin so; no sandbox's name does.
const TEMPORARY: &str = ".new-";

/// Why a record could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The system refused.
    #[error("{action} record {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("record {} is not valid", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is from a newer agent.
    #[error("record {} has format {version}, this agent knows {}", path.display(), Record::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
}

/// What became of a sandbox's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// There was none.
    Unknown,
    /// Other interfaces have it.
    Stays,
    /// It is gone.
    Removed,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    next: AtomicU64,
}

impl Records {
    /// Opens the records below a run directory, makes their directory private, and
    /// removes what an agent that was killed in the middle of a write left.
    ///
    /// # Errors
    ///
    /// When the directory cannot be had.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, crate::server::SocketError> {
        let directory = run_dir.join(DIRECTORY);
        crate::server::private_directory(&directory)?;
        let records = Self { directory, next: AtomicU64::new(0) };
        for name in records.names() {
            if name.starts_with(TEMPORARY) {
                // One that stays costs a few hundred bytes until the next start.
                let _ = fs::remove_file(records.directory.join(name));
            }
        }
        Ok(records)
    }

    /// The records below a run directory, to be read only: nothing is made or swept,
    /// since an agent may be using them.
    pub(crate) fn look(run_dir: &Path) -> Self {
        Self { directory: run_dir.join(DIRECTORY), next: AtomicU64::new(0) }
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    ///
    /// For example on a full disk; then the record is as it was before.
    pub(crate) fn write(&self, id: &SandboxId, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let json = serde_json::to_vec_pretty(record)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let written = create(&temporary)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            RecordError::Io { action: "write", path, source }
        })
    }

    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be read.
    pub(crate) fn read(&self, id: &SandboxId) -> Result<Option<Record>, RecordError> {
        let path = self.path(id);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { action: "read", path, source }),
        };
        let record: Record = serde_json::from_slice(&json)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        if record.version > Record::VERSION {
            return Err(RecordError::Version { path, version: record.version });
        }
        Ok(Some(record))
    }

    /// Removes a record; true when there was one.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be removed.
    pub(crate) fn remove(&self, id: &SandboxId) -> Result<bool, RecordError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(RecordError::Io { action: "remove", path, source }),
        }
    }

    /// Takes an interface from a sandbox, and its record with the last one.
    ///
    /// # Errors
    ///
    /// When the record cannot be changed.
    pub(crate) fn detach(&self, id: &SandboxId, interface: &str) -> Result<Detached, RecordError> {
        self.reduce(id, |attached| attached != interface)
    }

    /// Takes away the interfaces, and the records of sandboxes, that are not among
    /// `live`, and says which records. Goes on past errors.
    pub(crate) fn retain(&self, live: &[Attachment]) -> (Vec<SandboxId>, Vec<RecordError>) {
        let live: BTreeSet<(&str, &str)> =
            live.iter().map(|a| (a.container_id.as_str(), a.if_name.as_str())).collect();
        let (mut removed, mut errors) = (Vec::new(), Vec::new());
        for id in self.ids() {
            // The runtime knows such a sandbox by another name.
            if id.is_of_found() {
                continue;
            }
            match self.reduce(&id, |attached| live.contains(&(id.as_str(), attached))) {
                Ok(Detached::Removed) => removed.push(id),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        (removed, errors)
    }

    fn reduce(
        &self,
        id: &SandboxId,
        stays: impl Fn(&str) -> bool,
    ) -> Result<Detached, RecordError> {
        // One that cannot be read is of no use to the interfaces that stay.
        if let Ok(Some(mut record)) = self.read(id) {
            let before = record.attached();
            let left: BTreeSet<String> =
                before.iter().filter(|name| stays(name)).cloned().collect();
            if !left.is_empty() {
                if left != before {
                    record.keep(left);
                    self.write(id, &record)?;
                }
                return Ok(Detached::Stays);
            }
        }
        Ok(if self.remove(id)? { Detached::Removed } else { Detached::Unknown })
    }

    /// The sandboxes that have a record.
    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.names()
            .iter()
            .filter_map(|name| SandboxId::new(name.strip_suffix(".json")?).ok())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{}.json", id.as_str()))
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
