//! Watches, and lists that are streamed.

use super::http::{self, Request};
use super::select::Selector;
use super::serve::{Reply, Route, selector, shown, status_object, wants_metadata};
use super::store::{Event, kind_of};
use super::{Shared, WatchList};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

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

pub(super) fn watch(
    stream: &mut TcpStream,
    route: &Route,
    request: &Request,
    shared: &Shared,
    lie: &dyn Fn(&mut Value),
    cut: Option<usize>,
) -> std::io::Result<()> {
    let query = |key: &str| request.query.get(key).map(String::as_str).unwrap_or_default();
    let selector = selector(request);
    let timeout = query("timeoutSeconds").parse().unwrap_or(1800);
    let end = Instant::now() + Duration::from_secs(timeout);
    let bookmarks = query("allowWatchBookmarks") == "true";
    let state = shared.lock();
    let epoch = state.watch_epoch;
    let streamed =
        query("sendInitialEvents") == "true" && state.options.watch_list == WatchList::Served;
    let mut last = match query("resourceVersion") {
        "" | "0" => 0,
        text => text.parse().unwrap_or(0),
    };
    let mut lines: Vec<Value> = Vec::new();
    if last == 0 {
        last = state.store.version();
        let all = state.store.list(&route.resource, &route.namespace);
        let mine = all.into_iter().filter(|object| selector.matches(object));
        lines.extend(mine.map(|object| {
            let mut object = shown(&object, request);
            lie(&mut object);
            json!({"type": "ADDED", "object": object})
        }));
        if streamed {
            let end = json!({"k8s.io/initial-events-end": "true"});
            lines.push(bookmark(route, request, last, &end));
        }
    }
    drop(state);
    http::begin_chunks(stream)?;
    let mut sent = 0;
    let mut next_bookmark = Instant::now() + shared.lock().options.bookmarks;
    loop {
        for line in lines.drain(..) {
            let mut text = line.to_string().into_bytes();
            text.push(b'\n');
            if let Some(cut) = cut
                && sent + text.len() > cut
            {
                http::chunk(stream, &text[..cut.saturating_sub(sent).max(1)])?;
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            sent += text.len();
            http::chunk(stream, &text)?;
        }
        stream.flush()?;
        let state = shared.lock();
        if shared.is_stopping() || state.down || state.watch_epoch != epoch {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        if last < state.store.oldest() {
            let message = format!("too old resource version: {last}");
            let status = status_object(410, "Expired", &message);
            let mut line = json!({"type": "ERROR", "object": status}).to_string();
            drop(state);
            line.push('\n');
            http::chunk(stream, line.as_bytes())?;
            return http::end_chunks(stream);
        }
        let now = Instant::now();
        if now >= end {
            drop(state);
            return http::end_chunks(stream);
        }
        let events = state.store.since(last, &route.resource, &route.namespace);
        let version = state.store.version();
        if events.is_empty() {
            last = last.max(version);
            if bookmarks && now >= next_bookmark {
                next_bookmark = now + state.options.bookmarks;
                lines.push(bookmark(route, request, last, &json!({})));
                continue;
            }
            let wait = next_bookmark.min(end).saturating_duration_since(now);
            let wait = wait.min(Duration::from_millis(500)).max(Duration::from_millis(1));
            drop(shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
            continue;
        }
        drop(state);
        last = version;
        lines.extend(events.iter().filter_map(|event| line(event, &selector, request, lie)));
    }
}

fn line(
    event: &Event,
    selector: &Selector,
    request: &Request,
    lie: &dyn Fn(&mut Value),
) -> Option<Value> {
    if !selector.matches(&event.object) {
        return None;
    }
    let mut object = shown(&Arc::clone(&event.object), request);
    lie(&mut object);
    Some(json!({"type": event.kind, "object": object}))
}

fn bookmark(route: &Route, request: &Request, version: u64, annotations: &Value) -> Value {
    let (kind, api) = kind_of(&route.resource).unwrap_or(("Object", "v1"));
    let (kind, api) = match wants_metadata(request) {
        true => ("PartialObjectMetadata", "meta.k8s.io/v1"),
        false => (kind, api),
    };
    let meta = json!({
        "resourceVersion": version.to_string(), "annotations": annotations,
        "creationTimestamp": null,
    });
    json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api, "metadata": meta}})
}
