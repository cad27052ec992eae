//! What every test stands on.

mod call;
mod fake;
mod sandbox;

pub(crate) use call::{Call, Outcome};
pub(crate) use fake::{Fake, answer, answers, http};
pub(crate) use sandbox::{Sandbox, own_netns};

/// A configuration as a runtime hands it over, with the fake agent's directory
/// and whatever keys the test adds (text that begins with a comma, or nothing).
pub(crate) fn config(version: &str, run_dir: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"mesh","type":"istio-cni","ipam":{{}},"dns":{{}},"plugin_log_level":"debug","cni_agent_run_dir":"{run_dir}","ambient_enabled":false,"enablement_selectors":[],"exclude_namespaces":["kube-system"],"pod_namespace":"istio-system","native_nftables":false,"agent_timeout_ms":15000{more}}}"#
    )
}
