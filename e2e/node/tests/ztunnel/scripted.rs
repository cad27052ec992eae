//! An agent that says what the test wants, and a fake ztunnel that talks to it.

use e2e_node::lab::{Namespace, Scratch};
use e2e_node::process::Program;
use e2e_node::ztunnel::{Config, Status, Ztunnel};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::seqpacket::{Connection, Listener};
use zds::{Hello, Request, Response, WorkloadInfo};

/// What no step takes.
pub(crate) const LONG: Duration = Duration::from_secs(90);

pub(crate) struct Agent {
    pub(crate) path: PathBuf,
    listener: Option<Listener>,
    connection: Option<Connection>,
}

impl Agent {
    pub(crate) fn create(scratch: &Scratch) -> Self {
        let path = scratch.path().join("z.sock");
        let listener = Listener::bind(&path).unwrap();
        Self { path, listener: Some(listener), connection: None }
    }

    /// Waits for the next connection and its hello.
    pub(crate) fn accept(&mut self) {
        let connection = self.accept_silently();
        let mut buffer = [0; 64];
        let packet = connection.receive_by(&mut buffer, soon()).unwrap().unwrap();
        assert_eq!(Hello::decode(&buffer[..packet.len]).unwrap(), Hello::V1);
        self.connection = Some(connection);
    }

    pub(crate) fn accept_silently(&self) -> Connection {
        let end = Instant::now() + LONG;
        loop {
            match self.listener.as_ref().unwrap().accept() {
                Ok(connection) => return connection,
                Err(Errno::EAGAIN) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(errno) => panic!("nobody connects: {errno}"),
            }
        }
    }

    /// Sends anything, with any number of descriptors.
    pub(crate) fn say(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        let fd = self.connection().as_fd().as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    }

    pub(crate) fn hear(&self) -> Response {
        Response::decode(&self.hear_packet()).unwrap()
    }

    pub(crate) fn hear_packet(&self) -> Vec<u8> {
        let mut buffer = vec![0; 64 << 10];
        let packet = self.connection().receive_by(&mut buffer, soon()).unwrap();
        let packet = packet.unwrap();
        assert!(!packet.truncated && !packet.stray);
        buffer.truncate(packet.len);
        buffer
    }

    /// Nothing comes for a while.
    pub(crate) fn hears_nothing(&self) {
        let end = Instant::now() + Duration::from_millis(100);
        let heard = self.connection().receive_by(&mut [0; 64], Some(end));
        assert_eq!(heard.unwrap_err(), Errno::ETIMEDOUT);
    }

    /// The peer has closed.
    pub(crate) fn hears_the_end(&mut self) {
        let connection = self.connection.take().unwrap();
        loop {
            match connection.receive_by(&mut [0; 64], soon()) {
                Err(Errno::ECONNRESET) => {}
                other => break assert!(other.unwrap().is_none()),
            }
        }
    }

    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.say(&request.encode().unwrap(), &[]);
        self.hear()
    }

    pub(crate) fn add(&self, uid: &str, pod: &Namespace) -> Response {
        self.add_as(uid, &info(uid, "default"), pod.netns().as_fd())
    }

    pub(crate) fn add_as(&self, uid: &str, info: &WorkloadInfo, fd: BorrowedFd<'_>) -> Response {
        let request = Request::Add { uid: uid.to_owned(), info: info.clone() };
        self.say(&request.encode().unwrap(), &[fd]);
        self.hear()
    }

    pub(crate) fn del(&self, uid: &str) -> Response {
        self.ask(&Request::Del { uid: uid.to_owned() })
    }

    pub(crate) fn keep(&self, uid: &str) -> Response {
        self.ask(&Request::Keep { uid: uid.to_owned() })
    }

    pub(crate) fn snapshot_sent(&self) -> Response {
        self.ask(&Request::SnapshotSent)
    }

    /// The connection, which stays open as long as the test has it.
    pub(crate) fn take(&mut self) -> Connection {
        self.connection.take().unwrap()
    }

    /// Closes this side.
    pub(crate) fn hang_up(&mut self) {
        self.connection = None;
    }

    /// The agent is gone, file and all.
    pub(crate) fn die(&mut self) {
        // In this order, or it is connected to once more.
        self.listener = None;
        self.connection = None;
    }

    pub(crate) fn come_back(&mut self) {
        self.listener = Some(Listener::bind(&self.path).unwrap());
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().unwrap()
    }
}

/// An agent, a ztunnel that is connected to it, and room for pods.
pub(crate) struct Stage {
    // Before the directory, which it needs to end.
    pub(crate) ztunnel: Ztunnel,
    pub(crate) agent: Agent,
    pub(crate) scratch: Arc<Scratch>,
}

impl Stage {
    /// `change` is what the test wants else than usual.
    pub(crate) fn set(change: impl FnOnce(&mut Config)) -> Self {
        let scratch = Scratch::create().unwrap();
        let mut agent = Agent::create(&scratch);
        let mut config = Config::new(&scratch, "ztunnel", agent.path.clone());
        // The real one tries every five seconds.
        config.retry_ms = 100;
        change(&mut config);
        let ztunnel = Ztunnel::start(&config, None).unwrap();
        if !config.faults.no_hello {
            agent.accept();
        }
        Self { ztunnel, agent, scratch }
    }

    pub(crate) fn pod(&self, name: &str) -> Namespace {
        Namespace::create(&self.scratch, name).unwrap()
    }

    pub(crate) fn status(&self) -> Status {
        self.ztunnel.status().unwrap()
    }

    /// It has told the agent, and ended itself.
    pub(crate) fn ends_fatally(mut self, answer: Response, why: &str) {
        let Response::Nack(text) = answer else {
            panic!("acknowledged");
        };
        assert!(text.starts_with("ProtocolError(") && text.contains(why), "{text}");
        assert_eq!(self.ztunnel.wait_end(LONG).unwrap(), Some(1));
    }
}

pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + LONG)
}

pub(crate) fn info(name: &str, account: &str) -> WorkloadInfo {
    WorkloadInfo {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: account.to_owned(),
    }
}

/// The listeners of a pod as `port/fwmark`, sorted: `15001 0x539`.
pub(crate) fn listeners(pod: &Namespace) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["-Htlne", "-Hulne"] {
        let text = Program::new("ss").arg(kind).within(pod.netns()).check().unwrap();
        for line in text.lines() {
            let address = line.split_whitespace().find(|word| word.rsplit_once(':').is_some());
            let mark = line.split_whitespace().find_map(|word| word.strip_prefix("fwmark:"));
            found.push(format!("{} {}", address.unwrap(), mark.unwrap_or("none")));
        }
    }
    found.sort();
    found
}

/// What a pod with a proxy has.
pub(crate) fn full() -> Vec<String> {
    let mut want: Vec<_> = ["*:15001", "*:15006", "*:15008"].map(str::to_owned).into();
    for _ in ["tcp", "udp"] {
        want.extend(["127.0.0.1:15053", "[::1]:15053"].map(str::to_owned));
    }
    let mut want: Vec<_> = want.into_iter().map(|address| format!("{address} 0x539")).collect();
    want.sort();
    want
}

/// Waits until a pod has these listeners.
pub(crate) fn wait_listeners(pod: &Namespace, want: &[String]) {
    let end = Instant::now() + LONG;
    loop {
        let found = listeners(pod);
        if found == want {
            return;
        }
        assert!(Instant::now() < end, "{found:?}, want {want:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
