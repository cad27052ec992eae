//! The plugin's binary in the runtime's directory.

use super::action::Permissions;
use super::file::{self, FileError};
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a binary is not in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The source has nothing to copy.
    #[error("no file to install in {}", .0.display())]
    Empty(PathBuf),
    /// The target is not there.
    #[error(
        "CNI binary directory {} is not there: set cniBinDir of the chart to the directory that the container runtime uses (GKE: /home/kubernetes/bin, OpenShift: /var/lib/cni/bin)",
        .0.display()
    )]
    NoTarget(PathBuf),
    /// The target cannot be written.
    #[error(
        "CNI binary directory {} is on a read-only file system: set cniBinDir of the chart, or global.platform, to what the platform uses (GKE: /home/kubernetes/bin)",
        .0.display()
    )]
    ReadOnly(PathBuf),
    /// Anything else.
    #[error("install {}", .0.display())]
    File(PathBuf, #[source] FileError),
}

/// What identifies a file's content without reading it.
type Fingerprint = (u64, u64, i64, i64, u32);

fn fingerprint(meta: &Metadata) -> Fingerprint {
    (meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec(), meta.mode())
}

/// The binaries, and which of them were seen to be right.
#[derive(Debug)]
pub(super) struct Binaries {
    source: PathBuf,
    target: PathBuf,
    same: BTreeMap<String, (Fingerprint, Fingerprint)>,
}

impl Binaries {
    /// Every regular file of `source` goes to `target`.
    pub(super) fn new(source: &Path, target: &Path) -> Self {
        Self { source: source.to_owned(), target: target.to_owned(), same: BTreeMap::new() }
    }

    /// Their names.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.source).into_iter().flatten().flatten();
        entries
            .filter(|entry| fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !file::is_temporary(name))
            .collect()
    }

    /// Copies those that differ, goes on past errors and returns the first. Says
    /// which were copied.
    pub(super) fn install(&mut self) -> (Vec<String>, Result<(), CopyError>) {
        let names = self.names();
        if names.is_empty() {
            return (Vec::new(), Err(CopyError::Empty(self.source.clone())));
        }
        let (mut copied, mut result) = (Vec::new(), Ok(()));
        for name in names {
            match self.install_one(&name) {
                Ok(false) => {}
                Ok(true) => copied.push(name),
                Err(error) => result = result.and(Err(self.explain(&name, error))),
            }
        }
        (copied, result)
    }

    /// True when a file that can be executed is at the target, whichever version.
    pub(super) fn is_there(&self, name: &str) -> bool {
        fs::metadata(self.target.join(name)).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0)
    }

    fn install_one(&mut self, name: &str) -> Result<bool, FileError> {
        let (source, target) = (self.source.join(name), self.target.join(name));
        let read = FileError::at("read", &source);
        let meta = fs::metadata(&source).map_err(read)?;
        let mode = meta.mode() & 0o7777;
        // Of the link itself: a link is replaced by the file.
        let there = fs::symlink_metadata(&target).ok().filter(Metadata::is_file);
        let right =
            there.filter(|there| there.mode() & 0o7777 == mode && there.len() == meta.len());
        let seen = right.map(|there| (fingerprint(&meta), fingerprint(&there)));
        if seen.is_some() && self.same.get(name) == seen.as_ref() {
            return Ok(false);
        }
        let mut copied = false;
        if seen.is_none() || !same(&source, &target) {
            let mut content = File::open(&source).map_err(FileError::at("read", &source))?;
            file::put(&target, &mut content, Permissions { mode, owner: None })?;
            copied = true;
        }
        match fs::symlink_metadata(&target) {
            Ok(there) => {
                self.same.insert(name.to_owned(), (fingerprint(&meta), fingerprint(&there)))
            }
            Err(_) => self.same.remove(name),
        };
        Ok(copied)
    }

    fn explain(&self, name: &str, error: FileError) -> CopyError {
        match error.source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => CopyError::ReadOnly(self.target.clone()),
            io::ErrorKind::NotFound if !self.target.is_dir() => {
                CopyError::NoTarget(self.target.clone())
            }
            _ => CopyError::File(self.target.join(name), error),
        }
    }
}

/// True when two files hold the same bytes; a hash would read as much.
fn same(a: &Path, b: &Path) -> bool {
    let (Ok(mut a), Ok(mut b)) = (File::open(a), File::open(b)) else { return false };
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let (Ok(n), Ok(m)) = (fill(&mut a, &mut left), fill(&mut b, &mut right)) else {
            return false;
        };
        if left[..n] != right[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests;
