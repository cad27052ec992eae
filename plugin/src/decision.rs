//! What the plugin decides without the agent: pods that cannot be of the mesh
//! whatever the agent thinks, and the agent's own, which could never start if
//! it had to ask itself (Istio's plugin passes the same ones).
//!
//! Whoever else is outside the mesh is the agent's to decide; for times when it is
//! away, see [`crate::absent`].

use wire::cni::{Args, Config};
use wire::snapshot::AGENT_POD_PREFIX;

/// Why a pod passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassThrough {
    /// podman, `ctr`: no Kubernetes pod.
    NotKubernetes,
    /// The agent's own pod.
    OwnAgent,
    /// `exclude_namespaces` names its namespace.
    ExcludedNamespace,
}

impl PassThrough {
    /// For the log.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::NotKubernetes => "CNI_ARGS name no Kubernetes pod",
            Self::OwnAgent => "it is the agent's own pod",
            Self::ExcludedNamespace => "exclude_namespaces has its namespace",
        }
    }
}

/// Whether the pod passes through without the agent; `None` = ask it.
pub(crate) fn without_agent(config: &Config<'_>, args: &Args) -> Option<PassThrough> {
    if !args.is_pod() {
        Some(PassThrough::NotKubernetes)
    } else if args.pod_name.starts_with(AGENT_POD_PREFIX)
        && args.pod_namespace == config.agent_namespace()
    {
        Some(PassThrough::OwnAgent)
    } else if config.excludes(&args.pod_namespace) {
        Some(PassThrough::ExcludedNamespace)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_passes_through() {
        let config = Config::parse(
            br#"{"exclude_namespaces":["kube-system"],"pod_namespace":"istio-system"}"#,
        )
        .unwrap();
        let decide = |args: &str| without_agent(&config, &Args::parse(args).unwrap());
        assert_eq!(decide(""), Some(PassThrough::NotKubernetes));
        assert_eq!(decide("K8S_POD_NAME=a"), Some(PassThrough::NotKubernetes));
        assert_eq!(decide("K8S_POD_NAMESPACE=a"), Some(PassThrough::NotKubernetes));
        assert_eq!(
            decide("K8S_POD_NAME=a;K8S_POD_NAMESPACE=kube-system"),
            Some(PassThrough::ExcludedNamespace)
        );
        assert_eq!(
            decide("K8S_POD_NAME=istio-cni-node-x;K8S_POD_NAMESPACE=istio-system"),
            Some(PassThrough::OwnAgent)
        );
        assert_eq!(decide("K8S_POD_NAME=istio-cni-node-x;K8S_POD_NAMESPACE=default"), None);
        assert_eq!(decide("K8S_POD_NAME=a;K8S_POD_NAMESPACE=istio-system"), None);
        assert_eq!(decide("K8S_POD_NAME=a;K8S_POD_NAMESPACE=kube-systems"), None);
    }

    #[test]
    fn without_a_namespace_of_its_own_nobody_is_the_agent() {
        let config = Config::parse(b"{}").unwrap();
        let args =
            Args::parse("K8S_POD_NAME=istio-cni-node-x;K8S_POD_NAMESPACE=istio-system").unwrap();
        assert_eq!(without_agent(&config, &args), None);
    }
}
