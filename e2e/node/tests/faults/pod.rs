//! The pods of a cell: of the mesh and not, with what the runtime says of them and
//! without, known to the agent before the fault and not.

use crate::stage::Stage;
use e2e_node::agent::{NODE_NAME, plain_pod, sidecar_pod};
use e2e_node::cluster::{NAMESPACE, Pod, attempt};
use e2e_node::lab::Namespace;
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::packet::{Fate, Transport};
use e2e_node::process::{Identity, Running};
use e2e_node::runtime::{CniError, cni_error};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Of which kind a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// It has a sidecar.
    pub(crate) mesh: bool,
    /// The runtime passes its annotations.
    pub(crate) hints: bool,
    /// The agent knew of it before the fault.
    pub(crate) known: bool,
}

impl Kind {
    pub(crate) fn all(known: bool) -> [Self; 4] {
        [(true, true), (true, false), (false, true), (false, false)].map(|(mesh, hints)| Self {
            mesh,
            hints,
            known,
        })
    }

    /// A pod outside the mesh of which that can be told without agent and API server.
    pub(crate) fn is_certain(self) -> bool {
        !self.mesh && (self.hints || self.known)
    }
}

/// A pod and what became of it.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) pod: Pod,
    /// It runs.
    pub(crate) started: bool,
    /// How long its first ADD took, whatever came of it.
    pub(crate) first: Option<(bool, Duration)>,
    /// What was last said against it.
    pub(crate) refusal: String,
    /// It runs since before the run directory was wiped.
    pub(crate) record_lost: bool,
    proxy: Option<Running>,
}

impl Subject {
    /// In the API, with a sandbox, not attached.
    pub(crate) fn publish(stage: &Stage, kind: Kind) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let what = if kind.mesh { "mesh" } else { "plain" };
        Self::named(stage, kind, NAMESPACE, &format!("{what}-{number}"))
    }

    /// The same by a name.
    pub(crate) fn named(stage: &Stage, kind: Kind, namespace: &str, name: &str) -> Self {
        let mut manifest = if kind.mesh {
            sidecar_pod(namespace, name, &json!({}), &[])
        } else {
            plain_pod(namespace, name)
        };
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        stage.server.put(manifest.clone()).unwrap();
        let scratch = stage.cluster.node.host.scratch();
        let sandbox = Namespace::create(scratch, &format!("{namespace}-{name}")).unwrap();
        let mut pod = stage.cluster.pod_in(&manifest, sandbox).unwrap();
        if kind.hints {
            let said = annotations(&manifest);
            pod.attachment.capabilities.insert(ANNOTATIONS.to_owned(), said.into());
        }
        let refusal = String::new();
        let (started, record_lost) = (false, false);
        let name = name.to_owned();
        Self { kind, name, pod, started, first: None, refusal, record_lost, proxy: None }
    }

    pub(crate) fn uid(&self) -> String {
        format!("uid-of-{}", self.name)
    }

    /// One ADD, followed by DEL if it fails, as runtimes do.
    pub(crate) fn add(&mut self, stage: &Stage) {
        let begun = Instant::now();
        let result = stage.runtime().add(&stage.chain(), &self.pod.attachment);
        let took = begun.elapsed();
        self.first.get_or_insert((result.is_ok(), took));
        // The plugin's deadline, and a busy machine.
        assert!(took < Duration::from_secs(40), "{self:?}: ADD took {took:?}");
        match result {
            Ok(added) => {
                self.pod.addresses = added.addresses().unwrap();
                self.started = true;
            }
            Err(error) => {
                let said: &CniError =
                    cni_error(&error).unwrap_or_else(|| panic!("{self:?}: {error:#}"));
                assert_eq!(said.plugin, "istio-cni", "{self:?}: {said}");
                let in_the_way = matches!(said.code, 100 | 101 | 102 | 103 | 108);
                assert!(in_the_way, "{self:?}: {said}");
                self.refusal = said.to_string();
                self.del(stage);
            }
        }
    }

    /// DEL, which always succeeds. Says how long it took.
    pub(crate) fn del(&mut self, stage: &Stage) -> Duration {
        let begun = Instant::now();
        let result = stage.runtime().delete(&stage.chain(), &self.pod.attachment);
        let took = begun.elapsed();
        result.unwrap_or_else(|error| panic!("{self:?}: DEL: {error:#}"));
        assert!(took < Duration::from_secs(40), "{self:?}: DEL took {took:?}");
        self.started = false;
        took
    }

    /// It is deleted from the API as well.
    pub(crate) fn withdraw(&self, stage: &Stage) {
        stage.server.remove("pods", NAMESPACE, &self.name);
    }

    /// By packets: a pod of the mesh that was started is captured, in both directions;
    /// one that was not reaches nobody; others are left alone.
    pub(crate) fn look(&mut self, stage: &Stage) {
        let cluster = &stage.cluster;
        let outside = SocketAddr::new(OUTSIDE_V4.into(), 80);
        let out = attempt(Transport::Tcp, Identity::APP, outside);
        if self.started && self.kind.mesh && self.proxy.is_none() {
            self.proxy = Some(self.pod.serve_proxy(&cluster.programs, false).unwrap());
        }
        let fates = cluster.send(&self.pod.sandbox, std::slice::from_ref(&out)).unwrap();
        let fate = &fates[&out.label];
        match (self.started, self.kind.mesh) {
            (true, true) => {
                assert!(fate.is_by("proxy", 15001), "{self:?}: not captured: {fate}");
                if let Fate::Answered(answer) = fate {
                    assert_eq!(answer.original, Some(outside), "{self:?}");
                }
                let own = SocketAddr::new(self.pod.address(false).unwrap(), 8080);
                let into = attempt(Transport::Tcp, Identity::APP, own);
                let fates = cluster.send(&cluster.node.world, std::slice::from_ref(&into)).unwrap();
                let fate = &fates[&into.label];
                assert!(fate.is_by("proxy", 15006), "{self:?}: inbound not captured: {fate}");
            }
            (true, false) => assert!(fate.is_by("world", 80), "{self:?}: not left alone: {fate}"),
            (false, _) => {
                assert!(!matches!(fate, Fate::Answered(_)), "{self:?}: not started: {fate}");
            }
        }
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Kind { hints, known, .. } = self.kind;
        let Self { name, started, first, refusal, .. } = self;
        write!(f, "{name} (hints {hints}, known {known}, started {started}, first {first:?}")?;
        write!(f, ", refused: {refusal:?})")
    }
}

/// The annotations that kubelet gives a sandbox.
fn annotations(pod: &Value) -> Map<String, Value> {
    let mut annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert("kubernetes.io/config.source".to_owned(), json!("api"));
    annotations
}
