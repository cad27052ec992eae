//! The kernel's messages about the pods directory.

use super::file::{SETTLED, is_manifest};
use super::{Directory, SourceError, Trust};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long after the directory was lost, or a message could not be read, the
/// next attempt is made.
const RETRY: Duration = Duration::from_secs(1);

/// An inotify instance on the directory.
pub(super) struct Watcher {
    inotify: Inotify,
}

impl Watcher {
    /// Watches `path`, which must be a directory.
    pub(super) fn new(path: &Path) -> Result<Self, SourceError> {
        let watch = |source| SourceError::Watch { path: path.to_owned(), source };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(watch)?;
        let watcher = Self { inotify };
        watcher.add(path).map_err(watch)?;
        Ok(watcher)
    }

    fn add(&self, path: &Path) -> Result<(), Errno> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            // A link that is made in place is never closed.
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.inotify.add_watch(path, flags).map(drop)
    }

    /// Follows the directory until the process ends.
    pub(super) fn run(self, directory: &Directory) {
        // What was too fresh to be read when all was looked at, and is not announced.
        let mut again = Some(Instant::now() + SETTLED);
        loop {
            if again.is_some_and(|at| at <= Instant::now()) {
                again = None;
                read_all(directory, Trust::Partial);
            }
            match self.wait(again) {
                Ok(true) => {}
                Ok(false) | Err(Errno::EINTR) => continue,
                Err(errno) => {
                    cannot_read(directory, errno);
                    continue;
                }
            }
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in &events {
                        if self.handle(event, directory) {
                            again = Some(Instant::now() + SETTLED);
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => cannot_read(directory, errno),
            }
        }
    }

    /// True when there is a message; false when it is `until`.
    fn wait(&self, until: Option<Instant>) -> Result<bool, Errno> {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()).as_millis();
                PollTimeout::from(u16::try_from(left + 1).unwrap_or(u16::MAX))
            }
        };
        let mut polled = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, timeout)? > 0)
    }

    /// True when messages were lost, and with them perhaps that of a file's last write.
    fn handle(&self, event: &InotifyEvent, directory: &Directory) -> bool {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.follow_again(directory);
            return true;
        }
        if event.mask.contains(AddWatchFlags::IN_MOVE_SELF) {
            // Another directory may take its name: this one is followed no more. The
            // kernel answers with IN_IGNORED.
            if let Err(errno) = self.inotify.rm_watch(event.wd) {
                cannot_read(directory, errno);
            }
            return false;
        }
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            compare(directory);
            return true;
        }
        let Some(name) = &event.name else { return false };
        if !is_manifest(name) {
            // A mounted ConfigMap changes all its files by renaming `..data`.
            if name.as_encoded_bytes().starts_with(b"..data") {
                read_all(directory, Trust::Complete);
            }
            return false;
        }
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        if event.mask.intersects(gone) {
            directory.forget(name);
        } else if !event.mask.contains(AddWatchFlags::IN_CREATE) || is_link(directory, name) {
            directory.read(name, Trust::Complete);
        }
        false
    }

    /// The directory was removed: its content is kept until it is back.
    fn follow_again(&self, directory: &Directory) {
        tracing::error!(directory = %directory.path.display(), "pods directory is gone, its last content is kept until it is back");
        while self.add(&directory.path).is_err() {
            std::thread::sleep(RETRY);
        }
        tracing::info!(directory = %directory.path.display(), "pods directory is back");
        compare(directory);
    }
}

fn cannot_read(directory: &Directory, errno: Errno) {
    tracing::error!(directory = %directory.path.display(), reason = %errno, "cannot read changes of the pods directory");
    std::thread::sleep(RETRY);
}

/// True for a symbolic or hard link: it is whole as soon as it is there, and
/// nobody closes it.
fn is_link(directory: &Directory, name: &OsStr) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(directory.path.join(name))
        .is_ok_and(|meta| meta.is_symlink() || meta.nlink() > 1)
}

/// After messages were lost: what is there now, but for what was written just now.
fn compare(directory: &Directory) {
    read_all(directory, Trust::Partial);
    if let Err(error) = directory.forget_gone() {
        tracing::error!(reason = %crate::failure::causes(&error), "cannot read the pods directory again");
    }
}

fn read_all(directory: &Directory, trust: Trust) {
    if let Err(error) = directory.read_all(trust) {
        tracing::error!(reason = %crate::failure::causes(&error), "cannot read the pods directory again");
    }
}
