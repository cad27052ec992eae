//! Settings of ambient mode, the same for all pods.

use redirect::ambient::AmbientConfig;
use std::path::PathBuf;
use std::time::Duration;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where ztunnel connects (`ZTUNNEL_UDS_ADDRESS`).
    pub(crate) socket: PathBuf,
    /// Namespace of ztunnel's pods (`SYSTEM_NAMESPACE`).
    pub(crate) system_namespace: String,
    /// How often every captured pod is looked at.
    pub(crate) audit: Duration,
    /// Policy rules for AWS' branch interfaces are kept (`AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE`).
    pub(crate) branch: bool,
    /// What is captured.
    pub(crate) capture: AmbientConfig,
}
