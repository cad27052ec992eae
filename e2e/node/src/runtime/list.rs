//! Network configuration lists, and what of them each plugin gets.

use super::Attachment;
use anyhow::{Context, Result};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A network configuration list.
#[derive(Debug, Clone)]
pub struct Conflist {
    /// Name of the network.
    pub name: String,
    /// CNI version of all of it.
    pub version: String,
    /// Plugins in the order of ADD.
    pub plugins: Vec<Entry>,
}

/// A plugin's part of a list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The program's name.
    pub kind: String,
    /// Everything of it, `type` included.
    pub config: Map<String, Value>,
}

impl Conflist {
    /// Reads a list.
    ///
    /// # Errors
    /// When it is no JSON or lacks a name, a version or plugins with a type.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("parse the conflist")?;
        let field = |name: &str| -> Result<String> {
            let value = value.get(name).and_then(Value::as_str);
            Ok(value.with_context(|| format!("conflist without {name}"))?.to_owned())
        };
        let plugins = value.get("plugins").and_then(Value::as_array);
        let entry = |plugin: &Value| -> Result<Entry> {
            let config = plugin.as_object().context("a plugin is no object")?.clone();
            let kind =
                config.get("type").and_then(Value::as_str).context("a plugin has no type")?;
            Ok(Entry { kind: kind.to_owned(), config })
        };
        Ok(Self {
            name: field("name")?,
            version: field("cniVersion")?,
            plugins: plugins
                .context("conflist without plugins")?
                .iter()
                .map(entry)
                .collect::<Result<_>>()?,
        })
    }

    /// Whether the list's version is this one or newer.
    #[must_use]
    pub fn is_at_least(&self, version: &str) -> bool {
        let numbers = |text: &str| -> Vec<u32> {
            text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
        };
        numbers(&self.version) >= numbers(version)
    }

    /// A plugin's stdin for one attachment: its entry with name and version of
    /// the list, the values of the capabilities that it declares, and the result
    /// before it, byte for byte.
    pub(super) fn config(
        &self,
        entry: &Entry,
        to: &Attachment,
        previous: Option<&str>,
    ) -> Result<String> {
        let mut config = self.injected(entry);
        let declared = entry.config.get("capabilities").and_then(Value::as_object);
        let mut values = Map::new();
        for (name, declared) in declared.into_iter().flatten() {
            let value = to.capabilities.get(name).filter(|_| declared == &Value::Bool(true));
            if let Some(value) = value {
                values.insert(name.clone(), value.clone());
            }
        }
        if !values.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(values));
        }
        let mut raw = BTreeMap::new();
        for (name, value) in &config {
            raw.insert(name.as_str(), serde_json::value::to_raw_value(value)?);
        }
        if let Some(previous) = previous {
            let previous = RawValue::from_string(previous.trim().to_owned())
                .context("the result before is no JSON")?;
            raw.insert("prevResult", previous);
        }
        Ok(serde_json::to_string(&raw)?)
    }

    /// A plugin's stdin for STATUS and GC.
    pub(super) fn network_config(
        &self,
        entry: &Entry,
        valid: Option<&[Attachment]>,
    ) -> Result<String> {
        let mut config = self.injected(entry);
        if let Some(valid) = valid {
            let pair = |a: &Attachment| json!({"containerID": a.container, "ifname": a.interface});
            let valid = valid.iter().map(pair).collect();
            config.insert("cni.dev/valid-attachments".to_owned(), Value::Array(valid));
        }
        Ok(serde_json::to_string(&config)?)
    }

    fn injected(&self, entry: &Entry) -> Map<String, Value> {
        let mut config = entry.config.clone();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.version));
        config
    }
}
