//! A node full of pods that Istio's own agent enrolled: its iptables rules in each, no
//! record of ours, ztunnel at work, connections open. Our agent starts in its place, and
//! no connection breaks. The conversion of one pod under many connections, and of those
//! that are opened meanwhile, is a test of `sys`; pods of a real chain are in
//! [`crate::takeover`].

use crate::stage::{MODE, PORT, Stage};
use crate::takeover::istios;
use anyhow::{Context, Result};
use e2e_node::agent::{NODE_NAME, plain_pod};
use e2e_node::cluster::NAMESPACE;
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::process::{Program, Running, load};
use e2e_node::rules::{Script, Tool};
use e2e_node::ztunnel::{Config, Ztunnel};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};
use sys::seqpacket::Listener;
use sys::seqpacket::server::{Event, Limits, Server};
use zds::{Request, Response, WorkloadInfo};

/// Pods, as many as the issue has.
const PODS: usize = 200;

/// For all of them at once, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(240);

/// Between two exchanges of a connection: most are quiet, as the harm would come to them.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(400),
    Duration::from_millis(400),
    Duration::from_millis(700),
];

/// A pod without a runtime: a namespace, its first process and its application, which is
/// a thread of the test.
struct Pod {
    name: String,
    uid: String,
    netns: Arc<Netns>,
    ips: [IpAddr; 2],
    _pause: Running,
}

impl Pod {
    fn app(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(self.ips[usize::from(v6)], PORT)
    }
}

/// Says something and then echoes, until the test ends.
fn serve(netns: &Netns) -> Result<()> {
    let listener = within(netns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || echo(stream));
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"app\n")?;
    let mut bytes = [0; 16];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
}

/// Namespaces on a bridge of the node, with Istio's rules and routes in each.
fn build(stage: &Stage, rules: &Script, tool: Tool) -> Result<Vec<Pod>> {
    let own = 100 + std::process::id() % 100;
    let host = &stage.cluster.node.host;
    let gateway = format!("10.{own}.224.1");
    let mut lines = format!(
        "link add pods0 type bridge\nlink set pods0 up\n\
         addr add {gateway}/20 dev pods0\naddr add fd00:{own}:224::1/64 dev pods0 nodad\n"
    );
    let mut pods = Vec::new();
    for number in 0..PODS {
        let (high, low) = (224 + number / 200, number % 200 + 10);
        let ips = [format!("10.{own}.{high}.{low}"), format!("fd00:{own}:224::{:x}", number + 16)];
        let netns = Arc::new(Netns::create()?);
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        writeln!(lines, "link add p{number} type veth peer name eth0 netns {path}")?;
        writeln!(lines, "link set p{number} master pods0 up")?;
        let pause = Program::new("sleep").arg("900").within(&netns);
        let pause = pause.timeout(Duration::from_secs(900)).start()?;
        pods.push(Pod {
            name: format!("p{number}"),
            uid: format!("0a1b2c3d-0000-4001-8000-{:08x}{number:04x}", std::process::id()),
            ips: [ips[0].parse()?, ips[1].parse()?],
            netns,
            _pause: pause,
        });
    }
    host.ip(&lines)?;
    let lock = host.scratch().path().join("xtables.lock");
    let furnish = |pod: &Pod| -> Result<()> {
        let [v4, v6] = pod.ips;
        let lines = format!(
            "link set lo up\nlink set eth0 up\naddr add {v4}/20 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\nroute add default via {gateway}\n\
             rule add fwmark 0x111/0xfff lookup 100 pref 32764\n\
             route add local 0.0.0.0/0 dev lo table 100\n"
        );
        load(&pod.netns, &["ip", "-batch", "-"], &lines)?;
        let lines = "rule add fwmark 0x111/0xfff lookup 100 pref 32764\n\
                     route add local ::/0 dev lo table 100\n";
        load(&pod.netns, &["ip", "-6", "-batch", "-"], lines)?;
        let Script::Restore { v4, v6 } = rules else { anyhow::bail!("no iptables rules") };
        for (program, text) in [("iptables", v4), ("ip6tables", v6)] {
            let program = format!("{program}-{}-restore", tool.suffix());
            let program = Program::new(program).arg("--noflush").within(&pod.netns);
            program.env("XTABLES_LOCKFILE", &lock).input(text.as_str()).check()?;
        }
        serve(&pod.netns)
    };
    std::thread::scope(|scope| {
        let halves = pods.chunks(PODS.div_ceil(4));
        let work = |half: &'_ [Pod]| half.iter().try_for_each(furnish);
        let threads: Vec<_> = halves.map(|half| scope.spawn(move || work(half))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    Ok(pods)
}

/// Istio's agent as ztunnel sees it.
struct Istio {
    server: Server,
    events: Receiver<Event>,
}

impl Istio {
    /// Serves at the path where ours will.
    fn serve(stage: &Stage) -> Self {
        let path = stage.cluster.directories.ztunnel();
        let (tell, events) = channel();
        let server =
            Server::start(Listener::bind(&path).unwrap(), Limits::default(), move |event| {
                tell.send(event).ok();
            });
        Self { server: server.unwrap(), events }
    }

    /// The snapshot of these pods, taken.
    fn enrol(&self, pods: &[Pod]) {
        let next = || self.events.recv_timeout(PATIENCE).unwrap();
        let peer = loop {
            if let Event::Connected { peer, .. } = next() {
                break peer;
            }
        };
        for pod in pods {
            let info = WorkloadInfo {
                name: pod.name.clone(),
                namespace: NAMESPACE.to_owned(),
                service_account: pod.name.clone(),
            };
            let add = Request::Add { uid: pod.uid.clone(), info };
            self.server.handle().send(peer, add.encode().unwrap(), Some(pod.netns.clone()));
        }
        self.server.handle().send(peer, Request::SnapshotSent.encode().unwrap(), None);
        for _ in 0..=pods.len() {
            match next() {
                Event::Answered { packet, .. } => {
                    assert_eq!(Response::decode(&packet).unwrap(), Response::Ack);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// As the API has it after Istio's agent.
fn publish(stage: &Stage, pod: &Pod) {
    let mut manifest = plain_pod(NAMESPACE, &pod.name);
    manifest["metadata"]["uid"] = json!(pod.uid);
    manifest["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    manifest["metadata"]["labels"] = json!({MODE: "ambient"});
    manifest["spec"]["serviceAccountName"] = json!(pod.name);
    manifest["spec"]["nodeName"] = json!(NODE_NAME);
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    manifest["status"] = json!({"phase": "Running", "podIPs": ips});
    stage.publish(&manifest);
}

/// The rules are ours, and nothing of Istio's is left.
fn is_converted(pod: &Pod) -> Result<bool> {
    let list = load(&pod.netns, &["nft", "list", "ruleset"], "")?;
    Ok(list.contains("istio-ambient-nat") && !list.contains("ISTIO_"))
}

#[test]
fn a_node_full_of_istios_pods_is_taken_over_under_traffic() {
    let begun = Instant::now();
    let mut stage = Stage::with_api("migration", "nftables");
    stage.cluster.agent.take().unwrap().kill().unwrap();
    let tool = Tool::Iptables;
    let pods = build(&stage, &istios(&stage, tool, false), tool).unwrap();
    pods.iter().for_each(|pod| publish(&stage, pod));
    let istio = Istio::serve(&stage);
    let host = &stage.cluster.node.host;
    let config = Config::new(host.scratch(), "zt", stage.cluster.directories.ztunnel());
    let ztunnel = Ztunnel::start(&config, Some(host)).unwrap();
    istio.enrol(&pods);
    let mut flows = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        let to = pods[(number + 1) % PODS].app(number % 2 == 1);
        let flow = Flow::start(&pod.netns, to, PAUSES[number % PAUSES.len()]);
        flows.push(flow.with_context(|| pod.name.clone()).unwrap());
    }
    come_on(&flows).unwrap();
    let before = ztunnel.status().unwrap();
    assert_eq!(before.records.len(), 2 * PODS, "all run through ztunnel");
    assert!(pods.iter().all(|pod| !is_converted(pod).unwrap()));
    let built = begun.elapsed();

    drop(istio);
    let begun = Instant::now();
    stage.start_agent();
    let end = begun + PATIENCE;
    let mut left: Vec<&Pod> = pods.iter().collect();
    while !left.is_empty() {
        left.retain(|pod| !is_converted(pod).unwrap());
        assert!(Instant::now() < end, "{} are not: {}", left.len(), stage.cluster.agent_log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let converted = begun.elapsed();
    let more = before.connections + 1;
    let after = ztunnel.wait("the snapshot", |s| s.connections >= more && s.snapshot).unwrap();
    assert_eq!((after.started, after.stopped), (before.started, before.stopped), "no proxy ends");
    come_on(&flows).unwrap();
    let total = flows.len();
    let broken = finish(flows);
    println!(
        "{PODS} pods with Istio's rules by {tool:?}, made in {built:?}: converted after \
         {converted:?}, {} of {total} connections broke",
        broken.len()
    );
    assert_eq!(broken, Vec::<String>::new());

    // Captured as ever, by the same proxies.
    let mut flows = Vec::new();
    let seen = ztunnel.status().unwrap().records.len();
    for number in [0, PODS / 2, PODS - 1] {
        let to = pods[(number + 1) % PODS].app(true);
        flows.push(Flow::start(&pods[number].netns, to, PAUSES[0]).unwrap());
    }
    come_on(&flows).unwrap();
    assert_eq!(ztunnel.status().unwrap().records.len() - seen, 2 * flows.len());
    assert_eq!(finish(flows), Vec::<String>::new());
}
