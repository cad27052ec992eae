//! What the API server is asked to do about a broken pod, and the events that tell
//! of it.

use super::{Mode, Settings};
use crate::notice::event::{Event, post};
use crate::notice::request::{Call, send};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use crate::source::kubernetes::object::NodePod;
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Who says it, in an event.
const COMPONENT: &str = "cni-repair";

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
        let call = Call {
            verb: Verb::Delete,
            resource: "pods",
            method: Method::DELETE,
            kind: "application/json",
        };
        self.send(call, &path(pod), &body).await
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
        let call = Call {
            verb: Verb::Patch,
            resource: "pods/status",
            method: Method::PATCH,
            kind: "application/merge-patch+json",
        };
        self.send(call, &path, &body).await
    }

    /// Tells of a deletion or a label. One that cannot be told is logged.
    pub(super) async fn tell(&self, pod: &NodePod, done: Result<(), &ApiError>) {
        let Some((reason, message)) = self.words(done) else { return };
        let event = Event {
            pod: (&pod.facts.namespace, &pod.facts.name),
            uid: pod.facts.uid.as_deref().unwrap_or_default(),
            version: Some(&pod.version),
            warning: true,
            reason,
            message: &message,
            component: COMPONENT,
            node: &self.settings.node,
        };
        let mut pauses = EVENT_PAUSES.into_iter();
        loop {
            let Err(error) = post(&self.api, &event).await else { return };
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

    fn words(&self, done: Result<(), &ApiError>) -> Option<(&'static str, String)> {
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
        Some((reason, message))
    }

    async fn send(&self, call: Call, path: &str, body: &Value) -> Result<(), ApiError> {
        send(&self.api, call, path, body).await.map(drop)
    }
}

/// Names from the API server are names of its objects.
fn path(pod: &NodePod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.facts.namespace, pod.facts.name)
}
