//! A direct request for one object on behalf of everyone who waits for it.

use super::backoff::Backoff;
use super::client::{Api, Verb};
use super::error::ApiError;
use super::object::{PodName, Seen};
use http::Request;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// First delay between attempts, and the longest.
const DELAYS: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How long a first attempt is waited for before a second is made beside it: its
/// connection may be to a server that is no more.
const HEDGE: Duration = Duration::from_millis(1000);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// A pod.
    Pod(PodName),
    /// A namespace's metadata.
    Namespace(String),
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// The object is in the store; a pod is this one.
    Found(Option<Arc<Seen>>),
    /// There is none.
    Absent,
    /// Nobody knows.
    Failed(String),
}

/// A request that is under way, or has just ended.
#[derive(Debug)]
pub(super) struct Flight {
    begun: Instant,
    outcome: Mutex<Option<Outcome>>,
}

impl Flight {
    /// It begins now.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), outcome: Mutex::default() }
    }

    /// Its answer is not older than this moment.
    pub(super) fn is_since(&self, moment: Instant) -> bool {
        self.begun >= moment
    }

    /// How it ended, if it has.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It has ended.
    pub(super) fn land(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}

impl Target {
    /// The request for it; `None` when no object can have such a name, and the path
    /// would lead elsewhere.
    fn request(&self) -> Option<Request<Vec<u8>>> {
        let (path, accept) = match self {
            Self::Pod(PodName { namespace, name }) if is_name(namespace) && is_name(name) => {
                (format!("/api/v1/namespaces/{namespace}/pods/{name}"), super::PLAIN)
            }
            Self::Namespace(name) if is_name(name) => {
                (format!("/api/v1/namespaces/{name}"), super::METADATA)
            }
            _ => return None,
        };
        Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new()).ok()
    }

    fn resource(&self) -> &'static str {
        match self {
            Self::Pod(_) => "pods",
            Self::Namespace(_) => "namespaces",
        }
    }

    /// The object's JSON, `None` when there is no such object. Tried again until
    /// `until` as long as that may help.
    ///
    /// # Errors
    /// The last attempt's.
    pub(super) async fn fetch(
        &self,
        api: &Api,
        until: Instant,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let mut backoff = Backoff::new(DELAYS[0], DELAYS[1]);
        let begun = Instant::now();
        loop {
            let error = match tokio::time::timeout_at(until, self.hedged(api)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => error,
                Err(_) => {
                    let what = match self {
                        Self::Pod(pod) => format!("get pod {}/{}", pod.namespace, pod.name),
                        Self::Namespace(name) => format!("get namespace {name}"),
                    };
                    return Err(ApiError::Late { what, limit: until - begun });
                }
            };
            let delay = backoff.next(error.retry_after());
            if !error.is_transient() || Instant::now() + delay >= until {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    async fn hedged(&self, api: &Api) -> Result<Option<Vec<u8>>, ApiError> {
        let first = self.once(api);
        tokio::pin!(first);
        if let Ok(result) = tokio::time::timeout(HEDGE, &mut first).await {
            return result;
        }
        let second = self.once(api);
        tokio::pin!(second);
        // The other one may still do when the earlier answer is an error.
        tokio::select! {
            result = &mut first => match result { Err(_) => second.await, ok => ok },
            result = &mut second => match result { Err(_) => first.await, ok => ok },
        }
    }

    async fn once(&self, api: &Api) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(request) = self.request() else { return Ok(None) };
        match api.call(Verb::Get, self.resource(), request).await {
            Ok(json) => Ok(Some(json)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Characters of a DNS name: what any object's name has, and no path's way out.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(inner)
        && !text.starts_with('.')
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for bad in ["", ".", "..", "a/b", "../secrets/x", "a?b", "a%2fb", "A", "a..b", "ä"] {
            assert!(Target::Namespace(bad.into()).request().is_none(), "{bad}");
        }
        let pod = PodName { namespace: "n".into(), name: "web-0.x".into() };
        let request = Target::Pod(pod).request().unwrap();
        assert_eq!(request.uri().path(), "/api/v1/namespaces/n/pods/web-0.x");
    }
}
