use super::*;
use redirect::enroll::{Config, decide};
use redirect::sidecar::plan;

fn scope() -> Scope {
    Scope { node: "n1".into(), annotations: vec!["example.com/kept".into()] }
}

fn read(json: &serde_json::Value) -> Decoded<(PodName, Seen)> {
    pod(&json.to_string(), &scope())
}

fn usable(json: &serde_json::Value) -> NodePod {
    match read(json) {
        Decoded::Object((_, Seen::Usable(pod))) => *pod,
        other => panic!("{other:?}"),
    }
}

fn injected() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "a", "namespace": "n", "uid": "u1", "resourceVersion": "12",
            "labels": {"app": "a", "empty": null},
            "annotations": {
                "sidecar.istio.io/status": "{}",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "25",
                "kubectl.kubernetes.io/last-applied-configuration": "{\"password\":\"x\"}",
                "example.com/kept": "yes",
            },
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:metadata": {}}}],
        },
        "spec": {
            "nodeName": "n1",
            "initContainers": [{"name": "istio-validation", "env": [{"name": "X", "value": "secret"}]}],
            "containers": [
                {"name": "app", "args": ["--password=secret"], "env": [{"name": "P", "value": "secret"}]},
                {
                    "name": "istio-proxy",
                    "args": ["proxy", "sidecar", "--domain", "n.svc"],
                    "env": [
                        {"name": "ISTIO_META_DNS_CAPTURE", "value": "true"},
                        {"name": "TOKEN", "value": "secret"},
                        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    ],
                    "securityContext": {"runAsUser": 1337, "runAsGroup": 1337, "privileged": false},
                },
            ],
        },
        "status": {
            "phase": "Pending", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}],
            "initContainerStatuses": [{
                "name": "istio-validation",
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 126, "message": "no\nrules"}},
            }],
        },
    })
}

#[test]
fn keeps_what_decides_and_nothing_secret() {
    let pod = usable(&injected());
    assert!(!format!("{pod:?}").contains("secret"), "{pod:?}");
    assert!(!format!("{pod:?}").contains("password"), "{pod:?}");
    assert_eq!(pod.facts.labels["empty"], "");
    assert_eq!(pod.facts.annotation("example.com/kept"), Some("yes"));
    assert_eq!(pod.addresses.len(), 2);
    assert_eq!(pod.phase, Phase::Pending);
    let ended = Ended { code: 126, message: "no\nrules".into() };
    let name = "istio-validation".to_owned();
    assert_eq!(pod.init, [InitStatus { name, completed: false, last: Some(ended) }]);
}

/// The decision and the plan are those of the whole pod.
#[test]
fn decides_as_the_whole_pod_does() {
    let changes: [fn(&mut serde_json::Value); 8] = [
        |_| {},
        |pod| pod["metadata"]["annotations"] = serde_json::json!({}),
        |pod| pod["spec"]["containers"][1]["args"] = serde_json::json!(["proxy", "router"]),
        |pod| pod["spec"]["hostNetwork"] = true.into(),
        |pod| pod["spec"]["initContainers"][0]["name"] = "istio-init".into(),
        |pod| pod["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into(),
        |pod| {
            let env = [("DISABLE_ENVOY", "1"), ("INVALID_DROP", "1"), ("ISTIO_DUAL_STACK", "1")];
            let env = env.map(|(name, value)| serde_json::json!({"name": name, "value": value}));
            pod["spec"]["containers"][1]["env"] = serde_json::json!(env);
        },
        |pod| {
            let proxy = pod["spec"]["containers"].as_array_mut().unwrap().pop().unwrap();
            pod["spec"]["initContainers"].as_array_mut().unwrap().push(proxy);
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut json = injected();
        change(&mut json);
        let whole = crate::source::manifest::parse(&json.to_string()).unwrap().pods.remove(0);
        let slim = usable(&json).facts;
        let config = Config::default();
        assert_eq!(decide(&slim, None, &config), decide(&whole, None, &config), "{number}");
        let addresses = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(plan(&slim, &config, &addresses), plan(&whole, &config, &addresses), "{number}");
    }
}

#[test]
fn what_lacks_a_field_is_kept_as_unusable() {
    for path in
        [&["metadata", "uid"][..], &["spec", "nodeName"], &["spec", "containers"], &["spec"]]
    {
        let mut json = injected();
        let (last, parents) = path.split_last().unwrap();
        let parent = parents.iter().fold(&mut json, |value, key| &mut value[key]);
        parent.as_object_mut().unwrap().remove(*last);
        match read(&json) {
            Decoded::Object((name, Seen::Unusable { problem, .. })) => {
                assert_eq!(name.to_string(), "n/a");
                assert!(problem.contains("missing"), "{problem}");
            }
            other => panic!("{path:?}: {other:?}"),
        }
    }
    let mut json = injected();
    json["spec"]["containers"] = "none".into();
    assert!(matches!(read(&json), Decoded::Object((_, Seen::Unusable { .. }))));
    json["spec"]["nodeName"] = "n2".into();
    json["spec"]["containers"] = serde_json::json!([]);
    assert!(matches!(read(&json), Decoded::Foreign));
    for text in
        ["", "{}", "[]", "{\"metadata\":{}}", "{\"metadata\":{\"name\":5}}", "null", "\u{0}"]
    {
        assert!(matches!(pod(text, &scope()), Decoded::Broken(_)), "{text:?}");
    }
}

#[test]
fn a_static_pod_has_two_uids() {
    let mut json = injected();
    json["metadata"]["annotations"]["kubernetes.io/config.hash"] = "file".into();
    let pod = usable(&json);
    assert!(pod.has_uid("u1") && pod.has_uid("file") && !pod.has_uid("") && !pod.has_uid("u2"));
}

#[test]
fn marks_of_a_watch() {
    let end = r#"{"kind":"Pod","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}"#;
    let marker: super::super::raw::Marker<'_> = serde_json::from_str(end).unwrap();
    assert!(marker.ends_list());
    assert_eq!(marker.version(), Some("7"));
}
