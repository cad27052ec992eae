//! Events about pods: core v1, which is what Istio's chart grants.
//!
//! Each is an object of its own, never a count that is raised: that would need another
//! right (`patch`), and the writer says a thing at most every half hour.

use super::request::{Call, send};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// Longest message; the API server's limit is 1,024 bytes.
const MAX_MESSAGE: usize = 1000;

/// An Event about a pod.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    /// Namespace and name of the pod.
    pub(crate) pod: (&'a str, &'a str),
    /// Its uid.
    pub(crate) uid: &'a str,
    /// Its version, where it is about one.
    pub(crate) version: Option<&'a str>,
    /// Something is wrong.
    pub(crate) warning: bool,
    /// One word.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: &'a str,
    /// Who says it.
    pub(crate) component: &'static str,
    /// On which node.
    pub(crate) node: &'a str,
}

/// Writes it.
///
/// # Errors
/// When the server does not take it.
pub(crate) async fn post(api: &Api, event: &Event<'_>) -> Result<(), ApiError> {
    let path = format!("/api/v1/namespaces/{}/events", event.pod.0);
    let call = Call {
        verb: Verb::Create,
        resource: "events",
        method: Method::POST,
        kind: "application/json",
    };
    send(api, call, &path, &object(event, Timestamp::now())).await.map(drop)
}

fn object(event: &Event<'_>, now: Timestamp) -> Value {
    let (namespace, pod) = event.pod;
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let suffix = format!(".{:x}", now.as_nanosecond());
    let most = MAX_NAME - suffix.len();
    let name: String = pod.chars().take(most).chain(suffix.chars()).collect();
    let mut involved = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": event.uid,
    });
    if let Some(version) = event.version {
        involved["resourceVersion"] = json!(version);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "type": if event.warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "message": short(event.message),
        "source": {"component": event.component, "host": event.node},
        "reportingComponent": event.component,
        "reportingInstance": event.node,
        "firstTimestamp": seconds,
        "lastTimestamp": seconds,
        "count": 1,
    })
}

/// At most so many bytes, whole characters.
fn short(text: &str) -> &str {
    let end = (0..=MAX_MESSAGE.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_messages_fit() {
        let (long, pod) = ("ü".repeat(900), "p".repeat(253));
        let event = Event {
            pod: ("shop", &pod),
            uid: "u",
            version: None,
            warning: true,
            reason: "NoZtunnel",
            message: &long,
            component: "sluice",
            node: "n",
        };
        let object = object(&event, Timestamp::now());
        assert_eq!(object["metadata"]["name"].as_str().unwrap().len(), MAX_NAME);
        let message = object["message"].as_str().unwrap();
        assert!(message.len() <= MAX_MESSAGE && long.starts_with(message) && message.len() > 990);
        assert_eq!(object["type"], "Warning");
        assert!(object["involvedObject"].get("resourceVersion").is_none());
        assert_eq!(short("as it is"), "as it is");
    }
}
