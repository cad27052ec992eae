//! A request that writes, with an end in time.

use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::error::ApiError;
use http::{Method, Request, header};
use serde_json::Value;
use std::time::Duration;

/// Longest time for one request: the next pod waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// What is done, to which kind of thing, in which form.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// As in RBAC rules.
    pub(crate) verb: Verb,
    /// As in RBAC rules.
    pub(crate) resource: &'static str,
    /// Of the request.
    pub(crate) method: Method,
    /// Content type of the body.
    pub(crate) kind: &'static str,
}

/// Sends it; the answer's body.
///
/// # Errors
/// When the server does not do it, or not in time.
pub(crate) async fn send(
    api: &Api,
    call: Call,
    path: &str,
    body: &Value,
) -> Result<Vec<u8>, ApiError> {
    let Call { verb, resource, method, kind } = call;
    let what = || format!("{} {path}", verb.as_str());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, kind)
        .header(header::ACCEPT, "application/json")
        .body(body.to_string().into_bytes());
    let request = request.map_err(|error| ApiError::Invalid {
        what: what(),
        problem: format!("no request can be made for it: {error}"),
    })?;
    match tokio::time::timeout(LIMIT, api.call(verb, resource, request)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::Late { what: what(), limit: LIMIT }),
    }
}
