//! Network namespaces: what names one, and the only way into one.
//!
//! A namespace is known by (device, inode) of its file, never by a path: a path
//! can be bound to another namespace between two looks. It is entered on a thread
//! that is thrown away, so there is nothing to restore, and nothing that can fail
//! while restoring and leave a worker thread in the wrong pod.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `/proc/self` would be the process' first thread, which is in another
/// namespace than the thread that asks.
const OWN: &str = "/proc/thread-self/ns/net";

/// Identity of a network namespace for as long as somebody holds it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// Device of the namespace file system.
    pub dev: u64,
    /// Inode of the namespace.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// Why a network namespace could not be had or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A file could not be opened.
    #[error("open netns {path}")]
    Open {
        /// The path.
        path: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The descriptor could not be looked at.
    #[error("stat netns descriptor")]
    Stat(#[source] Errno),
    /// The descriptor is something else.
    #[error("descriptor is no network namespace but {found}")]
    NotNetns {
        /// What it is instead.
        found: String,
    },
    /// A namespace could not be made.
    #[error("create netns")]
    Create(#[source] Errno),
    /// The namespace could not be entered.
    #[error("enter netns {id}")]
    Enter {
        /// Which one.
        id: NetnsId,
        /// What the kernel said.
        source: Errno,
    },
    /// It is the host's own namespace, which is never programmed.
    #[error("netns {id} is the host's own, not a pod's")]
    Host {
        /// The host's namespace.
        id: NetnsId,
    },
    /// After entering, the thread was somewhere else.
    #[error("entered netns {found}, want {want}")]
    Elsewhere {
        /// Where the thread was to be.
        want: NetnsId,
        /// Where it was.
        found: NetnsId,
    },
    /// No thread could be started.
    #[error("start thread for netns {id}")]
    Thread {
        /// The namespace it was for.
        id: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The work in the namespace panicked (builds with unwinding only).
    #[error("panic in netns {id}: {message}")]
    Panic {
        /// Which namespace.
        id: String,
        /// The panic's message.
        message: String,
    },
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace that a path is bound to.
    ///
    /// # Errors
    /// When the path cannot be opened or is no network namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // Not blocking: the path may come from outside and be a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
            .map_err(|source| NetnsError::Open { path: path.display().to_string(), source })?;
        Self::from_fd(fd)
    }

    /// Takes a descriptor, for example one that came over a socket.
    ///
    /// # Errors
    /// When it is no network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let kind = namespace_kind(fd.as_fd()).map_err(|errno| NetnsError::NotNetns {
            found: format!("no namespace at all ({})", errno.desc()),
        })?;
        if kind != libc::CLONE_NEWNET {
            let found = format!("a {} namespace", kind_name(kind));
            return Err(NetnsError::NotNetns { found });
        }
        let stat = nix::sys::stat::fstat(&fd).map_err(NetnsError::Stat)?;
        let id = NetnsId { dev: stat.st_dev, ino: stat.st_ino };
        Ok(Self { fd, id })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new(OWN))
    }

    /// A new namespace that no path and no process holds: it is gone when this
    /// value is. Its `lo` is down.
    ///
    /// # Errors
    /// When the kernel refuses, for example without CAP_SYS_ADMIN.
    pub fn create() -> Result<Self, NetnsError> {
        on_thread("a new one".to_owned(), || {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that makes a namespace, on a thread that is thrown away"
            )]
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::Create)?;
            Self::current()
        })?
    }

    /// Device and inode.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `f` in a namespace, on a thread of its own, and waits for it (about
/// 40 us more than `f`).
///
/// Sockets that `f` opens belong to the namespace for ever and may be returned.
///
/// # Errors
/// When the namespace cannot be entered; then `f` was not run.
pub fn within<T: Send>(ns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_thread(ns.id.to_string(), || {
        enter(ns)?;
        Ok(f())
    })?
}

/// [`within`] for a namespace that is to be changed: refuses `host`, and looks
/// again, inside, whether the thread is where it should be.
///
/// # Errors
/// When it is the host's namespace or cannot be entered; then `f` was not run.
pub fn within_pod<T: Send>(
    ns: &Netns,
    host: NetnsId,
    f: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    on_thread(ns.id.to_string(), || {
        enter_pod(ns, host)?;
        Ok(f())
    })?
}

/// [`within_pod`] in one after the other of many namespaces, on one thread, which is
/// thrown away like any: a thread for each costs more than what is asked there. Nothing
/// but `f` runs on it, and not where a namespace cannot be entered.
///
/// # Errors
/// When no thread can be had, or `f` panics; for each namespace as [`within_pod`].
pub fn within_pods<'a, P: Sync, T: Send>(
    pods: &'a [P],
    netns: impl Fn(&'a P) -> &'a Netns + Sync,
    host: NetnsId,
    f: impl Fn(&'a P) -> T + Sync,
) -> Result<Vec<Result<T, NetnsError>>, NetnsError> {
    on_thread(format!("of {} pods", pods.len()), || {
        let look = |pod| {
            enter_pod(netns(pod), host)?;
            Ok(f(pod))
        };
        pods.iter().map(look).collect()
    })
}

/// Enters a pod's namespace, and looks whether the thread is there.
fn enter_pod(ns: &Netns, host: NetnsId) -> Result<(), NetnsError> {
    if ns.id == host {
        return Err(NetnsError::Host { id: host });
    }
    enter(ns)?;
    let found = own_id()?;
    if found == host {
        return Err(NetnsError::Host { id: host });
    }
    if found != ns.id {
        return Err(NetnsError::Elsewhere { want: ns.id, found });
    }
    Ok(())
}

/// Identity of the calling thread's namespace.
fn own_id() -> Result<NetnsId, NetnsError> {
    let stat = nix::sys::stat::stat(OWN)
        .map_err(|source| NetnsError::Open { path: OWN.to_owned(), source })?;
    Ok(NetnsId { dev: stat.st_dev, ino: stat.st_ino })
}

fn enter(ns: &Netns) -> Result<(), NetnsError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that enters a namespace, on a thread that is thrown away"
    )]
    nix::sched::setns(&ns.fd, CloneFlags::CLONE_NEWNET)
        .map_err(|source| NetnsError::Enter { id: ns.id, source })
}

fn on_thread<T: Send>(id: String, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, f);
        let thread = match thread {
            Ok(thread) => thread,
            Err(source) => return Err(NetnsError::Thread { id, source }),
        };
        thread.join().map_err(|payload| {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            let message = text
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "without a message".to_owned());
            NetnsError::Panic { id, message }
        })
    })
}

/// CLONE_NEW... flag of a namespace descriptor; ENOTTY for any other file.
fn namespace_kind(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory of ours; the
    // descriptor is open as long as it is borrowed.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) })
}

fn kind_name(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWCGROUP => "cgroup",
        _ => "different",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn knows_its_own_and_makes_others() {
        let host = Netns::current().unwrap();
        let ns = Netns::create().unwrap();
        assert_ne!(ns.id(), host.id());
        assert_eq!(within(&ns, || own_id().unwrap()).unwrap(), ns.id());
        assert_eq!(own_id().unwrap(), host.id(), "the caller stays where it was");
    }

    #[test]
    fn refuses_what_is_no_network_namespace() {
        for (path, found) in [
            ("/proc/self/ns/uts", "a uts namespace"),
            ("/proc/self/ns/mnt", "a mount namespace"),
            ("/dev/null", "no namespace at all (Not a typewriter)"),
            ("/proc/self/status", "no namespace at all (Not a typewriter)"),
        ] {
            let err = Netns::from_fd(File::open(path).unwrap().into()).unwrap_err();
            assert_eq!(err.to_string(), format!("descriptor is no network namespace but {found}"));
        }
        let err = Netns::open(Path::new("/nonexistent/ns")).unwrap_err();
        assert_eq!(err.to_string(), "open netns /nonexistent/ns");
    }

    #[test]
    fn a_pod_is_never_the_host() {
        let host = Netns::current().unwrap();
        let ran = within_pod(&host, host.id(), || true);
        assert!(matches!(ran, Err(NetnsError::Host { .. })));

        // A value that claims another identity than the namespace it opens.
        let mut liar = Netns::current().unwrap();
        liar.id.ino += 1;
        let ran = within_pod(&liar, host.id(), || true);
        assert!(matches!(ran, Err(NetnsError::Host { .. })));

        let mut liar = Netns::create().unwrap();
        liar.id.ino += 1;
        let ran = within_pod(&liar, host.id(), || true);
        assert!(matches!(ran, Err(NetnsError::Elsewhere { .. })));

        let pod = Netns::create().unwrap();
        assert_eq!(within_pod(&pod, host.id(), || own_id().unwrap()).unwrap(), pod.id());
    }

    /// What the kernel shows of the calling thread's namespace, by the path that the
    /// agent reads legacy tables by: what was looked up before is not shown again.
    fn interfaces() -> Vec<String> {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let lines = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        lines.collect()
    }

    #[test]
    fn many_are_entered_one_by_one_and_what_fails_is_passed_over() {
        let host = Netns::current().unwrap();
        let mut all: Vec<Netns> = (0..4).map(|_| Netns::create().unwrap()).collect();
        let add = |name: &str| {
            let args = ["link", "add", name, "type", "bridge"];
            crate::process::Command::new("/sbin/ip").args(args).run().unwrap();
        };
        within(&all[0], || add("first")).unwrap();
        within(&all[2], || add("third")).unwrap();
        // One that claims another identity, and the host's.
        all[1].id.ino += 1;
        all.push(Netns::current().unwrap());
        let look = |ns: &Netns| (ns.id(), own_id().unwrap(), interfaces());
        let seen = within_pods(&all, |ns| ns, host.id(), look).unwrap();
        let [first, liar, third, last, own] = seen.as_slice() else { panic!("{seen:?}") };
        for (seen, name) in [(first, "first"), (third, "third")] {
            let (want, found, names) = seen.as_ref().unwrap();
            assert_eq!((want, names.iter().any(|n| n == name)), (found, true), "{names:?}");
            assert_eq!(names.iter().filter(|n| *n == "first" || *n == "third").count(), 1);
        }
        assert!(matches!(liar, Err(NetnsError::Elsewhere { .. })), "{liar:?}");
        assert!(matches!(own, Err(NetnsError::Host { .. })), "{own:?}");
        let (want, found, names) = last.as_ref().unwrap();
        assert_eq!((want, names.contains(&"third".to_owned())), (found, false), "{names:?}");
        assert_eq!(own_id().unwrap(), host.id(), "the caller stays where it was");
        let none: [Netns; 0] = [];
        assert!(within_pods(&none, |ns| ns, host.id(), look).unwrap().is_empty());
    }

    #[test]
    fn a_panic_is_an_error_of_that_namespace_only() {
        let ns = Netns::create().unwrap();
        let err = within(&ns, || panic!("boom")).unwrap_err();
        assert_eq!(err.to_string(), format!("panic in netns {}: boom", ns.id()));
        assert_eq!(within(&ns, || 1).unwrap(), 1);
    }
}
