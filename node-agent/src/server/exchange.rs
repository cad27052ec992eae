//! One request and its answer: bounded in bytes, served to root only.

use crate::failure::Failure;
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use wire::request::{Endpoint, MAX_BODY, MAX_HEAD};

/// Headers that a request may have. Go's client sends six.
const MAX_HEADERS: usize = 32;

/// How long a refused caller is heard out.
const DRAIN: Duration = Duration::from_millis(500);

/// Bytes read at once.
const CHUNK: usize = 4096;

/// A complete request.
#[derive(Debug)]
pub(super) struct Request {
    /// What is asked for.
    pub(super) endpoint: Endpoint,
    /// The JSON body.
    pub(super) body: Vec<u8>,
    /// The namespace's descriptor, when one travelled with the first byte.
    pub(super) netns: Option<OwnedFd>,
}

/// Why there is no request to answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The caller is told.
    #[error("{0}")]
    Refused(Failure),
    /// Nobody is there to be told.
    #[error("connection closed before a whole request arrived")]
    Closed,
    /// The socket failed.
    #[error("read request")]
    Io(#[from] io::Error),
}

/// Who is at the other end: asked of the kernel, which remembers who connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// It is root.
    pub(super) is_root: bool,
    /// Its process, where it can be seen from here.
    pub(super) process: Option<i32>,
}

/// Asks who is at the other end.
pub(super) fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let peer = stream.peer_cred()?;
    // Zero stands for a process of another pid namespace.
    Ok(Peer { is_root: peer.uid() == 0, process: peer.pid().filter(|pid| *pid > 0) })
}

/// Reads one request.
pub(super) async fn read(stream: &mut UnixStream) -> Result<Request, ExchangeError> {
    let mut bytes = vec![0; CHUNK];
    let first = loop {
        stream.readable().await?;
        let got = stream.try_io(Interest::READABLE, || {
            sys::socket::receive(&*stream, &mut bytes).map_err(io::Error::from)
        });
        match got {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    bytes.truncate(first.len);
    // Of several descriptors the first is meant; the others close here.
    let netns = first.descriptors.into_iter().next();
    let mut ended = first.len == 0;
    loop {
        if let Some((endpoint, body)) = parse(&bytes)? {
            return Ok(Request { endpoint, body: body.to_vec(), netns });
        }
        if ended {
            return Err(ExchangeError::Closed);
        }
        ended = stream.read_buf(&mut bytes).await? == 0;
    }
}

/// The request in `bytes` once it is whole.
fn parse(bytes: &[u8]) -> Result<Option<(Endpoint, &[u8])>, ExchangeError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let scanned = &bytes[..bytes.len().min(MAX_HEAD)];
    let refuse = |status, what: String| {
        Err(ExchangeError::Refused(Failure::bad_request(what).with_status(status)))
    };
    let start = match head.parse(scanned) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => {
            return refuse(431, format!("request head is longer than {MAX_HEAD} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return refuse(400, format!("request is not HTTP/1: {error}")),
    };
    let path = head.path.unwrap_or_default();
    // A proxy's absolute form is not for a socket; Go sends the path alone.
    let Some(endpoint) = Endpoint::of_path(path) else {
        return refuse(404, format!("no such path {path:?}: want one of {}", paths()));
    };
    let method = head.method.unwrap_or_default();
    if method != "POST" {
        return refuse(405, format!("method {method:?} on {path}: want POST"));
    }
    let length = match content_length(head.headers) {
        Ok(length) => length,
        Err(what) => return refuse(400, what),
    };
    if length > MAX_BODY {
        return refuse(413, format!("request body of {length} bytes: at most {MAX_BODY}"));
    }
    let body = &bytes[start..];
    Ok((body.len() >= length).then(|| (endpoint, &body[..length])))
}

fn paths() -> String {
    Endpoint::ALL.map(Endpoint::path).join(", ")
}

/// The body's length as the headers say it.
///
/// # Errors
///
/// When they do not, and what is wrong.
pub(crate) fn content_length(headers: &[httparse::Header<'_>]) -> Result<usize, String> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("request has a Transfer-Encoding: send Content-Length".to_owned());
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = String::from_utf8_lossy(header.value);
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let value = text.parse::<usize>().ok().filter(|_| digits);
            let value = value.ok_or_else(|| format!("Content-Length {text:?} is no number"))?;
            if length.is_some_and(|before| before != value) {
                return Err("request has two different Content-Lengths".to_owned());
            }
            length = Some(value);
        }
    }
    Ok(length.unwrap_or(0))
}

/// An answer as it is sent: one a connection.
pub(super) fn answer(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        phrase(status),
        body.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends what the socket takes at once, from any thread; how much that was. An error is
/// [`finish`]'s to find again.
pub(super) fn send(stream: &UnixStream, bytes: &[u8]) -> usize {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(stream.as_raw_fd(), bytes, flags).unwrap_or(0)
}

/// Sends the rest of an answer, and says that it is all.
pub(super) async fn finish(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(shutdown(stream.as_raw_fd(), Shutdown::Write)?)
}

/// Reads what the caller is still sending, for a moment: one that was refused before
/// it was heard out would else fail in its own write and never see the answer.
pub(super) async fn drain(stream: &UnixStream) {
    let mut ignored = [0; CHUNK];
    let all = async {
        loop {
            let readable = stream.readable().await.and_then(|()| stream.try_read(&mut ignored));
            match readable {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, all).await;
}

/// A status in words.
pub(crate) fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(bytes: &[u8]) -> u16 {
        match parse(bytes) {
            Err(ExchangeError::Refused(failure)) => failure.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_go_sends() {
        let text = b"POST /cmdadd HTTP/1.1\r\nHost: unix\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 2\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{}";
        for end in 0..text.len() {
            assert!(parse(&text[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(parse(text).unwrap(), Some((Endpoint::Add, &b"{}"[..])));
        let more = [&text[..], b"more"].concat();
        assert_eq!(parse(&more).unwrap(), Some((Endpoint::Add, &b"{}"[..])));
    }

    #[test]
    fn refuses_what_it_does_not_serve() {
        let head = |line: &str, header: &str| format!("{line} HTTP/1.1\r\n{header}\r\n\r\n");
        assert_eq!(status(head("GET /status", "A: b").as_bytes()), 405);
        assert_eq!(status(head("POST /other", "A: b").as_bytes()), 404);
        assert_eq!(status(head("POST /cmdadd", "Content-Length: 1048577").as_bytes()), 413);
        for bad in ["x", "-1", "+1", "", "99999999999999999999999"] {
            let text = head("POST /cmdadd", &format!("Content-Length: {bad}"));
            assert_eq!(status(text.as_bytes()), 400, "{bad}");
        }
        let twice = head("POST /cmdadd", "Content-Length: 1\r\nContent-Length: 2");
        assert_eq!(status(twice.as_bytes()), 400);
        assert_eq!(status(head("POST /cmdadd", "Transfer-Encoding: chunked").as_bytes()), 400);
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00"), 400);
        assert_eq!(status(&[b'A'; MAX_HEAD]), 431);
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(status(head("POST /cmdadd", many.trim_end()).as_bytes()), 400);
    }
}
