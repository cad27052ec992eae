//! The agent's run directory, as far as the plugin reads and writes files there.
//! It may say "let this pod pass", so it counts only while nobody but root could
//! have put anything into it.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wire::passed::{self, Passed};
use wire::snapshot::{self, Snapshot};

/// A run directory that only root, or the plugin's own user, can write to.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory.
    ///
    /// # Errors
    /// When there is none, or when others can write to it.
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        private(Path::new(path)).map(|path| Self { path })
    }

    /// Makes the directory where there is none: /run is empty after a reboot.
    ///
    /// # Errors
    /// When that is not possible.
    pub(crate) fn make(path: &str) -> io::Result<()> {
        make(Path::new(path))
    }

    /// The mesh is being taken off this node.
    pub(crate) fn is_being_removed(&self) -> bool {
        fs::symlink_metadata(self.path.join(snapshot::REMOVED_MARKER))
            .is_ok_and(|meta| meta.is_file() && is_private(&meta))
    }

    /// The agent's snapshot.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub(crate) fn snapshot(&self) -> io::Result<Snapshot> {
        // Neither a link nor a FIFO, which could hold the pod up.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path.join(snapshot::FILE_NAME))?;
        let meta = file.metadata()?;
        if !meta.is_file() || !is_private(&meta) {
            return Err(io::Error::other("it is no file of root's that only root can write"));
        }
        let mut bytes = Vec::new();
        file.take(snapshot::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Snapshot::parse(&bytes).map_err(io::Error::other)
    }

    /// Writes down that a pod passes, whole or not at all.
    ///
    /// # Errors
    /// When that is not possible: no room, or too many already.
    pub(crate) fn write_down(&self, passed: &Passed) -> io::Result<()> {
        let directory = self.path.join(passed::DIRECTORY);
        make(&directory)?;
        let directory = private(&directory)?;
        let path = directory.join(passed::file_name(&passed.container));
        if first_interface(&path).is_some_and(|first| first != passed.interface) {
            return Ok(());
        }
        let count = fs::read_dir(&directory)?.take(passed::MAX_FILES).count();
        if count >= passed::MAX_FILES && !path.exists() {
            return Err(io::Error::other(format!(
                "{} has {count} files already, which the agent has to look at first",
                directory.display()
            )));
        }
        let json = serde_json::to_vec(passed).map_err(io::Error::other)?;
        if json.len() > passed::MAX_BYTES {
            return Err(io::Error::other("its annotations are too large"));
        }
        let temporary = directory.join(format!("{}{}", passed::TEMPORARY, std::process::id()));
        let written = create(&temporary)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            // The agent sweeps what stays.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// A sandbox that is deleted needs no look and no record any more, where the agent
    /// could not be told. With Multus it may have other interfaces; the one that it was
    /// added with first is deleted last.
    pub(crate) fn forget(&self, container: &str, interface: &str) {
        for directory in [passed::DIRECTORY, passed::RECORDS] {
            let path = self.path.join(directory).join(passed::file_name(container));
            if first_interface(&path).is_none_or(|first| first == interface) {
                // Mostly there is none. One that stays is the agent's to clean up.
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The interface that a sandbox was added with first, by its note or its record.
fn first_interface(path: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Added {
        interface: String,
    }
    let added: Added = wire::json::decode(&fs::read(path).ok()?).ok()?;
    Some(added.interface).filter(|name| !name.is_empty())
}

fn create(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match create() {
        // Of a plugin that was killed and whose process id is ours now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        other => other,
    }
}

fn private(path: &Path) -> io::Result<PathBuf> {
    let meta = fs::metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    if !is_private(&meta) {
        return Err(io::Error::other(format!(
            "{} can be written by others than root",
            path.display()
        )));
    }
    Ok(path.to_owned())
}

fn is_private(meta: &Metadata) -> bool {
    let owner = meta.uid();
    (owner == 0 || owner == nix::unistd::geteuid().as_raw()) && meta.mode() & 0o022 == 0
}
