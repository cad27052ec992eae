//! The stand-in for a proxy or an application: it accepts, says who it is and
//! where the connection was meant to go, and then sends back what it gets.

use crate::lab::Namespace;
use crate::process::{Identity, Running};
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
    UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What a stand-in is and where it listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StandIn {
    /// What it calls itself in answers.
    pub name: String,
    /// TCP listeners.
    pub tcp: Vec<SocketAddr>,
    /// UDP sockets. Each answers from the address it is bound to, so a host with
    /// several addresses needs one for each.
    pub udp: Vec<SocketAddr>,
    /// TCP listeners take connections to addresses that are not the host's.
    pub transparent: bool,
    /// Mark of everything it sends; none without.
    #[serde(default)]
    pub mark: Option<u32>,
}

/// What it says to whom it accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who accepted.
    pub by: String,
    /// At which port.
    pub port: u16,
    /// Where the connection was meant to go; none for UDP, where the kernel does
    /// not tell.
    pub original: Option<SocketAddr>,
    /// Who it seems to come from.
    pub peer: IpAddr,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.by, self.port)?;
        if let Some(original) = self.original {
            write!(f, " original {original}")?;
        }
        write!(f, " from {}", self.peer)
    }
}

impl StandIn {
    /// A sidecar proxy: outbound, inbound and DNS listeners of both families.
    #[must_use]
    pub fn proxy(transparent: bool) -> Self {
        let mut tcp = everywhere(&[15001, 15006]);
        let dns = vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, 15053)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, 15053)),
        ];
        tcp.extend(&dns);
        Self { name: "proxy".to_owned(), tcp, udp: dns, transparent, mark: None }
    }

    /// ztunnel's listeners in a pod: outbound, inbound, HBONE and DNS of both
    /// families, all with its mark (reference 4.1).
    #[must_use]
    pub fn ztunnel() -> Self {
        let mut ztunnel = Self::proxy(false);
        ztunnel.tcp.extend(everywhere(&[15008]));
        ztunnel.mark = Some(0x539);
        ztunnel
    }

    /// An application or a host with its own ports.
    #[must_use]
    pub fn direct(name: &str, tcp_ports: &[u16], udp: Vec<SocketAddr>) -> Self {
        Self {
            name: name.to_owned(),
            tcp: everywhere(tcp_ports),
            udp,
            transparent: false,
            mark: None,
        }
    }

    /// Starts it in a namespace, from the suite's own program at `program`, and
    /// waits until it listens.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(&self, program: &Path, pod: &Namespace, who: Identity) -> Result<Running> {
        let who = if self.transparent { who.with_net_admin() } else { who };
        self.start_as(pod.program(program).as_user(who))
    }

    /// Starts it as the given program, which must run the `stand-in` binary.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_as(&self, program: crate::process::Program<'_>) -> Result<Running> {
        let mut config = serde_json::to_string(self)?;
        config.push('\n');
        let mut running = program.input(config).start()?;
        running.wait_ready().with_context(|| format!("stand-in {}", self.name))?;
        Ok(running)
    }

    /// Listens, calls `ready`, and serves until stdin is closed.
    ///
    /// # Errors
    /// When a port is taken, or waiting fails.
    pub fn serve(&self, ready: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut listeners = Vec::new();
        for address in &self.tcp {
            let listener = listener(*address, self.transparent)
                .with_context(|| format!("{}: listen on {address}", self.name))?;
            self.mark(&listener)?;
            listeners.push(listener);
        }
        let mut sockets = Vec::new();
        for address in &self.udp {
            let socket = UdpSocket::bind(address)
                .with_context(|| format!("{}: bind UDP {address}", self.name))?;
            self.mark(&socket)?;
            sockets.push(socket);
        }
        ready()?;
        let stdin = std::io::stdin();
        loop {
            let tcp = listeners.iter().map(|l| l.as_fd());
            let udp = sockets.iter().map(|s| s.as_fd());
            let mut fds: Vec<_> = std::iter::once(stdin.as_fd())
                .chain(tcp)
                .chain(udp)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            poll(&mut fds, PollTimeout::NONE)?;
            let hit: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            let (first, rest) = hit.split_first().context("no descriptors")?;
            if *first {
                return Ok(());
            }
            let (tcp, udp) = rest.split_at(listeners.len());
            for (listener, _) in listeners.iter().zip(tcp).filter(|(_, hit)| **hit) {
                self.accept(listener);
            }
            for (socket, _) in sockets.iter().zip(udp).filter(|(_, hit)| **hit) {
                self.answer_datagram(socket);
            }
        }
    }

    /// What a listener accepts has its mark.
    fn mark(&self, socket: &impl AsFd) -> Result<()> {
        match self.mark {
            Some(mark) => setsockopt(socket, sockopt::Mark, &mark).context("set the mark"),
            None => Ok(()),
        }
    }

    /// A connection that is gone before it is answered is the client's matter.
    fn accept(&self, listener: &TcpListener) {
        let Ok((stream, peer)) = listener.accept() else {
            return;
        };
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let answer = Answer {
            by: self.name.clone(),
            port: listener.local_addr().map_or(0, |address| address.port()),
            original: Some(original_destination(&stream).unwrap_or(local)),
            peer: peer.ip(),
        };
        std::thread::spawn(move || converse(stream, &answer));
    }

    fn answer_datagram(&self, socket: &UdpSocket) {
        let mut bytes = [0; 2048];
        let Ok((_, peer)) = socket.recv_from(&mut bytes) else {
            return;
        };
        let answer = Answer {
            by: self.name.clone(),
            port: socket.local_addr().map_or(0, |address| address.port()),
            original: None,
            peer: peer.ip(),
        };
        let Ok(text) = serde_json::to_vec(&answer) else {
            return;
        };
        socket.send_to(&text, peer).ok();
    }
}

/// Each port on every address of both families.
#[must_use]
pub fn everywhere(ports: &[u16]) -> Vec<SocketAddr> {
    let v4 = ports.iter().map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)));
    let v6 = ports.iter().map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)));
    v4.chain(v6).collect()
}

/// The answer, then an echo. It ends when the client does.
fn converse(mut stream: TcpStream, answer: &Answer) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut bytes = [0; 4096];
    loop {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(bytes.get(..read).unwrap_or_default())?;
    }
}

/// Where a connection went before NAT; None when conntrack does not know it.
#[must_use]
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    match stream.local_addr().ok()? {
        SocketAddr::V4(_) => {
            let raw = getsockopt(stream, sockopt::OriginalDst).ok()?;
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        SocketAddr::V6(_) => {
            let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, 0).into())
        }
    }
}

/// A listener for one family only, with room for all of a matrix at once.
///
/// # Errors
/// When the port is taken, or CAP_NET_ADMIN is missing for a transparent one.
pub fn listener(address: SocketAddr, transparent: bool) -> Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if transparent {
        // SOL_IP on an IPv6 socket sets the one bit that both families look at.
        setsockopt(&fd, sockopt::IpTransparent, &true).context("set IP_TRANSPARENT")?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(1024)?)?;
    Ok(TcpListener::from(fd))
}
