//! Intent: what of a pod's traffic goes to its proxy. Backends turn it into
//! rules ([`crate::desired`]) or map entries; `sluice explain` prints it.

use crate::net::{Cidr, Interface, Owner};
use std::net::Ipv4Addr;

/// Where Envoy listens for captured outbound connections (reference 1.3).
pub const OUTBOUND_PORT: u16 = 15001;
/// Where Envoy listens for captured inbound connections (reference 1.3).
pub const INBOUND_PORT: u16 = 15006;
/// HBONE, never redirected (reference 1.3).
pub const TUNNEL_PORT: u16 = 15008;
/// The sidecar's DNS proxy (reference 1.3).
pub const DNS_PORT: u16 = 15053;
/// Mark and connmark of TPROXY traffic (reference 2.6).
pub const TPROXY_MARK: u32 = 1337;
/// Routing table that delivers marked packets locally (reference 2.6).
pub const TPROXY_TABLE: u32 = 133;

/// What of a pod's traffic goes to its sidecar proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Who the proxy is and where it listens.
    pub proxy: Proxy,
    /// How inbound connections reach the proxy.
    pub mode: Mode,
    /// IPv6 is captured too; IPv4 always is (reference 2.7).
    pub ipv6: bool,
    /// Destinations that count as the loopback address, 127.0.0.1/32 unless set
    /// (reference 2.7). IPv6 has ::1/128 always.
    pub loopback_v4: Cidr,
    /// Inbound connections.
    pub inbound: Inbound,
    /// Outbound connections.
    pub outbound: Outbound,
    /// DNS queries.
    pub dns: Dns,
    /// Interfaces whose traffic is left alone.
    pub exclude_interfaces: Vec<Interface>,
    /// Interfaces of virtual machines or nested containers inside the pod, whose
    /// incoming traffic is treated as the pod's outbound traffic.
    pub virtual_interfaces: Vec<Interface>,
    /// Drop TCP packets that conntrack finds invalid.
    pub drop_invalid: bool,
}

/// Who the proxy is and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Users the proxy runs as; its own traffic is not captured again.
    pub uids: Vec<Owner>,
    /// Groups the proxy runs as.
    pub gids: Vec<Owner>,
    /// Outbound listener, [`OUTBOUND_PORT`].
    pub outbound_port: u16,
    /// Inbound listener, [`INBOUND_PORT`].
    pub inbound_port: u16,
    /// Tunnel port that is never redirected, [`TUNNEL_PORT`].
    pub tunnel_port: u16,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            uids: vec![Owner::Id(1337)],
            gids: vec![Owner::Id(1337)],
            outbound_port: OUTBOUND_PORT,
            inbound_port: INBOUND_PORT,
            tunnel_port: TUNNEL_PORT,
        }
    }
}

/// How inbound connections reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// NAT to the listener; the source address of the upstream connection is lost.
    Redirect,
    /// Transparent proxying: addresses are kept, the packet is marked and routed
    /// to the local listener.
    Tproxy {
        /// Firewall mark, [`TPROXY_MARK`].
        mark: u32,
        /// Routing table, [`TPROXY_TABLE`].
        table: u32,
    },
}

/// Which inbound TCP connections are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// None.
    Nothing,
    /// All but these destination ports.
    AllExcept(Vec<u16>),
    /// Those to these destination ports.
    Only(Vec<u16>),
}

/// Which outbound TCP connections are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Destination addresses that are captured.
    pub include: Destinations,
    /// Destination prefixes that are not, whatever `include` says.
    pub exclude: Vec<Cidr>,
    /// Destination ports that are captured to any address.
    pub include_ports: Vec<u16>,
    /// Destination ports that are not (TCP and UDP, DNS too).
    pub exclude_ports: Vec<u16>,
    /// Groups of the sending process.
    pub groups: Groups,
}

/// Destination addresses that are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// All of them.
    All,
    /// These prefixes; empty means none.
    Only(Vec<Cidr>),
}

/// Groups of sending processes that are captured (`ISTIO_OUTBOUND_OWNER_GROUPS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// All but these.
    AllExcept(Vec<Owner>),
    /// Only these.
    Only(Vec<Owner>),
}

/// Which DNS queries go to the proxy's resolver on [`DNS_PORT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// All to port 53.
    All,
    /// Those to these servers. Empty is what upstream makes of a request for
    /// resolv.conf servers where there are none: nothing is captured.
    Servers(Vec<std::net::IpAddr>),
}

impl Dns {
    /// True when at least one query would be captured.
    #[must_use]
    pub fn captures(&self) -> bool {
        match self {
            Self::Off => false,
            Self::All => true,
            Self::Servers(servers) => !servers.is_empty(),
        }
    }
}

impl Plan {
    /// The loopback prefix of IPv4 unless it is configured otherwise.
    #[must_use]
    pub fn default_loopback_v4() -> Cidr {
        Cidr::host(Ipv4Addr::LOCALHOST.into())
    }
}
