//! Manifests, as people and the injector write them.

use crate::images;
use serde_json::{Value, json};

/// The port that applications serve.
pub const PORT: u16 = 8080;
/// The container with the proxy.
pub const PROXY: &str = "istio-proxy";
/// The container with the application.
pub const APP: &str = "app";

/// A pod outside of the mesh that serves who asks it.
#[must_use]
pub fn plain(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [application()],
        },
    })
}

/// The same pod with what the injector adds where a CNI plugin captures: the init
/// container that looks whether it did, and the proxy.
#[must_use]
pub fn injected(mut pod: Value) -> Value {
    pod["metadata"]["annotations"] = annotations();
    pod["metadata"]["labels"]["security.istio.io/tlsMode"] = json!("istio");
    pod["spec"]["initContainers"] = json!([validation()]);
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(proxy());
    }
    pod
}

/// A mesh pod that ends as soon as it has seen that it is captured: phase Succeeded, or
/// Failed when it is not.
#[must_use]
pub fn probe(namespace: &str, name: &str, node: &str) -> Value {
    let mut app = application();
    app["command"] = json!(["/bin/true"]);
    if let Some(app) = app.as_object_mut() {
        app.remove("readinessProbe");
    }
    // Without the proxy, which would never end: the annotation says that it is there,
    // and what has the name of it is what the agent looks for.
    let mut container = app.clone();
    container["name"] = json!(PROXY);
    container["securityContext"] = json!({"runAsUser": 1337, "runAsGroup": 1337});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"app": name, "probe": "true"}, "annotations": annotations(),
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "initContainers": [validation()],
            "containers": [app, container],
        },
    })
}

/// A Service in front of the pods with a label `app`.
#[must_use]
pub fn service(namespace: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app, "namespace": namespace},
        "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": PORT}]},
    })
}

/// A Deployment with one pod like this one.
#[must_use]
pub fn deployment(pod: &Value) -> Value {
    let metadata = &pod["metadata"];
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": {
            "selector": {"matchLabels": {"app": metadata["labels"]["app"]}},
            "template": {
                "metadata": {
                    "labels": metadata["labels"], "annotations": metadata["annotations"],
                },
                "spec": pod["spec"],
            },
        },
    })
}

fn application() -> Value {
    json!({
        "name": APP,
        "image": images::APP,
        "imagePullPolicy": "Never",
        "command": ["/bin/httpd", "-f", "-p", format!("0.0.0.0:{PORT}"), "-h", "/www"],
        "securityContext": {
            "runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        },
        "readinessProbe": {
            "httpGet": {"path": "/index.html", "port": PORT}, "periodSeconds": 1,
        },
    })
}

/// Of `istio-init`'s place: no capability, and the proxy's user.
fn validation() -> Value {
    json!({
        "name": "istio-validation",
        "image": images::PROXY,
        "imagePullPolicy": "Never",
        "command": ["/bin/validation"],
        "securityContext": restricted(),
    })
}

fn proxy() -> Value {
    let config = e2e_node::envoy::config(e2e_node::envoy::Mode::Redirect);
    json!({
        "name": PROXY,
        "image": images::PROXY,
        "imagePullPolicy": "Never",
        "command": [
            "/bin/envoy", "--disable-hot-restart", "--concurrency", "1",
            "--log-level", "warning", "--config-yaml", config.to_string(),
        ],
        "securityContext": restricted(),
    })
}

fn restricted() -> Value {
    json!({
        "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

fn annotations() -> Value {
    let status = json!({
        "initContainers": ["istio-validation"], "containers": [PROXY],
        "volumes": [], "imagePullSecrets": null, "revision": "default",
    });
    json!({
        "sidecar.istio.io/status": status.to_string(),
        "kubectl.kubernetes.io/default-container": APP,
        "istio.io/rev": "default",
    })
}
