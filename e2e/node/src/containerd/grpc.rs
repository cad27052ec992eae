//! The little of gRPC that CRI needs: one message there, one back, over HTTP/2 on a
//! Unix socket. A connection for each call: a runtime that was restarted is no case.

use anyhow::{Context, Result, bail};
use http::{HeaderMap, Request};
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// What no call takes longer for: kubelet gives up after two minutes.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Of a message: one byte "not compressed", four of its length.
const PREFIX: usize = 5;

/// What a server refused a call with.
#[derive(Debug, Clone)]
pub struct Status {
    /// gRPC's code: 2 unknown, 5 not found, ...
    pub code: u32,
    /// The server's text.
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

/// A server on a Unix socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The server there. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// [`Status`] when the server refuses; when it does not answer in time, or
    /// answers no gRPC.
    pub fn call<Answer: prost::Message + Default>(
        &self,
        method: &str,
        question: &impl prost::Message,
    ) -> Result<Answer> {
        let mut framed = BytesMut::with_capacity(PREFIX + question.encoded_len());
        framed.put_u8(0);
        framed.put_u32(question.encoded_len().try_into().context("a message too long")?);
        question.encode(&mut framed)?;
        // One for each call, so that many threads can call at once.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, unary(&self.socket, method, framed.freeze())).await
        });
        let answer = answer.with_context(|| format!("{method}: no answer after {TIMEOUT:?}"))?;
        let answer = answer.with_context(|| format!("call {method}"))?;
        Ok(Answer::decode(answer)?)
    }
}

async fn unary(socket: &Path, method: &str, message: Bytes) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| format!("connect to {}", socket.display()))?;
    let (client, connection) = h2::client::handshake(stream).await?;
    // It ends with the runtime of this call.
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut client = client.ready().await?;
    let (response, mut body) = client.send_request(request, false)?;
    body.send_data(message, true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        answer.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?;
    // An answer without a message has its status in the head.
    outcome(trailers.as_ref().unwrap_or(&head.headers))?;
    let mut answer = answer.freeze();
    if answer.len() < PREFIX || answer.get_u8() != 0 {
        bail!("an answer without a plain message");
    }
    let length = answer.get_u32() as usize;
    if answer.len() != length {
        bail!("a message of {length} bytes has {}", answer.len());
    }
    Ok(answer)
}

fn outcome(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status").context("an answer without grpc-status")?;
    let code = code.parse().with_context(|| format!("grpc-status {code:?}"))?;
    if code == 0 {
        return Ok(());
    }
    let message = percent_decoded(text("grpc-message").unwrap_or_default());
    Err(Status { code, message }.into())
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let code = escaped.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        (rest, _) = match code {
            Some(byte) => (escaped.get(2..).unwrap_or_default(), bytes.push(byte)),
            None => (escaped, bytes.push(b'%')),
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        assert_eq!(
            percent_decoded("code 100: \\\"x\\\" 100%25 %zz%e2%82%ac%"),
            "code 100: \\\"x\\\" 100% %zz€%"
        );
    }

    #[test]
    fn a_status_is_an_error_with_its_text() {
        let mut headers = HeaderMap::new();
        assert!(outcome(&headers).is_err());
        headers.insert("grpc-status", "0".parse().unwrap());
        outcome(&headers).unwrap();
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "not%20found".parse().unwrap());
        assert_eq!(outcome(&headers).unwrap_err().to_string(), "gRPC status 5: not found");
    }
}
