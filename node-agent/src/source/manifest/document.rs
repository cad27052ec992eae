//! What a manifest says, as Kubernetes shapes it.

use crate::source::workload::{Checks, RawLifecycle, RawPort, RawProbe, Workload};
use redirect::host::Declared;
use redirect::pod::{Container, Pod};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// One document, or an item of a list.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Document {
    #[serde(deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(super) spec: Spec,
    #[serde(deserialize_with = "nullable")]
    pub(super) items: Vec<Document>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Metadata {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    #[serde(deserialize_with = "nullable")]
    namespace: String,
    #[serde(deserialize_with = "nullable")]
    uid: String,
    #[serde(deserialize_with = "nullable_values")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable_values")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(deserialize_with = "nullable")]
    host_network: bool,
    #[serde(deserialize_with = "nullable")]
    service_account_name: String,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<SpecContainer>,
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<SpecContainer>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SpecContainer {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<EnvVar>,
    #[serde(deserialize_with = "nullable")]
    security_context: SecurityContext,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<RawPort>,
    liveness_probe: Option<RawProbe>,
    readiness_probe: Option<RawProbe>,
    startup_probe: Option<RawProbe>,
    lifecycle: Option<RawLifecycle>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EnvVar {
    #[serde(deserialize_with = "nullable")]
    name: String,
    // `valueFrom` is not followed: upstream reads literal values only (reference 2.4).
    #[serde(deserialize_with = "nullable")]
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SecurityContext {
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
}

/// `null` is the same as absent, as the API server has it.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn nullable_values<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    Ok(map
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect())
}

impl Document {
    /// The facts of a pod.
    pub(super) fn into_pod(mut self) -> (Pod, Workload) {
        let Metadata { name, namespace, uid, labels, annotations } = self.metadata;
        let containers = self.spec.init_containers.iter_mut().chain(&mut self.spec.containers);
        let declared: Vec<Declared> = containers.filter_map(SpecContainer::declared).collect();
        let workload = Workload::new(Some(&self.spec.service_account_name), &declared);
        let init = self.spec.init_containers.into_iter().map(|c| c.into_facts(true));
        let regular = self.spec.containers.into_iter().map(|c| c.into_facts(false));
        let pod = Pod {
            name,
            namespace: if namespace.is_empty() { "default".to_owned() } else { namespace },
            uid: (!uid.is_empty()).then_some(uid),
            labels,
            annotations,
            host_network: self.spec.host_network,
            containers: init.chain(regular).collect(),
        };
        (pod, workload)
    }
}

impl SpecContainer {
    fn declared(&mut self) -> Option<Declared> {
        let checks = Checks {
            ports: std::mem::take(&mut self.ports),
            probes: [
                self.liveness_probe.take(),
                self.readiness_probe.take(),
                self.startup_probe.take(),
            ],
            lifecycle: self.lifecycle.take(),
        };
        checks.declared(&self.name)
    }

    fn into_facts(self, init: bool) -> Container {
        Container {
            name: self.name,
            init,
            args: self.args,
            env: self.env.into_iter().map(|e| (e.name, e.value)).collect(),
            run_as_user: self.security_context.run_as_user,
            run_as_group: self.security_context.run_as_group,
        }
    }
}
