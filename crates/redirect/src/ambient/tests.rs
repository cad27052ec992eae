use super::*;

fn pod(annotations: &[(&str, &str)]) -> Pod {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Pod { annotations: annotations.collect(), ..Pod::default() }
}

fn planned(annotations: &[(&str, &str)]) -> Result<AmbientPlan, String> {
    plan(&pod(annotations), &AmbientConfig::default(), Ipv6::Present).map_err(|e| e.to_string())
}

#[test]
fn without_annotations_the_agents_options_hold() {
    let plan = planned(&[]).unwrap();
    assert!(plan.inbound && !plan.dns && plan.virtual_interfaces.is_empty());
    assert_eq!((plan.probe_v4, plan.probe_v6), (PROBE_V4, PROBE_V6));
    assert_eq!(plan.ipv6, Ipv6::Present);
    let config = AmbientConfig { dns_capture: true, ipv6: false, ..AmbientConfig::default() };
    let plan = super::plan(&pod(&[]), &config, Ipv6::Present).unwrap();
    assert!(plan.dns);
    assert_eq!(plan.ipv6, Ipv6::Absent, "the agent's switch is for every pod");
}

#[test]
fn a_pod_overrides_the_agent() {
    let config = AmbientConfig { dns_capture: true, ..AmbientConfig::default() };
    for (value, want) in [("false", false), ("0", false), ("T", true), ("true", true)] {
        let pod = pod(&[(annotation::DNS_CAPTURE, value)]);
        assert_eq!(super::plan(&pod, &config, Ipv6::Absent).unwrap().dns, want, "{value}");
    }
    assert!(!planned(&[(annotation::BYPASS_INBOUND_CAPTURE, "true")]).unwrap().inbound);
    let nics = planned(&[(annotation::REROUTE_VIRTUAL_INTERFACES, " br-* ,,tap0,tap0")]).unwrap();
    let names: Vec<String> = nics.virtual_interfaces.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["br-*", "tap0"]);
}

#[test]
fn a_wrong_value_is_refused_at_the_start() {
    for (key, value) in [
        (annotation::DNS_CAPTURE, "yes"),
        (annotation::DNS_CAPTURE, ""),
        (annotation::DNS_CAPTURE, " true"),
        (annotation::BYPASS_INBOUND_CAPTURE, "tru"),
        (annotation::REROUTE_VIRTUAL_INTERFACES, "br-*,eth0 -j ACCEPT"),
    ] {
        let error = planned(&[(key, value)]).unwrap_err();
        assert!(error.contains(key) && error.contains(&format!("{value:?}")), "{error}");
        assert!(error.contains("want "), "{error}");
    }
}

#[test]
fn a_running_pod_is_captured_all_the_same() {
    let pod = pod(&[
        (annotation::BYPASS_INBOUND_CAPTURE, "maybe"),
        (annotation::DNS_CAPTURE, "yes"),
        (annotation::REROUTE_VIRTUAL_INTERFACES, "tap0,\"x\""),
    ]);
    let config = AmbientConfig { dns_capture: true, ..AmbientConfig::default() };
    let (plan, errors) = plan_running(&pod, &config, Ipv6::Present);
    assert!(plan.inbound && plan.dns);
    assert_eq!(plan.virtual_interfaces, ["tap0".parse().unwrap()]);
    assert_eq!(errors.len(), 3, "{errors:?}");
}
