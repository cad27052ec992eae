//! Two pods and the world around them, with Istio's own ambient rules, as
//! `shared/conformance` has them.

use crate::scripted::{LONG, Stage, info};
use e2e_node::cluster::attempt;
use e2e_node::conformance;
use e2e_node::lab::Namespace;
use e2e_node::lab::node::{Node, RESOLVER_V4, RESOLVER_V6};
use e2e_node::packet::{Fate, Transport, send};
use e2e_node::process::{Identity, Running};
use e2e_node::programs::{own_dir, required};
use e2e_node::rules::{Script, Tool};
use e2e_node::stand_in::{Answer, StandIn};
use e2e_node::ztunnel::{Config, Record, dns};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use sys::netns::within;
use zds::Response;

/// What the world's name servers say about every name.
pub(crate) const FORWARDED: [u8; 4] = [198, 51, 100, 7];
/// Of the application in each pod.
pub(crate) const PORT: u16 = 8080;

pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    _app: Running,
}

pub(crate) struct Mesh {
    // Before the namespaces: it is in them.
    pub(crate) stage: Stage,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) node: Node,
    resolver: Option<Resolver>,
    _world: Running,
}

impl Pod {
    pub(crate) fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }

    pub(crate) fn app(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(self.ip(v6), PORT)
    }
}

impl Mesh {
    /// Both pods have rules, and nobody is enrolled yet. None without the data.
    pub(crate) fn create(tool: Tool, change: impl FnOnce(&mut Config)) -> Option<Self> {
        let data = data("default_ipv6")?;
        let stage = Stage::set(|config| {
            config.resolvers = vec![SocketAddr::new(RESOLVER_V4.into(), 53)];
            config.names = [(
                "api.shop.svc.cluster.local".to_owned(),
                vec![IpAddr::from([240, 240, 0, 1]), "2001:2::1".parse().unwrap()],
            )]
            .into();
            change(config);
        });
        let node = Node::create(&stage.scratch, "mesh").unwrap();
        let [a, b] = [("a", 1), ("b", 2)].map(|(name, number)| pod(&stage, &node, name, number));
        for pod in [&a, &b] {
            script(&data, tool).load(&pod.namespace, tool).unwrap();
            route(&pod.namespace);
        }
        let resolver = Resolver::start(&node.world);
        let world = StandIn::direct("world", &[80], Vec::new());
        let stand_in = own_dir().unwrap().join("stand-in");
        let world = world.start(&stand_in, &node.world, Identity::APP).unwrap();
        Some(Self { stage, a, b, node, resolver: Some(resolver), _world: world })
    }

    /// Both pods are ztunnel's, under the service accounts `one` and `two`.
    pub(crate) fn enrol(&self) {
        use std::os::fd::AsFd;
        for (uid, pod, account) in [("u1", &self.a, "one"), ("u2", &self.b, "two")] {
            let fd = pod.namespace.netns().as_fd();
            assert_eq!(self.stage.agent.add_as(uid, &info(uid, account), fd), Response::Ack);
        }
        assert_eq!(self.stage.agent.snapshot_sent(), Response::Ack);
    }

    pub(crate) fn fate(&self, from: &Namespace, to: SocketAddr) -> Fate {
        let attempt = attempt(Transport::Tcp, Identity::APP, to);
        let packet = own_dir().unwrap().join("packet");
        let fates = send(from.program(packet), std::slice::from_ref(&attempt)).unwrap();
        fates[&attempt.label].clone()
    }

    /// Who answers a connection of an application.
    pub(crate) fn answer(&self, from: &Namespace, to: SocketAddr) -> Answer {
        match self.fate(from, to) {
            Fate::Answered(answer) => answer,
            other => panic!("to {to}: {other}; {:#?}", self.stage.status()),
        }
    }

    /// What ztunnel wrote down since the last time.
    pub(crate) fn records(&self, seen: &mut usize) -> Vec<Record> {
        let records = self.stage.status().records;
        let new = records[*seen..].to_vec();
        *seen = records.len();
        new
    }

    pub(crate) fn stop_resolver(&mut self) {
        self.resolver = None;
    }
}

/// A file of the data; None when it is not there and need not be.
pub(crate) fn data(name: &str) -> Option<Value> {
    let path = conformance::dir().join(format!("ambient/{name}.json"));
    if !path.is_file() {
        assert!(!required("REQUIRE_CONFORMANCE"), "{} is not there", path.display());
        return None;
    }
    Some(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
}

fn lines(value: &Value) -> String {
    let lines = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.map(|line| format!("{line}\n")).collect()
}

pub(crate) fn script(data: &Value, tool: Tool) -> Script {
    let family = |name: &str| {
        let tables = data["iptables"][name].as_object().unwrap().iter();
        let tables = tables.map(|(table, rules)| format!("*{table}\n{}COMMIT\n", lines(rules)));
        tables.collect::<String>()
    };
    match tool {
        Tool::Nft => Script::Nft(lines(&data["nftables"])),
        Tool::Iptables | Tool::Legacy => Script::Restore { v4: family("v4"), v6: family("v6") },
    }
}

/// Reference 4.4.
fn route(pod: &Namespace) {
    let lines = "rule add fwmark 0x111/0xfff pref 32764 lookup 100\n\
         route add local 0.0.0.0/0 dev lo table 100\n\
         -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100\n\
         -6 route add local ::/0 dev lo table 100\n";
    pod.ip(lines).unwrap();
}

fn pod(stage: &Stage, node: &Node, name: &str, number: u8) -> Pod {
    let namespace = stage.pod(name);
    let link = format!("p{number}");
    namespace.link("eth0", &node.host, &link).unwrap();
    let host = format!(
        "addr add 10.244.{number}.1/24 dev {link}\n\
         addr add fd00:244:{number}::1/64 dev {link} nodad\n"
    );
    node.host.ip(&host).unwrap();
    let own = format!(
        "addr add 10.244.{number}.2/24 dev eth0\n\
         addr add fd00:244:{number}::2/64 dev eth0 nodad\n\
         route add default via 10.244.{number}.1\n\
         route add default via fd00:244:{number}::1\n"
    );
    namespace.ip(&own).unwrap();
    let app = StandIn::direct(name, &[PORT], Vec::new());
    let stand_in = own_dir().unwrap().join("stand-in");
    let app = app.start(&stand_in, &namespace, Identity::APP).unwrap();
    let v6 = format!("fd00:244:{number}::2").parse().unwrap();
    Pod { namespace, v4: IpAddr::from([10, 244, number, 2]), v6, _app: app }
}

/// The name servers of the world: every name has the same address.
struct Resolver {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    fn start(world: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for ip in [IpAddr::from(RESOLVER_V4), RESOLVER_V6.into()] {
            let address = SocketAddr::new(ip, 53);
            let sockets = || (UdpSocket::bind(address), TcpListener::bind(address));
            let (udp, tcp) = within(world.netns(), sockets).unwrap();
            let (udp, tcp) = (udp.unwrap(), tcp.unwrap());
            let pause = Duration::from_millis(20);
            udp.set_read_timeout(Some(pause)).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let end = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                while !end.load(Ordering::SeqCst) {
                    let mut bytes = [0; 512];
                    if let Ok((length, peer)) = udp.recv_from(&mut bytes) {
                        let answer = dns::reply(&bytes[..length], &[FORWARDED.into()]).unwrap();
                        udp.send_to(&answer, peer).unwrap();
                    }
                }
            }));
            let end = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                while !end.load(Ordering::SeqCst) {
                    match tcp.accept() {
                        Ok((mut stream, _)) => {
                            stream.set_nonblocking(false).unwrap();
                            let query = read_message(&mut stream);
                            let answer = dns::reply(&query, &[FORWARDED.into()]).unwrap();
                            write_message(&mut stream, &answer);
                        }
                        Err(_) => std::thread::sleep(pause),
                    }
                }
            }));
        }
        Self { stop, threads }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn write_message(stream: &mut TcpStream, message: &[u8]) {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).unwrap();
}

/// What an application in a pod gets from a name server, which must be the one that
/// answers: the socket takes nothing from others.
pub(crate) fn resolve(
    pod: &Namespace,
    server: IpAddr,
    transport: Transport,
    name: &str,
    v6: bool,
) -> (u8, Vec<IpAddr>) {
    let server = SocketAddr::new(server, 53);
    let query = dns::query(4711, name, v6);
    let answer = match transport {
        Transport::Tcp => {
            let stream = within(pod.netns(), || TcpStream::connect_timeout(&server, LONG));
            let mut stream = stream.unwrap().unwrap();
            write_message(&mut stream, &query);
            read_message(&mut stream)
        }
        Transport::Udp => {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = within(pod.netns(), || UdpSocket::bind(any)).unwrap().unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            socket.send(&query).unwrap();
            let mut bytes = [0; 512];
            let length = socket.recv(&mut bytes).unwrap();
            bytes[..length].to_vec()
        }
    };
    assert_eq!(answer[..2], query[..2], "another query's answer");
    dns::read_reply(&answer).unwrap()
}
