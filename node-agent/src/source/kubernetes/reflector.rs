//! Keeps a [`Sink`] equal to what the API server has of a resource: a list, then a
//! watch from where the list ended, for ever.
//!
//! The list is streamed where the server can (WatchList, Kubernetes 1.32): no
//! moment in which all objects are in memory as text. An older server refuses it
//! (1.19 and later) or takes no notice of it (before); then the objects are listed in
//! pages, and streaming is not tried again for [`REMEMBERED`]. Lists ask for any
//! version, so that a server answers from its cache: a list from etcd by thousands of
//! agents at once, each reading all pods of the cluster, has brought clusters down.
//!
//! A broken object is told to the sink and passed over. A broken answer, connection
//! or permission is waited out, with what is known kept meanwhile.

use super::backoff::Backoff;
use super::client::{Api, Stream, Verb, encode};
use super::error::{ApiError, quote};
use super::raw::{Line, Marker, Page};
use http::Request;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Delays between attempts: the first, and the longest.
const DELAYS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

/// A watch that lived for this long works.
const STEADY: Duration = Duration::from_secs(10);

/// How long the server keeps a watch open, and how much is added at random, so that
/// they do not all end at once.
const WATCH: [u64; 2] = [240, 60];

/// What is allowed on top before a silent watch counts as broken.
const GRACE: Duration = Duration::from_secs(15);

/// How long a streamed list may pause, and how long it may take. A server that took
/// no notice of the request for one never says that its list is complete.
const LIST: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(120)];

/// How long a server that cannot stream lists is remembered as such: it may be
/// upgraded while the agent runs.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Objects a page, where the server takes pages.
const PAGE: usize = 250;

/// Pages of one list. Enough for 2.5 million objects.
const PAGES: usize = 10_000;

/// Shortest time between an error and an attempt that somebody asks for.
const NUDGE: Duration = Duration::from_secs(1);

/// What a reflector fills.
pub(super) trait Sink: Send + Sync + 'static {
    /// The resource, as in RBAC rules.
    const RESOURCE: &'static str;

    /// Path and selectors of the list, with what `Accept` asks for.
    fn collection(&self) -> Collection;

    /// A list begins.
    fn begin(&self);

    /// An object is so. The error says why it could not be read.
    fn apply(&self, json: &str) -> Result<(), String>;

    /// An object is gone.
    fn delete(&self, json: &str) -> Result<(), String>;

    /// The list is complete: what it did not have is gone.
    fn end(&self);

    /// What the sink holds is up to date, or why it is not.
    fn report(&self, behind: Option<&ApiError>);
}

/// Where objects are listed.
#[derive(Debug, Clone)]
pub(super) struct Collection {
    /// As `/api/v1/pods`.
    pub(super) path: &'static str,
    /// `name=value` pairs, encoded, without a leading `&`; may be empty.
    pub(super) selector: String,
    /// `Accept` of a list.
    pub(super) list: &'static str,
    /// `Accept` of a watch.
    pub(super) watch: &'static str,
}

/// What reflectors of one server share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// When the server was last found unable to stream lists.
    unable: Mutex<Option<Instant>>,
    /// Somebody has had an answer from the server: try now.
    pub(super) nudge: Notify,
}

impl Shared {
    fn can_stream(&self) -> bool {
        let unable = self.unable.lock().unwrap_or_else(PoisonError::into_inner);
        unable.is_none_or(|at| at.elapsed() > REMEMBERED)
    }

    fn cannot_stream(&self) {
        *self.unable.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// A resource that is followed.
pub(super) struct Reflector<S> {
    api: Arc<Api>,
    sink: S,
    shared: Arc<Shared>,
    collection: Collection,
}

/// How a watch ended.
enum End {
    /// It was a list only: watch from the version.
    Listed(String),
    /// In order: go on from the version.
    Closed(String),
    /// The version is too old: list anew.
    Expired,
}

/// Why it broke, and the last version that was seen, if that can be gone on from.
type Broken = (ApiError, Option<String>);

impl<S: Sink> Reflector<S> {
    pub(super) fn new(api: Arc<Api>, sink: S, shared: Arc<Shared>) -> Self {
        let collection = sink.collection();
        Self { api, sink, shared, collection }
    }

    /// Follows the resource until it is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(DELAYS[0], DELAYS[1]);
        // Where to go on from; `None` when everything must be listed anew.
        let mut version: Option<String> = None;
        loop {
            let begun = Instant::now();
            let result = match &version {
                None => self.list().await,
                Some(from) => self.watch(from).await,
            };
            if begun.elapsed() >= STEADY {
                backoff.reset();
            }
            match result {
                Ok(End::Listed(next)) => version = Some(next),
                Ok(End::Closed(next)) => {
                    version = Some(next);
                    // A server that ends each watch at once must not be hammered.
                    if begun.elapsed() < NUDGE {
                        tokio::time::sleep(backoff.next(None)).await;
                    }
                }
                Ok(End::Expired) => {
                    version = None;
                    tracing::info!(resource = S::RESOURCE, "version too old, listing anew");
                    tokio::time::sleep(backoff.next(None)).await;
                }
                Err((error, last)) => {
                    // What was seen before it broke is seen again, which is harmless.
                    version = if error.is_expired() { None } else { last.or(version) };
                    self.recover(&error, &mut backoff).await;
                }
            }
        }
    }

    async fn recover(&self, error: &ApiError, backoff: &mut Backoff) {
        if error.is_expired() {
            tracing::info!(resource = S::RESOURCE, reason = %error, "version too old, listing anew");
        } else {
            tracing::warn!(
                resource = S::RESOURCE,
                reason = %error,
                "cannot follow the API server, what is known is kept"
            );
        }
        self.sink.report(Some(error));
        let delay = backoff.next(error.retry_after());
        let nudged = async {
            tokio::time::sleep(NUDGE).await;
            self.shared.nudge.notified().await;
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = nudged => {}
        }
    }

    /// Lists and, where the list was streamed, watches on.
    async fn list(&self) -> Result<End, Broken> {
        if self.shared.can_stream() {
            match self.streamed().await {
                Err((error, None)) if error.is_unsupported() => {
                    tracing::info!(
                        resource = S::RESOURCE,
                        reason = %error,
                        "the API server does not stream lists, listing in pages"
                    );
                    self.shared.cannot_stream();
                }
                other => return other,
            }
        }
        self.paged().await.map(End::Listed).map_err(|error| (error, None))
    }

    async fn streamed(&self) -> Result<End, Broken> {
        let (limit, mut stream, version) =
            self.stream_list().await.map_err(|error| (error, None))?;
        self.follow(&mut stream, version, limit).await
    }

    async fn stream_list(&self) -> Result<(Duration, Stream, String), ApiError> {
        let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=0";
        let (limit, query) = watch_query(query);
        let request = self.request(&query, self.collection.watch)?;
        let begun = Instant::now();
        let mut stream = self.api.open(Verb::Watch, S::RESOURCE, request).await?;
        self.sink.begin();
        loop {
            let pause = LIST[0].min(LIST[1].saturating_sub(begun.elapsed()));
            let line = match stream.line(pause).await {
                Ok(Some(line)) => line,
                Ok(None) => return Err(self.invalid("the list ended before its last bookmark")),
                // Reported as what an old server should have said.
                Err(ApiError::Late { what, .. }) => {
                    let message = "it never said that the streamed list is complete".to_owned();
                    let status = 501;
                    return Err(ApiError::Refused { what, status, message, retry_after: None });
                }
                Err(error) => return Err(error),
            };
            if let Step::Listed(version) = self.step(&line)? {
                self.finish(begun, "list streamed");
                return Ok((limit, stream, version));
            }
        }
    }

    fn finish(&self, begun: Instant, how: &'static str) {
        self.sink.end();
        self.sink.report(None);
        tracing::info!(resource = S::RESOURCE, ms = begun.elapsed().as_millis(), "{how}");
    }

    async fn paged(&self) -> Result<String, ApiError> {
        let begun = Instant::now();
        self.sink.begin();
        let mut next = String::new();
        for _ in 0..PAGES {
            // Either the cache answers, with everything, or etcd, page by page.
            let from = match next.as_str() {
                "" => "resourceVersion=0".to_owned(),
                token => format!("continue={}", encode(token)),
            };
            let request = self.request(&format!("limit={PAGE}&{from}"), self.collection.list)?;
            let body = self.api.call(Verb::List, S::RESOURCE, request).await?;
            let page: Page<'_> = serde_json::from_slice(&body)
                .map_err(|error| self.invalid(&quote(&error.to_string())))?;
            if !page.kind.ends_with("List") {
                return Err(self.invalid(&format!("kind {:?} is no list", quote(&page.kind))));
            }
            for item in page.items.iter().flatten() {
                self.told(self.sink.apply(item.get()));
            }
            next = page.metadata.next.unwrap_or_default().into_owned();
            if next.is_empty() {
                let version = page.metadata.resource_version.into_owned();
                if version.is_empty() {
                    return Err(self.invalid("the list has no resourceVersion"));
                }
                drop(page.items);
                drop(body);
                // The list was in memory as text, and its pages stay with the
                // allocator otherwise: 12.5 MiB become 6.8 with 110 pods.
                sys::memory::trim();
                self.finish(begun, "listed");
                return Ok(version);
            }
        }
        Err(self.invalid("the list never ends"))
    }

    async fn watch(&self, from: &str) -> Result<End, Broken> {
        let before = |error| (error, None);
        let (limit, query) = watch_query(&format!("resourceVersion={}", encode(from)));
        let request = self.request(&query, self.collection.watch).map_err(before)?;
        let mut stream = self.api.open(Verb::Watch, S::RESOURCE, request).await.map_err(before)?;
        self.sink.report(None);
        self.follow(&mut stream, from.to_owned(), limit).await
    }

    /// Reads a watch to its end.
    async fn follow(
        &self,
        stream: &mut Stream,
        mut version: String,
        limit: Duration,
    ) -> Result<End, Broken> {
        loop {
            let line = match stream.line(limit).await {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(End::Closed(version)),
                Err(error) => return Err((error, Some(version))),
            };
            match self.step(&line) {
                Ok(Step::Seen(Some(next)) | Step::Listed(next)) => version = next,
                Ok(Step::Seen(None)) => {}
                Err(error) if error.is_expired() => return Ok(End::Expired),
                Err(error) => return Err((error, Some(version))),
            }
        }
    }

    /// One line of a watch.
    fn step(&self, line: &[u8]) -> Result<Step, ApiError> {
        let invalid = |error: serde_json::Error| self.invalid(&quote(&error.to_string()));
        let line: Line<'_> = serde_json::from_slice(line).map_err(invalid)?;
        let json = line.object.get();
        match &*line.kind {
            "ADDED" | "MODIFIED" => self.told(self.sink.apply(json)),
            "DELETED" => self.told(self.sink.delete(json)),
            "BOOKMARK" => {
                let marker: Marker<'_> = serde_json::from_str(json).map_err(invalid)?;
                let version = marker.version().map(str::to_owned);
                return match version {
                    Some(version) if marker.ends_list() => Ok(Step::Listed(version)),
                    version => Ok(Step::Seen(version)),
                };
            }
            "ERROR" => {
                let what = format!("watch {}", self.collection.path);
                return Err(super::client::reported(what, json));
            }
            other => return Err(self.invalid(&format!("event type {:?}", quote(other)))),
        }
        // A broken object may lack it; the next event has one.
        let marker = serde_json::from_str::<Marker<'_>>(json).ok();
        Ok(Step::Seen(marker.and_then(|m| m.version().map(str::to_owned))))
    }

    /// A broken object is logged; it is the sink's to know what that means.
    fn told(&self, result: Result<(), String>) {
        if let Err(problem) = result {
            tracing::error!(
                resource = S::RESOURCE,
                reason = problem,
                "an object from the API server cannot be used"
            );
        }
    }

    fn invalid(&self, problem: &str) -> ApiError {
        let what = format!("list and watch {}", self.collection.path);
        ApiError::Invalid { what, problem: problem.to_owned() }
    }

    fn request(&self, query: &str, accept: &str) -> Result<Request<Vec<u8>>, ApiError> {
        let Collection { path, selector, .. } = &self.collection;
        let join = if selector.is_empty() { "" } else { "&" };
        Request::get(format!("{path}?{query}{join}{selector}"))
            .header(http::header::ACCEPT, accept)
            .body(Vec::new())
            .map_err(|error| self.invalid(&error.to_string()))
    }
}

/// What a line meant.
enum Step {
    /// An event, and the version it brought the sink to.
    Seen(Option<String>),
    /// The end of a streamed list.
    Listed(String),
}

/// The query of a watch, and when a silent one counts as broken.
fn watch_query(rest: &str) -> (Duration, String) {
    let seconds = WATCH[0] + fastrand::u64(0..=WATCH[1]);
    let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&{rest}");
    (Duration::from_secs(seconds) + GRACE, query)
}
