//! The pod's condition, as far as the agent writes it.
//!
//! A strategic merge patch: a plain one would replace the kubelet's conditions. The
//! kubelet keeps those that are not its own. The chart's admission policy lets the agent
//! change this one and no other.

use super::board::{State, Subject, Trouble};
use super::request::{Call, send};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Its type.
pub(crate) const CONDITION: &str = "sluice.dev/captured";

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Captured {
    /// `True`.
    Yes,
    /// Anything else.
    No,
}

/// Makes the pod's condition say how it stands.
///
/// # Errors
/// When the server does not take it.
pub(super) async fn write(api: &Api, subject: &Subject, state: &State) -> Result<(), ApiError> {
    let Subject { namespace, name, uid, .. } = subject;
    // A uid that is not the object's is a conflict.
    let body = json!({
        "metadata": {"uid": uid},
        "status": {"conditions": [condition(state, Timestamp::now())]},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let call = Call {
        verb: Verb::Patch,
        resource: "pods/status",
        method: Method::PATCH,
        kind: "application/strategic-merge-patch+json",
    };
    send(api, call, &path, &body).await.map(drop)
}

fn condition(state: &State, now: Timestamp) -> Value {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    match state {
        State::Well => json!({
            "type": CONDITION, "status": "True", "lastTransitionTime": now,
            "reason": "Captured", "message": "",
        }),
        State::Outside | State::Stuck(Trouble::Remains, _) => {
            json!({"$patch": "delete", "type": CONDITION})
        }
        State::Stuck(trouble, error) => json!({
            "type": CONDITION, "status": "False", "lastTransitionTime": now,
            "reason": trouble.reason(), "message": trouble.message(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The admission policy is tested with this very condition.
    #[test]
    fn the_condition_is_what_the_policy_lets_pass() {
        let text = include_str!("../../../manifests/test/condition.json");
        let wanted: Value = serde_json::from_str(text).unwrap();
        let now: Timestamp = wanted["lastTransitionTime"].as_str().unwrap().parse().unwrap();
        let state = State::Stuck(Trouble::NoZtunnel, String::new());
        assert_eq!(condition(&state, now), wanted);
        let well = condition(&State::Well, now);
        assert_eq!((&well["type"], &well["status"]), (&wanted["type"], &json!("True")));
        let none = json!({"$patch": "delete", "type": CONDITION});
        assert_eq!(condition(&State::Outside, now), none);
        let remains = State::Stuck(Trouble::Remains, String::new());
        assert_eq!(condition(&remains, now), none);
    }
}
