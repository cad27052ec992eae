//! Sockets of a user that exists in the pod's user namespace only
//! (`hostUsers: false`).
//!
//! Owner rules compare with the ids of the user namespace that owns the network
//! namespace: our own 1337 is nobody there. A thread cannot change its user
//! namespace while its process has others, so a child does, and leaves the socket in
//! the descriptor table that it shares.

use super::target::Identity;
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A non-blocking TCP socket that `identity` of the user namespace `users` opened in
/// the calling thread's network namespace. `domain` is AF_INET or AF_INET6.
///
/// # Errors
///
/// `EINVAL` when the user namespace does not map the identity, and whatever else the
/// child was told.
pub(super) fn socket_of(
    users: BorrowedFd<'_>,
    identity: Identity,
    domain: libc::c_int,
) -> Result<OwnedFd, Errno> {
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let (mut reader, writer): (PipeReader, PipeWriter) = std::io::pipe().map_err(io)?;
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of memory and
    // one thread. It does nothing but raw system calls and ends in `_exit`, so no lock
    // that another thread held at this moment can matter to it. Null pointers say: no
    // stack, no ids to store, no TLS.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    if pid == 0 {
        open_and_exit(users.as_raw_fd(), identity, domain, writer.as_raw_fd());
    }
    let pid = Errno::result(pid)?;
    // The table is shared: the child's end closes with ours. It has written before
    // it ends, and is waited for first.
    let child = Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::ESRCH)?);
    while waitpid(child, None) == Err(Errno::EINTR) {}
    drop(writer);
    let mut answer = [0; 4];
    reader.read_exact(&mut answer).map_err(|_| Errno::EPIPE)?;
    match RawFd::from_ne_bytes(answer) {
        error if error < 0 => Err(Errno::from_raw(-error)),
        // SAFETY: the child opened this descriptor in the table that it shared with
        // us and is gone; nobody else knows the number.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// In the child: becomes `identity` and opens the socket. Allocates nothing.
fn open_and_exit(users: RawFd, identity: Identity, domain: libc::c_int, answer: RawFd) -> ! {
    let Identity { uid, gid } = identity;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: system calls on integers, and one that reads four bytes which live
    // until after it. The raw ones and not glibc's, which would tell the threads that
    // this copy of memory believes in.
    unsafe {
        let mut result = libc::syscall(libc::SYS_setns, users, libc::CLONE_NEWUSER);
        if result >= 0 {
            result = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
        }
        if result >= 0 {
            result = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
        }
        if result >= 0 {
            result = libc::syscall(libc::SYS_socket, domain, kind, 0);
        }
        let said: i32 = if result < 0 { -*libc::__errno_location() } else { result as i32 };
        let bytes = said.to_ne_bytes();
        libc::syscall(libc::SYS_write, answer, bytes.as_ptr(), bytes.len());
        libc::_exit(0);
    }
}
