//! Files that others read at any moment: whole, or not there.

use super::action::Permissions;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Files that are being written begin so and end in a number: no runtime reads
/// them, and our own watch ignores them.
const TEMPORARY: &str = ".sluice-";
/// After this long a temporary file has no writer any more.
const ABANDONED: Duration = Duration::from_secs(10);
/// Swaps in a row before a file is left to those who fight for it.
const SWAPS: usize = 16;

/// What the system refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub(crate) struct FileError {
    /// What was to be done.
    pub(crate) action: &'static str,
    /// With which file.
    pub(crate) path: PathBuf,
    /// What the system said.
    pub(crate) source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// A file under its temporary name, removed unless it was put in place.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename it is not there any more.
        let _ = fs::remove_file(&self.0);
    }
}

/// True for the name of a file that is being written.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// Puts `content` in place of whatever `path` is, synced.
pub(super) fn put(
    path: &Path,
    content: &mut dyn Read,
    permissions: Permissions,
) -> Result<(), FileError> {
    let temporary = prepare(path, content, permissions)?;
    fs::rename(&temporary.0, path).map_err(FileError::at("write", path))?;
    sync_directory(path)
}

/// Makes a file; false when there is one already.
pub(super) fn create(path: &Path, text: &str, permissions: Permissions) -> Result<bool, FileError> {
    let temporary = prepare(path, &mut text.as_bytes(), permissions)?;
    if !move_to_free(&temporary.0, path)? {
        return Ok(false);
    }
    sync_directory(path).map(|()| true)
}

/// Renames unless the new name is taken.
fn move_to_free(from: &Path, to: &Path) -> Result<bool, FileError> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        // A file system that has no such flag.
        Err(Errno::EINVAL | Errno::ENOSYS) if !to.exists() => {
            fs::rename(from, to).map(|()| true).map_err(FileError::at("write", to))
        }
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(false),
        Err(errno) => Err(FileError::at("write", to)(errno.into())),
    }
}

/// Puts `text` in place of `old`; false, and nothing changed, when the file holds
/// something else by now.
///
/// Its owner may write it between our look and our rename, and what it wrote would
/// be lost without a trace. So the two files are swapped in one step, and what came
/// out is looked at: when it is not `old`, it is swapped back.
pub(super) fn replace(
    path: &Path,
    old: &str,
    text: &str,
    permissions: Permissions,
) -> Result<bool, FileError> {
    if fs::read(path).ok().as_deref() != Some(old.as_bytes()) {
        return Ok(false);
    }
    let temporary = prepare(path, &mut text.as_bytes(), permissions)?;
    let mut expected = old.as_bytes().to_vec();
    let mut placed = text.as_bytes().to_vec();
    for swap in 0..SWAPS {
        match renameat2(AT_FDCWD, &temporary.0, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(false),
            // A file system that cannot swap; FUSE is one.
            Err(Errno::EINVAL | Errno::ENOSYS) if swap == 0 => {
                fs::rename(&temporary.0, path).map_err(FileError::at("write", path))?;
                return sync_directory(path).map(|()| true);
            }
            Err(errno) => return Err(FileError::at("write", path)(errno.into())),
        }
        let found = fs::read(&temporary.0).map_err(FileError::at("read", &temporary.0))?;
        if found == expected {
            // Ours is in place at even swaps, another's at odd ones.
            return sync_directory(path).map(|()| swap % 2 == 0 && placed == text.as_bytes());
        }
        // What is in the temporary file now is newer than what was expected: back.
        expected = std::mem::replace(&mut placed, found);
    }
    Err(FileError::at("write", path)(io::Error::other("others write it all the time")))
}

/// Removes a file while it holds `old`; false when it holds something else or is
/// not there. It is moved away first, and looked at then: what its owner writes
/// meanwhile is not what is removed.
pub(super) fn remove(path: &Path, old: &str) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => {}
        // A link, a pipe: nobody writes into the thing itself.
        Ok(_) => return discard(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FileError::at("read", path)(error)),
    }
    let temporary = path.with_file_name(temporary_name());
    match fs::rename(path, &temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FileError::at("remove", path)(error)),
    }
    let temporary = Temporary(temporary);
    let found = fs::read(&temporary.0);
    // Unreadable is what was seen where nothing could be seen.
    if found.as_deref().map_or(old.is_empty(), |found| found == old.as_bytes()) {
        drop(temporary);
        return sync_directory(path).map(|()| true);
    }
    // Where something newer lies by now, that counts.
    move_to_free(&temporary.0, path).map(|_| false)
}

/// Removes a file; false when there is none.
pub(super) fn discard(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::at("remove", path)(error)),
    }
}

/// Sets permission bits; nothing when the file is gone.
pub(super) fn chmod(path: &Path, mode: u32) -> Result<(), FileError> {
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::at("set the mode of", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes what a writer that was killed left in a directory: ours, and Istio's
/// copies of `names`.
pub(super) fn sweep(directory: &Path, names: &[String]) {
    let now = SystemTime::now();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let istio = names
            .iter()
            .any(|of| name.strip_prefix(of.as_str()).is_some_and(|rest| rest.starts_with(".tmp.")));
        if !is_temporary(name) && !istio {
            continue;
        }
        let modified = entry.metadata().and_then(|meta| meta.modified());
        // The clock may have jumped back: then it is old as well.
        let abandoned =
            modified.is_ok_and(|at| now.duration_since(at).map_or(true, |age| age > ABANDONED));
        if abandoned {
            // One that stays takes space and nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The agent's pid is the same in every container, the time is not.
    let time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    format!("{TEMPORARY}{}-{time}-{number}", std::process::id())
}

/// Makes a temporary file beside `path`: a rename from another directory is not
/// noticed by containerd 1.6.
fn prepare(
    path: &Path,
    content: &mut dyn Read,
    permissions: Permissions,
) -> Result<Temporary, FileError> {
    let temporary = path.with_file_name(temporary_name());
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let mut file = open.map_err(FileError::at("create a file beside", path))?;
    let temporary = Temporary(temporary);
    fill(&mut file, content, permissions).map_err(FileError::at("write", path))?;
    Ok(temporary)
}

fn fill(file: &mut File, content: &mut dyn Read, permissions: Permissions) -> io::Result<()> {
    io::copy(content, file)?;
    if let Some((user, group)) = permissions.owner {
        let meta = file.metadata()?;
        // Without CAP_CHOWN, which the agent has no other use for, a file of
        // another user's becomes root's. Better than no mesh on the node.
        if (meta.uid(), meta.gid()) != (user, group)
            && let Err(error) = fchown(&*file, Some(user), Some(group))
        {
            tracing::warn!(user, group, reason = %error, "cannot keep the owner of a CNI configuration");
        }
    }
    // After the owner, whose change would clear the set-id bits.
    file.set_permissions(fs::Permissions::from_mode(permissions.mode))?;
    file.flush()?;
    file.sync_all()
}

/// Makes a rename or a removal last.
fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::at("sync", directory))
}

#[cfg(test)]
mod tests;
