//! Field and label selectors, as far as they are used.

use serde_json::Value;

/// Both selectors of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    pub(super) fields: String,
    pub(super) labels: String,
}

impl Selector {
    /// True for an object that is selected.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let terms = |text: &'_ str| {
            let all: Vec<String> = text
                .split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(String::from)
                .collect();
            all
        };
        let field = |path: &str| {
            let pointer = format!("/{}", path.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str).map(str::to_owned)
        };
        let labels = object.pointer("/metadata/labels");
        let label = |key: &str| {
            labels.and_then(|all| all.get(key)).and_then(Value::as_str).map(str::to_owned)
        };
        terms(&self.fields).iter().all(|term| holds(term, &field))
            && terms(&self.labels).iter().all(|term| holds(term, &label))
    }
}

/// `k=v`, `k==v`, `k!=v`, `k`, `!k`.
fn holds(term: &str, value: &dyn Fn(&str) -> Option<String>) -> bool {
    if let Some((key, want)) = term.split_once("!=") {
        return value(key).as_deref() != Some(want);
    }
    if let Some((key, want)) = term.split_once('=') {
        let want = want.strip_prefix('=').unwrap_or(want);
        return value(key).as_deref().unwrap_or_default() == want;
    }
    match term.strip_prefix('!') {
        Some(key) => value(key).is_none(),
        None => value(term).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selects_as_the_api_does() {
        let pod =
            json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"nodeName": "n"}});
        let matches = |fields: &str, labels: &str| {
            Selector { fields: fields.into(), labels: labels.into() }.matches(&pod)
        };
        assert!(matches("", "") && matches("spec.nodeName=n", "x=1,x,!y,y!=2"));
        assert!(matches("spec.nodeName==n,metadata.name!=b", "x==1"));
        assert!(!matches("spec.nodeName=m", "") && !matches("", "x=2") && !matches("", "y"));
    }
}
