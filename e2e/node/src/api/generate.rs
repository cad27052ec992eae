//! Objects as large as a real cluster's.

use serde_json::{Value, json};

/// Size of a pod's JSON, as measured in clusters with Istio (dependencies.md 0).
const POD_BYTES: usize = 11 << 10;

/// A mesh pod of a node, about 11 KB of JSON: managed fields, volumes, a sidecar
/// with its environment.
#[must_use]
pub fn generated_pod(node: &str, number: usize, namespaces: usize) -> Value {
    let name = format!("app-{number}-6d5f8b7c9d-x2k4{}", number % 10);
    let namespace = format!("team-{}", number % namespaces.max(1));
    let env = |prefix: &str, count: usize| -> Vec<Value> {
        let var = |n: usize| json!({"name": format!("{prefix}_{n}"), "value": format!("value-{n}-of-{prefix}-{number}")});
        (0..count).map(var).collect()
    };
    let mut proxy_env = env("ISTIO_META_SETTING", 20);
    proxy_env.push(json!({"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}));
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": format!("app-{number}-6d5f8b7c9d-"),
            "namespace": namespace,
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-11-20T08:00:00Z",
            "labels": {
                "app": format!("app-{number}"), "pod-template-hash": "6d5f8b7c9d",
                "security.istio.io/tlsMode": "istio",
                "service.istio.io/canonical-name": format!("app-{number}"),
                "service.istio.io/canonical-revision": "latest",
                "team": namespace,
            },
            "annotations": {
                "sidecar.istio.io/status": "{\"initContainers\":[\"istio-validation\"],\"containers\":[\"istio-proxy\"],\"volumes\":[\"workload-socket\",\"credential-socket\",\"workload-certs\",\"istio-envoy\",\"istio-data\",\"istio-podinfo\",\"istio-token\",\"istiod-ca-cert\"],\"imagePullSecrets\":null,\"revision\":\"default\"}",
                "istio.io/rev": "default",
                "kubectl.kubernetes.io/default-container": "app",
                "prometheus.io/scrape": "true",
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{number}-6d5f8b7c9d"), "uid": "u", "controller": true}],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "initContainers": [{"name": "istio-validation", "image": "proxyv2:1.30.0", "args": ["istio-iptables", "-p", "15001"], "env": env("VALIDATION", 5)}],
            "containers": [
                {"name": "app", "image": format!("registry.example.com/app-{number}:v1"), "env": env("APP", 30), "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
                {"name": "istio-proxy", "image": "proxyv2:1.30.0", "args": ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local"], "env": proxy_env, "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            ],
            "volumes": (0..8).map(|n| json!({"name": format!("volume-{n}"), "emptyDir": {}})).collect::<Vec<_>>(),
        },
        "status": {
            "phase": "Running",
            "podIP": format!("10.244.{}.{}", number / 250, number % 250 + 2),
            "podIPs": [{"ip": format!("10.244.{}.{}", number / 250, number % 250 + 2)}],
            "initContainerStatuses": [{"name": "istio-validation", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "lastState": {}}],
        },
    });
    fill(&mut pod, POD_BYTES);
    pod
}

/// A namespace as a cluster has it, labels and managed fields.
#[must_use]
pub fn generated_namespace(number: usize) -> Value {
    let name = format!("team-{number}");
    let mut namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": format!("11111111-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-11-20T08:00:00Z",
            "labels": {
                "kubernetes.io/metadata.name": name,
                "istio-injection": "enabled",
                "team": format!("group-{}", number % 40),
            },
        },
        "status": {"phase": "Active"},
    });
    fill(&mut namespace, 900);
    namespace
}

/// Managed fields, until the object is so large.
fn fill(object: &mut Value, bytes: usize) {
    let mut fields = serde_json::Map::new();
    let size = object.to_string().len();
    let mut added = 0;
    let mut number = 0;
    while size + added + 200 < bytes {
        let key = format!("k:{{\"name\":\"FIELD_{number}\"}}");
        added += key.len() + 30;
        fields.insert(key, json!({".": {}, "f:name": {}}));
        number += 1;
    }
    object["metadata"]["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-11-20T08:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields},
    }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_as_large_as_a_real_one() {
        let size = generated_pod("n", 1, 10).to_string().len();
        assert!((10 << 10..13 << 10).contains(&size), "{size}");
    }
}
