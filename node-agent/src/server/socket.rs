//! The socket's file and its directory.

use nix::unistd::{Uid, geteuid};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// How often it is looked whether a socket can be found.
const LOOK: Duration = Duration::from_secs(1);

/// How long nothing is accepted after that has failed: the process is out of
/// descriptors, most likely, and a moment later some are free.
pub(super) const REST: Duration = Duration::from_millis(50);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The directory cannot be made, or its mode not set.
    #[error("prepare run directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else could replace the socket.
    #[error("run directory {} belongs to user {owner}: want root's, mode 0700", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The path is something else.
    #[error("run directory {} is no directory", path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Another agent answers there.
    #[error("another agent serves {}: stop it, or use another --run-dir", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket has its name.
    #[error("{} is no socket: remove it", path.display())]
    NotSocket {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be bound.
    #[error("bind {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket that is listened on, and where it belongs.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    /// Removes the file.
    file: File,
    run_dir: PathBuf,
    /// What keeps it from coming back, which is said once.
    failed: Option<String>,
}

impl Socket {
    /// Makes the run directory and the socket in it, for root only.
    ///
    /// # Errors
    ///
    /// See [`SocketError`].
    pub(crate) fn bind(run_dir: &Path, name: &str) -> Result<Self, SocketError> {
        let (listener, file) = bind(run_dir, name)?;
        Ok(Self { listener, file, run_dir: run_dir.to_owned(), failed: None })
    }

    /// The next caller.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Serves connections of root until it is dropped, each in a task of its own and
    /// not more than `most` at once. Logs call the socket `name`.
    pub(crate) async fn serve<F>(
        mut self,
        name: &'static str,
        most: usize,
        serve: impl Fn(UnixStream) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(most));
        let mut looks = tokio::time::interval(LOOK);
        loop {
            // Who comes when all places are taken waits in the kernel.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                _ = looks.tick() => {
                    self.keep();
                    continue;
                }
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok(stream) if is_roots(&stream) => {
                    let served = serve(stream);
                    tokio::spawn(async move {
                        served.await;
                        drop(place);
                    });
                }
                Ok(_) => {
                    tracing::warn!(
                        "a caller that is not root connected to {name} and was turned away"
                    );
                }
                Err(error) => {
                    tracing::error!(reason = %error, "cannot accept on {name}");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Binds it again when its file is gone: nobody would find it any more. True when
    /// it can be found.
    pub(crate) fn keep(&mut self) -> bool {
        if self.file.is_there() {
            return true;
        }
        let Some(name) = self.file.path.file_name().and_then(|name| name.to_str()) else {
            return false;
        };
        match bind(&self.run_dir, name) {
            Ok((listener, file)) => {
                tracing::warn!(socket = %file.path.display(), "the socket's file was gone, bound it again");
                // The old listener last: while it lives nothing else has its inode.
                self.file = file;
                self.listener = listener;
                self.failed = None;
                true
            }
            Err(error) => {
                let reason = crate::failure::causes(&error);
                if self.failed.as_ref() != Some(&reason) {
                    tracing::error!(socket = %self.file.path.display(), reason, "the socket's file is gone and cannot be made again");
                    self.failed = Some(reason);
                }
                false
            }
        }
    }
}

fn is_roots(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

/// The socket's file; removed on drop unless it is another one by then.
#[derive(Debug)]
struct File {
    path: PathBuf,
    inode: u64,
}

impl File {
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_there() {
            // Nothing is left to be done about a failure; the next agent finds
            // that nobody listens there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a directory that only root enters, or tightens it.
///
/// # Errors
///
/// When it is not root's own directory.
pub(crate) fn private_directory(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Directory { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_dir() {
        return Err(SocketError::NotDirectory { path: path.to_owned() });
    }
    if meta.uid() != geteuid().as_raw() && !Uid::from_raw(meta.uid()).is_root() {
        return Err(SocketError::Owner { path: path.to_owned(), owner: meta.uid() });
    }
    if meta.permissions().mode() & 0o777 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

fn bind(run_dir: &Path, name: &str) -> Result<(UnixListener, File), SocketError> {
    private_directory(run_dir)?;
    let path = run_dir.join(name);
    let failed = |source| SocketError::Bind { path: path.clone(), source };
    match fs::symlink_metadata(&path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotSocket { path });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(&path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(&path).map_err(failed)?;
            }
            // Gone in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(SocketError::InUse { path }),
            Err(error) => return Err(failed(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Between these two calls the directory keeps everyone else out.
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let inode = fs::symlink_metadata(&path).map_err(failed)?.ino();
    Ok((listener, File { path, inode }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as Caller;

    #[tokio::test]
    async fn comes_back_when_its_directory_was_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let path = run.join("x.sock");
        let mut socket = Socket::bind(&run, "x.sock").unwrap();
        assert!(socket.keep());
        for all in [false, true] {
            if all {
                fs::remove_dir_all(&run).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            assert!(Caller::connect(&path).is_err());
            assert!(socket.keep() && socket.keep());
            let caller = Caller::connect(&path).unwrap();
            socket.accept().await.unwrap();
            drop(caller);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }

        // What is in the way stays, and it is tried again.
        fs::remove_dir_all(&run).unwrap();
        fs::write(&run, "").unwrap();
        assert!(!socket.keep() && !socket.keep());
        fs::remove_file(&run).unwrap();
        assert!(socket.keep());

        // Another agent's is not taken away.
        fs::remove_file(&path).unwrap();
        let other = Socket::bind(&run, "x.sock").unwrap();
        assert!(!socket.keep());
        drop(socket);
        assert!(Caller::connect(&path).is_ok());
        drop(other);
        assert!(!path.exists());
    }
}
