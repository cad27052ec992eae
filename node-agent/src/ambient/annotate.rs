//! The annotation on the pod, by which istiod and istioctl know that it is captured
//! (reference 4.14): a merge patch of `pods/status`, which is all that the agent's
//! role and the chart's admission policy let it write.

use super::subject::{REDIRECTION, text};
use crate::notice::request::{Call, send};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use crate::source::kubernetes::object::PodName;
use ambient::event::{Annotation, Failure};
use http::Method;
use serde::Deserialize;
use serde_json::json;

/// Writes the value to the pod of this uid; what version the object has since then,
/// empty when there is no such pod any more.
///
/// # Errors
/// When the server did not.
pub(super) async fn annotate(
    api: &Api,
    name: &PodName,
    uid: &str,
    value: Annotation,
) -> Result<String, Failure> {
    // A uid that is not the object's is a conflict. Without a resource version: the
    // kubelet writes the status all the time, and this does not depend on it.
    let body = json!({"metadata": {"uid": uid, "annotations": {REDIRECTION: text(value)}}});
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", name.namespace, name.name);
    let call = Call {
        verb: Verb::Patch,
        resource: "pods/status",
        method: Method::PATCH,
        kind: "application/merge-patch+json",
    };
    match send(api, call, &path, &body).await {
        Ok(json) => Ok(version(&json)),
        Err(ApiError::Refused { status: 404, .. }) => Ok(String::new()),
        // Another pod of the name by now; other conflicts pass.
        Err(ApiError::Refused { status: 409, message, .. }) if message.contains("UID") => {
            Ok(String::new())
        }
        Err(error) => Err(Failure::Transient(error.to_string())),
    }
}

fn version(json: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Object {
        metadata: Meta,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Meta {
        resource_version: String,
    }
    serde_json::from_slice::<Object>(json).unwrap_or_default().metadata.resource_version
}

/// What was written last to a pod, for as long as older states of it may be told.
#[derive(Debug, Clone)]
pub(super) struct Written {
    value: Annotation,
    version: Option<u64>,
}

impl Written {
    /// With the version that the object had then.
    pub(super) fn new(value: Annotation, version: &str) -> Self {
        Self { value, version: version.parse().ok() }
    }

    /// What the annotation is, by a state of the pod that says `seen`; `None` as a
    /// version where nobody counts them (a manifest). True when what was written is in
    /// that state already.
    pub(super) fn judge(&self, seen: Annotation, version: Option<&str>) -> (Annotation, bool) {
        let Some(version) = version else { return (self.value, false) };
        match (self.version, version.parse::<u64>().ok()) {
            (Some(own), Some(other)) if other < own => (self.value, false),
            (Some(_), Some(_)) => (seen, true),
            // Versions that are no numbers: believed as soon as it says the same.
            _ if seen == self.value => (seen, true),
            _ => (self.value, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_state_does_not_undo_a_write() {
        let written = Written::new(Annotation::Enabled, "20");
        assert_eq!(written.judge(Annotation::Absent, Some("19")), (Annotation::Enabled, false));
        assert_eq!(written.judge(Annotation::Enabled, Some("20")), (Annotation::Enabled, true));
        assert_eq!(written.judge(Annotation::Foreign, Some("21")), (Annotation::Foreign, true));
        let odd = Written::new(Annotation::Enabled, "a");
        assert_eq!(odd.judge(Annotation::Absent, Some("b")), (Annotation::Enabled, false));
        assert_eq!(odd.judge(Annotation::Enabled, Some("c")), (Annotation::Enabled, true));
        assert_eq!(odd.judge(Annotation::Absent, None), (Annotation::Enabled, false));
        assert_eq!(version(br#"{"metadata":{"resourceVersion":"7","x":1}}"#), "7");
    }
}
