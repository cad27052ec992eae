//! Kubernetes label selectors, and the pairs of them that enable ambient mode.

use crate::pod::Map;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A label selector; an empty one matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that must have just this value.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions.
    #[serde(default)]
    pub match_expressions: Vec<Expression>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// Values of `In` and `NotIn`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It is absent or has another value.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// True when every condition holds.
    #[must_use]
    pub fn matches(&self, labels: &Map) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|e| {
                let value = labels.get(&e.key);
                let listed = value.is_some_and(|v| e.values.contains(v));
                match e.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }

    /// True when it has no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// A pod is enabled when both match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnablementSelector {
    /// Of the pod's labels.
    #[serde(default)]
    pub pod_selector: LabelSelector,
    /// Of its namespace's labels.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
}

/// The label that selects a data plane.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Istio's default (reference 2.5): the pod's label says `ambient`, or its
/// namespace's does and the pod's does not say `none`.
#[must_use]
pub fn default_enablement() -> Vec<EnablementSelector> {
    let ambient = || LabelSelector {
        match_labels: BTreeMap::from([(DATAPLANE_MODE.to_owned(), "ambient".to_owned())]),
        match_expressions: Vec::new(),
    };
    let not_none = LabelSelector {
        match_labels: BTreeMap::new(),
        match_expressions: vec![Expression {
            key: DATAPLANE_MODE.to_owned(),
            operator: Operator::NotIn,
            values: vec!["none".to_owned()],
        }],
    };
    vec![
        EnablementSelector { pod_selector: ambient(), ..Default::default() },
        EnablementSelector { pod_selector: not_none, namespace_selector: ambient() },
    ]
}
