//! One connection: requests in, answers out, faults in between.

use super::http::{self, Request};
use super::merge::{merge, merge_strategically};
use super::route::Route;
use super::select::Selector;
use super::store::kind_of;
use super::watch::{watch, watch_refusal};
use super::{Asked, Fault, Shared};
use serde_json::{Value, json};
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// An answer of known length.
pub(super) struct Reply {
    pub(super) status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn json(status: u16, value: &Value) -> Self {
        Self { status, headers: Vec::new(), body: value.to_string().into_bytes() }
    }

    pub(super) fn refusal(status: u16, reason: &str, message: &str) -> Self {
        Self::json(status, &status_object(status, reason, message))
    }
}

pub(super) fn status_object(status: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status,
    })
}

/// Serves a connection until either side ends it.
pub(super) fn connection(stream: TcpStream, shared: &Shared) {
    let Ok(reading) = stream.try_clone() else { return };
    let (mut stream, mut reader) = (stream, BufReader::new(reading));
    stream.set_nodelay(true).ok();
    // A client that sends nonsense is told nothing.
    while let Ok(Some(request)) = http::read(&mut reader) {
        let is_last = request.headers.get("connection").is_some_and(|value| value == "close");
        if shared.is_stopping() || exchange(&mut stream, &request, shared).is_err() || is_last {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Both).ok();
}

/// The error ends the connection.
fn exchange(stream: &mut TcpStream, request: &Request, shared: &Shared) -> std::io::Result<()> {
    let Some(route) = Route::of(request) else {
        let reply = Reply::refusal(404, "NotFound", "the server could not find the resource");
        return send(stream, &reply, None);
    };
    let number = note(shared, &route, request);
    if !is_known(shared, request) {
        let reply = refused(&Fault::Status(401), &route);
        told(shared, number, reply.status);
        return send(stream, &reply, None);
    }
    let mut lie = None;
    let (mut cut, mut late) = (None, None);
    if let Some(fault) = befalling(shared, &route) {
        match fault {
            Fault::Slow(time) => pause(shared, Some(time)),
            Fault::Late(time) => late = Some(time),
            Fault::Hang => {
                pause(shared, None);
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            Fault::Close => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            Fault::Cut(bytes) => cut = Some(bytes),
            Fault::Lie(change) => lie = Some(change),
            Fault::Garbage if route.verb == "watch" => {
                http::begin_chunks(stream)?;
                http::chunk(stream, b"\x01\x02 no json\n")?;
                return http::end_chunks(stream);
            }
            other => {
                let reply = refused(&other, &route);
                told(shared, number, reply.status);
                return send(stream, &reply, None);
            }
        }
    }
    let change = |object: &mut Value| {
        if let Some(lie) = &lie {
            lie(object);
        }
    };
    if route.verb == "watch" {
        return match watch_refusal(shared, request) {
            Some(reply) => {
                told(shared, number, reply.status);
                send(stream, &reply, cut)
            }
            None => {
                told(shared, number, 200);
                watch(stream, &route, request, shared, &change, cut)
            }
        };
    }
    let reply = reply(shared, &route, request, &change);
    if late.is_some() {
        pause(shared, late);
    }
    told(shared, number, reply.status);
    send(stream, &reply, cut)
}

fn send(stream: &mut TcpStream, reply: &Reply, cut: Option<usize>) -> std::io::Result<()> {
    http::answer(stream, reply.status, &reply.headers, &reply.body, cut)?;
    match cut {
        Some(_) => Err(std::io::ErrorKind::ConnectionAborted.into()),
        None => Ok(()),
    }
}

fn is_known(shared: &Shared, request: &Request) -> bool {
    let token = shared.lock().options.token.clone();
    let borne = request.headers.get("authorization").and_then(|text| text.strip_prefix("Bearer "));
    token.is_none_or(|token| borne == Some(&token))
}

fn note(shared: &Shared, route: &Route, request: &Request) -> usize {
    let resource = match route.subresource.as_str() {
        "" => route.resource.clone(),
        sub => format!("{}/{sub}", route.resource),
    };
    let mut state = shared.lock();
    state.asked.push(Asked {
        verb: route.verb,
        resource,
        group: route.group.to_owned(),
        name: route.name.clone(),
        query: request.raw_query.clone(),
        status: 0,
    });
    state.asked.len() - 1
}

fn told(shared: &Shared, number: usize, status: u16) {
    // The count may have begun anew meanwhile.
    if let Some(asked) = shared.lock().asked.get_mut(number) {
        asked.status = status;
    }
}

fn befalling(shared: &Shared, route: &Route) -> Option<Fault> {
    let mut state = shared.lock();
    let mut rules = state.rules.iter_mut().rev();
    let rule = rules.find(|rule| rule.befalls(route.verb, &route.resource, &route.name))?;
    rule.times = rule.times.map(|times| times - 1);
    Some(rule.fault.clone())
}

/// Waits for a time, or until there are no faults any more.
fn pause(shared: &Shared, time: Option<Duration>) {
    let end = time.map(|time| Instant::now() + time);
    let mut state = shared.lock();
    while !state.rules.is_empty() && !shared.is_stopping() && !state.down {
        let left =
            end.map_or(Duration::from_secs(1), |e| e.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        let waited = shared.changed.wait_timeout(state, left.min(Duration::from_millis(50)));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn refused(fault: &Fault, route: &Route) -> Reply {
    let Route { verb, resource, .. } = route;
    match fault {
        Fault::TooMany(seconds) => {
            let mut reply = Reply::refusal(429, "TooManyRequests", "too many requests, try later");
            reply.headers.push(("Retry-After", seconds.to_string()));
            reply
        }
        Fault::Garbage => {
            Reply { status: 200, headers: Vec::new(), body: b"\x01\x02 no json".to_vec() }
        }
        Fault::Page => Reply {
            status: 502,
            headers: Vec::new(),
            body: b"<html><h1>502 Bad Gateway</h1></html>".to_vec(),
        },
        Fault::Status(401) => Reply::refusal(401, "Unauthorized", "Unauthorized"),
        Fault::Status(403) => Reply::refusal(
            403,
            "Forbidden",
            &format!("{resource} is forbidden: User \"x\" cannot {verb} resource {resource:?}"),
        ),
        Fault::Status(410) => {
            Reply::refusal(410, "Expired", "The provided continue parameter is too old")
        }
        Fault::Status(status) => Reply::refusal(*status, "Fault", "as the test wants it"),
        _ => Reply::refusal(500, "InternalError", "a fault that is no answer"),
    }
}

fn reply(shared: &Shared, route: &Route, request: &Request, lie: &dyn Fn(&mut Value)) -> Reply {
    let Route { resource, namespace, name, .. } = route;
    let missing = || Reply::refusal(404, "NotFound", &format!("{resource} {name:?} not found"));
    match route.verb {
        "get" => {
            // Not under the lock: a lie may take its time.
            let found = shared.lock().store.get(resource, namespace, name);
            let Some(object) = found else { return missing() };
            let mut object = shown(&object, request);
            lie(&mut object);
            Reply::json(200, &object)
        }
        "list" => list(shared, route, request, lie),
        "create" | "patch" => {
            let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
                return Reply::refusal(400, "BadRequest", "the body is no JSON");
            };
            let mut state = shared.lock();
            let object = match (route.verb, state.store.get(resource, namespace, name)) {
                ("create", _) => created(body, route),
                (_, None) => return missing(),
                (_, Some(known)) => {
                    let mut object = (*known).clone();
                    let strategic = request
                        .headers
                        .get("content-type")
                        .is_some_and(|kind| kind.contains("strategic"));
                    let apply = if strategic { merge_strategically } else { merge };
                    apply(&mut object, &body);
                    object
                }
            };
            match state.store.put(object) {
                Ok(object) => {
                    shared.changed.notify_all();
                    Reply::json(if route.verb == "create" { 201 } else { 200 }, &object)
                }
                Err(error) => Reply::refusal(422, "Invalid", &error.to_string()),
            }
        }
        _ => delete(shared, route, request).unwrap_or_else(missing),
    }
}

fn created(mut object: Value, route: &Route) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("namespace".to_owned(), json!(route.namespace));
    }
    object
}

fn delete(shared: &Shared, route: &Route, request: &Request) -> Option<Reply> {
    let Route { resource, namespace, name, .. } = route;
    let mut state = shared.lock();
    let known = state.store.get(resource, namespace, name)?;
    let wanted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    for field in ["uid", "resourceVersion"] {
        let want = wanted.pointer(&format!("/preconditions/{field}"));
        if want.is_some_and(|want| known.pointer(&format!("/metadata/{field}")) != Some(want)) {
            let message = format!("precondition failed: {field} is not {want:?}");
            return Some(Reply::refusal(409, "Conflict", &message));
        }
    }
    let last = state.store.remove(resource, namespace, name)?;
    shared.changed.notify_all();
    Some(Reply::json(200, &last))
}

/// Whole, or its metadata only when that is what the client accepts first.
pub(super) fn shown(object: &Value, request: &Request) -> Value {
    if !wants_metadata(request) {
        return object.clone();
    }
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    })
}

pub(super) fn wants_metadata(request: &Request) -> bool {
    request.headers.get("accept").is_some_and(|accept| accept.contains("as=PartialObjectMetadata"))
}

pub(super) fn selector(request: &Request) -> Selector {
    let of = |key: &str| request.query.get(key).cloned().unwrap_or_default();
    Selector { fields: of("fieldSelector"), labels: of("labelSelector") }
}

fn list(shared: &Shared, route: &Route, request: &Request, lie: &dyn Fn(&mut Value)) -> Reply {
    let query = |key: &str| request.query.get(key).map(String::as_str);
    let selector = selector(request);
    let state = shared.lock();
    let mut all = state.store.list(&route.resource, &route.namespace);
    all.retain(|object| selector.matches(object));
    let start = match query("continue").map(|token| token.split_once('-')) {
        None => 0,
        Some(Some((version, start)))
            if version.parse().is_ok_and(|v: u64| v >= state.store.oldest()) =>
        {
            start.parse().unwrap_or(0)
        }
        Some(_) => {
            return Reply::refusal(410, "Expired", "The provided continue parameter is too old");
        }
    };
    // A server with a watch cache does not page what may be of any version.
    let cached = query("resourceVersion") == Some("0") && !state.options.always_paged;
    let limit = query("limit").and_then(|text| text.parse().ok()).filter(|l| *l > 0 && !cached);
    let end = limit.map_or(all.len(), |limit: usize| (start + limit).min(all.len()));
    let version = state.store.version();
    let next = if end < all.len() { format!("{version}-{end}") } else { String::new() };
    drop(state);
    let (kind, api) = kind_of(&route.resource).unwrap_or(("Object", "v1"));
    let (kind, api) = match wants_metadata(request) {
        true => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        false => (format!("{kind}List"), api),
    };
    let items: Vec<Value> = all[start.min(end)..end]
        .iter()
        .map(|object| {
            let mut object = shown(object, request);
            lie(&mut object);
            object
        })
        .collect();
    Reply::json(
        200,
        &json!({
            "kind": kind, "apiVersion": api, "items": items,
            "metadata": {"resourceVersion": version.to_string(), "continue": next},
        }),
    )
}
