//! What is kept of the API's namespaces: their labels.

use super::error::quote;
use super::object::Decoded;
use super::raw::{Map, RawMeta, filled, values};
use redirect::pod::Namespace;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Labels of a namespace as one allocation: a cluster has thousands of namespaces,
/// and a map costs half a kilobyte before its first entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels(Box<str>);

/// Between the texts of [`Labels`]; no label has it.
const SEPARATOR: char = '\0';

impl Labels {
    fn pack(labels: Option<Map>) -> Self {
        let mut text = String::new();
        for (key, value) in values(labels) {
            text.extend([key.as_str(), "\0", value.as_str(), "\0"]);
        }
        Self(text.into_boxed_str())
    }

    /// The namespace.
    pub(super) fn unpack(&self, name: &str) -> Namespace {
        let mut texts = self.0.split(SEPARATOR);
        let mut labels = BTreeMap::new();
        while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
            labels.insert(key.to_owned(), value.to_owned());
        }
        Namespace { name: name.to_owned(), labels }
    }
}

/// Reads a namespace, whole or its metadata only. One whose labels have the wrong
/// shape is as good as unknown.
pub(super) fn read(json: &str) -> Decoded<(String, Labels)> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        metadata: RawMeta<'a>,
    }
    match serde_json::from_str::<Raw<'_>>(json) {
        Ok(Raw { metadata }) => match filled(&metadata.name) {
            Some(name) => Decoded::Object((name.to_owned(), Labels::pack(metadata.labels))),
            None => Decoded::Broken("a namespace without a name".to_owned()),
        },
        Err(error) => Decoded::Broken(quote(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_packed_without_loss() {
        let json = r#"{"kind":"PartialObjectMetadata","metadata":{"name":"n","labels":{"a":"1","b":"","istio.io/dataplane-mode":"ambient"}}}"#;
        let Decoded::Object((name, labels)) = read(json) else { panic!() };
        let unpacked = labels.unpack(&name);
        assert_eq!(unpacked.labels.len(), 3);
        assert_eq!(unpacked.labels["b"], "");
        let Decoded::Object((name, labels)) = read(r#"{"metadata":{"name":"n"}}"#) else {
            panic!()
        };
        assert!(labels.unpack(&name).labels.is_empty());
        assert!(matches!(read(r#"{"metadata":{"labels":{}}}"#), Decoded::Broken(_)));
    }
}
