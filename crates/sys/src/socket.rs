//! Descriptors that arrive over a unix socket.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors that one message can carry (the kernel's SCM_MAX_FD). With less
/// room those that fit would be open in this process and known to nobody.
const MAX_FDS: usize = 253;

/// Bytes and the descriptors that travelled with them.
#[derive(Debug)]
pub struct Received {
    /// How many bytes were read; 0 at the end of the stream.
    pub len: usize,
    /// The message was longer than the buffer and its end is lost; never on a stream.
    pub truncated: bool,
    /// The descriptors, close-on-exec, in the order they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// Reads once from a unix socket. Works with non-blocking sockets.
///
/// A later `read` of the same socket discards descriptors: the kernel closes those
/// that nobody asks for.
///
/// # Errors
///
/// `EAGAIN` when nothing has arrived on a non-blocking socket, and whatever else
/// `recvmsg` says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us;
                // nobody else knows its number, so nobody else closes it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
    Ok(Received { len: message.bytes, truncated, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::fs::File;
    use std::io::{IoSlice, Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn takes_the_descriptors_of_the_first_byte_and_closes_all() {
        let (mut sender, mut receiver) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..3).map(|_| File::open("/dev/null").unwrap()).collect();
        let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let part = [IoSlice::new(b"P")];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(sender.as_raw_fd(), &part, &control, MsgFlags::empty(), None).unwrap();
        sender.write_all(b"OST /").unwrap();

        let mut buffer = [0; 64];
        let first = receive(&receiver, &mut buffer).unwrap();
        assert_eq!((first.len, first.descriptors.len()), (1, 3), "the kernel stops after the byte");
        for fd in &first.descriptors {
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
        }
        assert_eq!(receiver.read(&mut buffer).unwrap(), 5);
        drop(sender);
        assert_eq!(receive(&receiver, &mut buffer).unwrap().len, 0);
    }
}
