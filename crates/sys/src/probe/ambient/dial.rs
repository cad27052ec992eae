//! Sockets that hear what they are meant to hear.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use redirect::net::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How long an answer may take inside one namespace.
const ANSWER_MS: u16 = 500;

/// BPF_LD | BPF_H | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K.
const LOAD_HALF: u16 = 0x28;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// What a socket drops before TCP sees it. A packet begins with its TCP header there.
fn filter(fd: &impl AsFd, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_mut_ptr(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&program)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the option reads one sock_fprog and the instructions that it points to,
    // both of which live until the call is over; the descriptor is open as long as it
    // is borrowed. The kernel copies and checks the program.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

fn tcp_socket(family: Family) -> Result<OwnedFd, Errno> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// A listener that drops every packet but those from one port.
#[derive(Debug)]
pub(super) struct Listener(TcpListener);

impl Listener {
    /// Listens on every address of a family, and drops everything. `EADDRINUSE` when
    /// somebody has the port.
    pub(super) fn open(family: Family, port: u16) -> Result<Self, Errno> {
        let fd = tcp_socket(family)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        if family == Family::V6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        filter(&fd, &mut [code(RETURN, 0, 0, 0)])?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self(TcpListener::from(fd)))
    }

    /// Lets packets from this port pass from now on, and no others.
    pub(super) fn admit(&self, port: u16) -> Result<(), Errno> {
        filter(
            &self.0,
            &mut [
                code(LOAD_HALF, 0, 0, 0),
                code(JUMP_EQUAL, 0, 1, port.into()),
                code(RETURN, 0, 0, u32::MAX),
                code(RETURN, 0, 0, 0),
            ],
        )
    }

    pub(super) fn port(&self) -> Result<u16, Errno> {
        let address = self.0.local_addr().map_err(|_| Errno::EBADF)?;
        Ok(address.port())
    }
}

/// A connection to be made.
#[derive(Debug)]
pub(super) struct Dial {
    stream: TcpStream,
    target: SocketAddr,
}

impl Dial {
    /// One that never hears an answer, so that its handshake never ends. `from` may be
    /// an address that is not ours.
    pub(super) fn deaf(
        target: SocketAddr,
        from: Option<IpAddr>,
        mark: Option<u32>,
    ) -> Result<Self, Errno> {
        let dial = Self::hearing(target, from, mark)?;
        filter(&dial.stream, &mut [code(RETURN, 0, 0, 0)])?;
        Ok(dial)
    }

    /// One that is to come about.
    pub(super) fn hearing(
        target: SocketAddr,
        from: Option<IpAddr>,
        mark: Option<u32>,
    ) -> Result<Self, Errno> {
        let family = Family::of(target.ip());
        let fd = tcp_socket(family)?;
        if let Some(mark) = mark {
            setsockopt(&fd, sockopt::Mark, &mark)?;
            // What is redirected stays in the namespace and loses no hop; what is not
            // gets no further than the node.
            match family {
                Family::V4 => setsockopt(&fd, sockopt::Ipv4Ttl, &1)?,
                Family::V6 => setsockopt(&fd, sockopt::Ipv6Ttl, &1)?,
            }
        }
        if from.is_some() {
            // SOL_IP on an IPv6 socket sets the one bit that both families look at.
            setsockopt(&fd, sockopt::IpTransparent, &true)?;
        }
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Bound first: a filter must know the port before the packet is sent.
        let from = SocketAddr::new(from.unwrap_or(any), 0);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        Ok(Self { stream: TcpStream::from(fd), target })
    }

    /// Where it comes from; the address is known once it is under way.
    pub(super) fn source(&self) -> SocketAddr {
        self.stream.local_addr().unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))
    }

    /// Sends its first packet.
    pub(super) fn connect(&self) -> Result<(), Errno> {
        match connect(self.stream.as_raw_fd(), &SockaddrStorage::from(self.target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Waits; true when it came about, false when nobody answered.
    pub(super) fn is_connected(&self) -> Result<bool, Errno> {
        let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        let hit = loop {
            match poll(&mut polled, PollTimeout::from(ANSWER_MS)) {
                Err(Errno::EINTR) => (),
                other => break other?,
            }
        };
        if hit == 0 {
            return Ok(false);
        }
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &now)?;
        match getsockopt(&self.stream, sockopt::SocketError)? {
            0 => Ok(true),
            error => Err(Errno::from_raw(error)),
        }
    }
}
