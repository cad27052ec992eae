//! A netlink socket. The kernel works a request off while it is sent, so an answer
//! is there at once; the timeout is for a kernel that is not well.

use super::error::NetlinkError;
use super::message::{Buffer, Message, acknowledgement, take};
use nix::errno::Errno;
use nix::sys::socket::{
    self as sock, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const TIMEOUT_SECONDS: u64 = 5;
/// A listing that changes while it is made is made again, this often at most.
const LISTINGS: u32 = 8;
/// Answers to one request; 20 million rules would fit.
const MAX_DATAGRAMS: u32 = 1 << 20;
/// More than a dump's datagram ever is (32 KiB since 4.9).
const DATAGRAM: usize = 64 << 10;
pub(super) const REQUEST: u16 = 0x01;
pub(super) const ACK: u16 = 0x04;
const DUMP_INTERRUPTED: u16 = 0x10;
const DUMP: u16 = 0x300;
pub(super) const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Which part of the kernel is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Netfilter,
    Route,
}

/// A socket in the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(super) fd: OwnedFd,
    sequence: u32,
    received: Vec<u8>,
}

/// Messages of a listing, whole.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    bytes: Vec<u8>,
}

impl Replies {
    /// Type and body of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || take(&mut rest)).map(|message| (message.kind, message.body))
    }
}

fn socket_error(what: &'static str) -> impl FnOnce(Errno) -> NetlinkError {
    move |source| NetlinkError::Socket { what, source }
}

impl Socket {
    pub(crate) fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let protocol = match protocol {
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
            Protocol::Route => SockProtocol::NetlinkRoute,
        };
        let fd =
            sock::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
                .map_err(socket_error("open"))?;
        let timeout = TimeVal::seconds(TIMEOUT_SECONDS as i64);
        sock::setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)
            .map_err(socket_error("set timeout"))?;
        // Kernels before 4.12 know neither; errors are then just numbers.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let _ = set_netlink_option(&fd, option);
        }
        Ok(Self {
            fd,
            sequence: 0, // Zeroed lazily by the allocator, and mostly not touched.
            received: vec![0; DATAGRAM],
        })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        object: impl FnOnce() -> String,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Buffer),
    ) -> Result<(), NetlinkError> {
        self.start(kind, flags | ACK, body)?;
        let mut refusal = None;
        let sequence = self.sequence;
        let seen = self.receive(|message| {
            if message.sequence != sequence || message.kind != ERROR {
                return false;
            }
            refusal = acknowledgement(message);
            true
        });
        match (seen, refusal) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some((source, detail))) => {
                Err(NetlinkError::Refused { object: object(), detail, source })
            }
            (Err(fault), _) => Err(fault.named(object())),
        }
    }

    /// Lists objects: the whole and consistent answer, or an error.
    pub(crate) fn dump(
        &mut self,
        object: &str,
        kind: u16,
        body: impl Fn(&mut Buffer),
    ) -> Result<Replies, NetlinkError> {
        for _ in 0..LISTINGS {
            self.start(kind, DUMP, &body)?;
            let sequence = self.sequence;
            let mut replies = Replies::default();
            let mut interrupted = false;
            let mut refusal = None;
            self.receive(|message| {
                if message.sequence != sequence {
                    return false;
                }
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    ERROR | DONE => {
                        // DONE begins with an error number too, 0 when all is well.
                        refusal = acknowledgement(message);
                        true
                    }
                    _ => {
                        Buffer::append(&mut replies.bytes, message);
                        false
                    }
                }
            })
            .map_err(|fault| fault.named(object.to_owned()))?;
            match refusal {
                // A listing that was overtaken, on kernels that say so this way.
                Some((Errno::EINTR, _)) => (),
                Some((source, detail)) => {
                    return Err(NetlinkError::Refused {
                        object: object.to_owned(),
                        detail,
                        source,
                    });
                }
                None if !interrupted => return Ok(replies),
                None => (),
            }
        }
        Err(NetlinkError::Interrupted { object: object.to_owned(), tries: LISTINGS })
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        object: &str,
        kind: u16,
        body: impl FnOnce(&mut Buffer),
    ) -> Result<Replies, NetlinkError> {
        self.start(kind, 0, body)?;
        let sequence = self.sequence;
        let mut replies = Replies::default();
        let mut refusal = None;
        self.receive(|message| {
            if message.sequence != sequence {
                return false;
            }
            match message.kind {
                ERROR => refusal = acknowledgement(message),
                _ => Buffer::append(&mut replies.bytes, message),
            }
            true
        })
        .map_err(|fault| fault.named(object.to_owned()))?;
        match refusal {
            None => Ok(replies),
            Some((source, detail)) => {
                Err(NetlinkError::Refused { object: object.to_owned(), detail, source })
            }
        }
    }

    fn start(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Buffer),
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Buffer::with_capacity(128);
        buffer.message(kind, flags | REQUEST, self.sequence, body);
        self.send(buffer.as_slice())
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = NetlinkAddr::new(0, 0);
        let sent = loop {
            match sock::sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty()) {
                Err(Errno::EINTR) => (),
                other => break other.map_err(socket_error("send"))?,
            }
        };
        if sent == bytes.len() {
            return Ok(());
        }
        Err(NetlinkError::Socket { what: "send a whole message", source: Errno::EMSGSIZE })
    }

    /// Hands messages to `each` until it says that it has seen the last one.
    pub(super) fn receive(
        &mut self,
        mut each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<(), Fault> {
        for _ in 0..MAX_DATAGRAMS {
            let len = self.receive_one()?;
            let mut bytes = self.received.get(..len).ok_or(Fault::Truncated)?;
            while let Some(message) = take(&mut bytes) {
                if each(&message) {
                    return Ok(());
                }
            }
            if !bytes.is_empty() {
                return Err(Fault::Framing);
            }
        }
        Err(Fault::Endless)
    }

    fn receive_one(&mut self) -> Result<usize, Fault> {
        loop {
            // MSG_TRUNC: the length of the datagram even when it did not fit.
            let received = sock::recv(self.fd.as_raw_fd(), &mut self.received, MsgFlags::MSG_TRUNC);
            return match received {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Err(Fault::TimedOut),
                Err(source) => Err(Fault::Socket(source)),
                Ok(0) => Err(Fault::Framing),
                Ok(len) => Ok(len),
            };
        }
    }
}

/// What goes wrong while receiving, before it has the name of an object.
pub(super) enum Fault {
    TimedOut,
    Truncated,
    Framing,
    Endless,
    Socket(Errno),
}

impl Fault {
    pub(super) fn named(self, object: String) -> NetlinkError {
        let what = match self {
            Self::TimedOut => {
                return NetlinkError::TimedOut { object, seconds: TIMEOUT_SECONDS };
            }
            Self::Socket(source) => return socket_error("receive")(source),
            Self::Truncated => "longer than the buffer",
            Self::Framing => "its length is not that of its messages",
            Self::Endless => "it does not end",
        };
        NetlinkError::Malformed { object, what }
    }
}

impl Buffer {
    /// A received message once more, so that a listing is one piece of memory.
    fn append(bytes: &mut Vec<u8>, message: &Message<'_>) {
        let mut copy = Self::from(std::mem::take(bytes));
        copy.message(message.kind, message.flags, message.sequence, |buffer| {
            buffer.raw(message.body);
        });
        *bytes = copy.into();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_netlink_option(fd: &OwnedFd, option: i32) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call, and its size; the
    // descriptor is open.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}
