//! Objects by resource, and what happened to them.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is served: kind, resource, group, and whether it is in a namespace.
const KINDS: [(&str, &str, &str, bool); 5] = [
    ("Pod", "pods", "", true),
    ("Namespace", "namespaces", "", false),
    ("Node", "nodes", "", false),
    ("Event", "events", "", true),
    ("DaemonSet", "daemonsets", "apps", true),
];

/// A key: resource, namespace, name.
type Key = (String, String, String);

/// Something that happened to an object.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) kind: &'static str,
    pub(super) resource: String,
    pub(super) object: Arc<Value>,
}

/// All objects, and history since the last compaction.
#[derive(Debug)]
pub(super) struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Event>,
    version: u64,
    /// Watches from before this are told to list anew.
    oldest: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), history: Vec::new(), version: 100, oldest: 0 }
    }
}

/// Kind and API version of a resource.
pub(super) fn kind_of(resource: &str) -> Option<(&'static str, &'static str)> {
    let (kind, _, group, _) = KINDS.iter().find(|(_, r, _, _)| *r == resource)?;
    Some((kind, if group.is_empty() { "v1" } else { "apps/v1" }))
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn put(&mut self, mut object: Value) -> Result<Arc<Value>> {
        let kind = object.get("kind").and_then(Value::as_str).context("object without a kind")?;
        let found = KINDS.iter().find(|(k, ..)| *k == kind);
        let Some((kind, resource, _, namespaced)) = found else {
            bail!("kind {kind} is not served")
        };
        let meta = object.get_mut("metadata").and_then(Value::as_object_mut);
        let meta = meta.with_context(|| format!("{kind} without metadata"))?;
        let name = meta.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if name.is_empty() {
            bail!("{kind} without a name");
        }
        let namespace = match namespaced {
            true => meta.get("namespace").and_then(Value::as_str).unwrap_or("default").to_owned(),
            false => String::new(),
        };
        self.version += 1;
        meta.entry("uid").or_insert_with(|| json!(format!("uid-of-{name}")));
        meta.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        let key = ((*resource).to_owned(), namespace, name);
        let object = Arc::new(object);
        let known = self.objects.insert(key, Arc::clone(&object)).is_some();
        self.history.push(Event {
            version: self.version,
            kind: if known { "MODIFIED" } else { "ADDED" },
            resource: (*resource).to_owned(),
            object: Arc::clone(&object),
        });
        Ok(object)
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.objects.get(&key).cloned()
    }

    pub(super) fn remove(&mut self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut last = (*self.objects.remove(&key)?).clone();
        self.version += 1;
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.history.push(Event {
            version: self.version,
            kind: "DELETED",
            resource: resource.to_owned(),
            object: Arc::new(last.clone()),
        });
        Some(last)
    }

    /// Objects of a resource in order; of one namespace unless it is empty.
    pub(super) fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let all = self
            .objects
            .iter()
            .filter(|((r, n, _), _)| r == resource && (namespace.is_empty() || n == namespace));
        all.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// What happened after a version.
    pub(super) fn since(&self, version: u64, resource: &str, namespace: &str) -> Vec<Event> {
        // History is in the order of versions.
        let start = self.history.partition_point(|event| event.version <= version);
        let mine = self.history[start..].iter().filter(|event| {
            let of = event.object.pointer("/metadata/namespace").and_then(Value::as_str);
            event.resource == resource && (namespace.is_empty() || of == Some(namespace))
        });
        mine.cloned().collect()
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }
}
