//! Watches, and lists that are streamed.

use super::http::{self, Request};
use super::route::Route;
use super::select::Selector;
use super::serve::{Reply, selector, shown, status_object, wants_metadata};
use super::store::kind_of;
use super::{Shared, State, WatchList};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often a silent watch looks whether it should end.
const TURN: Duration = Duration::from_millis(500);

/// What a server says before a watch begins, in its words.
pub(super) fn watch_refusal(shared: &Shared, request: &Request) -> Option<Reply> {
    let streamed = request.query.get("sendInitialEvents").is_some_and(|v| v == "true");
    let matched = request.query.get("resourceVersionMatch").map(String::as_str);
    let invalid = |message: &str| Some(Reply::refusal(422, "Invalid", message));
    match shared.lock().options.watch_list {
        WatchList::Ignored => None,
        WatchList::Refused if streamed => invalid(
            "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ),
        _ if streamed && matched != Some("NotOlderThan") => {
            invalid("resourceVersionMatch: Forbidden: sendInitialEvents requires NotOlderThan")
        }
        _ if !streamed && matched.is_some() => {
            invalid("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch")
        }
        _ => None,
    }
}

/// Serves a watch to its end.
pub(super) fn watch(
    stream: &mut TcpStream,
    route: &Route,
    request: &Request,
    shared: &Shared,
    lie: &dyn Fn(&mut Value),
    cut: Option<usize>,
) -> std::io::Result<()> {
    let query = |key: &str| request.query.get(key).map(String::as_str).unwrap_or_default();
    let timeout = query("timeoutSeconds").parse().unwrap_or(1800);
    let end = Instant::now() + Duration::from_secs(timeout);
    let state = shared.lock();
    let every = (query("allowWatchBookmarks") == "true").then_some(state.options.bookmarks);
    let mut watch = Watch {
        route,
        request,
        shared,
        lie,
        selector: selector(request),
        epoch: state.watch_epoch,
        last: query("resourceVersion").parse().unwrap_or(0),
        end,
        every,
        next: every.map_or(end, |every| Instant::now() + every),
    };
    let streamed =
        query("sendInitialEvents") == "true" && state.options.watch_list == WatchList::Served;
    let mut lines = if watch.last == 0 { watch.begin(&state, streamed) } else { Vec::new() };
    drop(state);
    http::begin_chunks(stream)?;
    let mut left = cut;
    loop {
        for line in lines.drain(..) {
            send(stream, &line, &mut left)?;
        }
        stream.flush()?;
        match watch.pull() {
            Pulled::Lines(more) => lines = more,
            Pulled::Last(line) => {
                if let Some(line) = line {
                    send(stream, &line, &mut left)?;
                }
                return http::end_chunks(stream);
            }
            Pulled::Broken => return Err(std::io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// One line, or as much of it as may still be sent.
fn send(stream: &mut TcpStream, line: &Value, left: &mut Option<usize>) -> std::io::Result<()> {
    let mut text = line.to_string().into_bytes();
    text.push(b'\n');
    match left {
        Some(left) if text.len() > *left => {
            http::chunk(stream, &text[..(*left).max(1)])?;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        Some(left) => *left -= text.len(),
        None => {}
    }
    http::chunk(stream, &text)
}

/// A watch that is under way.
struct Watch<'a> {
    route: &'a Route,
    request: &'a Request,
    shared: &'a Shared,
    lie: &'a dyn Fn(&mut Value),
    selector: Selector,
    /// It ends when the server's is another.
    epoch: u64,
    /// The version that was sent last.
    last: u64,
    /// When it ends.
    end: Instant,
    /// Time between bookmarks, where they are wanted.
    every: Option<Duration>,
    /// When the next one is due.
    next: Instant,
}

/// What comes next.
enum Pulled {
    /// Lines, perhaps none.
    Lines(Vec<Value>),
    /// The end, perhaps with a last line.
    Last(Option<Value>),
    /// The end without a word.
    Broken,
}

impl Watch<'_> {
    /// Everything that is there, and the mark of its end where that is wanted.
    fn begin(&mut self, state: &State, streamed: bool) -> Vec<Value> {
        self.last = state.store.version();
        let all = state.store.list(&self.route.resource, &self.route.namespace);
        let mut lines: Vec<_> =
            all.iter().filter_map(|object| self.line("ADDED", object)).collect();
        if streamed {
            lines.push(self.bookmark(&json!({"k8s.io/initial-events-end": "true"})));
        }
        lines
    }

    /// What happened, waiting for a moment.
    fn pull(&mut self) -> Pulled {
        let state = self.shared.lock();
        if self.shared.is_stopping() || state.down || state.watch_epoch != self.epoch {
            return Pulled::Broken;
        }
        if self.last < state.store.oldest() {
            let message = format!("too old resource version: {}", self.last);
            let status = status_object(410, "Expired", &message);
            return Pulled::Last(Some(json!({"type": "ERROR", "object": status})));
        }
        let now = Instant::now();
        if now >= self.end {
            return Pulled::Last(None);
        }
        let events = state.store.since(self.last, &self.route.resource, &self.route.namespace);
        self.last = self.last.max(state.store.version());
        if !events.is_empty() {
            drop(state);
            let lines = events.iter().filter_map(|event| self.line(event.kind, &event.object));
            return Pulled::Lines(lines.collect());
        }
        if let Some(every) = self.every
            && now >= self.next
        {
            self.next = now + every;
            return Pulled::Lines(vec![self.bookmark(&json!({}))]);
        }
        let wait = self.next.min(self.end).saturating_duration_since(now);
        let waited = self.shared.changed.wait_timeout(state, wait.min(TURN));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Pulled::Lines(Vec::new())
    }

    fn line(&self, kind: &str, object: &Value) -> Option<Value> {
        if !self.selector.matches(object) {
            return None;
        }
        let mut object = shown(object, self.request);
        (self.lie)(&mut object);
        Some(json!({"type": kind, "object": object}))
    }

    fn bookmark(&self, annotations: &Value) -> Value {
        let (kind, api) = kind_of(&self.route.resource).unwrap_or(("Object", "v1"));
        let (kind, api) = match wants_metadata(self.request) {
            true => ("PartialObjectMetadata", "meta.k8s.io/v1"),
            false => (kind, api),
        };
        let meta = json!({
            "resourceVersion": self.last.to_string(), "annotations": annotations,
            "creationTimestamp": null,
        });
        json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api, "metadata": meta}})
    }
}
