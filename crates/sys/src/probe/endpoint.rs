//! Sockets of a proof: listeners in the proxy's place, and who dials them.

use super::target::Identity;
use super::users;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use redirect::net::Family;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Time between the client's side of a handshake and the server's.
const GRACE: Duration = Duration::from_millis(50);

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Our listener has it, and knows where it was meant to go.
    Arrived,
    /// It was accepted, but not by our listener.
    Elsewhere,
    /// The kernel said no.
    Failed(Errno),
    /// Nobody answered.
    Silence,
}

/// A listener on a port of the proxy.
#[derive(Debug)]
pub(super) struct Listener(TcpListener);

/// Somebody that a socket is opened as.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opener<'a> {
    /// Their ids.
    pub(super) identity: Identity,
    /// The user namespace the ids are of, unless it is our own.
    pub(super) users: Option<BorrowedFd<'a>>,
}

/// Ourselves.
pub(super) fn own() -> Identity {
    Identity { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

impl Opener<'_> {
    /// Whether we may open sockets as them. As somebody else takes CAP_SETUID and
    /// CAP_SETGID, which Istio's chart does not give. Who enters another user
    /// namespace has every capability there.
    pub(super) fn is_allowed(self) -> bool {
        self.users.is_some() || with_ids(self.identity, || ()).is_some()
    }
}

/// Runs `f` with the file system ids of `identity`; `None` where that is forbidden.
fn with_ids<T>(identity: Identity, f: impl FnOnce() -> T) -> Option<T> {
    let Identity { uid, gid } = identity;
    // These calls act on this thread alone and report the ids from before.
    let before = (setfsgid(Gid::from_raw(gid)), setfsuid(Uid::from_raw(uid)));
    let nobody = u32::MAX;
    let now = (setfsgid(Gid::from_raw(nobody)).as_raw(), setfsuid(Uid::from_raw(nobody)).as_raw());
    let done = (now == (gid, uid)).then(f);
    setfsuid(before.1);
    setfsgid(before.0);
    done
}

/// Creates a socket as somebody else: rules that match on the owner read the file
/// system ids that the thread had when it made the socket.
fn socket_as(family: Family, opener: Option<Opener<'_>>) -> Result<OwnedFd, Errno> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = || socket(domain, SockType::Stream, flags, None);
    let Some(Opener { identity, users }) = opener else { return open() };
    if let Some(users) = users {
        match users::socket_of(users, identity, domain as i32) {
            // Nobody of that name there: our own ids are nobody's there as well.
            Err(Errno::EINVAL) => {}
            other => return other,
        }
    }
    match with_ids(identity, open) {
        Some(made) => made,
        None if users.is_some() => open(),
        None => Err(Errno::EPERM),
    }
}

impl Listener {
    /// Listens on every address of a family. `EADDRINUSE` when a proxy runs already.
    pub(super) fn open(family: Family, port: u16) -> Result<Self, Errno> {
        let fd = socket_as(family, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        if family == Family::V6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self(TcpListener::from(fd)))
    }

    /// Makes it one that TPROXY rules give connections to.
    pub(super) fn become_transparent(&self, family: Family) -> Result<(), Errno> {
        set_transparent(&self.0, family)
    }

    /// Takes connections until one was meant for `target`; true when there is one.
    fn take(&self, target: SocketAddr) -> bool {
        while let Ok((stream, _)) = self.0.accept() {
            reset_on_close(&stream);
            if original_destination(&stream) == Some(target) {
                return true;
            }
            // Somebody else's: the address may have been another pod's before.
        }
        false
    }
}

/// A connection under way.
#[derive(Debug)]
pub(super) struct Dial {
    stream: TcpStream,
    target: SocketAddr,
}

impl Dial {
    /// Starts to connect. An error is the local kernel's: no route, for example.
    pub(super) fn start(
        opener: Option<Opener<'_>>,
        from: Option<SocketAddr>,
        target: SocketAddr,
    ) -> Result<Self, Errno> {
        let fd = socket_as(Family::of(target.ip()), opener)?;
        if let Some(from) = from {
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        }
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let stream = TcpStream::from(fd);
        reset_on_close(&stream);
        Ok(Self { stream, target })
    }

    /// Waits for what becomes of it. Without a listener of ours, being accepted at
    /// all is [`Fate::Elsewhere`].
    pub(super) fn fate(&self, listener: Option<&Listener>, until: Instant) -> Fate {
        let mut until = until;
        let mut connected = false;
        loop {
            let mut polled = Vec::with_capacity(2);
            if let Some(listener) = listener {
                polled.push(PollFd::new(listener.0.as_fd(), PollFlags::POLLIN));
            }
            if !connected {
                polled.push(PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT));
            }
            let left = until.saturating_duration_since(Instant::now());
            match poll(&mut polled, timeout(left)) {
                Ok(0) if connected => return Fate::Elsewhere,
                Ok(0) => return Fate::Silence,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Fate::Failed(errno),
            }
            if listener.is_some_and(|listener| listener.take(self.target)) {
                return Fate::Arrived;
            }
            if !connected {
                match self.state() {
                    Ok(false) => {}
                    Ok(true) if listener.is_none() => return Fate::Elsewhere,
                    Ok(true) => {
                        connected = true;
                        until = until.min(Instant::now() + GRACE);
                    }
                    Err(errno) => return Fate::Failed(errno),
                }
            }
            if Instant::now() >= until {
                return if connected { Fate::Elsewhere } else { Fate::Silence };
            }
        }
    }

    /// True once connected.
    fn state(&self) -> Result<bool, Errno> {
        match getsockopt(&self.stream, sockopt::SocketError) {
            Ok(0) => Ok(self.stream.peer_addr().is_ok()),
            Ok(error) => Err(Errno::from_raw(error)),
            Err(errno) => Err(errno),
        }
    }
}

/// Rounded up: a poll that returns just before its time would be asked again.
fn timeout(left: Duration) -> PollTimeout {
    let ms = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    PollTimeout::from(ms)
}

/// A reset leaves no TIME_WAIT on a port of the proxy, which a proxy that does not
/// set SO_REUSEADDR could not bind for a minute.
fn reset_on_close(stream: &TcpStream) {
    let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    // Fails on no TCP socket; if it did, the cost is that TIME_WAIT.
    let _ = setsockopt(stream, sockopt::Linger, &now);
}

/// Where the client meant to go: conntrack's word, else (TPROXY without conntrack)
/// the socket's own address.
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let conntrack = match local.ip() {
        IpAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).map(|a| {
            let ip = Ipv4Addr::from_bits(u32::from_be(a.sin_addr.s_addr));
            SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(a.sin_port)))
        }),
        IpAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst).map(|a| {
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, 0))
        }),
    };
    Some(conntrack.unwrap_or(local))
}

fn set_transparent(fd: &TcpListener, family: Family) -> Result<(), Errno> {
    if family == Family::V4 {
        return setsockopt(fd, sockopt::IpTransparent, &true);
    }
    let on: nix::libc::c_int = 1;
    let size = nix::libc::socklen_t::try_from(size_of_val(&on)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the option reads one int, which `on` is for the whole call; the
    // descriptor is open as long as it is borrowed. nix has no name for the option.
    let done = unsafe {
        nix::libc::setsockopt(
            fd.as_raw_fd(),
            nix::libc::SOL_IPV6,
            nix::libc::IPV6_TRANSPARENT,
            (&raw const on).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}
