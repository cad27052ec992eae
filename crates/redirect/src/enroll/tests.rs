use super::*;
use crate::pod::Container;
use std::collections::BTreeMap;

fn sidecar_pod() -> Pod {
    Pod {
        name: "web".into(),
        namespace: "shop".into(),
        annotations: BTreeMap::from([(annotation::STATUS.into(), "{}".into())]),
        containers: vec![
            Container { name: "app".into(), ..Container::default() },
            Container {
                name: "istio-proxy".into(),
                args: vec!["proxy".into(), "sidecar".into()],
                ..Container::default()
            },
        ],
        ..Pod::default()
    }
}

fn decision(change: impl FnOnce(&mut Pod)) -> Decision {
    let mut pod = sidecar_pod();
    change(&mut pod);
    let config = Config {
        exclude_namespaces: vec!["kube-system".into()],
        agent_namespace: "istio-system".into(),
        ..Config::default()
    };
    decide(&pod, None, &config).unwrap()
}

fn proxy(pod: &mut Pod) -> &mut Container {
    pod.containers.iter_mut().find(|c| c.name == "istio-proxy").unwrap()
}

#[test]
fn every_reason_to_skip_is_found() {
    use SkipReason as R;
    type Change = fn(&mut Pod);
    let table: [(R, Change); 10] = [
        (R::HostNetwork, |p| p.host_network = true),
        (R::OwnAgent, |p| {
            p.name = "istio-cni-node-x7k2p".into();
            p.namespace = "istio-system".into();
        }),
        (R::ExcludedNamespace, |p| p.namespace = "kube-system".into()),
        (R::InitContainer, |p| {
            let name = "istio-init".into();
            p.containers.insert(0, Container { name, init: true, ..Container::default() });
        }),
        (R::EnvoyDisabled, |p| proxy(p).env.push(("DISABLE_ENVOY".into(), "T".into()))),
        (R::NoProxy, |p| p.containers.retain(|c| c.name != "istio-proxy")),
        (R::NotASidecar, |p| proxy(p).args = vec!["proxy".into(), "router".into()]),
        (R::InjectionDisabled, |p| {
            p.annotations.insert(annotation::INJECT.into(), "false".into());
        }),
        (R::NotInjected, |p| {
            p.annotations.remove(annotation::STATUS);
        }),
        (R::InterceptionNone, |p| {
            p.annotations.insert(annotation::INTERCEPTION_MODE.into(), "NONE".into());
        }),
    ];
    assert_eq!(table.len(), R::ALL.len());
    for (reason, change) in table {
        assert_eq!(decision(change), Decision::Skip(reason));
    }
    assert_eq!(decision(|_| {}), Decision::Sidecar);
}

#[test]
fn codes_are_distinct() {
    let mut codes: Vec<_> = SkipReason::ALL.iter().map(|r| r.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), SkipReason::ALL.len());
}

#[test]
fn a_native_sidecar_is_a_sidecar() {
    assert_eq!(decision(|p| proxy(p).init = true), Decision::Sidecar);
}

#[test]
fn the_inject_label_decides_over_the_annotation() {
    let with = |label: &'static str, annotated: &'static str| {
        decision(move |p| {
            p.labels.insert(annotation::INJECT.into(), label.into());
            p.annotations.insert(annotation::INJECT.into(), annotated.into());
        })
    };
    assert_eq!(with("true", "false"), Decision::Sidecar);
    assert_eq!(with("", "false"), Decision::Sidecar, "an empty label still decides");
    assert_eq!(with("no", "false"), Decision::Sidecar, "no boolean is no word");
    assert_eq!(with("false", "true"), Decision::Skip(SkipReason::InjectionDisabled));
}

#[test]
fn the_last_proxy_container_and_variable_count() {
    let twice = |p: &mut Pod| {
        let mut later = proxy(p).clone();
        later.args = vec!["proxy".into(), "router".into()];
        p.containers.push(later);
    };
    assert_eq!(decision(twice), Decision::Skip(SkipReason::NotASidecar));
    let off_again = |p: &mut Pod| {
        for value in ["true", "false"] {
            proxy(p).env.push(("DISABLE_ENVOY".into(), value.into()));
        }
    };
    assert_eq!(decision(off_again), Decision::Sidecar);
    let args = |p: &mut Pod| proxy(p).args = vec!["agent".into(), "router".into()];
    assert_eq!(decision(args), Decision::Sidecar, "no type without `proxy` in front");
}

#[test]
fn own_agent_is_known_by_name_and_namespace_only_together() {
    assert_eq!(decision(|p| p.name = "istio-cni-node-evil".into()), Decision::Sidecar);
}

fn ambient(
    pod_labels: &[(&str, &str)],
    ns_labels: Option<&[(&str, &str)]>,
) -> Result<Decision, DecideError> {
    let labels = |l: &[(&str, &str)]| l.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let pod = Pod {
        name: "web".into(),
        namespace: "shop".into(),
        labels: labels(pod_labels),
        ..Pod::default()
    };
    let ns = ns_labels.map(|l| Namespace { name: "shop".into(), labels: labels(l) });
    decide(&pod, ns.as_ref(), &Config { ambient_enabled: true, ..Config::default() })
}

const MODE: &str = "istio.io/dataplane-mode";

#[test]
fn labels_of_pod_and_namespace_make_a_pod_ambient() {
    let none = Decision::Skip(SkipReason::NoProxy);
    assert_eq!(ambient(&[], Some(&[(MODE, "ambient")])), Ok(Decision::Ambient));
    assert_eq!(ambient(&[(MODE, "none")], Some(&[(MODE, "ambient")])), Ok(none));
    assert_eq!(ambient(&[(MODE, "ambient")], Some(&[])), Ok(Decision::Ambient));
    assert_eq!(ambient(&[], Some(&[])), Ok(none));
    assert_eq!(ambient(&[], Some(&[(MODE, "none")])), Ok(none));
}

#[test]
fn an_unknown_namespace_is_an_error_only_where_it_would_decide() {
    let unknown = Err(DecideError::NamespaceUnknown("shop".into()));
    assert_eq!(ambient(&[], None), unknown);
    assert_eq!(ambient(&[(MODE, "ambient")], None), Ok(Decision::Ambient));
    assert_eq!(ambient(&[(MODE, "none")], None), Ok(Decision::Skip(SkipReason::NoProxy)));
}

#[test]
fn a_sidecar_wins_over_ambient() {
    let mut pod = sidecar_pod();
    pod.labels.insert(MODE.into(), "ambient".into());
    let config = Config { ambient_enabled: true, ..Config::default() };
    assert_eq!(decide(&pod, None, &config), Ok(Decision::Sidecar));
}

#[test]
fn no_selector_means_nothing_is_ambient() {
    let mut pod = Pod::default();
    pod.labels.insert(MODE.into(), "ambient".into());
    let config =
        Config { ambient_enabled: true, enablement_selectors: vec![], ..Config::default() };
    assert_eq!(decide(&pod, None, &config), Ok(Decision::Skip(SkipReason::NoProxy)));
}
