//! Ambient options in the words of the conformance cases.

use super::CaseError;
use crate::ambient::{AmbientPlan, Ipv6, PROBE_V4, PROBE_V6, ProbePorts};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The agent's options, with what a pod says otherwise; what is absent is off.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AmbientCase {
    redirect_dns: bool,
    enable_ipv6: bool,
    host_probe_snat_v4: Ipv4Addr,
    host_probe_snat_v6: Ipv6Addr,
    pod: PodOptions,
    /// The case is about the host's rules and makes no pod's plan.
    pub host: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PodOptions {
    ingress_mode: bool,
    dns_proxy: Option<bool>,
    virtual_interfaces: Vec<String>,
}

impl Default for AmbientCase {
    fn default() -> Self {
        Self {
            redirect_dns: false,
            enable_ipv6: false,
            host_probe_snat_v4: PROBE_V4,
            host_probe_snat_v6: PROBE_V6,
            pod: PodOptions::default(),
            host: false,
        }
    }
}

impl AmbientCase {
    /// True when the text of a JSON object has options that only ambient has.
    #[must_use]
    pub fn is_one(json: &str) -> bool {
        #[derive(Deserialize)]
        struct Keys {
            pod: Option<IgnoredAny>,
            host_probe_snat_v4: Option<IgnoredAny>,
            host_probe_snat_v6: Option<IgnoredAny>,
        }
        serde_json::from_str(json).is_ok_and(|keys: Keys| {
            keys.pod.or(keys.host_probe_snat_v4).or(keys.host_probe_snat_v6).is_some()
        })
    }

    /// Reads the options from the text of a JSON object.
    ///
    /// # Errors
    ///
    /// [`CaseError::Json`] on malformed JSON, an unknown option or a wrong type.
    pub fn parse(json: &str) -> Result<Self, CaseError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The plan, for a namespace that has all of IPv6 where it is enabled.
    ///
    /// # Errors
    ///
    /// [`CaseError::Value`] names the option, the item and what is allowed.
    pub fn plan(&self) -> Result<AmbientPlan, CaseError> {
        let nic = |name: &String| super::item("virtual_interfaces", name);
        Ok(AmbientPlan {
            ipv6: if self.enable_ipv6 { Ipv6::Present } else { Ipv6::Absent },
            inbound: !self.pod.ingress_mode,
            dns: self.pod.dns_proxy.unwrap_or(self.redirect_dns),
            virtual_interfaces: self
                .pod
                .virtual_interfaces
                .iter()
                .map(nic)
                .collect::<Result<_, _>>()?,
            probe_v4: self.host_probe_snat_v4,
            probe_v6: self.host_probe_snat_v6,
            probe_ports: ProbePorts::Any,
        })
    }
}
