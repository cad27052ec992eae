//! Connections that come and go, readiness, and the end: zds.md, "Connection life
//! cycle".

use crate::scripted::{Agent, LONG, Stage, full, listeners, wait_listeners};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::ztunnel::{Config, Status, Ztunnel};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use sys::netns::within;
use zds::Response;

/// An application's connection through a pod's own proxy: there are no rules, so it
/// goes to 15008 of the pod as another ztunnel's would.
fn through(pod: &Namespace) -> (TcpStream, TcpStream) {
    let made = within(pod.netns(), || {
        let app = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = app.local_addr().unwrap();
        let mut client = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 15008))).unwrap();
        let source = client.local_addr().unwrap();
        let hop = format!(
            "{{\"identity\":\"spiffe://cluster.local/ns/a/sa/b\",\"source\":\"{source}\",\
             \"destination\":\"{to}\"}}\n"
        );
        client.write_all(hop.as_bytes()).unwrap();
        let (server, _) = app.accept().unwrap();
        (client, server)
    });
    let (mut client, server) = made.unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(LONG)).unwrap();
    }
    let mut reply = Vec::new();
    while reply.last() != Some(&b'\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        reply.extend(byte);
    }
    assert!(reply.starts_with(b"{\"Ok\""), "{}", String::from_utf8_lossy(&reply));
    (client, server)
}

fn is_alive((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

fn is_cut((client, _): &mut (TcpStream, TcpStream)) {
    assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
}

#[test]
fn it_waits_for_an_agent_that_is_not_there_and_for_the_right_kind() {
    let scratch = Scratch::create().unwrap();
    let path = scratch.path().join("z.sock");
    let config = Config::new(&scratch, "ztunnel", path.clone());
    let ztunnel = Ztunnel::start(&config, None).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ztunnel.status().unwrap().connections, 0);
    let stream = UnixListener::bind(&path).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ztunnel.status().unwrap().connections, 0);
    drop(stream);
    std::fs::remove_file(&path).unwrap();
    Agent::create(&scratch).accept();
}

#[test]
fn without_an_agent_all_goes_on_but_it_is_not_ready() {
    let mut stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert!(!stage.status().ready, "no snapshot yet");
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(stage.status().ready);
    let mut old = through(&pod);
    stage.agent.die();
    stage.ztunnel.wait("the loss", |status| !status.ready && !status.connected).unwrap();
    is_alive(&mut old);
    is_alive(&mut through(&pod));
    stage.agent.come_back();
    stage.agent.accept();
    assert!(!stage.status().ready, "a new snapshot is needed");
    assert_eq!(stage.agent.keep("u1"), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    is_alive(&mut old);
    let status = stage.status();
    assert!(status.ready && status.connections == 2);
    assert_eq!((status.started, status.stopped), (1, 0));
}

#[test]
fn a_del_cuts_connections_at_once() {
    let stage = Stage::set(|_| {});
    let (pod, other) = (stage.pod("a"), stage.pod("b"));
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.add("u2", &other), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let (mut cut, mut stays) = (through(&pod), through(&other));
    stage.ztunnel.wait("the connection", |s| s.workloads["u1"].connections == 1).unwrap();
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    is_cut(&mut cut);
    is_alive(&mut stays);
}

#[test]
fn what_was_pending_is_forgotten_with_the_connection() {
    let mut stage = Stage::set(|config| {
        config.retry_ms = 3_600_000;
        config.faults.refuse = [("u1".to_owned(), 1)].into();
    });
    let pod = stage.pod("a");
    assert!(matches!(stage.agent.add("u1", &pod), Response::Nack(_)));
    assert_eq!(stage.status().pending(), 1);
    stage.agent.hang_up();
    stage.agent.accept();
    assert_eq!(stage.status().pending(), 0);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(stage.status().ready, "though u1 was never started");
}

#[test]
fn a_refused_add_makes_it_unready_with_the_next_success_only() {
    let stage = Stage::set(|config| {
        config.retry_ms = 3_600_000;
        config.faults.refuse = [("u1".to_owned(), 1)].into();
    });
    let pod = stage.pod("a");
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(matches!(stage.agent.add("u1", &pod), Response::Nack(_)));
    assert!(stage.status().ready);
    assert_eq!(stage.agent.del("nobody"), Response::Ack);
    assert!(!stage.status().ready);
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    assert!(stage.status().ready);
}

#[test]
fn at_sigterm_the_agent_is_left_first_and_connections_last() {
    let mut stage = Stage::set(|config| config.drain_ms = 3000);
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    let mut open = through(&pod);
    stage.ztunnel.wait("the connection", |s| s.workloads["u1"].connections == 1).unwrap();
    let start = Instant::now();
    stage.ztunnel.terminate().unwrap();
    stage.agent.hears_the_end();
    wait_listeners(&pod, &[]);
    is_alive(&mut open);
    is_cut(&mut open);
    assert!(start.elapsed() >= Duration::from_millis(3000), "it had its time");
    assert_eq!(stage.ztunnel.wait_end(LONG).unwrap(), Some(0));
}

#[test]
fn two_at_once_share_a_pod_and_either_may_go() {
    let mut stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let mut config = Config::new(&stage.scratch, "second", stage.agent.path.clone());
    config.drain_ms = 100;
    // The agent's first connection is kept open and idle.
    let first = stage.agent.take();
    let second = Ztunnel::start(&config, None).unwrap();
    stage.agent.accept();
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert_eq!(listeners(&pod).len(), 2 * full().len());
    stage.ztunnel.terminate().unwrap();
    wait_listeners(&pod, &full());
    for _ in 0..10 {
        is_alive(&mut through(&pod));
    }
    assert_eq!(second.status().unwrap().records.len(), 10);
    drop(first);
}

#[test]
fn probes_and_metrics_are_answered() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stage = Stage::set(|config| config.http = Some(port));
    let pod = stage.pod("a");
    let get = |path: &str| {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let not_ready = get("/healthz/ready");
    assert!(not_ready.starts_with("HTTP/1.1 500 "), "{not_ready}");
    assert!(not_ready.ends_with("\r\nnot ready, pending: workload proxy manager\n"));
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(get("/healthz/ready").ends_with("\r\n\r\nready\n"));
    assert!(get("/metrics").contains("workload_manager_active_proxy_count 1\n"));
    assert!(get("/else").starts_with("HTTP/1.1 404 "));
}

#[test]
fn it_says_nothing_that_it_was_not_asked() {
    let stage = Stage::set(|_| {});
    stage.agent.hears_nothing();
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    stage.agent.hears_nothing();
    let is: fn(&Status) -> bool = |status| status.ready;
    stage.ztunnel.wait("readiness", is).unwrap();
}
