//! A connection: whole packets, some of them with a descriptor.

use crate::socket::receive;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect,
    getsockopt, recvmsg, sendmsg, shutdown, socket, socketpair, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Who is at the other end, as the kernel had it when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its process; 0 when that is in no PID namespace that is seen from here.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// A packet that arrived.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes of it are in the buffer.
    pub len: usize,
    /// It was longer than the buffer; its end is lost.
    pub truncated: bool,
    /// Descriptors came with it that nobody asked for; the kernel closed them.
    pub stray: bool,
    /// Those that were asked for, close-on-exec, in the order they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of a connection. It never blocks but in the calls with a deadline.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the socket of a path.
    ///
    /// # Errors
    /// ENOENT and ECONNREFUSED when nobody listens there, EPROTOTYPE when it is a
    /// socket of another kind, EAGAIN when it has too many that wait, ENAMETOOLONG
    /// when the path is too long for one.
    pub fn connect(path: &Path) -> Result<Self, Errno> {
        let socket = unconnected()?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket })
    }

    /// Both ends of one.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn pair() -> Result<(Self, Self), Errno> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags())?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    pub(super) fn of(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn credentials(&self) -> Result<Credentials, Errno> {
        let peer = getsockopt(&self.socket, sockopt::PeerCredentials)?;
        Ok(Credentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
    }

    /// Sends one packet, whole, with a descriptor or without.
    ///
    /// # Errors
    /// EAGAIN when there is no room before the peer has read, EINVAL for an empty
    /// packet, EMSGSIZE for one that is too long, EPIPE when the peer is gone, and
    /// ETOOMANYREFS when too many descriptors of this user are under way.
    pub fn send(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        if packet.is_empty() {
            return Err(Errno::EINVAL);
        }
        let part = [IoSlice::new(packet)];
        let fds = descriptor.map(|fd| [fd.as_raw_fd()]);
        let control = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
        let control = control.as_ref().map_or(&[][..], |control| &control[..]);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.socket.as_raw_fd(), &part, control, flags, None)?;
        Ok(())
    }

    /// [`Self::send`], waiting for room.
    ///
    /// # Errors
    /// ETIMEDOUT when there is none until then; else as [`Self::send`].
    pub fn send_by(
        &self,
        packet: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(), Errno> {
        loop {
            match self.send(packet, descriptor) {
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, Some(deadline))?,
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
    }

    /// Takes the next packet; None at the end of the connection. Descriptors that
    /// come with it are closed by the kernel before this process has them.
    ///
    /// # Errors
    /// EAGAIN when there is none, ECONNRESET once when the peer closed with packets
    /// unread.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<Packet>, Errno> {
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, None, flags)?;
        Ok((message.bytes > 0).then(|| Packet {
            len: message.bytes,
            truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
            stray: message.flags.contains(MsgFlags::MSG_CTRUNC),
            descriptors: Vec::new(),
        }))
    }

    /// [`Self::receive`], waiting for a packet, for ever without a deadline.
    ///
    /// # Errors
    /// ETIMEDOUT when none comes until then; else as [`Self::receive`].
    pub fn receive_by(
        &self,
        buffer: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<Option<Packet>, Errno> {
        self.patiently(deadline, || self.receive(buffer))
    }

    /// [`Self::receive_by`] that takes the descriptors too, all of them.
    ///
    /// # Errors
    /// As [`Self::receive_by`], and ENOBUFS when not all could be opened here.
    pub fn receive_with_descriptors(
        &self,
        buffer: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<Option<Packet>, Errno> {
        let received = self.patiently(deadline, || receive(self, buffer))?;
        Ok((received.len > 0).then_some(Packet {
            len: received.len,
            truncated: received.truncated,
            stray: false,
            descriptors: received.descriptors,
        }))
    }

    /// Ends both directions, for whoever waits on this end and for the other.
    pub fn close(&self) {
        // Fails only when the peer was faster.
        shutdown(self.socket.as_raw_fd(), Shutdown::Both).ok();
    }

    fn patiently<T>(
        &self,
        deadline: Option<Instant>,
        mut f: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            match f() {
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
    }

    fn wait(&self, event: PollFlags, deadline: Option<Instant>) -> Result<(), Errno> {
        let mut fds = [PollFd::new(self.socket.as_fd(), event)];
        match poll(&mut fds, until(deadline)) {
            Ok(0) if deadline.is_some_and(|end| Instant::now() >= end) => Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What is left until then, rounded up: `poll` would spin through the last
/// millisecond.
pub(super) fn until(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}

pub(super) fn unconnected() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, flags(), None)
}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}
