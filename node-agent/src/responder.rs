//! A small HTTP/1.1 responder: bounded in bytes, time and connections; one request
//! each. For the health endpoints, the metrics and the log socket.

use crate::config::Listen;
use crate::server::{content_length, phrase};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Longest head of a request.
const MAX_HEAD: usize = 16 << 10;

/// Headers that a request may have.
const MAX_HEADERS: usize = 64;

/// Connections at once. A kubelet and some scrapers ask, one after the other.
const MAX_CONNECTIONS: usize = 32;

/// How long a request may take to arrive, and an answer to leave.
const EXCHANGE: Duration = Duration::from_secs(5);

/// How long an answer may take to be made.
const ANSWER: Duration = Duration::from_secs(5);

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// HTTP status.
    pub(crate) status: u16,
    /// Content type.
    pub(crate) kind: &'static str,
    /// The body.
    pub(crate) body: String,
}

impl Page {
    /// Plain text, with a line end.
    pub(crate) fn text(status: u16, text: &str) -> Self {
        let kind = "text/plain; charset=utf-8";
        Self { status, kind, body: format!("{}\n", text.trim_end()) }
    }
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// GET or another.
    pub(crate) method: String,
    /// Without its query.
    pub(crate) path: String,
    /// Of the length that the head says.
    pub(crate) body: Vec<u8>,
}

/// An address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("serve {what} on {address}: set {setting} to another one, or end the program that has it")]
pub(crate) struct BindError {
    what: &'static str,
    address: String,
    setting: &'static str,
    source: io::Error,
}

/// Something that listens.
#[derive(Debug)]
pub(crate) struct Responder {
    listener: TcpListener,
}

impl Responder {
    /// Listens. `what` is served there, and `setting` decides where.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub(crate) fn bind(
        listen: Listen,
        what: &'static str,
        setting: &'static str,
    ) -> Result<Self, BindError> {
        let bind = |address: IpAddr| {
            let listener = std::net::TcpListener::bind(SocketAddr::new(address, listen.port))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = match listen.address {
            Some(address) => bind(address),
            // Both families by one socket; without IPv6 the other alone.
            None => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    return Err(error);
                }
                bind(Ipv4Addr::UNSPECIFIED.into())
            }),
        };
        let address = listen.to_string();
        let listener = listener.map_err(|source| BindError { what, address, setting, source })?;
        Ok(Self { listener })
    }

    /// Answers GET and HEAD until it is dropped. `page` runs on a blocking thread.
    pub(crate) async fn run(self, page: impl Fn(&str) -> Page + Send + Sync + 'static) {
        let page = Arc::new(page);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Who comes when all places are taken waits in the kernel.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let mut stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(reason = %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                serve(&mut stream, page).await;
                drop(place);
            });
        }
    }
}

async fn serve<P>(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), page: Arc<P>)
where
    P: Fn(&str) -> Page + Send + Sync + 'static,
{
    let request = match read(stream, 0).await {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(refusal) => return write(stream, &refusal, true).await,
    };
    let with_body = match request.method.as_str() {
        "GET" => true,
        "HEAD" => false,
        other => {
            let refusal = Page::text(405, &format!("method {other:?}: want GET"));
            return write(stream, &refusal, true).await;
        }
    };
    let made = tokio::task::spawn_blocking(move || page(&request.path));
    let page = match tokio::time::timeout(ANSWER, made).await {
        Ok(Ok(page)) => page,
        Ok(Err(_)) => Page::text(500, "the agent's own defect: look in its log"),
        Err(_) => Page::text(503, "no answer could be made in time: the agent is stuck"),
    };
    write(stream, &page, with_body).await;
}

/// Reads a request; `None` when there is none.
///
/// # Errors
///
/// The refusal, when it is not one that can be answered.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    max_body: usize,
) -> Result<Option<Request>, Page> {
    let whole = async {
        let mut bytes = Vec::new();
        loop {
            if let Some(request) = parse(&bytes, max_body)? {
                return Ok(Some(request));
            }
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return Ok(None);
            }
        }
    };
    let late = |_| Page::text(408, "no whole request in time");
    tokio::time::timeout(EXCHANGE, whole).await.map_err(late)?
}

fn parse(bytes: &[u8], max_body: usize) -> Result<Option<Request>, Page> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let start = match head.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => {
            return Err(Page::text(431, "the request's head is too long"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Page::text(400, &format!("not HTTP/1: {error}"))),
    };
    let length = content_length(head.headers).map_err(|what| Page::text(400, &what))?;
    if length > max_body {
        return Err(Page::text(413, &format!("a body of {length} bytes: at most {max_body}")));
    }
    let Some(body) = bytes.get(start..start + length) else { return Ok(None) };
    let path = head.path.unwrap_or_default();
    Ok(Some(Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.split('?').next().unwrap_or_default().to_owned(),
        body: body.to_vec(),
    }))
}

/// Sends an answer and closes. Nobody is left to be told when that fails.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), page: &Page, with_body: bool) {
    let Page { status, kind, body } = page;
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        phrase(*status),
        body.len()
    );
    if with_body {
        bytes.push_str(body);
    }
    let sent = async {
        stream.write_all(bytes.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(EXCHANGE, sent).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn listen() -> Listen {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        Listen { address: Some(Ipv4Addr::LOCALHOST.into()), port }
    }

    fn ask(listen: Listen, text: &[u8]) -> String {
        let mut stream = TcpStream::connect(listen.to_string()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn answers_what_it_should_and_no_more() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listen = listen();
        runtime.block_on(async {
            let responder = Responder::bind(listen, "pages", "--pages").unwrap();
            tokio::spawn(responder.run(|path| match path {
                "/ok" => Page::text(200, "fine"),
                _ => Page::text(404, "no such page"),
            }));
        });
        let get = ask(listen, b"GET /ok?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(get.starts_with("HTTP/1.1 200 OK\r\n") && get.ends_with("\r\n\r\nfine\n"), "{get}");
        let head = ask(listen, b"HEAD /ok HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 5") && head.ends_with("\r\n\r\n"), "{head}");
        for (text, status) in [
            (&b"GET /other HTTP/1.0\r\n\r\n"[..], "404"),
            (b"POST /ok HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
            (b"POST /ok HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "413"),
            (b"\x16\x03\x01\x02", "400"),
        ] {
            let answer = ask(listen, text);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        assert!(ask(listen, &[b'A'; MAX_HEAD]).starts_with("HTTP/1.1 431 "));
        // More than there are places, all of them silent: none is refused, and the
        // one that speaks is answered once the others' time is up.
        let silent: Vec<_> = (0..MAX_CONNECTIONS + 4)
            .map(|_| TcpStream::connect(listen.to_string()).unwrap())
            .collect();
        assert!(ask(listen, b"GET /ok HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        drop(silent);
        let error = runtime.block_on(async { Responder::bind(listen, "pages", "--pages") });
        let text = crate::failure::causes(&error.unwrap_err());
        assert!(text.contains(&listen.to_string()) && text.contains("--pages"), "{text}");
        runtime.shutdown_background();
    }
}
