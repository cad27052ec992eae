//! A listener at a path that several agents may have, one after the other.

use super::connection::{Connection, unconnected};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{Backlog, SockFlag, UnixAddr, accept4, bind, listen};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Connections that the kernel holds until they are accepted. There are one or two
/// ztunnels on a node; one whose connections are refused at once is another matter
/// than one that has to wait its turn.
const BACKLOG: i32 = 16;

/// Why nobody listens at a path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The directory is not there, or cannot be locked.
    #[error("open the directory {} of the socket", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process listens there, or is about to.
    #[error("another process listens at {}: it must end first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is another kind of file, which is not ours to remove.
    #[error("{} is no socket: remove it", path.display())]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refuses a step.
    #[error("{step} {}", path.display())]
    Refused {
        /// Which step.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket with a path that accepts connections. The file goes with the value,
/// unless it is somebody else's by then.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl Listener {
    /// Listens at a path in a directory that is there.
    ///
    /// What a dead process left is replaced, by renaming: at no time is there no
    /// file. The socket of a process that lives is not touched.
    ///
    /// Its mode is 0600. Istio leaves it to the umask, 0755, which comes to the same:
    /// to connect one must be allowed to write. The peer runs in another container as
    /// root of the host's user namespace, so the file is its own; it has no
    /// CAP_DAC_OVERRIDE (its chart drops all but three), so any other owner than root
    /// would lock it out.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let failed = |source| ListenError::Directory { path: directory.to_owned(), source };
        let lock = File::open(directory).map_err(failed)?;
        // Two that start at once would each find that nobody listens, and the first
        // one's file would be lost.
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => ListenError::InUse { path: path.to_owned() },
                    errno => failed(errno.into()),
                },
            )?;
        check_free(path)?;

        let mut name = OsString::from(path);
        // One character, as the kernel's limit on the whole is 107.
        name.push("~");
        let fresh = PathBuf::from(name);
        let refused = |step: &'static str| {
            let path = fresh.clone();
            move |source: io::Error| ListenError::Refused { step, path, source }
        };
        match fs::remove_file(&fresh) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(refused("remove")(source));
            }
            _ => {}
        }
        let socket = bound(&fresh).map_err(|errno| refused("bind")(errno.into()))?;
        let made = Self::publish(socket, &fresh, path).map_err(refused("publish"));
        if made.is_err() {
            fs::remove_file(&fresh).ok();
        }
        made
    }

    /// Nobody can connect before `listen`, so nobody does before the mode is right.
    fn publish(socket: OwnedFd, fresh: &Path, path: &Path) -> io::Result<Self> {
        fs::set_permissions(fresh, Permissions::from_mode(0o600))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        let meta = fs::symlink_metadata(fresh)?;
        fs::rename(fresh, path)?;
        Ok(Self { socket, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    }

    /// Takes the next connection that waits.
    ///
    /// # Errors
    /// EAGAIN when there is none, EMFILE when there are too many open files.
    pub fn accept(&self) -> Result<Connection, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.socket.as_raw_fd(), flags)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows
        // its number, so nobody else closes it.
        Ok(Connection::of(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Listens anew where its file is gone, since nobody would find it any more; true
    /// when that was so. Who waits to be accepted at the lost one has to connect again.
    ///
    /// # Errors
    /// See [`ListenError`]; for example when another process has the path by now.
    pub fn keep(&mut self) -> Result<bool, ListenError> {
        if self.is_there() {
            return Ok(false);
        }
        if let Some(directory) = self.path.parent() {
            let path = directory.to_owned();
            fs::create_dir_all(directory)
                .map_err(|source| ListenError::Directory { path, source })?;
        }
        // The lost one ends last: while it lives nothing else has its inode.
        *self = Self::bind(&self.path)?;
        Ok(true)
    }

    fn is_there(&self) -> bool {
        let meta = fs::symlink_metadata(&self.path);
        meta.is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_there() {
            // A file that stays is found to be dead by the next one.
            fs::remove_file(&self.path).ok();
        }
    }
}

fn bound(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = unconnected()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// There is no file, or one of a socket at which nobody listens any more.
fn check_free(path: &Path) -> Result<(), ListenError> {
    let owned = || path.to_owned();
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NotSocket { path: owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ListenError::Refused { step: "look at", path: owned(), source });
        }
    }
    match Connection::connect(path) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // It is full, or of another kind: somebody lives there.
        Ok(_) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(ListenError::InUse { path: owned() }),
        Err(errno) => {
            Err(ListenError::Refused { step: "connect to", path: owned(), source: errno.into() })
        }
    }
}
