//! The proxy of one pod: its listeners, and the connections that run through it.

use super::run::Shared;
use super::{DNS, INBOUND, INBOUND_PLAINTEXT, OUTBOUND, dns, identity, relay, socket};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io::{PipeReader, PipeWriter};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use sys::netns::{Netns, within};
use zds::WorkloadInfo;

/// What the threads of a pod's proxy know.
pub(super) struct Pod {
    /// ZDS's key.
    pub(super) uid: String,
    /// Who it is.
    pub(super) info: WorkloadInfo,
    /// Where it is.
    pub(super) netns: Netns,
    /// The rest of the program.
    pub(super) shared: Arc<Shared>,
    live: Mutex<Live>,
}

/// Connections that are cut when the proxy ends.
#[derive(Default)]
struct Live {
    next: u64,
    ended: bool,
    streams: BTreeMap<u64, Vec<TcpStream>>,
}

/// A running proxy. Ending it is what [`Proxy::stop`] is for.
pub(super) struct Proxy {
    pub(super) pod: Arc<Pod>,
    stop: PipeWriter,
    thread: JoinHandle<()>,
}

/// Its sockets.
struct Sockets {
    tcp: Vec<(TcpListener, u16)>,
    udp: Vec<Arc<UdpSocket>>,
}

impl Proxy {
    /// Listens in the namespace of a descriptor, whatever it is.
    ///
    /// # Errors
    /// ztunnel's words for what went wrong.
    pub(super) fn start(
        shared: &Arc<Shared>,
        uid: &str,
        info: &WorkloadInfo,
        fd: &OwnedFd,
    ) -> Result<Self, String> {
        let netns = enter(fd)?;
        let dns = shared.config.dns;
        let sockets = within(&netns, || open(dns)).map_err(|err| format!("{err:?}"))??;
        let addresses = within(&netns, addresses).map_err(|err| format!("{err:?}"))?;
        shared.own(uid, Some((info.clone(), addresses)));
        let pod = Arc::new(Pod {
            uid: uid.to_owned(),
            info: info.clone(),
            netns,
            shared: Arc::clone(shared),
            live: Mutex::default(),
        });
        let (stopped, stop) = std::io::pipe().map_err(|err| err.to_string())?;
        let own = Arc::clone(&pod);
        let thread = std::thread::spawn(move || serve(&own, &sockets, &stopped));
        Ok(Self { pod, stop, thread })
    }

    /// Closes the listeners, so that nobody new comes.
    pub(super) fn close(self) -> Arc<Pod> {
        drop(self.stop);
        self.thread.join().ok();
        self.pod
    }

    /// Ends it, and every connection through it at once.
    pub(super) fn stop(self) {
        self.close().cut();
    }

    pub(super) fn connections(&self) -> usize {
        self.pod.connections()
    }
}

impl Pod {
    /// `spiffe://...` of the pod.
    pub(super) fn identity(&self) -> String {
        identity(&self.info.namespace, &self.info.service_account)
    }

    /// How many connections run through it.
    pub(super) fn connections(&self) -> usize {
        self.live().streams.len()
    }

    /// Cuts all connections, and those that are being made.
    pub(super) fn cut(&self) {
        let mut live = self.live();
        live.ended = true;
        for stream in live.streams.values().flatten() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Remembers streams that are cut with the proxy, until the value goes.
    pub(super) fn guard(self: &Arc<Self>, streams: &[&TcpStream]) -> std::io::Result<Guard> {
        let copies: Vec<_> = streams.iter().map(|s| s.try_clone()).collect::<Result<_, _>>()?;
        let mut live = self.live();
        if live.ended {
            for stream in &copies {
                stream.shutdown(Shutdown::Both).ok();
            }
        }
        let number = live.next;
        live.next += 1;
        live.streams.insert(number, copies);
        Ok(Guard { pod: Arc::clone(self), number })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Pod::guard`].
pub(super) struct Guard {
    pod: Arc<Pod>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pod.live().streams.remove(&self.number);
    }
}

/// ztunnel does not look at what it is given; the first use fails.
fn enter(fd: &OwnedFd) -> Result<Netns, String> {
    let failed = |errno: Errno| format!("Bind(127.0.0.1:{DNS}, {errno:?})");
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(failed)?;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Err(failed(Errno::EBADF));
    }
    let copy = fd.try_clone().map_err(|err| err.to_string())?;
    Netns::from_fd(copy).map_err(|_| failed(Errno::EINVAL))
}

/// In ztunnel's order; the first that fails ends it.
fn open(dns: bool) -> Result<Sockets, String> {
    let mut sockets = Sockets { tcp: Vec::new(), udp: Vec::new() };
    if dns {
        let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        let v6 = disabled.is_ok_and(|text| text.trim() == "0");
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        for ip in loopback.into_iter().filter(|ip| ip.is_ipv4() || v6) {
            let address = SocketAddr::new(ip, DNS);
            sockets.udp.push(Arc::new(socket::datagram(address)?));
            sockets.tcp.push((socket::listener(address)?, DNS));
        }
    }
    for port in [INBOUND, INBOUND_PLAINTEXT, OUTBOUND] {
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        sockets.tcp.push((socket::listener(address)?, port));
    }
    Ok(sockets)
}

/// The pod's own addresses, for who asks where it is.
fn addresses() -> Vec<IpAddr> {
    let own = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let own = own.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    own.filter(|ip| !ip.is_loopback()).collect()
}

/// Accepts until it is told to stop.
fn serve(pod: &Arc<Pod>, sockets: &Sockets, stopped: &PipeReader) {
    loop {
        let tcp = sockets.tcp.iter().map(|(listener, _)| listener.as_fd());
        let udp = sockets.udp.iter().map(|socket| socket.as_fd());
        let mut fds: Vec<_> = std::iter::once(stopped.as_fd())
            .chain(tcp)
            .chain(udp)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let hits: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        let Some((false, hits)) = hits.split_first() else {
            return;
        };
        let (tcp, udp) = hits.split_at(sockets.tcp.len());
        for ((listener, port), _) in sockets.tcp.iter().zip(tcp).filter(|(_, hit)| **hit) {
            accept(pod, listener, *port);
        }
        for (socket, _) in sockets.udp.iter().zip(udp).filter(|(_, hit)| **hit) {
            dns::receive(pod, socket);
        }
    }
}

fn accept(pod: &Arc<Pod>, listener: &TcpListener, port: u16) {
    // One that is gone by now is the client's matter.
    let Ok((stream, peer)) = listener.accept() else {
        return;
    };
    let (pod, peer) = (Arc::clone(pod), socket::plain(peer));
    std::thread::spawn(move || {
        stream.set_nodelay(true).ok();
        match port {
            OUTBOUND => relay::outbound(&pod, stream, peer),
            INBOUND => relay::inbound(&pod, stream, peer),
            INBOUND_PLAINTEXT => relay::inbound_plaintext(&pod, stream, peer),
            _ => dns::converse(&pod, stream, peer),
        }
    });
}
