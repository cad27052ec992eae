//! Proof of capture by effect: a connection is made that the plan says is captured,
//! and whoever accepts it is looked at. Rules that are there but do not work (no
//! kernel module, a drop in another table, IPv6 rules in a tool that the kernel does
//! not ask) are found this way and no other.
//!
//! [`inside`] runs in the pod's namespace and proves what its own processes send;
//! [`Inside::finish`] runs in the node's and proves what arrives there. Listeners
//! stand in the proxy's place for well under a millisecond; where a proxy already
//! runs, it is the one that must accept.

mod ambient;
mod arrival;
mod endpoint;
mod report;
mod scratch;
mod target;
mod users;

pub use ambient::{AmbientInside, Ports, ambient_inside};
pub use report::{Finding, Outcome, ProbeError, Report, Way};
pub use scratch::{ScratchError, scratch};

use crate::iptables::userns::foreign_owner;
use crate::netns::Netns;
use arrival::Arrival;
use endpoint::{Dial, Fate, Listener, Opener};
use nix::errno::Errno;
use redirect::net::{Family, Interface};
use redirect::plan::{Mode, Plan};
use report::family_name;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long one attempt waits for an answer. On the happy path there is nothing to
/// wait for; this is for a packet that was lost or dropped.
const ATTEMPT: Duration = Duration::from_millis(200);
/// How often a silent connection is tried. A first packet may be lost to neighbour
/// discovery on a bridge that is just learning.
const ATTEMPTS: usize = 2;
/// Why a connection of the proxy, or of an application that we are not, is not tried.
const FORBIDDEN: &str = "to act as another user takes CAP_SETUID and CAP_SETGID";

/// What was proved inside the pod, and what is left to be proved from the node.
#[derive(Debug)]
pub struct Inside {
    report: Report,
    port: u16,
    arrivals: Vec<Arrival>,
}

/// Proves what the processes of the calling thread's namespace send. `addresses`
/// are those of the namespace, as for the plan.
///
/// # Errors
///
/// [`ProbeError::Escaped`] when a connection went elsewhere.
pub fn inside(plan: &Plan, addresses: &[IpAddr]) -> Result<Inside, ProbeError> {
    let mut inside =
        Inside { report: Report::default(), port: plan.proxy.inbound_port, arrivals: Vec::new() };
    let users = foreign_owner()?;
    let users = users.as_ref().map(AsFd::as_fd);
    let families: &[Family] = if plan.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    for &family in families {
        let outcome = outbound(plan, family, addresses, users)?;
        inside.push(Way::Outbound, family, outcome);

        let listener = listen(family, plan.proxy.inbound_port)?;
        let outcome = loopback(plan, family, listener.as_ref(), users)?;
        inside.push(Way::Loopback, family, outcome);
        // Only now: istio-validation's listener is a plain one in either mode.
        if let (Mode::Tproxy { .. }, Some(listener)) = (plan.mode, &listener) {
            listener.become_transparent(family).map_err(|source| {
                let action = format!("make a listener transparent ({})", family_name(family));
                ProbeError::Socket { action, source }
            })?;
        }

        match arrival(plan, family, addresses) {
            Ok((target, exclusive)) => {
                inside.arrivals.push(Arrival { target, listener, exclusive })
            }
            Err(outcome) => inside.push(Way::Arrival, family, outcome),
        }
    }
    Ok(inside)
}

/// Proves the one connection that needs no address and no route, and so works in an
/// empty namespace whose `lo` is up: whether a backend's rules act at all.
///
/// # Errors
///
/// [`ProbeError::Escaped`] when it went elsewhere.
pub fn loopback_only(plan: &Plan) -> Result<Report, ProbeError> {
    let mut report = Report::default();
    let families: &[Family] = if plan.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    for &family in families {
        let listener = listen(family, plan.proxy.inbound_port)?;
        let outcome = loopback(plan, family, listener.as_ref(), None)?;
        report.findings.push(Finding { way: Way::Loopback, family, outcome });
    }
    Ok(report)
}

/// A listener of ours, or `None` when somebody listens there already.
fn listen(family: Family, port: u16) -> Result<Option<Listener>, ProbeError> {
    match Listener::open(family, port) {
        Ok(listener) => Ok(Some(listener)),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(source) => Err(ProbeError::Socket {
            action: format!("listen on port {port} ({})", family_name(family)),
            source,
        }),
    }
}

fn outbound(
    plan: &Plan,
    family: Family,
    addresses: &[IpAddr],
    users: Option<BorrowedFd<'_>>,
) -> Result<Outcome, ProbeError> {
    let targets = target::outbound(plan, family, addresses);
    if targets.is_empty() {
        return Ok(Outcome::NotCaptured("no outbound address of this family is captured"));
    }
    let Some(identity) = target::application(plan) else {
        return Ok(Outcome::NotCaptured("no group besides the proxy's is captured"));
    };
    let mut opener = Opener { identity, users };
    if !opener.is_allowed() {
        opener.identity = endpoint::own();
        if !target::is_application(plan, opener.identity) {
            return Ok(Outcome::NotProved(FORBIDDEN.to_owned()));
        }
    }
    let port = plan.proxy.outbound_port;
    let listener = listen(family, port)?;
    let interfaces = Interfaces::of(&plan.exclude_interfaces);
    let mut unreachable = String::from("no captured address to dial");
    for target in targets {
        if interfaces.as_ref().is_some_and(|i| i.leaves_by(target, &plan.exclude_interfaces)) {
            "its routes lead through excluded interfaces".clone_into(&mut unreachable);
            continue;
        }
        match attempt(Some(opener), None, target, listener.as_ref()) {
            Err(errno) => unreachable = format!("dial {target}: {}", errno.desc()),
            Ok(Fate::Arrived) => return Ok(Outcome::Proved(target)),
            Ok(Fate::Elsewhere) if listener.is_none() => {
                if target::is_documentation(target.ip()) {
                    return Ok(Outcome::Accepted(target));
                }
                unreachable = format!(
                    "port {port} is taken, so who accepted the connection to {target} cannot be seen"
                );
            }
            Ok(fate) => return Err(escaped(Way::Outbound, target, port, &fate)),
        }
    }
    Ok(Outcome::NotProved(unreachable))
}

fn loopback(
    plan: &Plan,
    family: Family,
    listener: Option<&Listener>,
    users: Option<BorrowedFd<'_>>,
) -> Result<Outcome, ProbeError> {
    let (from, target) = match target::loopback(plan, family) {
        Ok(pair) => pair,
        Err(why) => return Ok(Outcome::NotCaptured(why)),
    };
    let Some(identity) = target::proxy(plan) else {
        return Ok(Outcome::NotProved("the proxy's user is known by name only".to_owned()));
    };
    let opener = Opener { identity, users };
    if !opener.is_allowed() {
        return Ok(Outcome::NotProved(FORBIDDEN.to_owned()));
    }
    let port = plan.proxy.inbound_port;
    match attempt(Some(opener), Some(from), target, listener) {
        Ok(Fate::Arrived) => Ok(Outcome::Proved(target)),
        Ok(Fate::Elsewhere) if listener.is_none() => Ok(Outcome::Accepted(target)),
        Ok(fate) => Err(escaped(Way::Loopback, target, port, &fate)),
        // Both addresses are the rules' own affair: ::6 is put on lo with them.
        Err(errno) => Err(escaped(Way::Loopback, target, port, &Fate::Failed(errno))),
    }
}

/// What to dial from the node, or why nothing.
fn arrival(
    plan: &Plan,
    family: Family,
    addresses: &[IpAddr],
) -> Result<(SocketAddr, bool), Outcome> {
    let (port, exclusive) = target::inbound_port(plan).map_err(Outcome::NotCaptured)?;
    let left_alone: Vec<Interface> =
        plan.exclude_interfaces.iter().chain(&plan.virtual_interfaces).cloned().collect();
    let interfaces = Interfaces::of(&left_alone);
    let mut of_family = addresses.iter().filter(|a| Family::of(**a) == family).peekable();
    if of_family.peek().is_none() {
        return Err(Outcome::NotCaptured("the pod has no address of this family"));
    }
    of_family
        .find(|a| !interfaces.as_ref().is_some_and(|i| i.is_on(**a, &left_alone)))
        .map(|address| (SocketAddr::new(*address, port), exclusive))
        .ok_or(Outcome::NotCaptured("its interfaces are excluded"))
}

/// Dials, and dials again when nobody answers.
fn attempt(
    opener: Option<Opener<'_>>,
    from: Option<SocketAddr>,
    target: SocketAddr,
    listener: Option<&Listener>,
) -> Result<Fate, Errno> {
    let mut fate = Fate::Silence;
    for _ in 0..ATTEMPTS {
        let dial = Dial::start(opener, from, target)?;
        fate = dial.fate(listener, Instant::now() + ATTEMPT);
        if fate != Fate::Silence {
            break;
        }
    }
    Ok(fate)
}

fn escaped(way: Way, target: SocketAddr, port: u16, fate: &Fate) -> ProbeError {
    let what = match fate {
        Fate::Arrived => "it arrived".to_owned(),
        Fate::Elsewhere => "somebody else accepted it".to_owned(),
        Fate::Failed(errno) => errno.desc().to_lowercase(),
        Fate::Silence => {
            format!("no answer in {} ms", ATTEMPT.as_millis() * ATTEMPTS as u128)
        }
    };
    ProbeError::Escaped { way, family: Family::of(target.ip()), target, port, what }
}

impl Inside {
    fn push(&mut self, way: Way, family: Family, outcome: Outcome) {
        self.report.findings.push(Finding { way, family, outcome });
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Proves what arrives from outside: called in the node's namespace, with the
    /// pod's to look at when a connection is refused. A node that does not reach the
    /// pod proves nothing and is no error; the report says so. What is on its way to
    /// be reached is waited for, at most until `until`.
    ///
    /// # Errors
    ///
    /// [`ProbeError::Escaped`] when a connection went elsewhere in the pod.
    pub fn finish(mut self, pod: &Netns, until: Instant) -> Result<Report, ProbeError> {
        for arrival in std::mem::take(&mut self.arrivals) {
            let outcome = arrival.prove(self.port, pod, until)?;
            self.push(Way::Arrival, Family::of(arrival.target.ip()), outcome);
        }
        Ok(self.report)
    }
}

/// Which address is on which interface of the calling thread's namespace.
#[derive(Debug)]
struct Interfaces(Vec<(IpAddr, String)>);

impl Interfaces {
    /// `None` when no pattern makes it matter: asking costs more than a connection.
    fn of(patterns: &[Interface]) -> Option<Self> {
        if patterns.is_empty() {
            return None;
        }
        let mut addresses = Vec::new();
        for interface in nix::ifaddrs::getifaddrs().ok()? {
            let Some(address) = interface.address else { continue };
            let ip = address
                .as_sockaddr_in()
                .map(|a| IpAddr::V4(a.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
            addresses.extend(ip.map(|ip| (ip, interface.interface_name)));
        }
        Some(Self(addresses))
    }

    fn is_on(&self, address: IpAddr, patterns: &[Interface]) -> bool {
        self.0.iter().any(|(ip, name)| *ip == address && target::is_listed(patterns, name))
    }

    /// The kernel picks the source address for a route; nothing is sent.
    fn leaves_by(&self, target: SocketAddr, patterns: &[Interface]) -> bool {
        let any: SocketAddr = if target.is_ipv4() {
            (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let source = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(target)?;
            socket.local_addr()
        });
        source.is_ok_and(|source| self.is_on(source.ip(), patterns))
    }
}

#[cfg(test)]
mod tests;
