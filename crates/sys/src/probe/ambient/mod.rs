//! Proof that an ambient pod is captured, by the kernel's own record of what became
//! of a connection.
//!
//! A sidecar's proof accepts the connection in the proxy's place. Here that would not
//! do: the pod may be running, and who listens on ztunnel's ports would take its real
//! connections; ztunnel may be listening, and would take ours for one of the pod's and
//! dial an address that nobody has. So a connection is made half: its socket is deaf
//! ([`dial::Dial`]), the handshake never ends and no listener ever hears of it. What
//! its first packet met is in its conntrack entry: where it is redirected to, and by
//! the state whether somebody answered there.
//!
//! Where nobody listens (ztunnel is told of a pod after its rules hold) a refusal would
//! delete the entry with the connection, so a listener of ours takes the port for the
//! moment. It hears nothing but our own packet: a real connection is dropped before the
//! handshake, not refused, and its SYN comes again after a second, when ztunnel is
//! there.

mod arrival;
mod dial;
mod track;

use super::report::{Finding, Outcome, ProbeError, Report, Way, family_name};
use arrival::Arrival;
use dial::{Dial, Listener};
use nix::errno::Errno;
use redirect::ambient::{AmbientPlan, Ipv6, ZTUNNEL_MARK};
use redirect::net::Family;
use redirect::plan::{DNS_PORT, OUTBOUND_PORT};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use track::{Seen, Tracker};

/// A port on which nobody is likely to be, and which the rules do not know.
const PORT: u16 = 15002;
/// Port of DNS.
const DOMAIN: u16 = 53;
/// Addresses that nobody has (RFC 5737, RFC 3849).
const NOBODY_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(203, 0, 113, 1)];
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const NO_ADDRESS: Outcome = Outcome::NotCaptured("the pod has no address of this family");

/// Whose ztunnel's ports in the pod are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// ztunnel has not been told of the pod: those that are free are taken by us for
    /// the moment.
    Ours,
    /// ztunnel's. A port without a listener is not taken, which could be in its way; it
    /// is reported.
    Ztunnels,
}

/// What was proved inside the pod, and what is left to be proved from the node.
#[derive(Debug)]
pub struct AmbientInside {
    report: Report,
    tracker: Tracker,
    arrivals: Vec<Arrival>,
}

/// What the entry must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Port(u16),
    Untouched,
}

/// Proves what the processes of the calling thread's namespace send. `addresses` are
/// those of the namespace, without loopback and link-local ones.
///
/// # Errors
///
/// [`ProbeError::Escaped`] when a connection is not sent to ztunnel,
/// [`ProbeError::Caught`] when one is that must not be.
pub fn ambient_inside(
    plan: &AmbientPlan,
    addresses: &[IpAddr],
    ports: Ports,
) -> Result<AmbientInside, ProbeError> {
    let tracker = Tracker::open()?;
    let mut inside = AmbientInside { report: Report::default(), tracker, arrivals: Vec::new() };
    let families: &[Family] =
        if plan.captures_ipv6() { &[Family::V4, Family::V6] } else { &[Family::V4] };
    for &family in families {
        let own: Vec<IpAddr> =
            addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
        inside.family(plan, family, &own, ports)?;
    }
    Ok(inside)
}

impl AmbientInside {
    fn family(
        &mut self,
        plan: &AmbientPlan,
        family: Family,
        own: &[IpAddr],
        ports: Ports,
    ) -> Result<(), ProbeError> {
        let Some(&address) = own.first() else {
            self.push(Way::Outbound, family, NO_ADDRESS);
            self.push(Way::Arrival, family, NO_ADDRESS);
            return Ok(());
        };
        if (family, plan.ipv6) == (Family::V6, Ipv6::NoLoopback) {
            // Captured, and lost: what is redirected has nowhere to go.
            let why = "lo has no IPv6, so it goes nowhere".to_owned();
            self.push(Way::Outbound, family, Outcome::NotProved(why));
            return self.arrivals(plan, address, ports);
        }
        // Stays while ztunnel's own connection is tried: captured, it would be refused
        // and not seen.
        let listener = listen(family, OUTBOUND_PORT, ports)?;
        let to = (PORT, OUTBOUND_PORT);
        let outcome = self.outbound(Way::Outbound, family, own, to, listener.as_ref())?;
        self.push(Way::Outbound, family, outcome);
        if plan.dns {
            let listener = listen(family, DNS_PORT, ports)?;
            let to = (DOMAIN, DNS_PORT);
            let outcome = self.outbound(Way::Dns, family, own, to, listener.as_ref())?;
            self.push(Way::Dns, family, outcome);
            let outcome = self.query(family, own)?;
            self.push(Way::Query, family, outcome);
        } else {
            self.push(Way::Dns, family, Outcome::NotCaptured("DNS capture is off"));
        }
        let outcome = self.exempt(family, own)?;
        self.push(Way::Ztunnel, family, outcome);
        self.push(Way::Reply, family, reply(address, own)?);
        self.arrivals(plan, address, ports)
    }

    /// A connection to a port of somebody else must go to `listener_port`.
    fn outbound(
        &mut self,
        way: Way,
        family: Family,
        own: &[IpAddr],
        (port, listener_port): (u16, u16),
        listener: Option<&Listener>,
    ) -> Result<Outcome, ProbeError> {
        let mut unreachable = String::from("no address to dial");
        for target in targets(family, own, port) {
            let dial = match Dial::deaf(target, None, None) {
                Ok(dial) => dial,
                Err(errno) => {
                    unreachable = format!("dial {target}: {}", errno.desc());
                    continue;
                }
            };
            if let Some(listener) = listener {
                listener.admit(dial.source().port()).map_err(socket("filter a listener"))?;
            }
            match dial.connect() {
                Ok(()) => (),
                Err(errno) => {
                    unreachable = format!("dial {target}: {}", errno.desc());
                    continue;
                }
            }
            let seen = self.tracker.watch(&dial, target, listener_port, true)?;
            if seen == Seen::Nothing && listener.is_some() {
                // Ours refuses nobody, and nothing else is on the way.
                let what = "it was refused or dropped elsewhere".to_owned();
                return Err(escaped(way, target, listener_port, what));
            }
            return judge(way, target, Want::Port(listener_port), &seen, listener.is_some());
        }
        Ok(Outcome::NotProved(unreachable))
    }

    /// A query by UDP must go to the resolver. It is empty: whoever gets it answers
    /// nothing and asks nobody.
    fn query(&mut self, family: Family, own: &[IpAddr]) -> Result<Outcome, ProbeError> {
        let mut unreachable = String::from("no address to ask");
        for target in targets(family, own, DOMAIN) {
            let sent = (|| {
                let socket = UdpSocket::bind(any(family))?;
                socket.connect(target)?;
                socket.send(b"")?;
                socket.local_addr()
            })();
            match sent {
                Ok(source) => {
                    let seen = self.tracker.datagram(source, target)?;
                    return match seen {
                        Some(port) if port == DNS_PORT => Ok(Outcome::Proved(target)),
                        Some(_) => {
                            let what = "it is not redirected".to_owned();
                            Err(escaped(Way::Query, target, DNS_PORT, what))
                        }
                        None => Ok(Outcome::NotProved(format!("{target} is not tracked"))),
                    };
                }
                Err(error) => unreachable = format!("ask {target}: {error}"),
            }
        }
        Ok(Outcome::NotProved(unreachable))
    }

    /// What bears ztunnel's mark must not come back to ztunnel. It lives for one hop,
    /// so it does not leave the machine.
    fn exempt(&mut self, family: Family, own: &[IpAddr]) -> Result<Outcome, ProbeError> {
        let mut unreachable = String::from("no address to dial");
        for target in targets(family, own, PORT) {
            let started = Dial::deaf(target, None, Some(ZTUNNEL_MARK.value)).and_then(|dial| {
                dial.connect()?;
                Ok(dial)
            });
            match started {
                Ok(dial) => {
                    let seen = self.tracker.watch(&dial, target, 0, true)?;
                    return judge(Way::Ztunnel, target, Want::Untouched, &seen, false);
                }
                Err(Errno::EPERM) => {
                    let why = "to mark a packet takes CAP_NET_ADMIN".to_owned();
                    return Ok(Outcome::NotProved(why));
                }
                Err(errno) => unreachable = format!("dial {target}: {}", errno.desc()),
            }
        }
        Ok(Outcome::NotProved(unreachable))
    }

    fn push(&mut self, way: Way, family: Family, outcome: Outcome) {
        self.report.findings.push(Finding { way, family, outcome });
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

/// What an entry proves.
fn judge(
    way: Way,
    target: SocketAddr,
    want: Want,
    seen: &Seen,
    ours: bool,
) -> Result<Outcome, ProbeError> {
    match (want, seen) {
        (_, Seen::Nothing) => Ok(Outcome::NotProved(format!(
            "no packet to {target} was seen in the pod; it did not get there, or was refused at once"
        ))),
        (Want::Port(port), Seen::Sent { to, answered }) if to.port() == port => {
            match (answered, ours) {
                (true, true) => Ok(Outcome::Proved(target)),
                (true, false) => Ok(Outcome::Accepted(target)),
                (false, _) => Ok(Outcome::NotProved(format!(
                    "redirected to port {port}, and nobody answered there"
                ))),
            }
        }
        (Want::Port(port), Seen::Sent { .. }) => {
            Err(escaped(way, target, port, "it is not redirected".to_owned()))
        }
        (Want::Untouched, Seen::Sent { to, .. }) if *to == target => Ok(Outcome::Proved(target)),
        (Want::Untouched, Seen::Sent { to, .. }) => Err(ProbeError::Caught {
            way,
            family: Family::of(target.ip()),
            target,
            port: to.port(),
        }),
    }
}

fn escaped(way: Way, target: SocketAddr, port: u16, what: String) -> ProbeError {
    ProbeError::Escaped { way, family: Family::of(target.ip()), target, port, what }
}

fn socket(action: &'static str) -> impl FnOnce(Errno) -> ProbeError {
    move |source| ProbeError::Socket { action: action.to_owned(), source }
}

/// A connection as ztunnel makes it to the application, with the address of a client:
/// the answer must find back to it. Nobody but us can have the port. The kernel asks for
/// a route to the client before the rules take the answer back, and without one drops it
/// whatever the rules are: then the client is a neighbour.
fn reply(address: IpAddr, own: &[IpAddr]) -> Result<Outcome, ProbeError> {
    let family = Family::of(address);
    let nobody: IpAddr = match family {
        Family::V4 => NOBODY_V4[2].into(),
        Family::V6 => NOBODY_V6.into(),
    };
    let others = targets(family, own, 0).into_iter().map(|target| target.ip());
    // One that could not be asked about is tried.
    let client = std::iter::once(nobody)
        .chain(others)
        .find(|client| crate::routing::route_exists(*client).unwrap_or(true));
    let Some(client) = client else {
        let why = "the pod has no route to any client of this family";
        return Ok(Outcome::NotProved(why.to_owned()));
    };
    let listener = Listener::open(family, 0).map_err(socket("listen in the pod"))?;
    let target = SocketAddr::new(address, listener.port().map_err(socket("listen in the pod"))?);
    let failed = |errno: Errno| Outcome::NotProved(format!("dial {target}: {}", errno.desc()));
    let dial = match Dial::hearing(target, Some(client), Some(ZTUNNEL_MARK.value)) {
        Ok(dial) => dial,
        Err(errno) => return Ok(failed(errno)),
    };
    listener.admit(dial.source().port()).map_err(socket("filter a listener"))?;
    if let Err(errno) = dial.connect() {
        return Ok(failed(errno));
    }
    match dial.is_connected() {
        Ok(true) => Ok(Outcome::Proved(target)),
        Ok(false) => {
            let what = format!("the answer to {client} does not come back to ztunnel");
            Err(escaped(Way::Reply, target, target.port(), what))
        }
        Err(errno) => Ok(failed(errno)),
    }
}

/// A listener of ours where the port is free and may be taken.
fn listen(family: Family, port: u16, ports: Ports) -> Result<Option<Listener>, ProbeError> {
    if ports == Ports::Ztunnels {
        return Ok(None);
    }
    match Listener::open(family, port) {
        Ok(listener) => Ok(Some(listener)),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(source) => {
            let action = format!("listen on port {port} ({})", family_name(family));
            Err(ProbeError::Socket { action, source })
        }
    }
}

fn any(family: Family) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Addresses that nobody has; then neighbours, for a namespace without a default
/// route.
fn targets(family: Family, own: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let mut all: Vec<IpAddr> = match family {
        Family::V4 => NOBODY_V4.into_iter().map(IpAddr::from).collect(),
        Family::V6 => vec![NOBODY_V6.into()],
    };
    for address in own {
        all.extend((1..=2u8).map(|bits| match address {
            IpAddr::V4(a) => IpAddr::from(Ipv4Addr::from_bits(a.to_bits() ^ u32::from(bits))),
            IpAddr::V6(a) => IpAddr::from(Ipv6Addr::from_bits(a.to_bits() ^ u128::from(bits))),
        }));
    }
    all.retain(|address| !own.contains(address));
    all.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

#[cfg(test)]
mod tests;
