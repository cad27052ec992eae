//! Patches of objects.

use serde_json::{Value, json};

/// RFC 7396.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Some(target) = target.as_object_mut() {
        for (key, value) in patch {
            match value {
                Value::Null => drop(target.remove(key)),
                value => merge(target.entry(key.clone()).or_insert(Value::Null), value),
            }
        }
    }
}

/// Kubernetes' strategic merge, as far as a pod's conditions need it: that list is one by
/// `type`.
pub(super) fn merge_strategically(target: &mut Value, patch: &Value) {
    let mut patch = patch.clone();
    let conditions = patch.pointer_mut("/status/conditions").map(Value::take);
    if let Some(status) = patch.pointer_mut("/status").and_then(Value::as_object_mut) {
        status.remove("conditions");
    }
    merge(target, &patch);
    let Some(Value::Array(changes)) = conditions else { return };
    let mut all = match target.pointer_mut("/status/conditions").map(Value::take) {
        Some(Value::Array(all)) => all,
        _ => Vec::new(),
    };
    for change in changes {
        let place = all.iter().position(|one| one["type"] == change["type"]);
        match (place, change["$patch"] == "delete") {
            (Some(place), true) => drop(all.remove(place)),
            (Some(place), false) => merge(&mut all[place], &change),
            (None, true) => {}
            (None, false) => all.push(change),
        }
    }
    target["status"]["conditions"] = Value::Array(all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_merged_by_type() {
        let mut pod = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "x/y", "status": "False", "reason": "a"},
        ]}});
        let of =
            |change: Value| json!({"metadata": {"uid": "u"}, "status": {"conditions": [change]}});
        merge_strategically(&mut pod, &of(json!({"type": "x/y", "status": "True"})));
        let both = json!([
            {"type": "Ready", "status": "True"}, {"type": "x/y", "status": "True", "reason": "a"},
        ]);
        assert_eq!(pod["status"]["conditions"], both);
        assert_eq!(pod["metadata"]["uid"], "u");
        merge_strategically(&mut pod, &of(json!({"$patch": "delete", "type": "x/y"})));
        assert_eq!(pod["status"]["conditions"], json!([{"type": "Ready", "status": "True"}]));
        let mut bare = json!({"status": {"phase": "Running"}});
        merge_strategically(&mut bare, &of(json!({"type": "x/y"})));
        assert_eq!(bare["status"], json!({"phase": "Running", "conditions": [{"type": "x/y"}]}));
    }
}
