//! The host's part of ambient mode: kubelet's probes of an ambient pod must reach
//! the app and not ztunnel.
//!
//! A pod's rules let packets of one source address pass ([`SOURCE_V4`],
//! [`SOURCE_V6`]); the host gives kubelet's connections that source. Istio does so
//! for every root process of the host (nftables) or for every host socket
//! (iptables), and to any port of the pod (reference 4.7). Here a connection must
//! be kubelet's ([`kubelet`]) and go to a port that the pod declares for kubelet
//! ([`declared`]). [`targets`] owns which (address, port) that is for how long,
//! [`rules`] the rules of both dialects, [`text`] their words.

pub mod declared;
pub mod kubelet;
pub mod rules;
pub mod targets;
pub mod text;

#[cfg(test)]
mod tests;

pub use declared::{Check, Declared, Port, Refused};
pub use kubelet::{Caller, Facts, Kubelet, Process};
pub use rules::{HostRules, Sources};
pub use targets::{Change, Owner, ProbeSet, Target};

use std::net::{Ipv4Addr, Ipv6Addr};

/// Source of kubelet's connections; Istio's default of HOST_PROBE_SNAT_IP
/// (reference 4.1).
pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);

/// The same for IPv6, HOST_PROBE_SNAT_IPV6.
pub const SOURCE_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);
