//! What the API server is asked to do about a broken pod, and the events that tell
//! of it: core v1, which is what Istio's chart grants.

use super::{Mode, Settings};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use crate::source::kubernetes::object::NodePod;
use http::{Method, Request, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Longest time for one request: the next pod waits.
const LIMIT: Duration = Duration::from_secs(10);

/// Who says it, in an event.
const COMPONENT: &str = "cni-repair";

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// Pauses before an event that could not be written is tried again.
const EVENT_PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// The API server, for repair.
#[derive(Debug)]
pub(super) struct Calls {
    api: Arc<Api>,
    settings: Settings,
}

impl Calls {
    /// Through the agent's own client.
    pub(super) fn new(api: Arc<Api>, settings: Settings) -> Self {
        Self { api, settings }
    }

    /// Deletes the pod as it was seen, and no other of its name.
    ///
    /// # Errors
    /// When it is another by now, or the server does not.
    pub(super) async fn delete(&self, pod: &NodePod) -> Result<(), ApiError> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": pod.facts.uid, "resourceVersion": pod.version},
        });
        self.send((Verb::Delete, "pods", Method::DELETE), &path(pod), "application/json", &body)
            .await
    }

    /// Labels the pod of this uid.
    ///
    /// # Errors
    /// When it is another by now, or the server does not.
    pub(super) async fn label(&self, pod: &NodePod) -> Result<(), ApiError> {
        let (key, value) = &self.settings.label;
        // A uid that is not the object's is a conflict.
        let body = json!({"metadata": {"uid": pod.facts.uid, "labels": {key: value}}});
        let path = format!("{}/status", path(pod));
        let kind = "application/merge-patch+json";
        self.send((Verb::Patch, "pods/status", Method::PATCH), &path, kind, &body).await
    }

    /// Tells of a deletion or a label. One that cannot be told is logged.
    pub(super) async fn tell(&self, pod: &NodePod, done: Result<(), &ApiError>) {
        let Some(event) = self.event(pod, done) else { return };
        let path = format!("/api/v1/namespaces/{}/events", pod.facts.namespace);
        let mut pauses = EVENT_PAUSES.into_iter();
        loop {
            let method = (Verb::Create, "events", Method::POST);
            let Err(error) = self.send(method, &path, "application/json", &event).await else {
                return;
            };
            match pauses.next().filter(|_| error.is_transient()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    tracing::warn!(
                        ns = pod.facts.namespace,
                        pod = pod.facts.name,
                        reason = %error,
                        "cannot write the event about a broken pod"
                    );
                    return;
                }
            }
        }
    }

    fn event(&self, pod: &NodePod, done: Result<(), &ApiError>) -> Option<Value> {
        let (key, value) = &self.settings.label;
        let because = "it was started before its traffic was captured";
        let (reason, message) = match (self.settings.mode, done) {
            (Mode::Repair, _) => return None,
            (Mode::Delete, Ok(())) => ("DeleteBrokenPod", format!("pod deleted: {because}")),
            (Mode::Delete, Err(error)) => {
                ("DeleteBrokenPod", format!("pod could not be deleted, {because}: {error}"))
            }
            (Mode::Label, Ok(())) => {
                ("LabelBrokenPod", format!("pod labelled {key}={value}: {because}"))
            }
            (Mode::Label, Err(error)) => {
                ("LabelBrokenPod", format!("pod could not be labelled, {because}: {error}"))
            }
        };
        let now = Timestamp::now();
        let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        let suffix = format!(".{:x}", now.as_nanosecond());
        let most = MAX_NAME - suffix.len();
        let name: String = pod.facts.name.chars().take(most).chain(suffix.chars()).collect();
        Some(json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod.facts.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.facts.namespace,
                "name": pod.facts.name,
                "uid": pod.facts.uid,
                "resourceVersion": pod.version,
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT, "host": self.settings.node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.settings.node,
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }))
    }

    async fn send(
        &self,
        (verb, resource, method): (Verb, &'static str, Method),
        path: &str,
        kind: &'static str,
        body: &Value,
    ) -> Result<(), ApiError> {
        let what = || format!("{} {path}", verb.as_str());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "application/json")
            .body(body.to_string().into_bytes());
        let request = request.map_err(|error| ApiError::Invalid {
            what: what(),
            problem: format!("no request can be made for it: {error}"),
        })?;
        match tokio::time::timeout(LIMIT, self.api.call(verb, resource, request)).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(ApiError::Late { what: what(), limit: LIMIT }),
        }
    }
}

/// Names from the API server are names of its objects.
fn path(pod: &NodePod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.facts.namespace, pod.facts.name)
}
