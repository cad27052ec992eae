//! As much HTTP/1.1 as one request on a connection of its own needs. A client
//! library would be eleven dependencies and half a megabyte in the plugin.

use crate::request::{Endpoint, MAX_BODY, MAX_HEAD};

const MAX_HEADERS: usize = 32;

/// The bytes of a request with a JSON body.
#[must_use]
pub fn request(endpoint: Endpoint, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: unix\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        endpoint.path(),
        body.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
}

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ResponseError {
    #[error("the answer is not HTTP/1: {0}")]
    NotHttp(httparse::Error),
    #[error("the head of the answer is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    #[error("the body of the answer is longer than {MAX_BODY} bytes")]
    BodyTooLong,
    #[error("the answer's Content-Length is malformed")]
    ContentLength,
    #[error("the answer has a Transfer-Encoding, which is not read here")]
    TransferEncoding,
    #[error("the connection was closed in the middle of the answer")]
    Truncated,
}

/// Reads what has arrived so far; `None` means that more has to come. With
/// `eof` nothing more will. Call it again with the longer buffer; a caller
/// that stops at an error never holds more than
/// [`MAX_HEAD`] + [`MAX_BODY`] bytes and one read.
///
/// # Errors
/// [`ResponseError`]; final, more bytes do not heal it.
pub fn response(bytes: &[u8], eof: bool) -> Result<Option<Response<'_>>, ResponseError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let scanned = &bytes[..bytes.len().min(MAX_HEAD)];
    let length = match head.parse(scanned).map_err(ResponseError::NotHttp)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() >= MAX_HEAD => {
            return Err(ResponseError::HeadTooLong);
        }
        httparse::Status::Partial if eof => return Err(ResponseError::Truncated),
        httparse::Status::Partial => return Ok(None),
    };
    let status = head.code.unwrap_or_default();
    let expected = content_length(head.headers)?;
    let body = &bytes[length..];
    match expected {
        Some(n) if n > MAX_BODY => Err(ResponseError::BodyTooLong),
        None if body.len() > MAX_BODY => Err(ResponseError::BodyTooLong),
        Some(n) if body.len() >= n => Ok(Some(Response { status, body: &body[..n] })),
        None if eof => Ok(Some(Response { status, body })),
        Some(_) if eof => Err(ResponseError::Truncated),
        _ => Ok(None),
    }
}

fn content_length(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, ResponseError> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(ResponseError::TransferEncoding);
        }
        if !header.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let text = std::str::from_utf8(header.value).map_err(|_| ResponseError::ContentLength)?;
        // `parse` alone would take a leading '+'.
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ResponseError::ContentLength);
        }
        let value: usize = text.parse().map_err(|_| ResponseError::ContentLength)?;
        if length.is_some_and(|before| before != value) {
            return Err(ResponseError::ContentLength);
        }
        length = Some(value);
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
