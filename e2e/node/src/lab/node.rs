//! A node: the namespace that stands for a host, with the world behind it. The
//! bridge and the pods' links are made by the real plugins.

use super::{Namespace, Scratch};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A host outside of the cluster.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// See [`OUTSIDE_V4`].
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10);
/// A resolver outside of the cluster.
pub const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// See [`RESOLVER_V4`].
pub const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x53);

const WORLD_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// A node and the world.
#[derive(Debug)]
pub struct Node {
    /// The host's namespace: plugins and agent run here.
    pub host: Namespace,
    /// Everything that is not on the node.
    pub world: Namespace,
}

impl Node {
    /// Builds both and the link between them.
    ///
    /// # Errors
    /// When a namespace or link cannot be made.
    pub fn create(scratch: &Arc<Scratch>, name: &str) -> Result<Self> {
        let host = Namespace::create(scratch, &format!("{name}-host"))?;
        let world = Namespace::create(scratch, &format!("{name}-world"))?;
        host.link("up0", &world, "w0")?;
        for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            host.sysctl(knob, "1")?;
        }
        host.ip("addr add 192.168.77.1/24 dev up0\n\
             addr add fd77::1/64 dev up0 nodad\n\
             route add 203.0.113.0/24 via 192.168.77.2\n\
             route add 2001:db8:77::/64 via fd77::2\n")?;
        let mut lines = "addr add 192.168.77.2/24 dev w0\n\
             addr add fd77::2/64 dev w0 nodad\n\
             route add default via 192.168.77.1\n\
             route add default via fd77::1\n"
            .to_owned();
        for address in Self::outside() {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            lines.push_str(&format!("addr add {address}/{prefix} dev lo nodad\n"));
        }
        world.ip(&lines)?;
        Ok(Self { host, world })
    }

    /// Where the world's own connections come from.
    #[must_use]
    pub fn world_address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { WORLD_V6.into() } else { WORLD_V4.into() }
    }

    /// The addresses that the world serves.
    #[must_use]
    pub fn outside() -> [IpAddr; 4] {
        [OUTSIDE_V4.into(), RESOLVER_V4.into(), OUTSIDE_V6.into(), RESOLVER_V6.into()]
    }
}
