//! Attempts to reach something, and what became of each.

use crate::process::Program;
use crate::stand_in::Answer;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Attempts under way at once.
const WORKERS: usize = 32;
/// Longer than two retransmissions of a SYN, so that a lost packet on a
/// busy machine is not taken for a dropped one.
const PATIENCE: Duration = Duration::from_secs(4);
/// Times a datagram is sent.
const DATAGRAMS: u32 = 4;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// A datagram and its answer.
    Udp,
}

/// One try.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// What it is called in reports; unique among those sent together.
    pub label: String,
    /// TCP or UDP.
    pub transport: Transport,
    /// User and group of the socket's file, which is what owner rules look at.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Source; the kernel's choice when absent.
    pub from: Option<SocketAddr>,
    /// Destination.
    pub to: SocketAddr,
    /// Mark of the packets; none without.
    #[serde(default)]
    pub mark: Option<u32>,
    /// `from` is somebody else's address.
    #[serde(default)]
    pub spoofed: bool,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Somebody answered.
    Answered(Answer),
    /// The destination has no such port, or reset the connection.
    Refused,
    /// Nobody said anything.
    Silence,
    /// The kernel would not even send it, or the answer made no sense.
    Failed(String),
}

impl Fate {
    /// Whether `name` answered at `port`.
    #[must_use]
    pub fn is_by(&self, name: &str, port: u16) -> bool {
        matches!(self, Self::Answered(answer) if answer.by == name && answer.port == port)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(answer) => answer.fmt(f),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Line of the `packet` program's output.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    label: String,
    fate: Fate,
}

/// Fates by label.
pub type Fates = BTreeMap<String, Fate>;

/// Runs attempts with the suite's `packet` program, prepared by the caller to be
/// in the right namespace.
///
/// # Errors
/// When the program fails or leaves an attempt out.
pub fn send(program: Program<'_>, attempts: &[Attempt]) -> Result<Fates> {
    let mut input = String::new();
    for attempt in attempts {
        input.push_str(&serde_json::to_string(attempt)?);
        input.push('\n');
    }
    let output = program.input(input).timeout(Duration::from_secs(60)).check()?;
    let mut fates = Fates::new();
    for line in output.lines() {
        let outcome: Outcome = serde_json::from_str(line).with_context(|| line.to_owned())?;
        fates.insert(outcome.label, outcome.fate);
    }
    if fates.len() != attempts.len() {
        bail!("{} attempts, {} fates", attempts.len(), fates.len());
    }
    Ok(fates)
}

/// The `packet` program: attempts in, fates out, one JSON object a line.
///
/// # Errors
/// When the input is not that, or the output cannot be written.
pub fn serve(input: impl BufRead, mut output: impl std::io::Write) -> Result<()> {
    let mut queue = VecDeque::new();
    for line in input.lines() {
        queue.push_back(serde_json::from_str::<Attempt>(&line?)?);
    }
    let workers = queue.len().min(WORKERS);
    let queue = Mutex::new(queue);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(attempt) = next(&queue) {
                    let fate =
                        attempt.make().unwrap_or_else(|err| Fate::Failed(format!("{err:#}")));
                    let label = attempt.label;
                    lock(&outcomes).push(Outcome { label, fate });
                }
            });
        }
    });
    for outcome in lock(&outcomes).iter() {
        writeln!(output, "{}", serde_json::to_string(outcome)?)?;
    }
    Ok(())
}

/// In a function of its own, so that the queue is free while the attempt is made.
fn next(queue: &Mutex<VecDeque<Attempt>>) -> Option<Attempt> {
    lock(queue).pop_front()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attempt {
    /// Makes the attempt from the calling thread, which takes on its identity.
    fn make(&self) -> Result<Fate> {
        let fd = self.socket()?;
        if let Err(errno) = connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to)) {
            return fate_of(std::io::Error::from(errno));
        }
        match self.transport {
            Transport::Tcp => read_line(TcpStream::from(fd)),
            Transport::Udp => exchange(&UdpSocket::from(fd)),
        }
    }

    fn socket(&self) -> Result<OwnedFd> {
        become_user(self.uid, self.gid)?;
        let family = match self.to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let kind = match self.transport {
            Transport::Tcp => SockType::Stream,
            Transport::Udp => SockType::Datagram,
        };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        let patience = match self.transport {
            Transport::Tcp => PATIENCE,
            Transport::Udp => PATIENCE / DATAGRAMS,
        };
        let patience =
            TimeVal::new(patience.as_secs().try_into()?, patience.subsec_micros().into());
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        if let Some(mark) = self.mark {
            setsockopt(&fd, sockopt::Mark, &mark).context("set the mark")?;
        }
        if self.spoofed {
            // SOL_IP on an IPv6 socket sets the one bit that both families look at.
            setsockopt(&fd, sockopt::IpTransparent, &true).context("set IP_TRANSPARENT")?;
        }
        if let Some(from) = self.from {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))
                .with_context(|| format!("bind {from}"))?;
        }
        Ok(fd)
    }
}

/// Sets the identity that the calling thread's new files get. The kernel's owner
/// matches (xt_owner, `meta skuid`) look at the credentials of the socket's file.
fn become_user(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    // They report no error, only the value before.
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        bail!("become {uid}:{gid}");
    }
    Ok(())
}

fn read_line(stream: TcpStream) -> Result<Fate> {
    let mut line = String::new();
    if let Err(err) = BufReader::new(stream).read_line(&mut line) {
        return fate_of(err);
    }
    parse(&line)
}

fn exchange(socket: &UdpSocket) -> Result<Fate> {
    let mut bytes = [0; 2048];
    for _ in 0..DATAGRAMS {
        if let Err(err) = socket.send(b"?") {
            return fate_of(err);
        }
        match socket.recv(&mut bytes) {
            Ok(read) => {
                return parse(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()));
            }
            Err(err) if is_timeout(&err) => {}
            Err(err) => return fate_of(err),
        }
    }
    Ok(Fate::Silence)
}

fn parse(text: &str) -> Result<Fate> {
    let answer = serde_json::from_str(text).with_context(|| format!("answered {text:?}"))?;
    Ok(Fate::Answered(answer))
}

fn fate_of(err: std::io::Error) -> Result<Fate> {
    match err.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ok(Fate::Refused),
        _ if is_timeout(&err) => Ok(Fate::Silence),
        _ => Err(err.into()),
    }
}

fn is_timeout(err: &std::io::Error) -> bool {
    matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        || err.raw_os_error() == Some(libc::EINPROGRESS)
}
