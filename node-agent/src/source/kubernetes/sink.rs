//! Where the reflectors put pods and namespaces.

use super::client::encode;
use super::error::ApiError;
use super::namespace;
use super::object::{self, Decoded, Scope};
use super::reflector::{Collection, Sink};
use super::store::Store;
use super::{METADATA, PLAIN, Synced};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// What `Accept` says for a list of metadata (Kubernetes 1.15).
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Tells how far each list has come.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub(super) since: Instant,
    pub(super) synced: Arc<watch::Sender<Synced>>,
}

/// This node's pods.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) store: Arc<Store>,
    pub(super) scope: Scope,
    pub(super) progress: Progress,
}

impl Sink for Pods {
    const RESOURCE: &'static str = "pods";

    fn collection(&self) -> Collection {
        let node = encode(&self.scope.node);
        Collection {
            path: "/api/v1/pods",
            selector: format!("fieldSelector=spec.nodeName%3D{node}"),
            list: PLAIN,
            watch: PLAIN,
        }
    }

    fn begin(&self) {
        self.store.begin_pods();
    }

    fn apply(&self, json: &str) -> Result<(), String> {
        match object::pod(json, &self.scope) {
            Decoded::Object((name, seen)) => {
                let problem = seen.problem().map(|what| format!("pod {name}: {what}"));
                self.store.put_pod(name, seen);
                problem.map_or(Ok(()), Err)
            }
            // Not asked for: a server that sends it is not believed to mean us.
            Decoded::Foreign => Ok(()),
            Decoded::Broken(problem) => Err(problem),
        }
    }

    fn delete(&self, json: &str) -> Result<(), String> {
        match object::pod(json, &self.scope) {
            Decoded::Object((name, seen)) => {
                self.store.remove_pod(&name, &seen);
                Ok(())
            }
            Decoded::Foreign => Ok(()),
            Decoded::Broken(problem) => Err(problem),
        }
    }

    fn end(&self) {
        self.store.end_pods();
        let since = self.progress.since;
        self.progress.synced.send_if_modified(|synced| {
            let first = synced.pods.is_none();
            synced.pods.get_or_insert_with(|| since.elapsed());
            first
        });
    }

    fn report(&self, behind: Option<&ApiError>) {
        self.store.lock().behind = behind.map(ToString::to_string);
    }
}

/// The cluster's namespaces.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) store: Arc<Store>,
    pub(super) progress: Progress,
}

impl Sink for Namespaces {
    const RESOURCE: &'static str = "namespaces";

    fn collection(&self) -> Collection {
        Collection {
            path: "/api/v1/namespaces",
            selector: String::new(),
            list: METADATA_LIST,
            watch: METADATA,
        }
    }

    fn begin(&self) {
        self.store.begin_namespaces();
    }

    fn apply(&self, json: &str) -> Result<(), String> {
        match namespace::read(json) {
            Decoded::Object((name, labels)) => {
                self.store.put_namespace(name, labels);
                Ok(())
            }
            Decoded::Foreign => Ok(()),
            Decoded::Broken(problem) => Err(problem),
        }
    }

    fn delete(&self, json: &str) -> Result<(), String> {
        match namespace::read(json) {
            Decoded::Object((name, _)) => {
                self.store.remove_namespace(&name);
                Ok(())
            }
            Decoded::Foreign => Ok(()),
            Decoded::Broken(problem) => Err(problem),
        }
    }

    fn end(&self) {
        self.store.end_namespaces();
        let since = self.progress.since;
        self.progress.synced.send_if_modified(|synced| {
            let first = synced.namespaces.is_none();
            synced.namespaces.get_or_insert_with(|| since.elapsed());
            first
        });
    }

    fn report(&self, behind: Option<&ApiError>) {
        self.store.lock().namespaces_behind = behind.map(ToString::to_string);
        // Who asks for one of them need not wait for the answer.
        self.store.wake();
    }
}
