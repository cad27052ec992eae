use super::*;
use clap::CommandFactory;
use serde_json::{Value, json};

fn parse(arguments: &[&str]) -> AgentArgs {
    let all = [&["install-cni"], arguments].concat();
    let all: Vec<OsString> = all.into_iter().map(OsString::from).collect();
    match Cli::try_parse_from(renamed(all)).unwrap_or_else(|e| panic!("{arguments:?}: {e}")).command
    {
        Command::InstallCni(args) => args.agent,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_name_decides() {
    let renamed = |name: &str| renamed(vec![name.into(), "--x".into()]);
    assert_eq!(
        renamed("/usr/local/bin/install-cni"),
        ["/usr/local/bin/install-cni", "install-cni", "--x"]
    );
    assert_eq!(renamed("install-cni"), ["install-cni", "install-cni", "--x"]);
    for name in ["sluice", "/opt/install-cni/sluice", "install-cni.old"] {
        assert_eq!(renamed(name), [name, "--x"]);
    }
}

/// What Istio's own pods are started with (reference 8.4).
#[test]
fn takes_the_charts_arguments() {
    let args = parse(&["--log_output_level=default:info,cni:debug,ambient:debug", "--log_as_json"]);
    let printed = args.printed(Entry::InstallCni);
    assert_eq!(printed["log"]["format"], "json");
    assert_eq!(printed["log"]["targets"], json!(["Stdout"]));
    assert_eq!(printed["installer"]["mode"], json!({"owned": null}));
    assert_eq!(printed["warnings"].as_array().unwrap().len(), 2, "{printed}");
}

#[test]
fn gos_flags_are_understood() {
    for (arguments, on) in [
        (&["--ambient-enabled"][..], true),
        (&["--ambient-enabled=true"], true),
        (&["--ambient-enabled", "true"], true),
        (&["--ambient-enabled=0"], false),
        (&["--ambient-enabled=true", "--ambient-enabled=false"], false),
        (&["--ambient-enabled", "--log_as_json"], true),
        (&["--ambient-enabled=perhaps"], false),
    ] {
        let args = parse(arguments);
        assert_eq!(args.policy.ambient_enabled.is_on(), on, "{arguments:?}");
        let warned = args.warnings(Entry::InstallCni).iter().any(|w| w.contains("AMBIENT_ENABLED"));
        assert_eq!(warned, arguments[0].contains("perhaps"), "{arguments:?}");
    }
}

#[test]
fn installs_only_when_it_should() {
    let agent = |arguments: &[&str]| {
        let all = [&["sluice", "agent"], arguments].concat();
        match Cli::try_parse_from(all).unwrap().command {
            Command::Agent(args) => args,
            other => panic!("{other:?}"),
        }
    };
    let installs = |args: &AgentArgs, entry| args.installation(entry).unwrap().is_some();
    assert!(installs(&parse(&[]), Entry::InstallCni));
    assert!(!installs(&parse(&["--install=false"]), Entry::InstallCni));
    assert!(!installs(&agent(&["--pods", "/p"]), Entry::Agent));
    assert!(!installs(&agent(&[]), Entry::Agent));
    assert!(installs(&agent(&["--install"]), Entry::Agent));
    // On a machine without Kubernetes no port is opened that nobody asked for.
    let alone = agent(&["--pods", "/p"]);
    assert_eq!((alone.health(), alone.monitoring().unwrap()), (None, None));
    let asked = agent(&["--pods", "/p", "--health-address=127.0.0.1:8000", "--monitoring-port=1"]);
    assert_eq!(asked.health().unwrap().to_string(), "127.0.0.1:8000");
    assert_eq!(asked.monitoring().unwrap().unwrap().to_string(), ":1");
    for none in ["0", "-1"] {
        assert_eq!(parse(&["--monitoring-port", none]).monitoring().unwrap(), None);
    }
    let error = parse(&["--monitoring-port=70000"]).monitoring().unwrap_err();
    assert!(error.to_string().contains("MONITORING_PORT"), "{error}");
}

#[test]
fn a_setting_that_cannot_work_is_named() {
    for (arguments, part) in [
        (&["--cni-conf-name=a/b"][..], "CNI_CONF_NAME"),
        (&["--istio-owned-cni-config-filename=x.conf"], "ISTIO_OWNED_CNI_CONFIG_FILENAME"),
        (&["--log_output_level=all:loud"], "loud"),
        (&["--ambient-enablement-selector={"], "--ambient-enablement-selector"),
    ] {
        let error = parse(arguments).installation(Entry::InstallCni).unwrap_err();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let Value::Array(ignored) = parse(&["--kubeconfig-mode=0600", "--ctrlz_port", "9876"])
        .printed(Entry::InstallCni)["ignored"]
        .clone()
    else {
        panic!("no list")
    };
    assert_eq!(ignored, ["--kubeconfig-mode=0600", "--ctrlz_port=9876"]);
    let help =
        Cli::command().find_subcommand_mut("install-cni").unwrap().render_long_help().to_string();
    for part in ["Accepted without effect", "--ctrlz_port", "AMBIENT_DISABLE_SAFE_UPGRADE"] {
        assert!(help.contains(part), "{part}:\n{help}");
    }
}

#[test]
fn branch_interfaces_and_the_hosts_network_are_as_they_are_set() {
    let branch = |arguments: &[&str]| parse(arguments).ambient_options().unwrap().branch;
    assert!(branch(&[]), "Istio's default");
    assert!(!branch(&["--ambient-enable-aws-branch-eni-probe=false"]));
    let on_host = |arguments: &[&str]| {
        let installation = parse(arguments).installation(Entry::InstallCni).unwrap();
        installation.unwrap().1.agent_host_network
    };
    assert!(!on_host(&[]), "found out by the agent itself");
    assert!(on_host(&["--agent-host-network=true"]));
    assert!(!on_host(&["--agent-host-network=false"]));
}

#[test]
fn repair_is_what_istios_settings_say() {
    use crate::repair::Mode;
    let repair = |arguments: &[&str]| parse(&[&["--node-name=n"], arguments].concat()).repair();
    let mode = |arguments: &[&str]| repair(arguments).unwrap().map(|settings| settings.mode);
    assert_eq!(mode(&[]), None);
    assert_eq!(mode(&["--repair-label-pods"]), Some(Mode::Label));
    assert_eq!(mode(&["--repair-label-pods", "--repair-delete-pods"]), Some(Mode::Delete));
    let all = ["--repair-label-pods", "--repair-delete-pods", "--repair-repair-pods"];
    assert_eq!(mode(&all), Some(Mode::Repair));
    assert_eq!(mode(&["--repair-repair-pods", "--repair-enabled=false"]), None);
    assert_eq!(mode(&["--repair-repair-pods", "--pods=/x"]), None, "needs the API");
    let error = repair(&["--repair-repair-pods", "--repair-field-selectors=spec.x=y"]).unwrap_err();
    assert!(error.to_string().contains("--repair-field-selectors"), "{error}");
}
