//! What ambient capture asks of a pod besides what the mesh decides by: who it is to
//! ztunnel, and what kubelet connects to.

use redirect::host::{Check, Declared, Port, declared};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Kubernetes' own default of `spec.serviceAccountName`.
const DEFAULT_ACCOUNT: &str = "default";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Workload {
    /// `spec.serviceAccountName`.
    pub(crate) service_account: Box<str>,
    /// TCP ports that kubelet's probes and hooks go to, ascending.
    pub(crate) probe_ports: Box<[u16]>,
}

impl Workload {
    /// From what a manifest says.
    pub(super) fn new(account: Option<&str>, containers: &[Declared]) -> Self {
        // A check that names a host is believed to mean the pod: kubelet's own default
        // is the pod's address, which is not known yet.
        let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (targets, refused) = declared::targets(containers, &[anywhere]);
        for problem in refused {
            tracing::debug!(reason = %problem, "a probe without a port");
        }
        let ports: BTreeSet<u16> = targets.into_iter().map(|target| target.port).collect();
        Self {
            service_account: account.filter(|a| !a.is_empty()).unwrap_or(DEFAULT_ACCOUNT).into(),
            probe_ports: ports.into_iter().collect(),
        }
    }
}

/// A container's part of it, as JSON and YAML have it.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) ports: Vec<RawPort>,
    pub(super) probes: [Option<RawProbe>; 3],
    pub(super) lifecycle: Option<RawLifecycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawPort {
    name: Option<String>,
    container_port: i64,
}

/// A probe, or a handler of a hook: both have the same fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawProbe {
    http_get: Option<RawTarget>,
    tcp_socket: Option<RawTarget>,
    grpc: Option<RawTarget>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawLifecycle {
    post_start: Option<RawProbe>,
    pre_stop: Option<RawProbe>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTarget {
    host: Option<String>,
    port: Option<RawNumber>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawNumber {
    Number(i64),
    Name(String),
}

impl RawTarget {
    /// Without a port the API server takes none.
    fn parts(self) -> Option<(Option<String>, Port)> {
        let port = match self.port? {
            RawNumber::Number(number) => Port::Number(number),
            RawNumber::Name(name) => Port::Name(name),
        };
        Some((self.host, port))
    }
}

impl RawProbe {
    fn checks(self) -> impl Iterator<Item = Check> {
        let http = self.http_get.and_then(RawTarget::parts);
        let tcp = self.tcp_socket.and_then(RawTarget::parts);
        let grpc = self.grpc.and_then(RawTarget::parts);
        let grpc = grpc.and_then(|(_, port)| match port {
            Port::Number(port) => Some(Check::Grpc { port }),
            Port::Name(_) => None,
        });
        let http = http.map(|(host, port)| Check::Http { host, port });
        let tcp = tcp.map(|(host, port)| Check::Tcp { host, port });
        http.into_iter().chain(tcp).chain(grpc)
    }
}

impl Checks {
    /// `None` when kubelet connects to nothing of it.
    pub(super) fn declared(self, container: &str) -> Option<Declared> {
        let hooks = self.lifecycle.unwrap_or_default();
        let all = self.probes.into_iter().chain([hooks.post_start, hooks.pre_stop]);
        let checks: Vec<Check> = all.flatten().flat_map(RawProbe::checks).collect();
        if checks.is_empty() {
            return None;
        }
        let ports = self.ports.into_iter();
        let ports =
            ports.filter_map(|port| Some((port.name?, u16::try_from(port.container_port).ok()?)));
        Some(Declared { container: container.to_owned(), ports: ports.collect(), checks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(json: &str) -> Option<RawProbe> {
        Some(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn resolves_what_kubelet_connects_to() {
        let ports: Vec<RawPort> =
            serde_json::from_str(r#"[{"name":"web","containerPort":8080},{"containerPort":1}]"#)
                .unwrap();
        let lifecycle = serde_json::from_str(
            r#"{"preStop":{"httpGet":{"port":9000,"host":"10.0.0.9"}},"postStart":{"exec":{}}}"#,
        )
        .unwrap();
        let checks = Checks {
            ports,
            probes: [
                probe(r#"{"httpGet":{"path":"/","port":"web"}}"#),
                probe(r#"{"tcpSocket":{"port":"81"},"periodSeconds":3}"#),
                probe(r#"{"grpc":{"port":5000,"service":""}}"#),
            ],
            lifecycle: Some(lifecycle),
        };
        let declared = checks.declared("app").unwrap();
        let workload = Workload::new(None, &[declared]);
        assert_eq!(&*workload.service_account, "default");
        // A hook of another host does not go to the pod.
        assert_eq!(*workload.probe_ports, [81, 5000, 8080]);
        let none = Checks {
            probes: [probe(r#"{"exec":{"command":["a"]}}"#), None, None],
            ..Checks::default()
        };
        assert!(none.declared("app").is_none());
    }
}
