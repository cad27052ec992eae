//! The fake against the agent's own server of peers (`sys::seqpacket::server`).

use crate::scripted::{LONG, full, info, listeners};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::ztunnel::{Config, Faults, Ztunnel};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use sys::netns::Netns;
use sys::seqpacket::Listener;
use sys::seqpacket::server::{Event, Limits, PeerId, Reason, Server};
use zds::{Hello, Request, Response};

struct Stage {
    ztunnel: Ztunnel,
    server: Server,
    events: Receiver<Event>,
    scratch: Arc<Scratch>,
}

impl Stage {
    fn set(answer: Duration) -> Self {
        let scratch = Scratch::create().unwrap();
        let path = scratch.path().join("z.sock");
        let (tell, events) = channel();
        let limits = Limits { answer, ..Limits::default() };
        let listener = Listener::bind(&path).unwrap();
        let server = Server::start(listener, limits, move |event| {
            tell.send(event).ok();
        });
        let config = Config::new(&scratch, "ztunnel", path);
        let ztunnel = Ztunnel::start(&config, None).unwrap();
        Self { ztunnel, server: server.unwrap(), events, scratch }
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LONG).unwrap()
    }

    fn connected(&self, ztunnel: &Ztunnel) -> PeerId {
        match self.event() {
            Event::Connected { peer, credentials, hello } => {
                assert_eq!(Hello::decode(&hello).unwrap(), Hello::V1);
                assert_eq!(u32::try_from(credentials.pid).unwrap(), ztunnel.pid());
                peer
            }
            other => panic!("{other:?}"),
        }
    }

    fn response(&self) -> (PeerId, Response) {
        match self.event() {
            Event::Answered { peer, packet, truncated: false } => {
                (peer, Response::decode(&packet).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    fn add(&self, peer: PeerId, uid: &str, netns: &Arc<Netns>) {
        let request = Request::Add { uid: uid.to_owned(), info: info(uid, "a") };
        self.server.handle().send(peer, request.encode().unwrap(), Some(netns.clone()));
    }

    fn send(&self, peer: PeerId, request: &Request) {
        self.server.handle().send(peer, request.encode().unwrap(), None);
    }
}

#[test]
fn a_snapshot_of_many_pods_goes_through_at_once() {
    const COUNT: usize = 100;
    let stage = Stage::set(LONG);
    let peer = stage.connected(&stage.ztunnel);
    let pods: Vec<_> = (0..COUNT).map(|_| Arc::new(Netns::create().unwrap())).collect();
    let start = Instant::now();
    for (number, pod) in pods.iter().enumerate() {
        stage.add(peer, &format!("u{number}"), pod);
    }
    stage.send(peer, &Request::SnapshotSent);
    for _ in 0..=COUNT {
        assert_eq!(stage.response(), (peer, Response::Ack));
    }
    println!("{COUNT} pods and the snapshot: {:?}", start.elapsed());
    let status = stage.ztunnel.status().unwrap();
    assert_eq!((status.active(), status.ready), (COUNT, true));
    for pod in &pods {
        assert_eq!(Arc::strong_count(pod), 1);
    }
}

#[test]
fn a_ztunnel_that_does_not_answer_gets_a_new_connection() {
    let stage = Stage::set(Duration::from_secs(4));
    let peer = stage.connected(&stage.ztunnel);
    stage.ztunnel.fail(Faults { silent: true, ..Faults::default() }).unwrap();
    let pod = Namespace::create(&stage.scratch, "a").unwrap();
    let netns = Arc::new(Netns::open(pod.path()).unwrap());
    stage.add(peer, "u1", &netns);
    match stage.event() {
        Event::Disconnected { peer: gone, reason: Reason::NoAnswer { outstanding: 1, .. } } => {
            assert_eq!(gone, peer);
        }
        other => panic!("{other:?}"),
    }
    stage.ztunnel.fail(Faults::default()).unwrap();
    let again = stage.connected(&stage.ztunnel);
    stage.add(again, "u1", &netns);
    assert_eq!(stage.response(), (again, Response::Ack));
    assert_eq!(listeners(&pod), full());
}

#[test]
fn one_that_dies_in_the_middle_is_noticed_beside_one_that_lives() {
    let stage = Stage::set(LONG);
    let old = stage.connected(&stage.ztunnel);
    let config = Config::new(&stage.scratch, "second", stage.scratch.path().join("z.sock"));
    let second = Ztunnel::start(&config, None).unwrap();
    let new = stage.connected(&second);
    assert!(new > old);
    stage.ztunnel.fail(Faults { exit_at: Some(2), ..Faults::default() }).unwrap();
    let del = Request::Del { uid: "u1".to_owned() };
    for _ in 0..3 {
        stage.send(old, &del);
    }
    assert_eq!(stage.response(), (old, Response::Ack));
    match stage.event() {
        Event::Disconnected { peer, reason: Reason::End } => assert_eq!(peer, old),
        other => panic!("{other:?}"),
    }
    stage.send(new, &del);
    assert_eq!(stage.response(), (new, Response::Ack));
}
