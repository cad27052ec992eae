//! What kubelet makes of a pod before it asks the runtime.

use super::cri;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::HashMap;

/// What kubelet asks for a pod with this manifest.
pub(super) fn sandbox_config(
    manifest: &Value,
    attempt: u32,
    cgroup_parent: String,
) -> Result<cri::PodSandboxConfig> {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name").context("pod without a name")?;
    let namespace = text("/metadata/namespace").context("pod without a namespace")?;
    let uid = text("/metadata/uid").unwrap_or_default();
    let pairs = |pointer: &str| -> Result<HashMap<String, String>> {
        let object = manifest.pointer(pointer).and_then(Value::as_object);
        let pair = |(key, value): (&String, &Value)| match value {
            Value::String(value) => Ok((key.clone(), value.clone())),
            other => bail!("{pointer}/{key} is {other}, no string"),
        };
        object.into_iter().flatten().map(pair).collect()
    };
    // What kubelet adds. No pod of its is without annotations, so a plugin can tell a
    // pod that has none of the mesh's from a runtime that passes none.
    let mut labels = pairs("/metadata/labels")?;
    for (key, value) in [("name", name), ("namespace", namespace), ("uid", uid)] {
        labels.insert(format!("io.kubernetes.pod.{key}"), value.to_owned());
    }
    let mut annotations = pairs("/metadata/annotations")?;
    for (key, value) in [("seen", "2026-11-20T10:00:00.000000000Z"), ("source", "api")] {
        annotations.insert(format!("kubernetes.io/config.{key}"), value.to_owned());
    }
    let on_host = manifest.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let namespaces = cri::NamespaceOption { network: if on_host { 2 } else { 0 }, pid: 1 };
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            attempt,
        }),
        hostname: if on_host { String::new() } else { name.to_owned() },
        labels,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
            }),
        }),
    })
}
