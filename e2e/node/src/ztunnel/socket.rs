//! Sockets in a pod's namespace, all with the mark that rules know them by.

use super::MARK;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
    UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;
use sys::netns::{Netns, within};

/// How long it tries to reach a destination.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of error that ztunnel's listeners fail with, in its words.
fn bind_error(address: SocketAddr, errno: Errno) -> String {
    format!("Bind({address}, {:?})", std::io::Error::from(errno))
}

/// A TCP listener; the thread is in the pod's namespace.
pub(super) fn listener(address: SocketAddr) -> Result<TcpListener, String> {
    let made = || {
        let fd = bound(address, SockType::Stream)?;
        listen(&fd, Backlog::new(1024)?)?;
        Ok(TcpListener::from(fd))
    };
    made().map_err(|errno| bind_error(address, errno))
}

/// A UDP socket; the thread is in the pod's namespace.
pub(super) fn datagram(address: SocketAddr) -> Result<UdpSocket, String> {
    let fd = bound(address, SockType::Datagram).map_err(|errno| bind_error(address, errno))?;
    Ok(UdpSocket::from(fd))
}

fn bound(address: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let fd = marked(address, kind)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    // As ztunnel: IPV6_V6ONLY is left to the pod's sysctl, transparency is tried.
    setsockopt(&fd, sockopt::IpTransparent, &true).ok();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

fn marked(address: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::Mark, &MARK)?;
    Ok(fd)
}

/// Connects from a pod, with an address that need not be the pod's.
pub(super) fn reach(netns: &Netns, to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream> {
    // Same source and destination: the kernel's choice is the same, and no bind can
    // be in its way.
    let from = from.filter(|from| *from != to.ip());
    let fd = within(netns, || -> Result<OwnedFd, Errno> {
        let fd = marked(to, SockType::Stream)?;
        if let Some(from) = from {
            setsockopt(&fd, sockopt::IpTransparent, &true)?;
            setsockopt(&fd, sockopt::IpFreebind, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        }
        Ok(fd)
    })?
    .with_context(|| format!("socket for {to} from {from:?}"))?;
    let stream = TcpStream::from(fd);
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => wait_connected(&stream, to)?,
        Err(errno) => return Err(errno).with_context(|| format!("connect to {to}")),
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn wait_connected(stream: &TcpStream, to: SocketAddr) -> Result<()> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::try_from(CONNECT_TIMEOUT)?)? == 0 {
        bail!("connect to {to}: deadline has elapsed");
    }
    match getsockopt(stream, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno))
            .with_context(|| format!("connect to {to}")),
    }
}

/// A UDP socket of a pod that talks to one address, with patience for the answer.
pub(super) fn towards(netns: &Netns, to: SocketAddr, patience: Duration) -> Result<UdpSocket> {
    let fd = within(netns, || marked(to, SockType::Datagram))??;
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Where a redirected connection was meant to go; its own address when nobody
/// redirected it.
pub(super) fn destination(stream: &TcpStream) -> Result<SocketAddr> {
    let local = plain(stream.local_addr()?);
    let original = if local.is_ipv4() {
        getsockopt(stream, sockopt::OriginalDst).ok().map(|raw| {
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            SocketAddr::from(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)))
        })
    } else {
        getsockopt(stream, sockopt::Ip6tOriginalDst).ok().map(|raw| {
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            SocketAddr::from(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, 0))
        })
    };
    Ok(original.unwrap_or(local))
}

/// An IPv4 address that came in by an IPv6 socket as what it is.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The next end of a connection is a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).ok();
}
