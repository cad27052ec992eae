//! What the init container `istio-validation` does (reference 8.9): it connects
//! to an address that only the proxy's rules lead anywhere, and looks whether its
//! own listener accepts it with the right original destination.

use crate::stand_in::{listener, original_destination};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Exit status when nothing was redirected in time.
pub const NOT_REDIRECTED: u8 = 126;
/// Port that the probe connects to.
const PROBE_PORT: u16 = 15002;
/// Ports that rules may redirect it to.
const LISTENERS: [u16; 2] = [15001, 15006];
/// Between two tries.
const PERIOD: Duration = Duration::from_secs(1);

/// Whether the probe was redirected before `timeout`.
///
/// # Errors
/// When neither listener can be had, or no socket at all.
pub fn is_redirected(ipv6: bool, timeout: Duration) -> Result<bool> {
    let (own, target): (IpAddr, IpAddr) = if ipv6 {
        let target = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
        (Ipv6Addr::LOCALHOST.into(), target.into())
    } else {
        let target = Ipv4Addr::new(127, 0, 0, 6);
        (Ipv4Addr::LOCALHOST.into(), target.into())
    };
    let bound = LISTENERS.map(|port| listener(SocketAddr::new(own, port), false));
    let listeners: Vec<TcpListener> = bound.into_iter().flatten().collect();
    if listeners.is_empty() {
        bail!("neither {LISTENERS:?} of {own} can be bound");
    }
    let end = Instant::now() + timeout;
    // Open until the end: a closed one might be gone before it is accepted.
    let mut probes = Vec::new();
    while Instant::now() < end {
        probes.push(probe(own, SocketAddr::new(target, PROBE_PORT))?);
        let next = (Instant::now() + PERIOD).min(end);
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if accept(&listeners, left)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Starts a connection and does not wait for it.
fn probe(own: IpAddr, target: SocketAddr) -> Result<OwnedFd> {
    let family = if own.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    let source = SocketAddr::new(own, 0);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).context("bind the probe")?;
    // In progress, refused or without a route: the next try is in a second.
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target)).ok();
    Ok(fd)
}

/// Waits for one connection; whether it is the redirected probe. Others get the
/// port that they asked for echoed and are ignored.
fn accept(listeners: &[TcpListener], left: Duration) -> Result<bool> {
    let fds = listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN));
    let mut fds: Vec<_> = fds.collect();
    let left = u16::try_from(left.as_millis().max(1)).unwrap_or(u16::MAX);
    poll(&mut fds, PollTimeout::from(left))?;
    let hit: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
    for (listener, _) in listeners.iter().zip(hit).filter(|(_, hit)| *hit) {
        let (mut stream, _) = listener.accept()?;
        let asked = original_destination(&stream).map_or(0, |to| to.port());
        if asked == PROBE_PORT {
            return Ok(true);
        }
        stream.write_all(asked.to_string().as_bytes()).ok();
    }
    Ok(false)
}
