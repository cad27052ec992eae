//! Which pods are looked at: Kubernetes' label and field selectors, matched here
//! since the watch is of all pods of the node.

use crate::source::kubernetes::object::{NodePod, Phase};

/// Both selectors; the default selects everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selectors {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

/// One condition of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Among(Vec<String>),
    /// Holds for what has no value at all, too.
    NotAmong(Vec<String>),
    Exists,
    Absent,
}

/// Why a selector is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectorError {
    /// A label selector.
    #[error(
        "label selector {0:?}: want conditions as key=value, key!=value, key in (a,b), key notin (a,b), key or !key, with commas between"
    )]
    Label(String),
    /// A field selector.
    #[error(
        "field selector {0:?}: want conditions as field=value or field!=value with commas between, of metadata.name, metadata.namespace, spec.nodeName and status.phase"
    )]
    Field(String),
}

/// Fields that the agent keeps of a pod. Its node is always this one.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"];

impl Selectors {
    /// Reads them; empty ones select everything.
    ///
    /// # Errors
    /// When one is none, or of a field that is not kept.
    pub(crate) fn parse(labels: &str, fields: &str, node: &str) -> Result<Self, SelectorError> {
        let all = conditions(labels).into_iter();
        let labels = all
            .map(|text| requirement(text).ok_or_else(|| SelectorError::Label(text.to_owned())))
            .collect::<Result<_, _>>()?;
        let mut kept = Vec::new();
        for text in conditions(fields) {
            let wrong = || SelectorError::Field(text.to_owned());
            let found = equality(text).ok_or_else(wrong)?;
            if !FIELDS.contains(&found.key.as_str()) {
                return Err(wrong());
            }
            kept.push(found);
        }
        let this_node = |requirement: &Requirement| {
            requirement.key != "spec.nodeName" || requirement.holds(Some(node))
        };
        if !kept.iter().all(this_node) {
            // All pods here are of one node.
            let nothing = Requirement { key: String::new(), test: Test::Among(Vec::new()) };
            kept = vec![nothing];
        }
        kept.retain(|requirement| requirement.key != "spec.nodeName");
        Ok(Self { labels, fields: kept })
    }

    /// Whether they select a pod of this node.
    pub(crate) fn select(&self, pod: &NodePod) -> bool {
        let label = |key: &str| pod.facts.labels.get(key).map(String::as_str);
        self.labels.iter().all(|requirement| requirement.holds(label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.holds(field(pod, &requirement.key)))
    }
}

fn field<'a>(pod: &'a NodePod, key: &str) -> Option<&'a str> {
    Some(match key {
        "metadata.name" => &pod.facts.name,
        "metadata.namespace" => &pod.facts.namespace,
        "status.phase" => match pod.phase {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Unknown => "Unknown",
        },
        _ => return None,
    })
}

/// Splits at commas outside of parentheses.
fn conditions(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let parts = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    if let Some(found) = equality(text).or_else(|| set(text)) {
        return Some(found);
    }
    match text.strip_prefix('!') {
        Some(key) => named(key, Test::Absent),
        None => named(text, Test::Exists),
    }
}

fn equality(text: &str) -> Option<Requirement> {
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = text.split_once(operator) {
            let values = vec![value.trim().to_owned()];
            let test = if equal { Test::Among(values) } else { Test::NotAmong(values) };
            return named(key, test);
        }
    }
    None
}

fn set(text: &str) -> Option<Requirement> {
    let (head, list) = text.strip_suffix(')')?.split_once('(')?;
    let mut words = head.split_whitespace();
    let (key, operator) = (words.next()?, words.next()?);
    let values = list.split(',').map(|value| value.trim().to_owned()).collect();
    match (operator, words.next()) {
        ("in", None) => named(key, Test::Among(values)),
        ("notin", None) => named(key, Test::NotAmong(values)),
        _ => None,
    }
}

fn named(key: &str, test: Test) -> Option<Requirement> {
    let key = key.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    let is_key = !key.is_empty() && key.bytes().all(allowed);
    is_key.then(|| Requirement { key: key.to_owned(), test })
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
        match &self.test {
            Test::Among(values) => among(values),
            Test::NotAmong(values) => !among(values),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirect::pod::Pod;

    fn pod() -> NodePod {
        let labels = [("app".to_owned(), "web".to_owned()), ("x.io/y".to_owned(), String::new())];
        NodePod {
            facts: Pod {
                name: "p".into(),
                namespace: "n".into(),
                labels: labels.into(),
                ..Pod::default()
            },
            version: String::new(),
            phase: Phase::Running,
            deleting: false,
            addresses: Vec::new(),
            captured: None,
            init: Vec::new(),
            workload: crate::source::workload::Workload::default(),
        }
    }

    #[test]
    fn selects_as_kubernetes_does() {
        for (labels, fields, selected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app == web, x.io/y=", "", true),
            ("app=db", "", false),
            ("app!=db,nothing!=x", "", true),
            ("app in (db, web)", "", true),
            ("app notin (db,web)", "", false),
            ("app,!nothing", "", true),
            ("!app", "", false),
            ("", "status.phase=Running,metadata.namespace!=m", true),
            ("", "metadata.name=q", false),
            ("", "spec.nodeName=node", true),
            ("", "spec.nodeName=other", false),
        ] {
            let found = Selectors::parse(labels, fields, "node").unwrap().select(&pod());
            assert_eq!(found, selected, "{labels:?} {fields:?}");
        }
    }

    #[test]
    fn refuses_what_it_would_not_follow() {
        for labels in ["app in web", "app like (x)", "a b", "app>1"] {
            assert!(Selectors::parse(labels, "", "node").is_err(), "{labels}");
        }
        for fields in ["spec.restartPolicy=Never", "metadata.name", "metadata.name in (a)"] {
            assert!(Selectors::parse("", fields, "node").is_err(), "{fields}");
        }
    }
}
