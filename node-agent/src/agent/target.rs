//! The network namespace that something is about, where no descriptor came along.

use crate::failure::causes;
use crate::repair::place;
use std::path::{Path, PathBuf};
use sys::netns::{Netns, NetnsId};
use wire::passed::Passed;

/// The namespace of a sandbox that passed: among the host's processes, which every
/// chart mounts and the runtime's directory of namespaces none; or where it was then.
///
/// # Errors
/// When neither has it, and why.
pub(super) fn of_passed(passed: &Passed) -> Result<Netns, String> {
    let id = NetnsId { dev: passed.dev, ino: passed.ino };
    let elsewhere = match place::by_id(&place::root(), id) {
        Ok(Some(netns)) => return Ok(netns),
        Ok(None) => "no process is in it".to_owned(),
        Err(error) => causes(&error),
    };
    let at_path = match Netns::open(Path::new(&passed.netns)) {
        Ok(netns) if netns.id() == id => return Ok(netns),
        Ok(netns) => format!("at {} is {} now", passed.netns, netns.id()),
        Err(error) => causes(&error),
    };
    Err(format!("cannot find network namespace {id}: {elsewhere}, and {at_path}"))
}

/// The namespace of a process.
pub(super) fn of_process(process: i32) -> Option<NetnsId> {
    Netns::open(&PathBuf::from(format!("/proc/{process}/ns/net"))).ok().map(|netns| netns.id())
}

/// True when the path of a namespace says by itself that the sandbox is no more: its
/// directory is here, and the namespace not in it.
pub(super) fn has_left(passed: &Passed) -> bool {
    let path = Path::new(&passed.netns);
    let is_there = Netns::open(path)
        .is_ok_and(|netns| netns.id() == NetnsId { dev: passed.dev, ino: passed.ino });
    !is_there && path.parent().is_some_and(Path::exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};
    use sys::netns::within;

    fn passed(netns: &Netns, path: String) -> Passed {
        let NetnsId { dev, ino } = netns.id();
        Passed { netns: path, dev, ino, ..Passed::default() }
    }

    #[test]
    fn a_namespace_is_known_by_its_inode() {
        let own = Netns::current().unwrap();
        let same = passed(&own, "/nonexistent/a".to_owned());
        assert_eq!(of_passed(&same).unwrap().id(), own.id(), "processes are in it");
        assert!(!has_left(&same), "nothing is known of that directory");

        let bare = Netns::create().unwrap();
        let path = format!("/proc/self/fd/{}", bare.as_fd().as_raw_fd());
        let pinned = passed(&bare, path);
        assert_eq!(of_passed(&pinned).unwrap().id(), bare.id(), "no process, but a path");
        assert!(!has_left(&pinned));
        let reused = Passed { netns: "/proc/self/ns/net".into(), ..pinned.clone() };
        let error = of_passed(&reused).unwrap_err();
        assert!(error.contains("no process is in it") && error.contains("now"), "{error}");
        assert!(has_left(&reused));

        // A thread is no process, but its process' others are elsewhere.
        let found = within(&bare, || of_passed(&Passed { netns: "/none/b".into(), ..pinned }));
        assert!(found.unwrap().is_err());
    }
}
