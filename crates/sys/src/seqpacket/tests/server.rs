//! Peers of every kind of misbehaviour, and what the others see of it.

use super::*;
use crate::seqpacket::server::{Event, Limits, PeerId, Reason, Server};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A server with what it says.
struct Stage {
    directory: Directory,
    server: Option<Server>,
    events: Receiver<Event>,
}

fn limits() -> Limits {
    // Whoever runs the test; what is not under test takes for ever.
    let uid = nix::unistd::geteuid().as_raw();
    Limits { uid, pace: Duration::from_millis(1), hello: LONG, answer: LONG, ..Limits::default() }
}

impl Stage {
    fn set(limits: Limits) -> Self {
        let directory = Directory::create();
        let listener = Listener::bind(&directory.socket()).unwrap();
        let (tell, events) = channel();
        let server = Server::start(listener, limits, move |event| {
            tell.send(event).ok();
        });
        Self { directory, server: Some(server.unwrap()), events }
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LONG).unwrap()
    }

    /// Connects and says hello.
    fn peer(&self) -> (PeerId, Connection) {
        let connection = connect(&self.directory.socket());
        connection.send(b"\x08\x01", None).unwrap();
        match self.event() {
            Event::Connected { peer, credentials, hello } => {
                assert_eq!(hello, b"\x08\x01");
                assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
                (peer, connection)
            }
            other => panic!("{other:?}"),
        }
    }

    fn send(&self, peer: PeerId, packet: &[u8]) {
        self.server.as_ref().unwrap().handle().send(peer, packet.to_vec(), None);
    }

    fn answer(&self) -> (PeerId, Vec<u8>) {
        match self.event() {
            Event::Answered { peer, packet, truncated: false } => (peer, packet),
            other => panic!("{other:?}"),
        }
    }

    fn disconnected(&self) -> (PeerId, Reason) {
        match self.event() {
            Event::Disconnected { peer, reason } => (peer, reason),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self) -> Reason {
        match self.event() {
            Event::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// Answers `count` requests with what they said.
fn echo(connection: &Connection, count: usize) {
    let mut buffer = [0; 1024];
    for _ in 0..count {
        let packet = connection.receive_with_descriptors(&mut buffer, soon()).unwrap().unwrap();
        connection.send_by(&buffer[..packet.len], None, Instant::now() + LONG).unwrap();
    }
}

fn is_over(connection: &Connection) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match connection.receive_by(&mut buffer, soon()) {
            Ok(Some(_)) | Err(Errno::ECONNRESET) => {}
            Ok(None) => return true,
            Err(errno) => panic!("{errno}"),
        }
    }
}

#[test]
fn asks_and_hears_with_a_descriptor() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    let file = Arc::new(File::open("/proc/self/ns/net").unwrap());
    let want = file.metadata().unwrap().ino();
    let handle = stage.server.as_ref().unwrap().handle();
    handle.send(peer, b"add".to_vec(), Some(file.clone()));
    let mut buffer = [0; 64];
    let packet = connection.receive_with_descriptors(&mut buffer, soon()).unwrap().unwrap();
    let got = File::from(packet.descriptors.into_iter().next().unwrap());
    assert_eq!((&buffer[..packet.len], got.metadata().unwrap().ino()), (&b"add"[..], want));
    connection.send(b"ack", None).unwrap();
    assert_eq!(stage.answer(), (peer, b"ack".to_vec()));
    // Sent, so nobody holds it any more.
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn five_hundred_requests_are_answered_in_order_and_few_are_under_way() {
    const COUNT: u32 = 500;
    let limits = Limits { window: 16, ..limits() };
    let stage = Stage::set(limits.clone());
    let (peer, connection) = stage.peer();
    let file = Arc::new(File::open("/dev/null").unwrap());
    let handle = stage.server.as_ref().unwrap().handle();
    for number in 0..COUNT {
        handle.send(peer, number.to_be_bytes().to_vec(), Some(file.clone()));
    }
    // Before any answer: no more than the window, however long one waits.
    let mut first = Vec::new();
    let mut buffer = [0; 64];
    while first.len() < limits.window {
        let packet = connection.receive_with_descriptors(&mut buffer, soon()).unwrap().unwrap();
        assert_eq!(packet.descriptors.len(), 1);
        first.push(buffer[..packet.len].to_vec());
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(connection.receive(&mut buffer).unwrap_err(), Errno::EAGAIN);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            for packet in &first {
                connection.send_by(packet, None, Instant::now() + LONG).unwrap();
            }
            echo(&connection, 500 - first.len());
        });
        for number in 0..COUNT {
            assert_eq!(stage.answer(), (peer, number.to_be_bytes().to_vec()));
        }
    });
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn a_peer_that_does_not_read_keeps_nobody_waiting() {
    let stage = Stage::set(Limits { window: 100_000, ..limits() });
    let (deaf, _deaf) = stage.peer();
    let (quick, connection) = stage.peer();
    // Far more than its buffer has room for.
    for _ in 0..2000 {
        stage.send(deaf, &[1; 1000]);
    }
    for number in 0..50u8 {
        stage.send(quick, &[number]);
        echo(&connection, 1);
        assert_eq!(stage.answer(), (quick, vec![number]));
    }
}

#[test]
fn a_slow_reader_gets_all_in_the_end() {
    let stage = Stage::set(Limits { window: 100_000, ..limits() });
    let (peer, connection) = stage.peer();
    for number in 0..1000u32 {
        let mut packet = vec![0; 1000];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        stage.send(peer, &packet);
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut buffer = [0; 1024];
    for number in 0..1000u32 {
        let packet = connection.receive_by(&mut buffer, soon()).unwrap().unwrap();
        assert_eq!((packet.len, &buffer[..4]), (1000, &number.to_be_bytes()[..]));
    }
}

#[test]
fn a_silent_peer_loses_its_connection_and_nobody_else_does() {
    let answer = Duration::from_secs(3);
    let stage = Stage::set(Limits { answer, ..limits() });
    let (silent, connection) = stage.peer();
    let (idle, other) = stage.peer();
    for _ in 0..3 {
        stage.send(silent, b"anybody there?");
    }
    let want = Reason::NoAnswer { after: answer, outstanding: 3 };
    assert_eq!(stage.disconnected(), (silent, want));
    assert_eq!(want.to_string(), "no answer within 3s, 3 requests wait");
    assert!(is_over(&connection));
    // Idle for as long, but nobody asked it anything.
    stage.send(idle, b"you?");
    echo(&other, 1);
    assert_eq!(stage.answer(), (idle, b"you?".to_vec()));
    // To one that is gone nothing is sent.
    stage.send(silent, b"still there?");
    assert!(stage.events.recv_timeout(Duration::from_millis(20)).is_err());
}

#[test]
fn each_request_has_its_own_time_however_long_the_queue() {
    // 40 answers that take 150 ms each are late by the clock of the first, and none
    // is by its own.
    let stage = Stage::set(Limits { answer: Duration::from_secs(5), ..limits() });
    let (peer, connection) = stage.peer();
    for number in 0..40u8 {
        stage.send(peer, &[number]);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..40 {
                std::thread::sleep(Duration::from_millis(150));
                echo(&connection, 1);
            }
        });
        for number in 0..40u8 {
            assert_eq!(stage.answer(), (peer, vec![number]));
        }
    });
}

#[test]
fn a_long_complaint_is_an_answer() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    for size in [12_307, 65_536, 200_000] {
        stage.send(peer, b"add");
        echo_with(&connection, &vec![b'e'; size]);
        assert_eq!(stage.answer(), (peer, vec![b'e'; size]));
    }
    // Longer than any buffer, where the peer's may be that long.
    nix::sys::socket::setsockopt(&connection, nix::sys::socket::sockopt::SndBuf, &400_000).unwrap();
    stage.send(peer, b"add");
    echo_with(&connection, &vec![b'e'; 300_000]);
    match stage.event() {
        Event::Answered { packet, truncated: true, .. } => assert_eq!(packet.len(), RECEIVE_BUFFER),
        other => panic!("{other:?}"),
    }
    stage.send(peer, b"again");
    echo_with(&connection, b"fine");
    assert_eq!(stage.answer(), (peer, b"fine".to_vec()));
}

#[test]
fn can_be_found_again_when_its_directory_was_wiped() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    // Something is in the way at first, unless it was quicker.
    while std::fs::write(&stage.directory.0, "").is_err() {
        std::fs::remove_dir_all(&stage.directory.0).unwrap();
    }
    loop {
        match stage.event() {
            Event::Rebound => {}
            Event::Lost(ListenError::Directory { path, .. }) => {
                break assert_eq!(path, stage.directory.0);
            }
            other => panic!("{other:?}"),
        }
    }
    std::fs::remove_file(&stage.directory.0).unwrap();
    match stage.event() {
        Event::Rebound => {}
        other => panic!("told once: {other:?}"),
    }
    stage.peer();
    // Who was connected has not noticed.
    stage.send(peer, b"still there?");
    echo(&connection, 1);
    loop {
        match stage.event() {
            Event::Answered { peer: from, .. } if from == peer => break,
            Event::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn echo_with(connection: &Connection, answer: &[u8]) {
    connection.receive_by(&mut [0; 1024], soon()).unwrap().unwrap();
    connection.send_by(answer, None, Instant::now() + LONG).unwrap();
}

#[test]
fn what_a_peer_answered_before_it_went_is_heard() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    for number in 0..5u8 {
        stage.send(peer, &[number]);
    }
    echo(&connection, 2);
    // With three requests unread: the kernel makes a reset of it.
    let end = Instant::now() + LONG;
    while nix::sys::socket::recv(
        connection.as_fd().as_raw_fd(),
        &mut [0; 8],
        nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT,
    )
    .is_err()
    {
        assert!(Instant::now() < end);
    }
    drop(connection);
    assert_eq!(stage.answer(), (peer, vec![0]));
    assert_eq!(stage.answer(), (peer, vec![1]));
    assert_eq!(stage.disconnected(), (peer, Reason::End));
}

#[test]
fn the_end_of_an_idle_peer_is_noticed() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    drop(connection);
    assert_eq!(stage.disconnected(), (peer, Reason::End));
}

#[test]
fn an_answer_to_nothing_ends_the_connection() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    stage.send(peer, b"one");
    echo(&connection, 1);
    connection.send(b"late", None).unwrap();
    assert_eq!(stage.answer(), (peer, b"one".to_vec()));
    assert_eq!(stage.disconnected(), (peer, Reason::Unasked));
    assert!(is_over(&connection));
}

#[test]
fn an_answer_with_a_descriptor_ends_the_connection() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    stage.send(peer, b"one");
    let (read, write) = std::io::pipe().unwrap();
    connection.send(b"take this", Some(write.as_fd())).unwrap();
    drop(write);
    assert_eq!(stage.disconnected(), (peer, Reason::Stray));
    assert_eq!({ read }.read(&mut [0; 1]).unwrap(), 0, "closed");
}

#[test]
fn who_says_nothing_is_no_peer() {
    let stage = Stage::set(Limits { hello: Duration::from_millis(100), ..limits() });
    let connection = connect(&stage.directory.socket());
    assert_eq!(stage.refused(), Reason::NoHello(Duration::from_millis(100)));
    assert!(is_over(&connection));
    let stage = Stage::set(limits());
    drop(connect(&stage.directory.socket()));
    assert_eq!(stage.refused(), Reason::End);
}

#[test]
fn another_user_is_no_peer() {
    let want = nix::unistd::geteuid().as_raw() + 1;
    let stage = Stage::set(Limits { uid: want, ..limits() });
    let connection = connect(&stage.directory.socket());
    assert_eq!(stage.refused(), Reason::Uid { uid: want - 1, want });
    assert!(is_over(&connection));
}

#[test]
fn there_are_only_so_many_peers() {
    let stage = Stage::set(Limits { peers: 2, ..limits() });
    let (first, one) = stage.peer();
    let _two = stage.peer();
    let three = connect(&stage.directory.socket());
    assert_eq!(stage.refused(), Reason::Crowded(2));
    assert!(is_over(&three));
    drop(one);
    assert_eq!(stage.disconnected(), (first, Reason::End));
    stage.peer();
}

#[test]
fn a_peer_that_comes_back_for_ever_is_held_up() {
    let stage = Stage::set(Limits { burst: 2, pace: Duration::from_millis(100), ..limits() });
    let start = Instant::now();
    for _ in 0..7 {
        stage.peer();
        stage.disconnected();
    }
    // Two at once, five more in no less than five times the pace.
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn a_connection_is_closed_when_asked() {
    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    stage.server.as_ref().unwrap().handle().close(peer);
    assert_eq!(stage.disconnected(), (peer, Reason::Closed));
    assert!(is_over(&connection));
}

#[test]
fn the_end_of_the_server_is_the_end_of_its_connections() {
    let mut stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    let handle = stage.server.as_ref().unwrap().handle();
    drop(stage.server.take());
    assert!(is_over(&connection));
    assert!(!stage.directory.socket().exists());
    // Whoever still has a way to it gets no error and no answer.
    handle.send(peer, b"anybody?".to_vec(), None);
    assert!(stage.events.recv().is_err());
}

/// Not a test of speed: it prints what a request costs (design: 8 us between two
/// sockets; here are two threads' wake-ups more on each side).
#[test]
fn prints_the_round_trip() {
    const ROUNDS: usize = 3000;
    let file = Arc::new(File::open("/proc/self/ns/net").unwrap());
    let packet = vec![7; 120];

    let (here, there) = Connection::pair().unwrap();
    let raw = std::thread::scope(|scope| {
        scope.spawn(|| echo(&there, ROUNDS));
        time(ROUNDS, || {
            here.send(&packet, Some(file.as_fd())).unwrap();
            here.receive_by(&mut [0; 256], soon()).unwrap().unwrap();
        })
    });
    println!("socket to socket: {raw}");

    let stage = Stage::set(limits());
    let (peer, connection) = stage.peer();
    let handle = stage.server.as_ref().unwrap().handle();
    let served = std::thread::scope(|scope| {
        scope.spawn(|| echo(&connection, ROUNDS));
        time(ROUNDS, || {
            handle.send(peer, packet.clone(), Some(file.clone()));
            stage.answer();
        })
    });
    println!("through the server: {served}");

    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&connection, 500));
        for _ in 0..500 {
            handle.send(peer, packet.clone(), Some(file.clone()));
        }
        (0..500).for_each(|_| drop(stage.answer()));
    });
    println!("500 pipelined: {:?} all in all", start.elapsed());
}

fn time(rounds: usize, mut f: impl FnMut()) -> String {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    times.sort();
    let [p50, p99] = [50, 99].map(|p| times[rounds * p / 100]);
    format!("p50 {p50:?}, p99 {p99:?} with one descriptor")
}
