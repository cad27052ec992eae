//! A pod with everything around it that rules can tell apart, all on this
//! machine: each address that a rule may name is owned and served by somebody,
//! so that every packet's fate is an answer and not a silence.
//!
//! ```text
//!   world ── w0 ──────── eth0 ── pod ── eth1 ── v0 ── vm
//!         └─ w1 ─ not-istio-nic ─┘
//! ```

use super::{Namespace, Scratch};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The pod's address on eth0, in no range that a case includes or excludes.
pub const POD_V4: Ipv4Addr = Ipv4Addr::new(172, 16, 77, 2);
/// See [`POD_V4`].
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The pod's address on the interface that cases exclude; in 10.0.0.0/8.
pub const POD_NIC_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// See [`POD_NIC_V4`].
pub const POD_NIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 2);
/// The pod's address towards the virtual machine.
pub const POD_VM_V4: Ipv4Addr = Ipv4Addr::new(172, 16, 99, 1);
/// See [`POD_VM_V4`].
pub const POD_VM_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
/// The virtual machine.
pub const VM_V4: Ipv4Addr = Ipv4Addr::new(172, 16, 99, 2);
/// See [`VM_V4`].
pub const VM_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
/// World's addresses on eth0's side: included, excluded, in 10.0.0.0/8, other.
pub const WORLD_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(9, 9, 0, 1),
    Ipv4Addr::new(1, 1, 0, 1),
    Ipv4Addr::new(10, 1, 0, 1),
    Ipv4Addr::new(192, 0, 2, 1),
];
/// In 2001:db8::/32, and not.
pub const WORLD_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0x4860, 0, 0, 0, 0, 0, 1),
];
/// World behind the interface that cases exclude.
pub const NIC_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`NIC_V4`].
pub const NIC_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x470, 0, 0, 0, 0, 0, 1);
/// The resolver of the cases with one, on the pod's own `lo`.
pub const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
/// See [`RESOLVER_V4`].
pub const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0x7f00, 0x35);
/// Source of the proxy's inbound connections to the application.
pub const PASSTHROUGH_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// See [`PASSTHROUGH_V4`].
pub const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The three namespaces.
#[derive(Debug)]
pub struct Neighbourhood {
    /// Where the rules go.
    pub pod: Namespace,
    /// Owner of the addresses outside.
    pub world: Namespace,
    /// A virtual machine in the pod, behind eth1.
    pub vm: Namespace,
}

impl Neighbourhood {
    /// Builds it.
    ///
    /// # Errors
    /// When a namespace or link cannot be made.
    pub fn create(scratch: &Arc<Scratch>, name: &str) -> Result<Self> {
        let made = Self {
            pod: Namespace::create(scratch, &format!("{name}-pod"))?,
            world: Namespace::create(scratch, &format!("{name}-world"))?,
            vm: Namespace::create(scratch, &format!("{name}-vm"))?,
        };
        made.pod.link("eth0", &made.world, "w0")?;
        made.pod.link("not-istio-nic", &made.world, "w1")?;
        made.pod.link("eth1", &made.vm, "v0")?;
        made.number_pod()?;
        made.number_world()?;
        made.number_vm()?;
        for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            made.pod.sysctl(knob, "1")?;
        }
        Ok(made)
    }

    fn number_pod(&self) -> Result<()> {
        let lines = format!(
            "addr add {POD_V4}/24 dev eth0\n\
             addr add {POD_V6}/64 dev eth0 nodad\n\
             addr add {POD_NIC_V4}/24 dev not-istio-nic\n\
             addr add {POD_NIC_V6}/64 dev not-istio-nic nodad\n\
             addr add {POD_VM_V4}/24 dev eth1\n\
             addr add {POD_VM_V6}/64 dev eth1 nodad\n\
             addr add {RESOLVER_V6}/128 dev lo nodad\n\
             route add default via 172.16.77.1\n\
             route add default via fd77::1\n\
             route add {NIC_V4}/32 via 10.88.0.1\n\
             route add {NIC_V6}/128 via fd88::1\n"
        );
        self.pod.ip(&lines)
    }

    fn number_world(&self) -> Result<()> {
        let mut lines = "addr add 172.16.77.1/24 dev w0\n\
             addr add fd77::1/64 dev w0 nodad\n\
             addr add 10.88.0.1/24 dev w1\n\
             addr add fd88::1/64 dev w1 nodad\n"
            .to_owned();
        for address in Self::world_addresses() {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            lines.push_str(&format!("addr add {address}/{prefix} dev lo nodad\n"));
        }
        lines.push_str(&format!("route add 172.16.99.0/24 via {POD_V4}\n"));
        lines.push_str(&format!("route add fd99::/64 via {POD_V6}\n"));
        self.world.ip(&lines)
    }

    fn number_vm(&self) -> Result<()> {
        self.vm.ip(&format!(
            "addr add {VM_V4}/24 dev v0\n\
             addr add {VM_V6}/64 dev v0 nodad\n\
             route add default via {POD_VM_V4}\n\
             route add default via {POD_VM_V6}\n"
        ))
    }

    /// Every address outside that is not on a link.
    #[must_use]
    pub fn world_addresses() -> Vec<IpAddr> {
        let v4 = WORLD_V4.into_iter().chain([NIC_V4]).map(IpAddr::from);
        v4.chain(WORLD_V6.into_iter().chain([NIC_V6]).map(IpAddr::from)).collect()
    }
}
