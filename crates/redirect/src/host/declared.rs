//! What a pod declares that kubelet connects to: probes, and the hooks of its
//! life cycle that are HTTP requests.

use super::targets::Target;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A port by number, or by the name that the container gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// A number as it stands in the manifest.
    Number(i64),
    /// A name of `containers[].ports[]`, or digits.
    Name(String),
}

/// One thing that kubelet connects to. A probe that runs a program is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `httpGet`, of a probe or of `lifecycle.postStart` and `preStop`.
    Http {
        /// `host`; none or empty is the pod.
        host: Option<String>,
        /// `port`.
        port: Port,
    },
    /// `tcpSocket`.
    Tcp {
        /// `host`; none or empty is the pod.
        host: Option<String>,
        /// `port`.
        port: Port,
    },
    /// `grpc`, which has numbers only and always goes to the pod.
    Grpc {
        /// `port`.
        port: i64,
    },
}

/// What one container declares, init containers too: a native sidecar has probes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Declared {
    /// Name of the container.
    pub container: String,
    /// `ports[]` that have a name, with `containerPort`. A name means a port of
    /// its own container only, as for kubelet.
    pub ports: Vec<(String, u16)>,
    /// Startup, readiness and liveness probes, and hooks.
    pub checks: Vec<Check>,
}

/// A check that no port can be made of; kubelet fails it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "container {container}: kubelet's check of port '{port}' has no port: want 1 to 65535 or a name of the container's ports"
)]
pub struct Refused {
    /// The container.
    pub container: String,
    /// What stands there.
    pub port: String,
}

/// The targets of a pod with these addresses, and the checks that have none.
///
/// All addresses count although kubelet uses one: which one is not known before
/// the pod has a status. A check with a `host` counts for that address when it is
/// the pod's, and else goes elsewhere and not through us.
#[must_use]
pub fn targets(containers: &[Declared], addresses: &[IpAddr]) -> (BTreeSet<Target>, Vec<Refused>) {
    let mut found = BTreeSet::new();
    let mut refused = Vec::new();
    for container in containers {
        for check in &container.checks {
            let (host, port) = match check {
                Check::Http { host, port } | Check::Tcp { host, port } => {
                    (host.as_deref().unwrap_or_default(), port.clone())
                }
                Check::Grpc { port } => ("", Port::Number(*port)),
            };
            let Some(number) = resolve(&port, &container.ports) else {
                let port = match port {
                    Port::Number(number) => number.to_string(),
                    Port::Name(name) => name,
                };
                refused.push(Refused { container: container.container.clone(), port });
                continue;
            };
            let only = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
            let reached = addresses.iter().map(IpAddr::to_canonical).filter(|address| {
                host.is_empty() || only.is_some_and(|only| only.to_canonical() == *address)
            });
            found.extend(reached.map(|address| Target { address, port: number }));
        }
    }
    (found, refused)
}

/// What kubelet makes of a port: a name of the container's ports, then digits.
fn resolve(port: &Port, names: &[(String, u16)]) -> Option<u16> {
    let number = match port {
        Port::Number(number) => *number,
        Port::Name(name) => match names.iter().find(|(known, _)| known == name) {
            Some((_, number)) => i64::from(*number),
            None => name.parse().ok()?,
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}
