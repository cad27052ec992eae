//! A unix stream socket under a deadline.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt,
    recv, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use wire::http::{self, ResponseError};

use crate::deadline::Patience;

/// What can go wrong on the way.
#[derive(Debug)]
pub(super) enum Error {
    /// The deadline came while the peer should have done this.
    TimedOut(&'static str),
    /// A system call failed.
    Io(&'static str, Errno),
    /// The peer closed the connection and said nothing.
    Closed,
    /// Somebody else than root or we listens.
    Stranger(u32),
    /// The path is longer than a socket address takes.
    Path(usize),
    /// What came is no answer.
    Answer(ResponseError),
}

/// A connection to a peer that may be asked.
pub(super) struct Socket<'a> {
    fd: OwnedFd,
    patience: &'a Patience<'a>,
}

impl<'a> Socket<'a> {
    /// Connects, and looks who listens: whoever else could answer "not of the
    /// mesh" for a pod that has to be captured.
    pub(super) fn connect(path: &str, patience: &'a Patience<'a>) -> Result<Self, Error> {
        let address = UnixAddr::new(path).map_err(|_| Error::Path(path.len()))?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| Error::Io("socket", e))?;
        loop {
            // Not O_NONBLOCK with poll: on a unix socket a full backlog is then
            // EAGAIN at once and nothing to poll for. A blocking connect waits
            // for as long as SO_SNDTIMEO says (unix_stream_connect).
            let left = patience.remaining().ok_or(Error::TimedOut("accept the connection"))?;
            // Zero would mean forever.
            let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::microseconds(micros))
                .map_err(|e| Error::Io("set the timeout", e))?;
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(e) => return Err(Error::Io("connect", e)),
            }
        }
        let peer = getsockopt(&fd, sockopt::PeerCredentials)
            .map_err(|e| Error::Io("look who listens", e))?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(Error::Stranger(peer.uid()));
        }
        Ok(Self { fd, patience })
    }

    /// Writes everything; `passed` travels with the first byte.
    pub(super) fn write(
        &self,
        mut bytes: &[u8],
        passed: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let raw = passed.map(|fd| [fd.as_raw_fd()]);
        let rights = raw.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
        let mut control: &[ControlMessage<'_>] = rights.as_ref().map_or(&[], |rights| rights);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while !bytes.is_empty() {
            match sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    control = &[];
                    // A peer that reads a byte at a time keeps this loop
                    // writable for ever.
                    self.patience.remaining().ok_or(Error::TimedOut(READ_REQUEST))?;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, READ_REQUEST)?,
                Err(e) => return Err(Error::Io("send the request", e)),
            }
        }
        Ok(())
    }

    /// Reads until the answer is complete and returns its bytes.
    pub(super) fn read_answer(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(1024);
        let mut chunk = [0_u8; 16 << 10];
        loop {
            self.wait(PollFlags::POLLIN, "complete its answer")?;
            match recv(self.fd.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) if bytes.is_empty() => return Err(Error::Closed),
                Ok(n) => {
                    bytes.extend_from_slice(&chunk[..n]);
                    if http::response(&bytes, n == 0).map_err(Error::Answer)?.is_some() {
                        return Ok(bytes);
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(e) => return Err(Error::Io("read the answer", e)),
            }
        }
    }

    fn wait(&self, what: PollFlags, stage: &'static str) -> Result<(), Error> {
        loop {
            let timeout = self.patience.timeout().ok_or(Error::TimedOut(stage))?;
            match ppoll(&mut [PollFd::new(self.fd.as_fd(), what)], Some(timeout), None) {
                // Not the end yet, perhaps: the patience knows.
                Ok(0) => {}
                Ok(_) | Err(Errno::EINTR) => return Ok(()),
                Err(e) => return Err(Error::Io("poll", e)),
            }
        }
    }
}

const READ_REQUEST: &str = "read the request";
