//! A running pod is enrolled: none of its 100 open connections may break, and new
//! ones are captured. Istio's exact rules do break some, which shows that this
//! test can fail.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::agent::sidecar_pod;
use e2e_node::cluster::{NAMESPACE, attempt};
use e2e_node::conformance::{Facts, Kind};
use e2e_node::lab::neighbourhood::{POD_V4, POD_V6, WORLD_V4, WORLD_V6};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::matrix::Stage;
use e2e_node::packet::Transport::Tcp;
use e2e_node::packet::send;
use e2e_node::process::Identity;
use e2e_node::programs::Programs;
use e2e_node::rules::{Form, Script, Tool};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::netns::within;

/// Connections of each direction and family.
const EACH: usize = 25;
/// Exchanges that each connection must make after the enrolment.
const AFTER: u64 = 5;
/// Time between a connection's exchanges. While rules are loaded conntrack runs a
/// few milliseconds before NAT does: it takes the busy connections for established
/// ones, which saves them under any rules. The quiet ones are the test.
const BUSY: Duration = Duration::from_millis(3);
const QUIET: Duration = Duration::from_millis(150);

/// A connection with data flowing.
struct Flow {
    exchanges: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Flow {
    fn start(from: &Namespace, to: SocketAddr, period: Duration) -> Self {
        let limit = Duration::from_secs(60);
        let stream = within(from.netns(), || TcpStream::connect_timeout(&to, limit));
        let mut stream = stream.unwrap().unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(!line.contains("proxy"), "captured before there were rules: {line}");
        let (exchanges, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&exchanges), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut back = [0; 64];
            let broken = |err: std::io::Error| format!("to {to}: {err}");
            while !end.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let sent = [u8::try_from(number % 251).unwrap(); 64];
                stream.write_all(&sent).map_err(broken)?;
                stream.read_exact(&mut back).map_err(broken)?;
                assert_eq!(sent, back, "somebody else answered");
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(period);
            }
            Ok(())
        });
        Self { exchanges, stop, thread }
    }

    fn count(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }
}

/// Enrols a busy pod; what became of the connections that broke.
fn enrol(form: Form, tool: Tool, mode: &str) -> Vec<String> {
    let (scratch, programs) = (Scratch::create().unwrap(), Programs::find().unwrap());
    let facts = Facts {
        uids: vec![1337],
        gids: vec![1337],
        ipv6: true,
        tproxy: mode == "TPROXY",
        ..Facts::default()
    };
    let mut stage = Stage::set(&scratch, "enrol", &facts, &programs).unwrap();
    stage.populate_early().unwrap();
    let (pod, world) = (&stage.hood.pod, &stage.hood.world);
    let mut flows = Vec::new();
    for number in 0..EACH {
        let period = if number % 2 == 0 { QUIET } else { BUSY };
        for to in [IpAddr::from(WORLD_V4[0]), WORLD_V6[0].into()] {
            flows.push(Flow::start(pod, SocketAddr::new(to, 80), period));
        }
        for to in [IpAddr::from(POD_V4), POD_V6.into()] {
            flows.push(Flow::start(world, SocketAddr::new(to, 80), period));
        }
    }
    assert_eq!(flows.len(), 100);
    wait_for(&flows, &vec![AFTER; flows.len()]);

    let annotations = json!({"sidecar.istio.io/interceptionMode": mode});
    let manifest = sidecar_pod(NAMESPACE, "busy", &annotations, &[("ISTIO_DUAL_STACK", "true")]);
    let file = scratch.file("busy.json", &manifest.to_string()).unwrap();
    let addresses = format!("{POD_V4},{POD_V6}");
    let script =
        Script::printed(Kind::Pod, &file, Some(&addresses), (form, tool), &programs).unwrap();
    script.load(pod, tool).unwrap();
    stage.route().unwrap();
    let goals: Vec<_> = flows.iter().map(|flow| flow.count() + AFTER).collect();
    wait_for(&flows, &goals);

    let new = |to: IpAddr| attempt(Tcp, Identity::APP, SocketAddr::new(to, 80));
    for (from, to, port) in [
        (pod, WORLD_V4[0].into(), 15001),
        (pod, WORLD_V6[0].into(), 15001),
        (world, POD_V4.into(), 15006),
        (world, POD_V6.into(), 15006),
    ] {
        let fates = send(from.program(&programs.packet), &[new(to)]).unwrap();
        let fate = fates.values().next().unwrap();
        assert!(fate.is_by("proxy", port), "a new connection to {to}: {fate}");
    }

    flows.iter().for_each(|flow| flow.stop.store(true, Ordering::Relaxed));
    let ends = flows.into_iter().map(|flow| flow.thread.join().unwrap());
    let broken: Vec<_> = ends.filter_map(Result::err).collect();
    println!("{form:?} by {tool:?}, {mode}: {} of 100 broke {:?}", broken.len(), broken.first());
    broken
}

/// Waits until each flow came that far or broke.
fn wait_for(flows: &[Flow], goals: &[u64]) {
    let end = Instant::now() + Duration::from_secs(90);
    let behind = |(flow, goal): (&Flow, &u64)| !flow.thread.is_finished() && flow.count() < *goal;
    while flows.iter().zip(goals).any(behind) {
        assert!(Instant::now() < end, "connections hang");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn our_nft_rules_break_nothing() {
    assert_eq!(enrol(Form::Own, Tool::Nft, "REDIRECT"), Vec::<String>::new());
}

#[test]
fn our_iptables_rules_break_nothing() {
    assert_eq!(enrol(Form::Own, Tool::Iptables, "REDIRECT"), Vec::<String>::new());
}

#[test]
fn our_nft_rules_for_tproxy_break_nothing() {
    assert_eq!(enrol(Form::Own, Tool::Nft, "TPROXY"), Vec::<String>::new());
}

#[test]
fn our_iptables_rules_for_tproxy_break_nothing() {
    assert_eq!(enrol(Form::Own, Tool::Iptables, "TPROXY"), Vec::<String>::new());
}

/// A machine that stands still while they are loaded saves the quiet ones too.
fn breaks(tool: Tool) -> bool {
    (0..5).any(|_| !enrol(Form::Compat, tool, "REDIRECT").is_empty())
}

#[test]
fn istios_nft_rules_break_connections() {
    assert!(breaks(Tool::Nft));
}

#[test]
fn istios_iptables_rules_break_connections() {
    assert!(breaks(Tool::Iptables));
}
