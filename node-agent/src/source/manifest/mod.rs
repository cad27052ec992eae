//! A manifest file's text into plain facts. Kubernetes' shapes stop at [`document`].

mod document;

use super::workload::Workload;
use document::Document;
use redirect::pod::{Namespace, Pod};

/// Most documents and list items that one file may hold. A directory is for one
/// node's pods; Kubernetes' own limit is 110 a node.
const MAX_OBJECTS: usize = 10_000;

/// The kind of a pod, as its mirror in the API server is marked: kubelet gives a
/// static pod's sandbox the uid of the file, the API server gives the mirror
/// another one.
const STATIC_POD_UID: &str = "kubernetes.io/config.hash";

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    /// Pods in the order of the file.
    pub(crate) pods: Vec<Pod>,
    /// What ambient capture asks of each of them, in the same order.
    pub(crate) workloads: Vec<Workload>,
    /// Namespaces in the order of the file.
    pub(crate) namespaces: Vec<Namespace>,
    /// Kinds that were left out because nobody asks for them.
    pub(crate) ignored: Vec<String>,
}

impl Objects {
    /// True when nothing of use is in the file.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.namespaces.is_empty()
    }
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Neither YAML nor JSON of the right shape.
    #[error("line {line}, column {column}: {what}")]
    Syntax {
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// The parser's words, on one line.
        what: String,
    },
    /// An object that cannot be used.
    #[error("object {index} ({kind}): {what}")]
    Object {
        /// Number of the object in the file, from 1.
        index: usize,
        /// Its kind.
        kind: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// No document at all.
    #[error("no Pod and no Namespace in it: remove the file if its pods are gone")]
    Empty,
    /// Too many objects.
    #[error("more than {MAX_OBJECTS} objects in one file: split it")]
    TooMany,
}

/// Reads a manifest: YAML with several documents, or JSON, each a Pod, a
/// Namespace or a List of them. Other kinds are named in [`Objects::ignored`].
///
/// # Errors
///
/// When the text cannot be parsed, an object lacks its name, or nothing of use is
/// in it.
pub(crate) fn parse(text: &str) -> Result<Objects, ManifestError> {
    let documents = documents(text)?;
    let mut objects = Objects::default();
    let mut stack: Vec<Document> = documents.into_iter().rev().collect();
    let mut index = 0;
    while let Some(mut document) = stack.pop() {
        if index >= MAX_OBJECTS || stack.len() > MAX_OBJECTS {
            return Err(ManifestError::TooMany);
        }
        if document.kind == "List" || document.kind == "PodList" || document.kind == "NamespaceList"
        {
            let element = document.kind.strip_suffix("List").unwrap_or_default().to_owned();
            for mut item in std::mem::take(&mut document.items).into_iter().rev() {
                // The items of a typed list carry no kind of their own.
                if item.kind.is_empty() {
                    item.kind.clone_from(&element);
                }
                stack.push(item);
            }
            continue;
        }
        index += 1;
        file(document, index, &mut objects)?;
    }
    if objects.is_empty() && objects.ignored.is_empty() {
        return Err(ManifestError::Empty);
    }
    Ok(objects)
}

fn file(document: Document, index: usize, objects: &mut Objects) -> Result<(), ManifestError> {
    let wrong = |kind: &str, what: &str| ManifestError::Object {
        index,
        kind: kind.to_owned(),
        what: what.to_owned(),
    };
    match document.kind.as_str() {
        "Pod" | "Namespace" if document.metadata.name.is_empty() => {
            Err(wrong(&document.kind, "metadata.name is missing or empty"))
        }
        // As the API server has it. A file that was cut off here would else be a
        // pod without a sidecar.
        "Pod" if document.spec.containers.is_empty() => {
            Err(wrong("Pod", "spec.containers is missing or empty"))
        }
        "Pod" => {
            let (pod, workload) = document.into_pod();
            objects.pods.push(pod);
            objects.workloads.push(workload);
            Ok(())
        }
        "Namespace" => {
            objects
                .namespaces
                .push(Namespace { name: document.metadata.name, labels: document.metadata.labels });
            Ok(())
        }
        "" => Err(wrong("no kind", "kind is missing: want Pod, Namespace or List")),
        other => {
            objects.ignored.push(other.to_owned());
            Ok(())
        }
    }
}

/// The uid that the runtime knows a static pod by, when `pod` is its mirror.
pub(crate) fn static_uid(pod: &Pod) -> Option<&str> {
    pod.annotations.get(STATIC_POD_UID).map(String::as_str)
}

fn documents(text: &str) -> Result<Vec<Document>, ManifestError> {
    // JSON is read by its own parser: it is faster and its errors speak of JSON.
    if text.trim_start().starts_with('{') {
        let mut documents = Vec::new();
        for document in serde_json::Deserializer::from_str(text).into_iter::<Document>() {
            match document {
                Ok(document) => documents.push(document),
                // YAML's flow style begins with the same letter.
                Err(error) if documents.is_empty() => {
                    return yaml(text).map_err(|_| syntax_json(&error));
                }
                Err(error) => return Err(syntax_json(&error)),
            }
        }
        return Ok(documents);
    }
    yaml(text)
}

fn syntax_json(error: &serde_json::Error) -> ManifestError {
    ManifestError::Syntax {
        line: error.line() as u64,
        column: error.column() as u64,
        what: one_line(&error.to_string()),
    }
}

fn yaml(text: &str) -> Result<Vec<Document>, ManifestError> {
    match serde_saphyr::from_multiple::<Option<Document>>(text) {
        Ok(documents) => Ok(documents.into_iter().flatten().collect()),
        Err(error) => {
            let error = error.without_snippet();
            let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
            Err(ManifestError::Syntax { line, column, what: one_line(&error.to_string()) })
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: n\n  uid: u1\n  labels:\n    app: x\n    empty:\n  annotations:\n    sidecar.istio.io/status: '{}'\nspec:\n  initContainers:\n  - name: istio-validation\n  containers:\n  - name: istio-proxy\n    args: [proxy, sidecar]\n    env:\n    - {name: ISTIO_DUAL_STACK, value: 'true'}\n    - name: POD_IP\n      valueFrom: {fieldRef: {fieldPath: status.podIP}}\n    securityContext: {runAsUser: 1337, runAsGroup: 1338}\n";

    #[test]
    fn reads_what_matters_of_a_pod() {
        let objects = parse(POD).unwrap();
        let pod = &objects.pods[0];
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("n", "a"));
        assert_eq!(pod.uid.as_deref(), Some("u1"));
        assert_eq!(pod.labels["empty"], "");
        assert!(pod.containers[0].init);
        let proxy = &pod.containers[1];
        assert_eq!(proxy.args, ["proxy", "sidecar"]);
        assert_eq!(
            proxy.env,
            [
                ("ISTIO_DUAL_STACK".to_owned(), "true".to_owned()),
                ("POD_IP".to_owned(), String::new())
            ]
        );
        assert_eq!((proxy.run_as_user, proxy.run_as_group), (Some(1337), Some(1338)));
    }

    #[test]
    fn reads_documents_lists_and_json() {
        let text = format!(
            "---\n# nothing\n---\nkind: Namespace\nmetadata: {{name: n, labels: {{a: b}}}}\n---\n{POD}---\nkind: Service\nspec: {{ports: []}}\n"
        );
        let objects = parse(&text).unwrap();
        assert_eq!((objects.pods.len(), objects.namespaces.len()), (1, 1));
        assert_eq!(objects.ignored, ["Service"]);

        let list = r#"{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"a","labels":null},"spec":{"initContainers":null,"containers":[{"name":"c"}]}},{"kind":"Namespace","metadata":{"name":"n"}}]}"#;
        let objects = parse(list).unwrap();
        assert_eq!(objects.pods[0].namespace, "default");
        assert_eq!(objects.namespaces[0].name, "n");

        let typed = "kind: PodList\nitems:\n- metadata: {name: a}\n  spec: &s {containers: [{name: c}]}\n- metadata: {name: b}\n  spec: *s\n";
        let names: Vec<_> = parse(typed).unwrap().pods.into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn says_where_a_text_is_broken() {
        let half = &POD[..POD.len() - 25];
        for broken in
            ["kind: Pod\nmetadata:\n  name: [a\n", "kind: Pod\n metadata: x\n", "{\"kind\":", half]
        {
            match parse(broken) {
                Err(ManifestError::Syntax { line, what, .. }) => {
                    assert!(line > 0, "{broken}: {what}");
                    assert!(!what.contains('\n'));
                }
                other => panic!("{broken}: {other:?}"),
            }
        }
        assert!(matches!(parse(""), Err(ManifestError::Empty)));
        assert!(matches!(parse("---\n"), Err(ManifestError::Empty)));
        let unnamed = parse("kind: Pod\nmetadata: {generateName: a-}\n").unwrap_err();
        assert!(unnamed.to_string().contains("metadata.name"), "{unnamed}");
        assert!(
            parse("metadata: {name: a}\n").unwrap_err().to_string().contains("kind is missing")
        );
        let cut = parse("kind: Pod\nmetadata: {name: a}\nspec:\n").unwrap_err();
        assert!(cut.to_string().contains("spec.containers"), "{cut}");
        assert!(parse("just text").is_err());
        assert!(parse("kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: x, securityContext: {runAsUser: abc}}]}").is_err());
    }

    #[test]
    fn survives_an_alias_bomb() {
        let mut text = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (this, last) in ('b'..='k').zip('a'..) {
            text += &format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(","));
        }
        text += "kind: Pod\nmetadata: {name: a}\n";
        // Either refused or read without the bomb: what counts is that it ends.
        let _ = parse(&text);
    }
}
