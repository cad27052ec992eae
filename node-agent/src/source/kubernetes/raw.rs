//! The API's JSON, as far as it is read. Everything is optional: what an object must
//! have is for its reader to say.

use crate::source::workload::{RawLifecycle, RawPort, RawProbe};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A page of a list, its items not yet read: one that is broken must not take the
/// others with it.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    /// What the list is of.
    #[serde(borrow, default)]
    pub(super) kind: Cow<'a, str>,
    /// Where to go on from.
    #[serde(borrow)]
    pub(super) metadata: PageMeta<'a>,
    /// The items, as text; Go writes an empty list as null.
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// See [`Page`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta<'a> {
    /// Version of the list, to watch from.
    #[serde(borrow, default)]
    pub(super) resource_version: Cow<'a, str>,
    /// Token of the next page; empty on the last.
    #[serde(borrow, default, rename = "continue")]
    pub(super) next: Option<Cow<'a, str>>,
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    /// The object, as text.
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What every object says of itself: enough to go on from, and to know the end of a
/// streamed list.
#[derive(Deserialize)]
pub(super) struct Marker<'a> {
    #[serde(borrow)]
    metadata: RawMeta<'a>,
}

/// Annotation of the bookmark that ends a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Marker<'_> {
    /// The version to go on from.
    pub(super) fn version(&self) -> Option<&str> {
        filled(&self.metadata.resource_version)
    }

    /// This bookmark ends a streamed list.
    pub(super) fn ends_list(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        let end = annotations.and_then(|map| map.get(INITIAL_EVENTS_END));
        end.and_then(Option::as_deref) == Some("true")
    }
}

/// `null` as a value means empty, as the API server has it.
pub(super) type Map = BTreeMap<String, Option<String>>;

pub(super) fn values(map: Option<Map>) -> impl Iterator<Item = (String, String)> {
    map.unwrap_or_default().into_iter().map(|(key, value)| (key, value.unwrap_or_default()))
}

pub(super) fn filled<'a>(text: &'a Option<Cow<'_, str>>) -> Option<&'a str> {
    text.as_deref().filter(|text| !text.is_empty())
}

#[derive(Deserialize)]
pub(super) struct RawPod<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<RawMeta<'a>>,
    #[serde(borrow)]
    pub(super) spec: Option<RawSpec<'a>>,
    #[serde(borrow)]
    pub(super) status: Option<RawStatus<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMeta<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) resource_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) deletion_timestamp: Option<Cow<'a, str>>,
    pub(super) labels: Option<Map>,
    pub(super) annotations: Option<Map>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSpec<'a> {
    #[serde(borrow)]
    pub(super) node_name: Option<Cow<'a, str>>,
    pub(super) host_network: Option<bool>,
    #[serde(borrow)]
    pub(super) service_account_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) init_containers: Option<Vec<RawContainer<'a>>>,
    #[serde(borrow)]
    pub(super) containers: Option<Vec<RawContainer<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawContainer<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) args: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub(super) env: Option<Vec<RawVar<'a>>>,
    pub(super) security_context: Option<RawSecurity>,
    pub(super) ports: Option<Vec<RawPort>>,
    pub(super) liveness_probe: Option<RawProbe>,
    pub(super) readiness_probe: Option<RawProbe>,
    pub(super) startup_probe: Option<RawProbe>,
    pub(super) lifecycle: Option<RawLifecycle>,
}

/// A text in a list: only a field's own attribute makes serde borrow.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
pub(super) struct RawVar<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) value: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSecurity {
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawStatus<'a> {
    #[serde(borrow)]
    pub(super) phase: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "podIP")]
    pub(super) pod_ip: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<RawIp<'a>>>,
    #[serde(borrow)]
    pub(super) init_container_statuses: Option<Vec<RawContainerStatus<'a>>>,
    #[serde(borrow)]
    pub(super) conditions: Option<Vec<RawCondition<'a>>>,
}

#[derive(Deserialize)]
pub(super) struct RawCondition<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) status: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
pub(super) struct RawIp<'a> {
    #[serde(borrow)]
    pub(super) ip: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawContainerStatus<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) state: Option<RawState<'a>>,
    #[serde(borrow)]
    pub(super) last_state: Option<RawState<'a>>,
}

#[derive(Deserialize)]
pub(super) struct RawState<'a> {
    #[serde(borrow)]
    pub(super) terminated: Option<RawEnded<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawEnded<'a> {
    pub(super) exit_code: Option<i32>,
    #[serde(borrow)]
    pub(super) reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) message: Option<Cow<'a, str>>,
}
