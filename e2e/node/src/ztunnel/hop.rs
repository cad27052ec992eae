//! The fake's stand-in for HBONE: one line of JSON, one line back, then the bytes.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const LONGEST_LINE: usize = 4096;

/// What a CONNECT and the two certificates would say.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hop {
    /// Identity of the pod that it comes from.
    pub(super) identity: String,
    /// The application's own socket.
    pub(super) source: SocketAddr,
    /// Where it is to go.
    pub(super) destination: SocketAddr,
}

/// The answer: who is there, or why not.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Connected.
    Ok {
        /// Identity of the pod that was reached.
        identity: String,
    },
    /// Not.
    Refused(String),
}

impl Hop {
    /// Asks for a hop; the identity of the other side.
    pub(super) fn ask(&self, stream: &mut TcpStream) -> Result<String> {
        write(stream, self)?;
        match read(stream)? {
            Reply::Ok { identity } => Ok(identity),
            Reply::Refused(why) => bail!("the other side says: {why}"),
        }
    }

    /// Reads what the other side asks.
    pub(super) fn accept(stream: &mut TcpStream) -> Result<Self> {
        read(stream)
    }
}

impl Reply {
    pub(super) fn send(&self, stream: &mut TcpStream) -> Result<()> {
        write(stream, self)
    }
}

fn write(stream: &mut TcpStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Byte by byte: what follows the line belongs to the application.
fn read<T: for<'de> Deserialize<'de>>(stream: &mut TcpStream) -> Result<T> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LONGEST_LINE {
        if stream.read(&mut byte)? == 0 {
            bail!("the connection ended before it said what it is");
        }
        if byte == *b"\n" {
            return serde_json::from_slice(&line).context("no hop of the fake ztunnel");
        }
        line.extend(byte);
    }
    bail!("no hop of the fake ztunnel: no line in {LONGEST_LINE} bytes")
}
