//! The conversation with the agent: one connection after the other, for ever.

use super::run::Shared;
use super::workloads::Outcome;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::seqpacket::{Connection, Packet};
use zds::{DecodeError, Hello, MAX_REQUEST, Request, Response};

/// Between tries to connect: doubled, no longer than [`SLOWEST`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const SLOWEST: Duration = Duration::from_secs(15);
/// After a hello that could not be sent, before and after it was ready once.
const HELLO_PAUSE: Duration = Duration::from_millis(500);
const HELLO_PAUSE_LATER: Duration = Duration::from_millis(5);
/// An error of a debug build, with its stack trace, as a packet.
const LONG_ERROR: usize = 12_307;
/// What a packet with a text of that length has besides.
const ERROR_HEAD: usize = 6;

/// How a connection ended.
enum End {
    /// The agent closed it, or it broke.
    Closed,
    /// The agent sent what cannot be read; it was told so.
    Unreadable,
    /// The hello could not be sent.
    Unwelcome,
}

/// Talks to the agent until the program is told to end.
pub(super) fn serve(shared: &Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    let mut hello_pause = HELLO_PAUSE;
    while !shared.is_ending() {
        let connection = match Connection::connect(&shared.config.agent) {
            Ok(connection) => Arc::new(connection),
            Err(_) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(SLOWEST);
                continue;
            }
        };
        pause = FIRST_PAUSE;
        if !shared.connected(&connection) {
            return;
        }
        let end = converse(shared, &connection);
        let was_ready = shared.disconnected();
        connection.close();
        match end {
            End::Closed | End::Unreadable => hello_pause = HELLO_PAUSE,
            End::Unwelcome => {
                std::thread::sleep(hello_pause.mul_f64(0.8 + 0.4 * jitter()));
                hello_pause = (hello_pause * 2).min(SLOWEST);
            }
        }
        if was_ready {
            hello_pause = HELLO_PAUSE_LATER;
        }
    }
}

/// Between 0 and 1, good enough to keep two processes from walking in step.
fn jitter() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    f64::from(now.unwrap_or_default().subsec_nanos() % 1000) / 1000.0
}

fn converse(shared: &Arc<Shared>, connection: &Connection) -> End {
    if !greet(shared, connection) {
        return End::Unwelcome;
    }
    let mut handled = 0;
    loop {
        while shared.faults().deaf && !shared.is_ending() {
            std::thread::sleep(Duration::from_millis(10));
        }
        // As ztunnel: not a byte more, no time-out.
        let mut buffer = [0; MAX_REQUEST];
        let packet = match connection.receive_with_descriptors(&mut buffer, None) {
            Ok(Some(packet)) => packet,
            // What was sent before may still be read, which ztunnel does not try.
            Ok(None) | Err(_) => return End::Closed,
        };
        handled += 1;
        let bytes = buffer.get(..packet.len).unwrap_or_default();
        let (request, fd) = match read(bytes, packet) {
            Ok(read) => read,
            Err(why) => {
                let why = format!("failure to read message : {why}");
                shared.note(format!("{} bytes: {why}", bytes.len()));
                answer(shared, connection, &Response::Nack(why));
                return End::Unreadable;
            }
        };
        let uid = request.as_ref().ok().and_then(|request| request.uid()).map(str::to_owned);
        let is_add = matches!(request, Ok(Request::Add { .. }));
        let name = request.as_ref().map_or_else(ToString::to_string, ToString::to_string);
        match interrupt(shared, handled) {
            Some(End::Unwelcome) => {
                shared.note(format!("{name}: not answered"));
                continue;
            }
            Some(end) => return end,
            None => {}
        }
        let lying = shared.faults().lying;
        let outcome =
            if lying { Outcome::Ack } else { shared.workloads().handle(shared, request, fd) };
        if !pause(shared, connection, uid.as_deref(), is_add) {
            shared.note(format!("{name}: given up"));
            return End::Closed;
        }
        shared.note(format!("{name}: {outcome:?}"));
        let sent = match outcome {
            Outcome::Ack => answer(shared, connection, &Response::Ack),
            Outcome::Nack(error) => answer(shared, connection, &Response::Nack(error)),
            Outcome::Fatal(error) => {
                answer(shared, connection, &Response::Nack(error));
                std::process::exit(1);
            }
        };
        if !sent {
            return End::Closed;
        }
    }
}

/// The wait before an answer; false when the connection ended first, if that ends it.
fn pause(shared: &Shared, connection: &Connection, uid: Option<&str>, is_add: bool) -> bool {
    let (delay, gives_up) = {
        let faults = shared.faults();
        (faults.delay(uid), faults.gives_up)
    };
    if gives_up && !is_add {
        return true;
    }
    if delay.is_zero() || !gives_up {
        std::thread::sleep(delay);
        return true;
    }
    let mut polled = [PollFd::new(connection.as_fd(), PollFlags::POLLHUP)];
    let limit = u16::try_from(delay.as_millis()).unwrap_or(u16::MAX);
    !matches!(poll(&mut polled, limit), Ok(1..))
}

/// False when the agent has closed by now.
fn greet(shared: &Shared, connection: &Connection) -> bool {
    let hello = || Hello::V1.encode().is_ok_and(|hello| connection.send(&hello, None).is_ok());
    shared.faults().no_hello || hello()
}

/// Faults that come instead of an answer; `Unwelcome` stands for silence.
fn interrupt(shared: &Shared, handled: u32) -> Option<End> {
    let mut faults = shared.faults();
    if faults.exit_at == Some(handled) {
        std::process::exit(1);
    }
    if faults.close_at == Some(handled) {
        faults.close_at = None;
        return Some(End::Closed);
    }
    faults.silent.then_some(End::Unwelcome)
}

/// A request with the descriptor that it must have, or ztunnel's complaint. An Add
/// without information is a request by that measure, and fatal later.
type Read = (Result<Request, DecodeError>, Option<OwnedFd>);

fn read(bytes: &[u8], packet: Packet) -> Result<Read, String> {
    if packet.truncated {
        return Err("received truncated message".to_owned());
    }
    let count = packet.descriptors.len();
    // It has room for two, so the kernel leaves a third out and says that it did.
    if count > 2 {
        return Err(format!("{:?}", Errno::ENOBUFS));
    }
    let request = match Request::decode(bytes) {
        Err(DecodeError::Malformed { source, .. }) => {
            return Err(format!("failed to decode Protobuf message: {source}"));
        }
        Err(DecodeError::NoPayload { .. }) => return Err("no payload".to_owned()),
        request => request,
    };
    let wants =
        matches!(&request, Ok(Request::Add { .. }) | Err(DecodeError::NoWorkloadInfo { .. }));
    match (wants, count) {
        (true, 0) => Err("No control message".to_owned()),
        (true, 2) => Err("Expected 1 FD, got 2".to_owned()),
        (false, 1..) => Err("Unexpected control message".to_owned()),
        _ => Ok((request, packet.descriptors.into_iter().next())),
    }
}

/// False when the agent is gone.
fn answer(shared: &Shared, connection: &Connection, response: &Response) -> bool {
    let response = match response {
        Response::Nack(error) if shared.faults().long_errors => {
            let wanted = LONG_ERROR - ERROR_HEAD;
            let frames = (0..).map(|n| format!("\n  {n}: tokio::runtime::task::poll_future"));
            let mut text = error.clone();
            text.extend(frames.take(wanted / 16));
            text.truncate(wanted);
            Response::Nack(text)
        }
        other => other.clone(),
    };
    // ztunnel has no time-out here; a test must end.
    let deadline = Instant::now() + Duration::from_secs(60);
    connection.send_by(&response.encode(), None, deadline).is_ok()
}
