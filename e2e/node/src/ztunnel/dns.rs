//! Names: what is known is answered, the rest is asked of the name servers.

use super::pod::Pod;
use super::record::{Direction, Record, Via};
use super::{DNS, socket};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// What a name server has for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST: usize = 4096;
const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const SERVFAIL: u8 = 2;
/// Seconds that an answer holds.
const TTL: u32 = 30;

/// A question, and where in the packet it ends.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    name: String,
    kind: u16,
    end: usize,
}

/// Takes a datagram; its answer may take a while.
pub(super) fn receive(pod: &Arc<Pod>, socket: &Arc<UdpSocket>) {
    let mut bytes = [0; LONGEST];
    let Ok((length, peer)) = socket.recv_from(&mut bytes) else {
        return;
    };
    let query = bytes.get(..length).unwrap_or_default().to_vec();
    let (pod, socket) = (Arc::clone(pod), Arc::clone(socket));
    std::thread::spawn(move || {
        let answer = respond(&pod, &query, socket::plain(peer), |server| {
            let upstream = socket::towards(&pod.netns, server, PATIENCE)?;
            upstream.send(&query)?;
            let mut bytes = [0; LONGEST];
            let length = upstream.recv(&mut bytes)?;
            Ok(bytes.get(..length).unwrap_or_default().to_vec())
        });
        // Whoever asked may be gone by now.
        socket.send_to(&answer, peer).ok();
    });
}

/// Answers the questions of a TCP connection.
pub(super) fn converse(pod: &Arc<Pod>, mut stream: TcpStream, peer: SocketAddr) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok();
    let Ok(_guard) = pod.guard(&[&stream]) else {
        return;
    };
    while let Ok(query) = read(&mut stream) {
        let answer = respond(pod, &query, peer, |server| {
            let mut upstream = socket::reach(&pod.netns, server, None)?;
            upstream.set_read_timeout(Some(PATIENCE))?;
            write(&mut upstream, &query)?;
            read(&mut upstream)
        });
        if write(&mut stream, &answer).is_err() {
            return;
        }
    }
}

/// The answer, whoever it comes from; `ask` is how a name server is asked.
fn respond(
    pod: &Pod,
    query: &[u8],
    source: SocketAddr,
    ask: impl Fn(SocketAddr) -> Result<Vec<u8>>,
) -> Vec<u8> {
    let mut record = Record {
        uid: pod.uid.clone(),
        direction: Direction::Dns,
        identity: pod.identity(),
        peer_identity: None,
        source,
        destination: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS),
        via: Via::Nowhere,
        note: String::new(),
    };
    let done = (|| {
        let question = question(query)?;
        record.note = format!("{} {}", question.name, question.kind);
        pod.shared.wait_known(&pod.info)?;
        if let Some(addresses) = pod.shared.resolve(&question.name) {
            record.via = Via::Itself;
            return answer(query, &question, &addresses);
        }
        let servers = &pod.shared.config.resolvers;
        let found = servers.iter().find_map(|server| ask(*server).ok());
        let found = found.with_context(|| format!("none of {servers:?} answers"))?;
        record.via = Via::Forwarded;
        Ok(found)
    })();
    let bytes = done.unwrap_or_else(|err: anyhow::Error| {
        record.note.push_str(&format!(": {err:#}"));
        failure(query)
    });
    pod.shared.record(record);
    bytes
}

fn read(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let mut bytes = u16::try_from(message.len())?.to_be_bytes().to_vec();
    bytes.extend(message);
    Ok(stream.write_all(&bytes)?)
}

fn question(query: &[u8]) -> Result<Question> {
    let [0, 1] = query.get(4..6).context("shorter than a header")? else {
        bail!("not one question");
    };
    let (mut name, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*query.get(at).context("a name without an end")?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 {
            bail!("a compressed name in a question");
        }
        let label = query.get(at..at + length).context("a label without an end")?;
        name.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
    let [high, low, ..] = query.get(at..at + 4).context("a question without a type")? else {
        bail!("a question without a type");
    };
    Ok(Question { name: name.join("."), kind: u16::from_be_bytes([*high, *low]), end: at + 4 })
}

/// The head of an answer to a query: its id and question, and no records.
fn head(query: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut bytes = query.get(..end).unwrap_or_default().to_vec();
    for (at, value) in [
        // An answer, recursion as it was asked for; available, and how it went.
        (2, 0x80 | (query.get(2).copied().unwrap_or_default() & 0x79)),
        (3, 0x80 | code),
        (6, 0),
        (7, 0),
        (8, 0),
        (9, 0),
        (10, 0),
        (11, 0),
    ] {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    bytes
}

fn answer(query: &[u8], question: &Question, addresses: &[IpAddr]) -> Result<Vec<u8>> {
    let mut bytes = head(query, question.end, 0);
    let mut count = 0u8;
    for address in addresses {
        let (kind, data) = match address {
            IpAddr::V4(v4) => (A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
        };
        if kind == question.kind {
            count = count.checked_add(1).context("too many addresses")?;
            // The name is the question's.
            bytes.extend([0xc0, u8::try_from(HEADER)?]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(TTL.to_be_bytes());
            bytes.extend(u16::try_from(data.len())?.to_be_bytes());
            bytes.extend(data);
        }
    }
    if let Some(byte) = bytes.get_mut(7) {
        *byte = count;
    }
    Ok(bytes)
}

fn failure(query: &[u8]) -> Vec<u8> {
    let end = question(query).map_or(HEADER, |question| question.end);
    head(query, end, SERVFAIL)
}

/// An answer with these addresses; None when it is no query.
#[must_use]
pub fn reply(query: &[u8], addresses: &[IpAddr]) -> Option<Vec<u8>> {
    answer(query, &question(query).ok()?, addresses).ok()
}

/// The code of an answer and its addresses, as far as [`reply`] writes them.
#[must_use]
pub fn read_reply(answer: &[u8]) -> Option<(u8, Vec<IpAddr>)> {
    let mut rest = answer.get(question(answer).ok()?.end..)?;
    let mut addresses = Vec::new();
    // Each has a pointer for a name, type, class, TTL and length.
    while let Some((record, after)) = rest.split_at_checked(12) {
        let length = usize::from(u16::from_be_bytes([*record.get(10)?, *record.get(11)?]));
        let (data, after) = after.split_at_checked(length)?;
        if let Ok(v4) = <[u8; 4]>::try_from(data) {
            addresses.push(v4.into());
        } else if let Ok(v6) = <[u8; 16]>::try_from(data) {
            addresses.push(v6.into());
        }
        rest = after;
    }
    Some((answer.get(3)? & 0xf, addresses))
}

/// A query, as an application's resolver sends it.
#[must_use]
pub fn query(id: u16, name: &str, v6: bool) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(if v6 { AAAA } else { A }.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_question() {
        let query = query(7, "Api.shop.svc", false);
        let want = Question { name: "api.shop.svc".to_owned(), kind: A, end: query.len() };
        assert_eq!(question(&query).unwrap(), want);
        for end in 0..query.len() {
            assert!(question(query.get(..end).unwrap()).is_err(), "{end}");
        }
    }

    #[test]
    fn answers_with_the_addresses_of_the_family() {
        let addresses = [IpAddr::from([10, 0, 0, 1]), "fd00::1".parse().unwrap()];
        for (v6, last) in [(false, &[4, 10, 0, 0, 1][..]), (true, &[0, 0, 0, 0, 0, 0, 1][..])] {
            let query = query(7, "a.b", v6);
            let bytes = answer(&query, &question(&query).unwrap(), &addresses).unwrap();
            assert_eq!(bytes.get(..8).unwrap(), [0, 7, 0x81, 0x80, 0, 1, 0, 1]);
            assert!(bytes.ends_with(last), "{bytes:?}");
            let of_family = addresses.into_iter().filter(|ip| ip.is_ipv6() == v6).collect();
            assert_eq!(read_reply(&bytes), Some((0, of_family)));
        }
        let bytes = failure(&query(7, "a.b", false));
        assert_eq!(bytes.get(..8).unwrap(), [0, 7, 0x81, 0x82, 0, 1, 0, 0]);
    }
}
