//! Settings of ambient mode; the variables are Istio's (reference 4.19).

use super::policy::ConfigError;
use super::{Switch, switch};
use crate::ambient::Options;
use clap::Args;
use redirect::ambient::AmbientConfig;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Istio's default.
const SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";

/// With `--ambient-enabled`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ambient mode")]
pub(super) struct AmbientArgs {
    /// Socket that the node's ztunnel connects to.
    #[arg(
        long,
        env = "ZTUNNEL_UDS_ADDRESS",
        value_name = "PATH",
        default_value = SOCKET
    )]
    ztunnel_uds_address: String,
    /// Capture DNS of pods that do not say otherwise.
    #[arg(
        long,
        env = "AMBIENT_DNS_CAPTURE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) ambient_dns_capture: Switch,
    /// Capture IPv6 of pods that have it.
    #[arg(
        long,
        env = "AMBIENT_IPV6",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "true",
        value_parser = switch
    )]
    pub(super) ambient_ipv6: Switch,
    /// With AWS' security groups for pods: add the policy rules that kubelet's probes of
    /// pods behind branch interfaces need.
    #[arg(
        long,
        env = "AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "true",
        value_parser = switch
    )]
    pub(super) ambient_enable_aws_branch_eni_probe: Switch,
    /// Source address of kubelet's probes to ambient pods.
    #[arg(
        long,
        env = "HOST_PROBE_SNAT_IP",
        value_name = "ADDRESS",
        default_value = "169.254.7.127"
    )]
    pub(super) host_probe_snat_ip: String,
    /// The same of IPv6.
    #[arg(
        long,
        env = "HOST_PROBE_SNAT_IPV6",
        value_name = "ADDRESS",
        default_value = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
    )]
    pub(super) host_probe_snat_ipv6: String,
    /// Seconds between looks at every captured pod.
    #[arg(long, env = "SLUICE_AUDIT_SECONDS", value_name = "N", default_value = "30", hide = true)]
    pub(super) audit_seconds: u16,
    /// Look at a captured pod as soon as the kernel notifies of a change, too.
    #[arg(
        long,
        env = "SLUICE_AUDIT_ON_CHANGE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "true",
        value_parser = switch,
        hide = true
    )]
    pub(super) audit_on_change: Switch,
    /// Namespace of ztunnel's own pods, which are never ambient.
    #[arg(
        long,
        env = "SYSTEM_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "istio-system"
    )]
    pub(super) system_namespace: String,
}

impl AmbientArgs {
    /// The settings.
    ///
    /// # Errors
    ///
    /// When an address is none.
    pub(super) fn options(&self) -> Result<Options, ConfigError> {
        let wrong = |option, value: &str, want| ConfigError::Value {
            option,
            value: value.to_owned(),
            problem: format!("want an {want} address"),
        };
        let (v4, v6) = (&self.host_probe_snat_ip, &self.host_probe_snat_ipv6);
        let probe_v4: Ipv4Addr = v4
            .parse()
            .map_err(|_| wrong("--host-probe-snat-ip (HOST_PROBE_SNAT_IP)", v4, "IPv4"))?;
        let probe_v6: Ipv6Addr = v6
            .parse()
            .map_err(|_| wrong("--host-probe-snat-ipv6 (HOST_PROBE_SNAT_IPV6)", v6, "IPv6"))?;
        Ok(Options {
            socket: self.socket(),
            system_namespace: self.system_namespace.clone(),
            audit: self.audit(),
            branch: self.ambient_enable_aws_branch_eni_probe.is_on(),
            capture: AmbientConfig {
                dns_capture: self.ambient_dns_capture.is_on(),
                ipv6: self.ambient_ipv6.is_on(),
                probe_v4,
                probe_v6,
            },
        })
    }

    /// A chart may leave it empty.
    pub(super) fn socket(&self) -> PathBuf {
        let given = self.ztunnel_uds_address.trim();
        PathBuf::from(if given.is_empty() { SOCKET } else { given })
    }

    /// See the option.
    pub(super) fn audit(&self) -> Duration {
        Duration::from_secs(self.audit_seconds.max(1).into())
    }

    pub(super) fn switches(&self) -> [(&'static str, &Switch); 4] {
        [
            ("ambient-dns-capture", &self.ambient_dns_capture),
            ("ambient-ipv6", &self.ambient_ipv6),
            ("ambient-enable-aws-branch-eni-probe", &self.ambient_enable_aws_branch_eni_probe),
            ("audit-on-change", &self.audit_on_change),
        ]
    }
}
