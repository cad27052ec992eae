//! What a server in a namespace of the lab answers: health, metrics, an object of the
//! API.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::Duration;
use sys::netns::{Netns, within};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Page {
    /// Of HTTP.
    pub status: u16,
    /// All after the head.
    pub body: String,
}

impl Page {
    /// Asks the server that listens on a port of the namespace's loopback.
    ///
    /// # Errors
    /// When nobody answers, or with something other than HTTP.
    pub fn get(from: &Netns, port: u16, path: &str) -> Result<Self> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream =
            within(from, || TcpStream::connect(to))?.with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("read {path} of {to}"))?;
        Self::parse(&answer).with_context(|| format!("{path} of {to} is not HTTP: {answer:?}"))
    }

    fn parse(answer: &str) -> Option<Self> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, body: body.to_owned() })
    }

    /// The value of a metric, which is named with its labels.
    #[must_use]
    pub fn sample<T: FromStr>(&self, name: &str) -> Option<T> {
        let mut lines = self.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }
}
