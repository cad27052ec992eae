//! Requests to the API server: every one of the agent's goes through [`Api`], which
//! counts it and turns whatever goes wrong into an [`ApiError`].
//!
//! kube's client does connections and TLS, and credentials but for tokens in files
//! ([`Token`]). Bodies are read here, with limits: kube's own methods log an answer that they cannot
//! parse in full, and a pod's manifest holds secrets.

use super::error::{ApiError, quote};
use super::token::Token;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest error answer that is read.
const MAX_ERROR: usize = 64 << 10;

/// Largest single object. etcd takes 1.5 MiB by default.
pub(super) const MAX_OBJECT: usize = 8 << 20;

/// Largest answer to a list.
const MAX_LIST: usize = 512 << 20;

/// How long an answer's head may take. A slow server is waited for; a dead one is
/// found out.
const HEAD_LIMIT: Duration = Duration::from_secs(60);

/// How long the body of a list may take.
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// What a request does, as Kubernetes' own metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verb {
    /// Read one object.
    Get,
    /// Read many.
    List,
    /// Follow many.
    Watch,
    /// Make an object.
    Create,
    /// Change a part of one.
    Patch,
    /// Remove one.
    Delete,
}

impl Verb {
    /// As in RBAC rules.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// One row of the request counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    /// What was asked for.
    pub(crate) verb: Verb,
    /// Of which resource, as in RBAC rules.
    pub(crate) resource: &'static str,
    /// HTTP status of the answer; 0 when there was none.
    pub(crate) status: u16,
}

/// The API server.
pub(crate) struct Api {
    client: kube::Client,
    token: Option<Token>,
    requests: Mutex<BTreeMap<Asked, u64>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// Through a client, with a token that it does not know of.
    pub(super) fn new(client: kube::Client, token: Option<Token>) -> Self {
        Self { client, token, requests: Mutex::default() }
    }

    /// Requests made so far.
    pub(crate) fn requests(&self) -> Vec<(Asked, u64)> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(asked, count)| (*asked, *count)).collect()
    }

    fn count(&self, verb: Verb, resource: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(Asked { verb, resource, status }).or_default() += 1;
    }

    /// Makes a request and reads its whole answer.
    ///
    /// # Errors
    /// When there is none, or it is a refusal.
    pub(crate) async fn call(
        &self,
        verb: Verb,
        resource: &'static str,
        request: Request<Vec<u8>>,
    ) -> Result<Vec<u8>, ApiError> {
        let what = format!("{} {}", verb.as_str(), path(&request));
        let (limit, bytes) = match verb {
            Verb::List => (LIST_LIMIT, MAX_LIST),
            _ => (HEAD_LIMIT, MAX_OBJECT),
        };
        let work = async {
            let mut stream = self.open(verb, resource, request).await?;
            stream.rest(bytes).await
        };
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Late { what, limit }),
        }
    }

    /// Makes a request whose answer is read as it comes.
    ///
    /// # Errors
    /// When there is none, or it is a refusal.
    pub(super) async fn open(
        &self,
        verb: Verb,
        resource: &'static str,
        mut request: Request<Vec<u8>>,
    ) -> Result<Stream, ApiError> {
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        let what = format!("{} {}", verb.as_str(), path(&request));
        // Counted when it is given up too.
        let mut counted = Counted { api: self, verb, resource, status: 0 };
        let sent = self.client.send(request.map(Body::from));
        let response = match tokio::time::timeout(HEAD_LIMIT, sent).await {
            Err(_) => return Err(ApiError::Late { what, limit: HEAD_LIMIT }),
            Ok(Err(error)) => {
                return Err(ApiError::Unreachable { what, cause: quote(&chain(&error)) });
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        counted.status = status.as_u16();
        drop(counted);
        if let Some(token) = self.token.as_ref().filter(|_| status == 401) {
            token.refused();
        }
        let header = retry_after(&response);
        let mut stream = Stream { what, body: response.into_body(), buffer: Vec::new() };
        if status.is_success() {
            return Ok(stream);
        }
        let body = tokio::time::timeout(HEAD_LIMIT, stream.rest(MAX_ERROR)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Err(refusal(stream.what, status.as_u16(), header, &body))
    }
}

/// Percent-encodes a value of a query.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// An error with its causes. Many of kube's and hyper's repeat the next one's words.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

struct Counted<'a> {
    api: &'a Api,
    verb: Verb,
    resource: &'static str,
    status: u16,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.api.count(self.verb, self.resource, self.status);
    }
}

fn path(request: &Request<Vec<u8>>) -> String {
    quote(request.uri().path())
}

fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Kubernetes' own form of a refusal.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    message: String,
    reason: String,
    code: u16,
    details: Option<Details>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: Option<u64>,
}

fn refusal(what: String, status: u16, header: Option<Duration>, body: &[u8]) -> ApiError {
    let parsed: Status = serde_json::from_slice(body).unwrap_or_else(|_| Status {
        // A proxy's page rather than the API server's words.
        message: String::from_utf8_lossy(body).into_owned(),
        ..Status::default()
    });
    let details = parsed.details.unwrap_or_default();
    let retry_after = header.or(details.retry_after_seconds.map(Duration::from_secs));
    let message = if parsed.message.is_empty() { parsed.reason } else { parsed.message };
    ApiError::Refused { what, status, message: quote(&message), retry_after }
}

/// A refusal that came as an event of a watch.
pub(super) fn reported(what: String, json: &str) -> ApiError {
    let status = serde_json::from_str::<Status>(json).map_or(0, |status| status.code);
    refusal(what, if status == 0 { 500 } else { status }, None, json.as_bytes())
}

/// An answer that is being read.
#[derive(Debug)]
pub(super) struct Stream {
    what: String,
    body: Body,
    buffer: Vec<u8>,
}

impl Stream {
    /// All of it.
    async fn rest(&mut self, limit: usize) -> Result<Vec<u8>, ApiError> {
        while self.more(limit).await? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// The next line without its end; `None` when the answer is over.
    ///
    /// # Errors
    /// When none comes within `limit`, the connection breaks, or the line is too long.
    pub(super) async fn line(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, ApiError> {
        let by = Instant::now() + limit;
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            let left = by.saturating_duration_since(Instant::now());
            let more = tokio::time::timeout(left, self.more(MAX_OBJECT)).await;
            let late = |_| ApiError::Late { what: self.what.clone(), limit };
            if !more.map_err(late)?? {
                // Half a line at the end was cut off: it comes again.
                return Ok(None);
            }
        }
    }

    /// Adds a piece to the buffer; false at the end.
    async fn more(&mut self, limit: usize) -> Result<bool, ApiError> {
        let what = || self.what.clone();
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        let frame = frame.map_err(|error| ApiError::Unreachable {
            what: what(),
            cause: quote(&chain(&error)),
        })?;
        if let Ok(data) = frame.into_data() {
            if self.buffer.len() + data.len() > limit {
                let problem = format!("it is larger than {limit} bytes");
                return Err(ApiError::Invalid { what: what(), problem });
            }
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_refusals_of_servers_and_of_proxies() {
        let body = br#"{"kind":"Status","message":"pods is forbidden","reason":"Forbidden"}"#;
        let error = refusal("get /x".into(), 403, None, body);
        assert!(error.to_string().contains("403 pods is forbidden"), "{error}");
        let body = br#"{"reason":"TooManyRequests","details":{"retryAfterSeconds":7}}"#;
        let error = refusal("get /x".into(), 429, None, body);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let error = refusal("get /x".into(), 502, None, b"<html>\nbad gateway");
        assert!(error.to_string().contains("<html> bad gateway"), "{error}");
    }
}
