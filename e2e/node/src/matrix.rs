//! The packets that tell rule sets apart: who sends, from where, to whom, and
//! what became of each.

use crate::conformance::{Facts, Probes};
use crate::lab::Scratch;
use crate::lab::neighbourhood::{self as hood, Neighbourhood};
use crate::packet::{Attempt, Fates, Transport, send};
use crate::process::{Identity, Running};
use crate::programs::Programs;
use crate::rules::{route_marked, route_replies};
use crate::stand_in::StandIn;
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// What the application, the world and the virtual machine serve: each port that
/// a case names, and some that none does.
const TCP_PORTS: [u16; 17] = [
    53, 80, 1111, 2222, 3333, 4000, 5000, 5555, 6000, 6666, 7000, 15008, 15020, 15021, 15090,
    31000, 32000,
];
const UDP_PORTS: [u16; 3] = [53, 80, 5555];
const OUT_TCP_PORTS: [u16; 6] = [53, 80, 5555, 15008, 15020, 32000];

/// A neighbourhood with everybody at work.
#[derive(Debug)]
pub struct Stage {
    facts: Facts,
    programs: Programs,
    servers: Vec<Running>,
    /// The namespaces.
    pub hood: Neighbourhood,
}

impl Stage {
    /// Builds the neighbourhood of a case. The pod has no rules and no processes
    /// yet, as when a container runtime asks its plugins.
    ///
    /// # Errors
    /// When a namespace cannot be had.
    pub fn set(
        scratch: &Arc<Scratch>,
        name: &str,
        facts: &Facts,
        programs: &Programs,
    ) -> Result<Self> {
        let hood = Neighbourhood::create(scratch, name)?;
        if let Some(Probes { v4, v6 }) = facts.ambient {
            hood.world.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"))?;
        }
        Ok(Self { facts: facts.clone(), programs: programs.clone(), servers: Vec::new(), hood })
    }

    /// Does what rules loaded by a tool leave to whoever loads them (reference
    /// 3.5): `::6` on `lo`, and the routing of TPROXY. The agent does it itself.
    ///
    /// # Errors
    /// When it is there already.
    pub fn route(&self) -> Result<()> {
        if self.facts.ambient.is_some() {
            return route_replies(&self.hood.pod, self.facts.ipv6);
        }
        if self.facts.ipv6 {
            let line = format!("addr add {}/128 dev lo nodad", hood::PASSTHROUGH_V6);
            self.hood.pod.ip(&line)?;
        }
        if self.facts.tproxy {
            route_marked(&self.hood.pod, self.facts.ipv6)?;
        }
        Ok(())
    }

    /// [`Self::populate`] before there are rules: nothing may depend on them.
    ///
    /// # Errors
    /// When one cannot listen.
    pub fn populate_early(&mut self) -> Result<()> {
        let facts = Facts { ipv6: false, ..self.facts.clone() };
        let facts = std::mem::replace(&mut self.facts, facts);
        let done = self.populate();
        self.facts = facts;
        done
    }

    /// Starts everybody: proxy, application, world and virtual machine.
    ///
    /// # Errors
    /// When one cannot listen.
    pub fn populate(&mut self) -> Result<()> {
        let (facts, hood) = (&self.facts, &self.hood);
        let stand_in = &self.programs.stand_in;
        let proxy = Identity {
            // See Identity::TPROXY.
            uid: if facts.tproxy { 0 } else { facts.uids.first().copied().unwrap_or(1337) },
            gid: facts.gids.first().copied().unwrap_or(1337),
            net_admin: facts.tproxy,
        };
        let ambient = facts.ambient.is_some();
        let front = if ambient { StandIn::ztunnel() } else { StandIn::proxy(facts.tproxy) };
        let proxy = if ambient { Identity::TPROXY } else { proxy };
        // HBONE is ztunnel's, and a sidecar's application may have that port.
        let ports: Vec<u16> =
            TCP_PORTS.into_iter().filter(|port| !(ambient && *port == 15008)).collect();
        let own = own_addresses(facts.ipv6 && !ambient);
        let app = StandIn::direct("app", &ports, datagrams(&own));
        let mut outside = Neighbourhood::world_addresses();
        outside.extend(facts.ambient.iter().flat_map(Probes::addresses));
        outside.extend(["172.16.77.1", "fd77::1", "10.88.0.1", "fd88::1"].map(ip));
        let world = StandIn::direct("world", &TCP_PORTS, datagrams(&outside));
        let vm = [hood::VM_V4.into(), hood::VM_V6.into()];
        let vm = StandIn::direct("vm", &TCP_PORTS, datagrams(&vm));
        self.servers = vec![
            front.start(stand_in, &hood.pod, proxy)?,
            app.start(stand_in, &hood.pod, Identity::APP)?,
            world.start(stand_in, &hood.world, Identity::APP)?,
            vm.start(stand_in, &hood.vm, Identity::APP)?,
        ];
        Ok(())
    }

    /// Sends the whole matrix.
    ///
    /// # Errors
    /// When it cannot be sent; what becomes of a packet is not an error.
    pub fn fates(&self) -> Result<Fates> {
        let packet = &self.programs.packet;
        let hood = &self.hood;
        let mut fates = send(hood.pod.program(packet), &outbound(&self.facts))?;
        fates.extend(send(hood.world.program(packet), &inbound())?);
        if let Some(probes) = self.facts.ambient {
            fates.extend(send(hood.pod.program(packet), &ztunnels(&self.facts, probes))?);
            fates.extend(send(hood.world.program(packet), &probed(probes))?);
        }
        fates.extend(send(hood.vm.program(packet), &from_vm())?);
        Ok(fates)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn datagrams(addresses: &[IpAddr]) -> Vec<SocketAddr> {
    let ports = |ip: &IpAddr| UDP_PORTS.map(|port| SocketAddr::new(*ip, port));
    addresses.iter().flat_map(ports).collect()
}

fn own_addresses(ipv6_rules: bool) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = vec![
        Ipv4Addr::LOCALHOST.into(),
        hood::PASSTHROUGH_V4.into(),
        hood::RESOLVER_V4.into(),
        hood::POD_V4.into(),
        hood::POD_NIC_V4.into(),
        hood::POD_VM_V4.into(),
        Ipv6Addr::LOCALHOST.into(),
        hood::RESOLVER_V6.into(),
        hood::POD_V6.into(),
        hood::POD_NIC_V6.into(),
        hood::POD_VM_V6.into(),
    ];
    if ipv6_rules {
        own.push(hood::PASSTHROUGH_V6.into());
    }
    own
}

/// The application, the proxy by user, by group and by both, root, and each
/// group that the case names.
fn identities(facts: &Facts) -> BTreeSet<(u32, u32)> {
    let mut who = BTreeSet::from([(1000, 1000), (0, 0)]);
    for uid in &facts.uids {
        who.insert((*uid, 2000));
    }
    for gid in facts.gids.iter().chain(&facts.groups) {
        who.insert((2000, *gid));
    }
    if facts.tproxy {
        // How the injector runs the proxy then (reference 8.9).
        who.extend(facts.gids.iter().map(|gid| (0, *gid)));
    }
    if let (Some(uid), Some(gid)) = (facts.uids.first(), facts.gids.first()) {
        who.insert((*uid, *gid));
    }
    who
}

/// What processes in the pod send.
fn outbound(facts: &Facts) -> Vec<Attempt> {
    let mut to: Vec<IpAddr> = vec![
        Ipv4Addr::LOCALHOST.into(),
        hood::PASSTHROUGH_V4.into(),
        hood::RESOLVER_V4.into(),
        hood::POD_V4.into(),
        Ipv6Addr::LOCALHOST.into(),
        hood::RESOLVER_V6.into(),
        hood::POD_V6.into(),
        hood::VM_V4.into(),
        hood::VM_V6.into(),
    ];
    let passed_on = facts.ambient.is_none();
    if facts.ipv6 && passed_on {
        to.push(hood::PASSTHROUGH_V6.into());
    }
    to.extend(facts.ambient.iter().flat_map(Probes::addresses));
    to.extend(Neighbourhood::world_addresses());
    let mut attempts = Vec::new();
    for (uid, gid) in identities(facts) {
        for to in &to {
            push(&mut attempts, "pod", (uid, gid), None, *to, &OUT_TCP_PORTS, &UDP_PORTS);
        }
        if !passed_on {
            continue;
        }
        let v4 = [hood::POD_V4.into(), Ipv4Addr::LOCALHOST.into()];
        let v6 = [hood::POD_V6.into(), Ipv6Addr::LOCALHOST.into()];
        for to in v4 {
            let from = Some(hood::PASSTHROUGH_V4.into());
            push(&mut attempts, "pod", (uid, gid), from, to, &[80, 53], &[53]);
        }
        for to in v6.into_iter().filter(|_| facts.ipv6) {
            let from = Some(hood::PASSTHROUGH_V6.into());
            push(&mut attempts, "pod", (uid, gid), from, to, &[80, 53], &[53]);
        }
    }
    attempts
}

/// What ztunnel sends: with its own address to anybody, and with a client's to the
/// application, whose reply must find back.
fn ztunnels(facts: &Facts, probes: Probes) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let ztunnel = (0, 1337);
    let own: [IpAddr; 3] = [hood::POD_V4.into(), hood::POD_V6.into(), Ipv4Addr::LOCALHOST.into()];
    let to = own.into_iter().chain(probes.addresses()).chain(Neighbourhood::world_addresses());
    for to in to {
        push(&mut attempts, "ztunnel", ztunnel, None, to, &OUT_TCP_PORTS, &UDP_PORTS);
    }
    let clients: [(IpAddr, IpAddr); 2] = [
        (hood::WORLD_V4[0].into(), hood::POD_V4.into()),
        (hood::WORLD_V6[0].into(), hood::POD_V6.into()),
    ];
    let mut spoofed = Vec::new();
    for (client, pod) in clients.into_iter().filter(|(client, _)| client.is_ipv4() || facts.ipv6) {
        push(&mut spoofed, "ztunnel", ztunnel, Some(client), pod, &[53, 80, 7000], &[]);
    }
    for attempt in &mut spoofed {
        attempt.spoofed = true;
    }
    attempts.extend(spoofed);
    for attempt in &mut attempts {
        attempt.mark = Some(0x539);
    }
    // Other bits of the mark are somebody else's, and one bit less is no mark.
    for mark in [0x2539, 0x538] {
        let first = attempts.len();
        push(&mut attempts, &format!("mark {mark:#x}"), ztunnel, None, ip("9.9.0.1"), &[80], &[53]);
        for attempt in &mut attempts[first..] {
            attempt.mark = Some(mark);
        }
    }
    attempts
}

/// What has the source address of kubelet's probes.
fn probed(probes: Probes) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let pairs: [(IpAddr, IpAddr); 2] =
        [(probes.v4.into(), hood::POD_V4.into()), (probes.v6.into(), hood::POD_V6.into())];
    for (from, to) in pairs {
        push(&mut attempts, "kubelet", (0, 0), Some(from), to, &TCP_PORTS, &UDP_PORTS);
    }
    attempts
}

/// What comes in over eth0 and over the interface that cases exclude.
fn inbound() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let pairs: [(&str, IpAddr); 6] = [
        ("172.16.77.1", hood::POD_V4.into()),
        ("fd77::1", hood::POD_V6.into()),
        ("10.88.0.1", hood::POD_NIC_V4.into()),
        ("fd88::1", hood::POD_NIC_V6.into()),
        ("9.9.0.1", hood::POD_V4.into()),
        ("2001:db8::1", hood::POD_V6.into()),
    ];
    for (from, to) in pairs {
        let from = Some(ip(from));
        push(&mut attempts, "world", (0, 0), from, to, &TCP_PORTS, &UDP_PORTS);
    }
    attempts
}

/// What a virtual machine in the pod sends: to the pod, and through it.
fn from_vm() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut to: Vec<IpAddr> = vec![hood::POD_VM_V4.into(), hood::POD_VM_V6.into()];
    to.extend(Neighbourhood::world_addresses());
    for to in to {
        push(&mut attempts, "vm", (0, 0), None, to, &TCP_PORTS, &UDP_PORTS);
    }
    attempts
}

fn push(
    attempts: &mut Vec<Attempt>,
    place: &str,
    (uid, gid): (u32, u32),
    from: Option<IpAddr>,
    to: IpAddr,
    tcp: &[u16],
    udp: &[u16],
) {
    let tcp = tcp.iter().map(|port| (Transport::Tcp, *port));
    let udp = udp.iter().map(|port| (Transport::Udp, *port));
    for (transport, port) in tcp.chain(udp) {
        let to = SocketAddr::new(to, port);
        let source = from.map(|from| format!(" from {from}")).unwrap_or_default();
        attempts.push(Attempt {
            label: format!("{place} {uid}:{gid} {transport:?}{source} to {to}"),
            transport,
            uid,
            gid,
            from: from.map(|from| SocketAddr::new(from, 0)),
            to,
            mark: None,
            spoofed: false,
        });
    }
}
