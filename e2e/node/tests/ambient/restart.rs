//! Agent and ztunnel come and go; pods stay captured, and connections open.

use crate::stage::{Stage, Started, records};
use e2e_node::lab::Namespace;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::netns::within;

/// Connections that are open meanwhile.
const FLOWS: usize = 20;

/// A connection with data flowing.
struct Flow {
    exchanges: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Flow {
    fn start(from: &Namespace, to: SocketAddr) -> Self {
        let limit = Duration::from_secs(10);
        let stream = within(from.netns(), || TcpStream::connect_timeout(&to, limit));
        let mut stream = stream.unwrap().unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let (exchanges, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&exchanges), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut back = [0; 16];
            while !end.load(Ordering::Relaxed) {
                stream.write_all(&[7; 16]).map_err(|error| error.to_string())?;
                stream.read_exact(&mut back).map_err(|error| error.to_string())?;
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Self { exchanges, stop, thread }
    }

    fn count(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }
}

/// Each has come on since.
fn come_on(flows: &[Flow]) {
    let goals: Vec<u64> = flows.iter().map(|flow| flow.count() + 3).collect();
    let end = Instant::now() + Duration::from_secs(20);
    let behind = |(flow, goal): (&Flow, &u64)| !flow.thread.is_finished() && flow.count() < *goal;
    while flows.iter().zip(&goals).any(behind) {
        assert!(Instant::now() < end, "connections hang");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn finish(flows: Vec<Flow>) {
    flows.iter().for_each(|flow| flow.stop.store(true, Ordering::Relaxed));
    let ends = flows.into_iter().map(|flow| flow.thread.join().unwrap());
    assert_eq!(ends.filter_map(Result::err).collect::<Vec<_>>(), Vec::<String>::new());
}

fn pair(stage: &Stage) -> (Started, Started) {
    (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap())
}

fn restart_agent(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("restart-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let (a, b) = pair(&stage);
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let flows: Vec<Flow> =
        (0..FLOWS).map(|n| Flow::start(&a.pod.sandbox, b.app(n % 2 == 1))).collect();
    come_on(&flows);
    let before = ztunnel.status().unwrap();

    stage.cluster.agent.take().unwrap().kill().unwrap();
    come_on(&flows);
    stage.start_agent();
    let more = before.connections + 1;
    let after =
        ztunnel.wait("the new agent's snapshot", |s| s.connections >= more && s.snapshot).unwrap();
    assert_eq!(
        (after.started, after.stopped),
        (before.started, before.stopped),
        "no proxy was touched: {}",
        stage.cluster.agent_log()
    );
    come_on(&flows);
    finish(flows);
    let mut seen = ztunnel.status().unwrap().records.len();
    assert_eq!(stage.answer(&b.pod.sandbox, a.app(false)).peer, b.ip(false));
    assert_eq!(records(&ztunnel, &mut seen).len(), 2, "still captured");
    stage.start(stage.manifest("c")).unwrap();
}

#[test]
fn the_agent_restarts_under_traffic_with_nftables() {
    restart_agent("nftables");
}

#[test]
fn the_agent_restarts_under_traffic_with_iptables() {
    restart_agent("iptables");
}

#[test]
fn ztunnel_is_replaced() {
    let stage = Stage::with_manifests("replaced", "nftables");
    let mut old = stage.ztunnel("old");
    let (a, b) = pair(&stage);
    let _servers = [stage.serve(&a), stage.serve(&b)];
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");

    // As a rolling upgrade: the new one is there before the old one goes.
    let new = stage.ztunnel("new");
    new.wait("both pods", |s| s.workloads.values().filter(|w| w.up).count() == 2).unwrap();
    old.terminate().unwrap();
    old.wait_end(Duration::from_secs(30)).unwrap();
    let mut seen = 0;
    assert_eq!(stage.answer(&a.pod.sandbox, b.app(true)).peer, a.ip(true));
    assert_eq!(records(&new, &mut seen).len(), 2);
    let c = stage.start(stage.manifest("c")).unwrap();
    assert!(new.status().unwrap().workloads[c.uid()].up);

    // And as a crash: captured pods reach nothing, and all is well with the next.
    drop(new);
    let to = b.app(false);
    assert!(!matches!(stage.fate(&a.pod.sandbox, to), e2e_node::packet::Fate::Answered(_)));
    let last = stage.ztunnel("last");
    last.wait("all pods", |s| s.workloads.values().filter(|w| w.up).count() == 3).unwrap();
    assert_eq!(stage.answer(&a.pod.sandbox, to).peer, a.ip(false));
}
