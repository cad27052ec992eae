//! Every option of Istio's agent (reference 6.2, 7.1), by flag and by variable.

use crate::machine::program;
use serde_json::{Value, json};

/// What `install-cni` makes of its arguments and variables.
fn settings(arguments: &[&str], variables: &[(&str, &str)]) -> Value {
    let mut command = program("install-cni");
    command.args(arguments).arg("--print-config");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} {variables:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An option: its flag, what it is without, then a value and what that becomes.
type Row = (&'static str, Value, &'static str, Value);

/// Those with an effect, or that are kept for one.
fn rows() -> Vec<Row> {
    let text =
        |flag, default: &'static str| (flag, json!(default), "some-text", json!("some-text"));
    let switch = |flag, default: Value| (flag, default, "true", json!(true));
    vec![
        text("cni-conf-name", ""),
        ("chained-cni-plugin", json!(null), "false", json!(false)),
        switch("istio-owned-cni-config", json!(null)),
        ("istio-owned-cni-config-filename", json!(null), "01-a.conflist", json!("01-a.conflist")),
        ("cni-agent-run-dir", json!("/var/run/istio-cni"), "/run/x", json!("/run/x")),
        switch("cni-conf-group-read", json!(false)),
        ("monitoring-port", json!(15014), "15999", json!(15999)),
        switch("ambient-enabled", json!(false)),
        switch("enable-ambient-detection-retry", json!(false)),
        ("repair-enabled", json!(true), "false", json!(false)),
        switch("repair-repair-pods", json!(false)),
        switch("repair-delete-pods", json!(false)),
        switch("repair-label-pods", json!(false)),
        text("repair-broken-pod-label-key", "cni.istio.io/uninitialized"),
        text("repair-broken-pod-label-value", "true"),
        text("repair-node-name", ""),
        text("repair-sidecar-annotation", "sidecar.istio.io/status"),
        text("repair-init-container-name", "istio-validation"),
        text("repair-init-container-termination-message", ""),
        ("repair-init-container-exit-code", json!(126), "0x7f", json!(127)),
        text("repair-label-selectors", ""),
        text("repair-field-selectors", ""),
        text("ztunnel-uds-address", "/var/run/ztunnel/ztunnel.sock"),
    ]
}

#[test]
fn flag_before_variable_before_default() {
    let defaults = settings(&[], &[]);
    let variable = |flag: &str| flag.to_uppercase().replace('-', "_");
    for (flag, default, text, value) in rows() {
        assert_eq!(defaults[flag], default, "{flag}");
        let name = variable(flag);
        let by_flag = format!("--{flag}={text}");
        assert_eq!(settings(&[&by_flag], &[])[flag], value, "{by_flag}");
        assert_eq!(settings(&[], &[(&name, text)])[flag], value, "{name}={text}");
        let other = if value.is_boolean() {
            if value == json!(true) { "false" } else { "true" }
        } else if value.is_number() {
            "1"
        } else {
            "other.conflist"
        };
        assert_eq!(
            settings(&[&by_flag], &[(&name, other)])[flag],
            value,
            "{by_flag} {name}={other}"
        );
    }
}

#[test]
fn an_empty_variable_is_set() {
    let variables = [
        ("REPAIR_ENABLED", ""),
        ("CHAINED_CNI_PLUGIN", ""),
        ("MONITORING_PORT", ""),
        ("REPAIR_INIT_CONTAINER_NAME", ""),
        ("REPAIR_INIT_CONTAINER_EXIT_CODE", ""),
        ("FORCE_IPTABLES_BINARY", ""),
        ("AMBIENT_ENABLEMENT_SELECTOR", ""),
    ];
    let found = settings(&[], &variables);
    assert_eq!(found["repair-enabled"], false);
    assert_eq!(found["chained-cni-plugin"], false);
    assert_eq!(found["installer"]["mode"], "standalone");
    assert_eq!(found["monitoring-port"], json!(null), "0, which is none");
    assert_eq!(found["repair-init-container-name"], "");
    assert_eq!(found["repair-init-container-exit-code"], 0);
    assert_eq!(found["installer"]["enablement_selectors"], json!([]));
    assert_eq!(found["warnings"], json!([]));
}

#[test]
fn what_is_no_boolean_is_false_and_said() {
    let found = settings(&["--native-nftables=on"], &[("REPAIR_ENABLED", "yes")]);
    assert_eq!(found["repair-enabled"], false);
    assert_eq!(found["NATIVE_NFTABLES"], false);
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains("REPAIR_ENABLED") && warnings.contains("yes"), "{warnings}");
    assert!(warnings.contains("NATIVE_NFTABLES"), "{warnings}");
}

#[test]
fn options_of_the_environment_alone() {
    let selectors = "- podSelector:\n    matchLabels: {a: b}\n";
    let found = settings(
        &[],
        &[
            ("AMBIENT_ENABLEMENT_SELECTOR", selectors),
            ("EXCLUDE_NAMESPACES", "kube-system, ,b"),
            ("POD_NAMESPACE", "istio-system"),
            ("NATIVE_NFTABLES", "true"),
            ("FORCE_IPTABLES_BINARY", "legacy"),
            ("NODE_NAME", "n1"),
            ("REPAIR_NODE_NAME", "n2"),
            ("MOUNTED_CNI_NET_DIR", "/host/x"),
        ],
    );
    assert_eq!(found["installer"]["exclude_namespaces"], json!(["kube-system", "b"]));
    let list = &found["installer"]["enablement_selectors"];
    assert_eq!(list, &json!([{"podSelector": {"matchLabels": {"a": "b"}}}]));
    assert_eq!(found["POD_NAMESPACE"], "istio-system");
    assert_eq!(found["backend"], "nftables");
    assert_eq!(found["FORCE_IPTABLES_BINARY"], "legacy");
    assert_eq!(found["NODE_NAME"], "n1");
    assert_eq!(found["installer"]["net-dir"], "/host/x");
    assert_eq!(found["installer"]["bin-dir"], "/host/opt/cni/bin");
    let only_repairs = settings(&[], &[("REPAIR_NODE_NAME", "n2")]);
    assert_eq!(only_repairs["NODE_NAME"], "n2");
}

#[test]
fn what_has_no_use_here_is_taken_all_the_same() {
    let flags = [
        "--cni-network-config={}",
        "--cni-network-config-file=/x",
        "--log-level=warn",
        "--kubeconfig-mode=0o600",
        "--kube-ca-file=/x",
        "--skip-tls-verify",
        "--ctrlz_port=9876",
        "--ctrlz_address=localhost",
        "--log_stacktrace_level=default:none",
        "--log_caller=default",
        "--log_target=stdout",
    ];
    let variables = [
        ("CNI_NETWORK_CONFIG", ""),
        ("CNI_NETWORK_CONFIG_FILE", ""),
        ("LOG_LEVEL", "warn"),
        ("KUBECONFIG_MODE", "384"),
        ("KUBE_CA_FILE", ""),
        ("SKIP_TLS_VERIFY", "true"),
        ("ZTUNNEL_UDS_ADDRESS", ""),
        ("AMBIENT_DNS_CAPTURE", "true"),
        ("AMBIENT_IPV6", "true"),
        ("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true"),
        ("AMBIENT_DISABLE_SAFE_UPGRADE", "false"),
        ("ALLOW_SWITCH_TO_HOST_NS", "true"),
        ("REPAIR_RUN_AS_DAEMON", "true"),
        ("CURRENT_AGENT_VERSION", "1.30"),
        ("CNI_NET_DIR", "/etc/cni/net.d"),
        ("KUBERNETES_NODE_NAME", "n"),
        ("REVISION", ""),
        ("POD_NAME", "istio-cni-node-x"),
        ("GOMEMLIMIT", "100"),
    ];
    let found = settings(&flags, &variables);
    assert_eq!(found["log"]["caller"], true);
    assert_eq!(found["log"]["filter"], "info", "--log-level is Istio's dead flag here");
    assert_eq!(found["ignored"].as_array().unwrap().len(), 8, "{found}");
    assert_eq!(found["ztunnel-uds-address"], "/var/run/ztunnel/ztunnel.sock", "empty is none");
    let version = program("install-cni").args(["version", "--short"]).output().unwrap();
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout).trim(), env!("CARGO_PKG_VERSION"));
    assert!(!program("install-cni").arg("--no-such-flag").output().unwrap().status.success());
}

/// The ConfigMap of Istio's chart as it is by default, and the DaemonSet's variables
/// (reference 8.3, 8.4).
#[test]
fn istios_own_manifests_fit() {
    let found = settings(
        &["--log_output_level=info"],
        &[
            ("CURRENT_AGENT_VERSION", "1.30.0"),
            ("AMBIENT_ENABLED", "false"),
            (
                "AMBIENT_ENABLEMENT_SELECTOR",
                "- podSelector:\n    matchLabels:\n      istio.io/dataplane-mode: ambient\n",
            ),
            ("AMBIENT_DNS_CAPTURE", "true"),
            ("AMBIENT_IPV6", "true"),
            ("ISTIO_OWNED_CNI_CONFIG", "false"),
            ("ISTIO_OWNED_CNI_CONF_FILENAME", "02-x.conflist"),
            ("CHAINED_CNI_PLUGIN", "true"),
            ("EXCLUDE_NAMESPACES", "kube-system"),
            ("REPAIR_ENABLED", "true"),
            ("REPAIR_REPAIR_PODS", "true"),
            ("NATIVE_NFTABLES", "false"),
            ("NODE_NAME", "n"),
            ("POD_NAMESPACE", "istio-system"),
        ],
    );
    assert_eq!(found["installer"]["mode"], "in-place");
    assert_eq!(found["warnings"], json!([]));
    assert_eq!(found["backend"], "auto");
    assert_eq!(found["health"], ":8000");
    assert_eq!(found["monitoring-port"], 15014);
    let owned = settings(
        &[],
        &[("ISTIO_OWNED_CNI_CONFIG", "true"), ("ISTIO_OWNED_CNI_CONF_FILENAME", "02-x.conflist")],
    );
    assert_eq!(owned["installer"]["mode"], json!({"owned": "02-x.conflist"}));
}
