//! The kernel's messages about the two directories.

use super::file::is_temporary;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the directories are looked at where the kernel tells nothing.
const BLIND: Duration = Duration::from_millis(300);
/// Messages that come together are answered by one look.
const TOGETHER: Duration = Duration::from_millis(5);

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The installer is to end.
    Stop,
    /// Something changed, or time is up: look.
    Look,
}

/// The watch on the net directory, the binary directory, and files that links in
/// the first lead to.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: Option<Inotify>,
    net: PathBuf,
    bin: PathBuf,
    bin_watch: Option<WatchDescriptor>,
    binaries: Vec<String>,
    /// The kernel tells everything.
    complete: bool,
}

impl Watcher {
    /// Without inotify (its limits are small on some nodes) it looks at short
    /// intervals.
    pub(super) fn new(net: &Path, bin: &Path, binaries: Vec<String>) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        if let Err(errno) = &inotify {
            tracing::warn!(reason = %errno, "no inotify for the CNI directories, looking at them every 300 ms: raise fs.inotify.max_user_instances");
        }
        let (net, bin) = (net.to_owned(), bin.to_owned());
        let inotify = inotify.ok();
        Self { inotify, net, bin, bin_watch: None, binaries, complete: false }
    }

    /// Sets the watches, again and again: a directory that was replaced is a new
    /// one. Must come before the look whose changes it is to tell.
    pub(super) fn arm(&mut self, links: impl Iterator<Item = String>) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let net = inotify.add_watch(&self.net, flags | AddWatchFlags::IN_ONLYDIR);
        let bin = inotify.add_watch(&self.bin, flags | AddWatchFlags::IN_ONLYDIR);
        self.complete = net.is_ok() && bin.is_ok();
        self.bin_watch = bin.ok();
        for link in links {
            self.complete &= inotify.add_watch(&self.net.join(link), flags).is_ok();
        }
    }

    /// Waits until something changed, at most for `limit`.
    pub(super) fn wait(&self, stop: &PipeReader, limit: Duration) -> Wake {
        let limit = if self.complete { limit } else { limit.min(BLIND) };
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.sleep(stop, left, self.inotify.as_ref()) {
                Wake::Stop => return Wake::Stop,
                Wake::Look if left.is_zero() => return Wake::Look,
                Wake::Look if self.concerns_us() => {
                    let wake = self.sleep(stop, TOGETHER, None);
                    self.concerns_us();
                    return wake;
                }
                Wake::Look => {}
            }
        }
    }

    /// Waits whatever happens in the directories.
    pub(super) fn pause(&self, stop: &PipeReader, time: Duration) -> Wake {
        self.sleep(stop, time, None)
    }

    fn sleep(&self, stop: &PipeReader, time: Duration, inotify: Option<&Inotify>) -> Wake {
        // Rounded up, so that the last wait is not many of 0 ms.
        let time = PollTimeout::try_from(time + Duration::from_micros(999));
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, time.unwrap_or(PollTimeout::MAX)) {
            // Its other end was written to or, as a rule, dropped.
            Ok(1..) if fds[0].any() == Some(true) => Wake::Stop,
            _ => Wake::Look,
        }
    }

    /// Reads what the kernel told; true when some of it is not about our own
    /// temporary files or others' binaries.
    fn concerns_us(&self) -> bool {
        let Some(inotify) = &self.inotify else { return true };
        let mut concerns = false;
        loop {
            match inotify.read_events() {
                Ok(events) => {
                    concerns |= events.iter().any(|event| {
                        let Some(name) = &event.name else { return true };
                        let name = name.to_string_lossy();
                        let others = Some(event.wd) == self.bin_watch
                            && !self.binaries.iter().any(|ours| *ours == name);
                        !is_temporary(&name) && !others
                    });
                }
                Err(Errno::EINTR) => {}
                // EAGAIN: that was all. Anything else: better one look too many.
                Err(errno) => return concerns || errno != Errno::EAGAIN,
            }
        }
    }
}
