//! The settings that are in force, as JSON.

use super::{AgentArgs, Entry, Switch};
use crate::failure::causes;
use crate::install::Mode;
use serde_json::{Value, json};

impl AgentArgs {
    /// Everything that Istio's manifests set, under the names of Istio's flags (as a
    /// variable's where there is no flag), and what became of it.
    pub(crate) fn printed(&self, entry: Entry) -> Value {
        let on = |switch: &Option<Switch>| switch.as_ref().map(Switch::is_on);
        let (install, policy, repair) = (&self.install, &self.policy, &self.repair);
        let mut settings = json!({
            "cni-conf-name": install.cni_conf_name,
            "chained-cni-plugin": on(&install.chained_cni_plugin),
            "istio-owned-cni-config": on(&install.istio_owned_cni_config),
            "istio-owned-cni-config-filename": install.istio_owned_cni_config_filename,
            "ISTIO_OWNED_CNI_CONF_FILENAME": install.istio_owned_cni_conf_filename,
            "cni-conf-group-read": install.cni_conf_group_read.is_on(),
            "enable-ambient-detection-retry": install.enable_ambient_detection_retry.is_on(),
            "cni-agent-run-dir": self.run_dir(),
            "monitoring-port": self.monitoring().map_or_else(|e| json!(causes(&e)), |l| json!(l.map(|l| l.port))),
            "health": self.health().map(|listen| listen.to_string()),
            "ambient-enabled": policy.ambient_enabled.is_on(),
            "AMBIENT_ENABLEMENT_SELECTOR": policy.ambient_enablement_selector,
            "ztunnel-uds-address": self.ambient.socket(),
            "AMBIENT_DNS_CAPTURE": self.ambient.ambient_dns_capture.is_on(),
            "AMBIENT_IPV6": self.ambient.ambient_ipv6.is_on(),
            "AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE": self.ambient.ambient_enable_aws_branch_eni_probe.is_on(),
            "HOST_PROBE_SNAT_IP": self.ambient.host_probe_snat_ip,
            "HOST_PROBE_SNAT_IPV6": self.ambient.host_probe_snat_ipv6,
            "SYSTEM_NAMESPACE": self.ambient.system_namespace,
            "EXCLUDE_NAMESPACES": policy.exclude_namespaces,
            "POD_NAMESPACE": policy.agent_namespace,
            "NATIVE_NFTABLES": self.native_nftables.is_on(),
            "FORCE_IPTABLES_BINARY": self.search().force.map(|kind| format!("{kind:?}").to_lowercase()),
            "NODE_NAME": self.source().kubernetes.node_name,
            "backend": format!("{:?}", self.choice()).to_lowercase(),
            "repair-enabled": repair.repair_enabled.is_on(),
            "repair-repair-pods": repair.repair_repair_pods.is_on(),
            "repair-delete-pods": repair.repair_delete_pods.is_on(),
            "repair-label-pods": repair.repair_label_pods.is_on(),
            "repair-broken-pod-label-key": repair.repair_broken_pod_label_key,
            "repair-broken-pod-label-value": repair.repair_broken_pod_label_value,
            "repair-node-name": repair.repair_node_name,
            "repair-sidecar-annotation": repair.repair_sidecar_annotation,
            "repair-init-container-name": repair.repair_init_container_name,
            "repair-init-container-termination-message": repair.repair_init_container_termination_message,
            "repair-init-container-exit-code": repair.repair_init_container_exit_code.0,
            "repair-label-selectors": repair.repair_label_selectors,
            "repair-field-selectors": repair.repair_field_selectors,
        });
        settings["log"] = self.printed_log(entry);
        settings["installer"] = self.printed_installation(entry);
        settings["ignored"] = json!(self.ignored());
        settings["warnings"] = json!(self.warnings(entry));
        settings
    }

    fn printed_log(&self, entry: Entry) -> Value {
        match self.log(entry) {
            Ok(log) => json!({
                "filter": log.filter,
                "format": format!("{:?}", log.format).to_lowercase(),
                "targets": log.targets.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>(),
                "caller": log.caller,
            }),
            Err(error) => json!(causes(&error)),
        }
    }

    fn printed_installation(&self, entry: Entry) -> Value {
        match self.installation(entry) {
            Ok(None) => Value::Null,
            Ok(Some((settings, plugin))) => json!({
                "net-dir": settings.net_dir,
                "bin-dir": settings.bin_dir,
                "plugin-dir": settings.binaries,
                "mode": match settings.mode {
                    Mode::Owned { file_name } => json!({"owned": file_name}),
                    Mode::InPlace => json!("in-place"),
                    Mode::Standalone => json!("standalone"),
                },
                "plugin_log_level": plugin.log_level,
                "exclude_namespaces": plugin.exclude_namespaces,
                "enablement_selectors": plugin.enablement_selectors,
            }),
            Err(error) => json!(format!("{error:#}")),
        }
    }
}
