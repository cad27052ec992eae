//! What tests against the kernel share: namespaces, the programs that change them, and
//! plans to begin with.

use crate::netns::{Netns, within};
use crate::process::Command;
use redirect::ambient::{AmbientPlan, Ipv6, PROBE_V4, PROBE_V6, ProbePorts};
use redirect::plan::{Destinations, Dns, Groups, Inbound, Mode, Outbound, Plan, Proxy};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs in a new network namespace. Without the right to make one the test fails.
pub(crate) fn fresh<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    within(&Netns::create().unwrap(), f).unwrap()
}

/// Runs a program of the machine; what it printed. A child has no PATH of ours.
#[track_caller]
pub(crate) fn run(argv: &str, input: &str) -> String {
    let mut words = argv.split(' ');
    let name = words.next().unwrap();
    let program = ["/usr/sbin", "/sbin", "/usr/bin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("these tests need the program {name}"));
    let ran = Command::new(program).args(words).stdin(input.as_bytes()).run();
    let ran = ran.unwrap_or_else(|error| panic!("{error}\n{input}"));
    String::from_utf8(ran.stdout).unwrap()
}

/// Changes links, addresses and routes, one a line.
#[track_caller]
pub(crate) fn ip(batch: &str) {
    run("ip -batch -", batch);
}

/// Loads a ruleset.
#[track_caller]
pub(crate) fn nft(script: &str) {
    run("nft -f -", script);
}

/// A node and a pod behind a veth pair: `veth0` and `eth0`.
pub(crate) struct World {
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
}

/// The pod's.
pub(crate) fn addresses() -> Vec<IpAddr> {
    ["10.8.0.2", "fd08::2"].iter().map(|a| a.parse().unwrap()).collect()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::around(Netns::create().unwrap())
    }

    /// A node for a pod.
    pub(crate) fn around(pod: Netns) -> Self {
        let world = Self { node: Netns::create().unwrap(), pod };
        let pod = format!("/proc/{}/fd/{}", std::process::id(), world.pod.as_fd().as_raw_fd());
        within(&world.node, || {
            ip(&format!(
                "link set lo up\n\
                 link add veth0 type veth peer name eth0 netns {pod}\n\
                 link set veth0 up\n\
                 address add 10.8.0.1/24 dev veth0\n\
                 address add fd08::1/64 dev veth0 nodad\n"
            ));
        })
        .unwrap();
        within(&world.pod, || {
            ip("link set lo up\n\
                link set eth0 up\n\
                address add 10.8.0.2/24 dev eth0\n\
                address add fd08::2/64 dev eth0 nodad\n\
                route add default via 10.8.0.1\n\
                route add default via fd08::1\n");
        })
        .unwrap();
        world.wait_until_reached();
        world
    }

    /// Waits until the node reaches the pod. A new interface drops what is sent by it
    /// until the kernel's link watch has run, and an IPv6 address is not asked for before
    /// its own work has; a busy machine puts both off. A lost question for a neighbour is
    /// repeated after a second only, and who has no patience does not wait for that.
    fn wait_until_reached(&self) {
        let end = Instant::now() + PATIENCE;
        for address in addresses() {
            // Nobody listens on the port, so an answer is a refusal.
            let target = SocketAddr::new(address, 9);
            let answers = || {
                let dialled = TcpStream::connect_timeout(&target, Duration::from_secs(3));
                dialled.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            };
            while !within(&self.node, answers).unwrap() {
                assert!(Instant::now() < end, "the node does not reach {address}");
            }
        }
    }
}

/// What a sidecar's annotations come to where they say nothing.
pub(crate) fn plan(ipv6: bool) -> Plan {
    Plan {
        proxy: Proxy::default(),
        mode: Mode::Redirect,
        ipv6,
        loopback_v4: Plan::default_loopback_v4(),
        inbound: Inbound::AllExcept(vec![15020, 15021, 15090]),
        outbound: Outbound {
            include: Destinations::All,
            exclude: Vec::new(),
            include_ports: Vec::new(),
            exclude_ports: vec![15020],
            groups: Groups::AllExcept(Vec::new()),
        },
        dns: Dns::Off,
        exclude_interfaces: Vec::new(),
        virtual_interfaces: Vec::new(),
        drop_invalid: false,
    }
}

/// Everything of an ambient pod that has both families.
pub(crate) fn ambient_plan() -> AmbientPlan {
    AmbientPlan {
        ipv6: Ipv6::Present,
        inbound: true,
        dns: true,
        virtual_interfaces: Vec::new(),
        probe_v4: PROBE_V4,
        probe_v6: PROBE_V6,
        probe_ports: ProbePorts::Any,
    }
}
