//! A running pod joins the mesh, its rules change hands under traffic, from Istio's with
//! either of its tools to ours with either backend. Of 100 connections none may break,
//! and of those that are opened during a conversion none may get past ztunnel.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use redirect::ambient::{AmbientPlan, Ipv6, PROBE_V4, PROBE_V6, ProbePorts};
use redirect::compile::ambient;
use redirect::desired::{Dialect, Form};
use redirect::net::Family;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::backend::{Applied, Backend, convert};
use sys::iptables::{Iptables, Search, Variant};
use sys::netns::{Netns, within};
use sys::nftables::Nftables;
use sys::process::Command;

/// Connections of each kind and family: with four kinds and two families, 104.
const EACH: usize = 13;
/// Exchanges that each must make after a change.
const AFTER: u64 = 3;
/// Time between a connection's exchanges. While the first rules are loaded conntrack
/// runs a few milliseconds before NAT does and takes busy connections for established
/// ones, which saves them under any rules; the quiet ones are the test.
const BUSY: Duration = Duration::from_millis(20);
const QUIET: Duration = Duration::from_millis(150);
const MARK: u32 = 0x539;
const LIMIT: Duration = Duration::from_secs(60);

const POD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2)),
];
const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1)),
];

fn plan() -> AmbientPlan {
    AmbientPlan {
        ipv6: Ipv6::Present,
        inbound: true,
        dns: true,
        virtual_interfaces: Vec::new(),
        probe_v4: PROBE_V4,
        probe_v6: PROBE_V6,
        probe_ports: ProbePorts::Any,
    }
}

fn run(program: &str, args: &[&str], input: &str) {
    // The lock of iptables-legacy is the whole machine's, where other tests run.
    let command = Command::new(program).env("XTABLES_LOCKFILE", "/proc/self/ns/net");
    command.args(args).stdin(input.as_bytes()).run().unwrap();
}

/// Says who it is, then echoes; ends with the test's process.
fn serve(port: u16, name: u8) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    if name == b'z' {
        // As ztunnel does; what it accepts has the mark too.
        setsockopt(&listener, sockopt::Mark, &MARK).unwrap();
    }
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || -> std::io::Result<()> {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(3 * LIMIT))?;
                stream.write_all(&[name])?;
                let mut byte = [0];
                loop {
                    stream.read_exact(&mut byte)?;
                    stream.write_all(&byte)?;
                }
            });
        }
    });
}

/// A pod with an application (a) and ztunnel (z), and the world (w) behind a link.
fn lab() -> (Netns, Netns) {
    let (pod, world) = (Netns::create().unwrap(), Netns::create().unwrap());
    let peer = format!("/proc/{}/fd/{}", std::process::id(), world.as_fd().as_raw_fd());
    within(&pod, || {
        let lines = format!(
            "link set lo up\n\
             link add eth0 type veth peer name w0 netns {peer}\n\
             link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n",
            POD[0], POD[1]
        );
        run("/usr/sbin/ip", &["-batch", "-"], &lines);
        serve(8080, b'a');
        for port in [15001, 15006] {
            serve(port, b'z');
        }
    })
    .unwrap();
    within(&world, || {
        let lines = format!(
            "link set lo up\n\
             link set w0 up\n\
             address add {}/24 dev w0\n\
             address add {}/64 dev w0 nodad\n",
            WORLD[0], WORLD[1]
        );
        run("/usr/sbin/ip", &["-batch", "-"], &lines);
        serve(8080, b'w');
    })
    .unwrap();
    for address in WORLD {
        let end = Instant::now() + LIMIT;
        while within(&pod, || dial(SocketAddr::new(address, 8080), None, None)).unwrap().is_err() {
            assert!(Instant::now() < end, "the pod does not reach {address}");
        }
    }
    (pod, world)
}

/// Connects; `from` may be anybody's address.
fn dial(to: SocketAddr, from: Option<IpAddr>, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(mark) = mark {
        setsockopt(&fd, sockopt::Mark, &mark)?;
    }
    if let Some(from) = from {
        setsockopt(&fd, sockopt::IpTransparent, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The name of who answers.
fn name(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut name = [0];
    stream.read_exact(&mut name)?;
    Ok(name[0])
}

/// A connection with data flowing.
struct Flow {
    count: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Flow {
    fn start(mut stream: TcpStream, want: u8, pause: Duration, stop: &Arc<AtomicBool>) -> Self {
        assert_eq!(name(&mut stream).unwrap() as char, want as char);
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::clone(stop));
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || {
            let broken = |error: std::io::Error| format!("{}: {error}", want as char);
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(b"x").map_err(broken)?;
                stream.read_exact(&mut [0]).map_err(broken)?;
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            Ok(())
        });
        Self { count, thread }
    }
}

/// Waits until each flow made `AFTER` exchanges more, or broke.
fn go_on(flows: &[Flow]) {
    let goals: Vec<u64> = flows.iter().map(|f| f.count.load(Ordering::Relaxed) + AFTER).collect();
    let end = Instant::now() + 2 * LIMIT;
    for (flow, goal) in flows.iter().zip(goals) {
        while !flow.thread.is_finished() && flow.count.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < end, "a connection hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Opens connections without end until told to stop: how many, and what went wrong.
fn hammer(from: Netns, to: SocketAddr, stop: &Arc<AtomicBool>) -> JoinHandle<(u64, Vec<String>)> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        within(&from, || {
            let (mut count, mut wrong) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let by = dial(to, None, None).and_then(|mut stream| {
                    let by = name(&mut stream);
                    let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&stream, sockopt::Linger, &now)?;
                    by
                });
                count += 1;
                match by {
                    Ok(b'z') => (),
                    Ok(other) => wrong.push(format!("{to}: by {}", other as char)),
                    Err(error) => wrong.push(format!("{to}: {error}")),
                }
            }
            (count, wrong)
        })
        .unwrap()
    })
}

fn again(ns: &Netns) -> Netns {
    Netns::from_fd(ns.as_fd().try_clone_to_owned().unwrap()).unwrap()
}

/// One of each kind a round: the app's, through ztunnel; the world's, through ztunnel;
/// ztunnel's own; ztunnel's to the app with a client's address.
fn open_flows(pod: &Netns, world: &Netns, stop: &Arc<AtomicBool>) -> Vec<Flow> {
    let mut flows = Vec::new();
    let mut open = |ns: &Netns, to, from, mark, want| {
        let stream = within(ns, || dial(to, from, mark).unwrap()).unwrap();
        flows.push(Flow::start(stream, want, BUSY, stop));
    };
    for _ in 0..EACH {
        for (mine, theirs) in POD.into_iter().zip(WORLD) {
            let (to_world, to_pod) = (SocketAddr::new(theirs, 8080), SocketAddr::new(mine, 8080));
            open(pod, to_world, None, None, b'z');
            open(world, to_pod, None, None, b'z');
            open(pod, to_world, None, Some(MARK), b'w');
            open(pod, to_pod, Some(theirs), Some(MARK), b'a');
        }
    }
    assert!(flows.len() >= 100, "{}", flows.len());
    flows
}

/// Loads Istio's rules in the words of its tools.
fn load_istios(tool: &str) {
    let istio = |dialect| ambient(&plan(), Form::Istio(dialect));
    if tool == "native" {
        run("/usr/sbin/nft", &["-f", "-"], &redirect::nft::render(&istio(Dialect::Nftables)));
    } else {
        let rules = istio(Dialect::Iptables);
        for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
            let text = redirect::iptables::render(&rules, family);
            run(&format!("/usr/sbin/{program}-{tool}-restore"), &["--noflush"], &text);
        }
    }
    sys::routing::ensure(&istio(Dialect::Nftables).routing).unwrap();
}

fn change_hands(tool: &str, own: &dyn Backend, other: &dyn Backend) {
    let (pod, world) = lab();
    within(&pod, || load_istios(tool)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flows = open_flows(&pod, &world, &stop);

    let done = Arc::new(AtomicBool::new(false));
    let hammers: Vec<_> = POD
        .into_iter()
        .zip(WORLD)
        .flat_map(|(mine, theirs)| {
            [
                hammer(again(&pod), SocketAddr::new(theirs, 8080), &done),
                hammer(again(&world), SocketAddr::new(mine, 8080), &done),
            ]
        })
        .collect();
    go_on(&flows);
    let want = ambient(&plan(), Form::Sluice);
    let start = Instant::now();
    let applied = within(&pod, || convert(own, Some(other), &want).unwrap()).unwrap();
    let took = start.elapsed();
    assert_eq!(applied, Applied::Replaced);
    go_on(&flows);
    done.store(true, Ordering::Relaxed);
    let (mut opened, mut wrong) = (0, Vec::new());
    for hammer in hammers {
        let (count, lines) = hammer.join().unwrap();
        opened += count;
        wrong.extend(lines);
    }

    stop.store(true, Ordering::Relaxed);
    let total = flows.len();
    let broken: Vec<String> =
        flows.into_iter().filter_map(|flow| flow.thread.join().unwrap().err()).collect();
    println!(
        "Istio's by {tool} to ours by {}: {took:?}, {} of {total} connections broke, \
         {opened} opened meanwhile, {} not by ztunnel",
        own.kind(),
        broken.len(),
        wrong.len()
    );
    assert_eq!(broken, Vec::<String>::new());
    assert_eq!(wrong, Vec::<String>::new());
    assert!(opened > 20, "{opened}");
}

/// A busy pod without rules gets some; what became of the connections that broke.
fn enrol(program: impl FnOnce() + Send) -> Vec<String> {
    let (pod, world) = lab();
    let stop = Arc::new(AtomicBool::new(false));
    let mut flows = Vec::new();
    for number in 0..2 * EACH {
        let pause = if number % 2 == 0 { QUIET } else { BUSY };
        for (mine, theirs) in POD.into_iter().zip(WORLD) {
            for (from, to, by) in [(&pod, theirs, b'w'), (&world, mine, b'a')] {
                let stream = within(from, || dial(SocketAddr::new(to, 8080), None, None)).unwrap();
                flows.push(Flow::start(stream.unwrap(), by, pause, &stop));
            }
        }
    }
    go_on(&flows);
    within(&pod, program).unwrap();
    go_on(&flows);
    for (mine, theirs) in POD.into_iter().zip(WORLD) {
        for (from, to) in [(&pod, theirs), (&world, mine)] {
            let new = within(from, || dial(SocketAddr::new(to, 8080), None, None)).unwrap();
            let by = name(&mut new.unwrap()).unwrap();
            assert_eq!(by as char, 'z', "a new connection to {to}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let total = flows.len();
    let broken: Vec<String> =
        flows.into_iter().filter_map(|flow| flow.thread.join().unwrap().err()).collect();
    println!("{} of {total} connections broke {:?}", broken.len(), broken.first());
    broken
}

#[test]
fn our_nftables_rules_break_no_running_connection() {
    let want = ambient(&plan(), Form::Sluice);
    let broken =
        enrol(|| assert_eq!(Nftables::new().apply(&want, None).unwrap(), Applied::Created));
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn our_iptables_rules_break_no_running_connection() {
    let want = ambient(&plan(), Form::Sluice);
    for variant in [Variant::Nft, Variant::Legacy] {
        let backend = iptables(variant);
        let broken = enrol(|| assert_eq!(backend.apply(&want, None).unwrap(), Applied::Created));
        assert_eq!(broken, Vec::<String>::new());
    }
}

#[test]
fn istios_rules_break_running_connections() {
    for tool in ["nft", "legacy", "native"] {
        // A machine that stands still while they are loaded saves the quiet ones too.
        let breaks = (0..5).any(|_| !enrol(|| load_istios(tool)).is_empty());
        assert!(breaks, "{tool}");
    }
}

fn iptables(force: Variant) -> Iptables {
    Iptables::detect_with(&Search { force: Some(force), ..Search::default() }).unwrap()
}

#[test]
fn from_iptables_nft_to_nftables() {
    change_hands("nft", &Nftables::new(), &iptables(Variant::Nft));
}

#[test]
fn from_legacy_iptables_to_nftables() {
    change_hands("legacy", &Nftables::new(), &iptables(Variant::Legacy));
}

#[test]
fn from_nft_to_iptables_nft() {
    change_hands("native", &iptables(Variant::Nft), &Nftables::new());
}

#[test]
fn from_nft_to_legacy_iptables() {
    change_hands("native", &iptables(Variant::Legacy), &Nftables::new());
}

/// Both at once, as for a moment of every conversion: a connection is redirected once.
#[test]
fn two_generations_at_once_decide_the_same() {
    let (pod, world) = lab();
    within(&pod, || {
        iptables(Variant::Legacy).apply(&ambient(&plan(), Form::Sluice), None).unwrap();
        load_istios("nft");
        load_istios("native");
    })
    .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flows = open_flows(&pod, &world, &stop);
    go_on(&flows);
    stop.store(true, Ordering::Relaxed);
    for flow in flows {
        flow.thread.join().unwrap().unwrap();
    }
    let refused = within(&pod, || TcpStream::connect((POD[0], 9))).unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
