//! What becomes of a pod's TCP connections.

use super::hop::{Hop, Reply};
use super::pod::Pod;
use super::record::{Direction, Record, Via};
use super::{INBOUND, INBOUND_PLAINTEXT, OUTBOUND, socket};
use anyhow::{Context, Result, bail, ensure};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(120);

/// From the application.
pub(super) fn outbound(pod: &Arc<Pod>, stream: TcpStream, source: SocketAddr) {
    let mut record = record(pod, Direction::Outbound, source);
    let done = (|| {
        record.destination = socket::destination(&stream)?;
        let to = record.destination;
        if is_own(to.port()) && to.ip().is_loopback() {
            bail!("attempted recursive call to ourselves");
        }
        pod.shared.wait_known(&pod.info)?;
        if pod.shared.takes_hbone(to.ip()) {
            let mut next = socket::reach(&pod.netns, SocketAddr::new(to.ip(), INBOUND), None)?;
            next.set_read_timeout(Some(SILENCE))?;
            let hop = Hop { identity: pod.identity(), source, destination: to };
            record.peer_identity = Some(hop.ask(&mut next)?);
            record.via = Via::Hbone;
            return Ok(next);
        }
        let next = socket::reach(&pod.netns, to, None)?;
        record.via = Via::Passthrough;
        Ok(next)
    })();
    go_on(pod, stream, record, done);
}

/// From another ztunnel.
pub(super) fn inbound(pod: &Arc<Pod>, mut stream: TcpStream, source: SocketAddr) {
    let mut record = record(pod, Direction::Inbound, source);
    let done = (|| {
        stream.set_read_timeout(Some(SILENCE))?;
        let hop = Hop::accept(&mut stream)?;
        record.destination = hop.destination;
        record.peer_identity = Some(hop.identity);
        let local = socket::plain(stream.local_addr()?).ip();
        ensure!(
            hop.destination.ip() == local,
            "{} is not the address {local} that was connected to",
            hop.destination
        );
        reach_app(pod, hop.destination, source)
    })();
    let reply = match &done {
        Ok(_) => Reply::Ok { identity: pod.identity() },
        Err(err) => Reply::Refused(format!("{err:#}")),
    };
    let replied = reply.send(&mut stream);
    record.via = if done.is_ok() { Via::Application } else { Via::Nowhere };
    go_on(pod, stream, record, done.and_then(|next| replied.map(|()| next)));
}

/// From somebody outside of the mesh.
pub(super) fn inbound_plaintext(pod: &Arc<Pod>, stream: TcpStream, source: SocketAddr) {
    let mut record = record(pod, Direction::InboundPlaintext, source);
    let done = (|| {
        record.destination = socket::destination(&stream)?;
        let next = reach_app(pod, record.destination, source)?;
        record.via = Via::Application;
        Ok(next)
    })();
    go_on(pod, stream, record, done);
}

/// The application sees the client's own address.
fn reach_app(pod: &Pod, to: SocketAddr, source: SocketAddr) -> Result<TcpStream> {
    if is_own(to.port()) {
        bail!("attempted recursive call to ourselves");
    }
    pod.shared.wait_known(&pod.info)?;
    socket::reach(&pod.netns, to, Some(source.ip()))
}

fn is_own(port: u16) -> bool {
    [OUTBOUND, INBOUND_PLAINTEXT, INBOUND].contains(&port)
}

fn record(pod: &Pod, direction: Direction, source: SocketAddr) -> Record {
    Record {
        uid: pod.uid.clone(),
        direction,
        identity: pod.identity(),
        peer_identity: None,
        source,
        destination: source,
        via: Via::Nowhere,
        note: String::new(),
    }
}

/// Writes it down, and moves the bytes until both sides are done.
fn go_on(pod: &Arc<Pod>, stream: TcpStream, mut record: Record, next: Result<TcpStream>) {
    match next {
        Ok(next) => {
            pod.shared.record(record);
            // One side that breaks off ends the connection, which is all there is to it.
            exchange(pod, &stream, &next).ok();
        }
        Err(err) => {
            record.via = Via::Nowhere;
            record.note = format!("{err:#}");
            pod.shared.record(record);
            socket::reset_on_close(&stream);
        }
    }
}

fn exchange(pod: &Arc<Pod>, one: &TcpStream, other: &TcpStream) -> Result<()> {
    let _guard = pod.guard(&[one, other]).context("copy a socket")?;
    for stream in [one, other] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| copy(one, other));
        copy(other, one);
    });
    Ok(())
}

/// One direction; its end is passed on, and a break breaks both.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    match std::io::copy(&mut from, &mut to) {
        Ok(_) => to.shutdown(Shutdown::Write).ok(),
        Err(_) => {
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Both).ok()
        }
    };
}
