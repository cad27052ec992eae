//! Pods with a user namespace of their own (`hostUsers: false`).
//!
//! xt_owner, which tells the proxy's packets from the app's, takes a rule only
//! from a writer whose user namespace is the one that owns the network namespace
//! (`owner_check`, EINVAL otherwise). netlink's `meta skuid` has no such limit; so
//! it is only this backend that has to enter the pod's user namespace, and only
//! for writing.

use super::Error;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, stat};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const OWN_NET: &str = "/proc/thread-self/ns/net";
const OWN_USER: &str = "/proc/thread-self/ns/user";

/// The user namespace that owns the calling thread's network namespace, unless it
/// is the caller's own.
pub(crate) fn foreign_owner() -> Result<Option<OwnedFd>, Error> {
    let fail = |what| move |source| Error::UserNamespace { what, source };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let net = nix::fcntl::open(OWN_NET, flags, Mode::empty()).map_err(fail("open the netns"))?;
    // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::ioctl(net.as_raw_fd(), libc::NS_GET_USERNS) })
        .map_err(fail("find the netns' user namespace"))?;
    // SAFETY: a fresh descriptor (close-on-exec) that nobody else owns.
    let owner = unsafe { OwnedFd::from_raw_fd(fd) };
    let theirs = fstat(&owner).map_err(fail("stat the netns' user namespace"))?;
    let mine = stat(OWN_USER).map_err(fail("stat this process' user namespace"))?;
    let same = (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino);
    Ok((!same).then_some(owner))
}
