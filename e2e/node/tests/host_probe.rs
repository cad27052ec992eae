//! Kubelet's probes: a namespace plays the host, another an ambient pod whose rules
//! send everything to a stand-in of ztunnel but what bears the probe source. A
//! process called kubelet, in a cgroup of the test's own, connects for real.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::lab::{Namespace, Scratch};
use e2e_node::process::{Program, Running, is_alive};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use sys::backend::BackendKind;
use sys::hostprobe::{
    Caller, Cause, Config, Event, HostRules, Keeper, Owner, Programmer, Sources, Target, kubelet,
};
use sys::iptables::{Iptables, Search, Variant};
use sys::netns::{Netns, within};

const PATIENCE: Duration = Duration::from_secs(60);
const POD: &str = "10.77.0.2";
const POD6: &str = "fd77:1::2";
/// What everybody's source becomes on the host, as a CNI's masquerade does it.
const MASQUERADE: &str = "10.77.0.99";
const SOURCE: &str = "app 169.254.7.127";
const SOURCE6: &str = "app fd16:9254:7127:1337:ffff:ffff:ffff:ffff";
const CAPTURED: &str = "ztunnel 10.77.0.99";
const CAPTURED6: &str = "ztunnel fd77:1::1";

const DIALECTS: [&str; 3] = ["nftables", "iptables", "iptables-legacy"];

fn programmer(dialect: &str) -> Programmer {
    let force = match dialect {
        "nftables" => return Programmer::Nftables,
        "iptables" => Variant::Nft,
        _ => Variant::Legacy,
    };
    let search = Search { force: Some(force), ..Search::default() };
    Programmer::Iptables(Arc::new(Iptables::detect_with(&search).unwrap()))
}

/// A cgroup of the test's own, at the top of cgroup2 wherever that is mounted.
struct Cgroup {
    top: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = kubelet::mounts(Path::new("/proc"));
        let mount = mounts.first().unwrap();
        sweep(mount);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = mount.join(format!("sluice-e2e-{}-{next}", std::process::id()));
        let cgroup = Self { dir: top.join("kubelet.service"), top };
        std::fs::create_dir_all(&cgroup.dir).unwrap();
        cgroup
    }

    fn procs(&self) -> String {
        self.dir.join("cgroup.procs").display().to_string()
    }

    /// Empties it of processes that are just ending, and removes it.
    fn remove(dir: &Path) {
        let end = Instant::now() + PATIENCE;
        while std::fs::remove_dir(dir).is_err() && dir.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        Self::remove(&self.dir);
        Self::remove(&self.top);
    }
}

/// Removes what killed runs left.
fn sweep(mount: &Path) {
    for entry in std::fs::read_dir(mount).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix("sluice-e2e-").and_then(|rest| rest.split('-').next());
        if pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid: u32| !is_alive(pid)) {
            let _ = std::fs::remove_dir(entry.path().join("kubelet.service"));
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

struct Stage {
    scratch: Arc<Scratch>,
    host: Namespace,
    pod: Namespace,
    cgroup: Cgroup,
}

/// Answers every connection with a name and the address that it came from.
fn serve(namespace: &Namespace, name: &'static str, port: u16) {
    let listener = within(namespace.netns(), || TcpListener::bind(("::", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let from = stream.peer_addr().map(|from| from.ip().to_canonical());
            let _ = from.map(|from| writeln!(stream, "{name} {from}"));
        }
    });
}

impl Stage {
    fn create(name: &str, dialect: &str) -> Self {
        let scratch = Scratch::create().unwrap();
        let host = Namespace::create(&scratch, &format!("{name}-host")).unwrap();
        let pod = Namespace::create(&scratch, &format!("{name}-pod")).unwrap();
        host.link("veth0", &pod, "eth0").unwrap();
        host.ip(&format!(
            "addr add 10.77.0.1/24 dev veth0\naddr add {MASQUERADE}/24 dev veth0\n\
             addr add fd77:1::1/64 dev veth0 nodad"
        ))
        .unwrap();
        pod.ip(&format!(
            "addr add {POD}/24 dev eth0\naddr add 10.77.0.3/24 dev eth0\n\
             addr add {POD6}/64 dev eth0 nodad\nroute add default via 10.77.0.1\n\
             route add default via fd77:1::1"
        ))
        .unwrap();
        // What an ambient pod's rules do with what comes in.
        let rules = "table inet pod {\nchain in {\ntype nat hook prerouting priority dstnat;\n\
             ip saddr 169.254.7.127 accept\n\
             ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff accept\n\
             tcp dport != 15006 redirect to :15006\n}\n}\n";
        pod.load(&["nft", "-f", "-"], rules).unwrap();
        for port in [8080, 9090] {
            serve(&pod, "app", port);
        }
        serve(&pod, "ztunnel", 15006);
        let stage = Self { scratch, host, pod, cgroup: Cgroup::create() };
        stage.masquerade(dialect);
        // Not by ourselves: a child that another test forks just then would have it
        // open for writing, and it could not be run.
        let copy = Program::new("cp").arg("/bin/bash").arg(stage.program("kubelet"));
        copy.check().unwrap();
        let fifo = stage.program("fifo");
        Program::new("mkfifo").arg(fifo.as_os_str()).check().unwrap();
        stage
    }

    fn program(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The translation of a CNI. Before a table of nf_tables at the priority that
    /// iptables has, rules of iptables cannot come; ours of nftables come before
    /// both.
    fn masquerade(&self, dialect: &str) {
        let table = format!(
            "table ip cni {{\nchain post {{\ntype nat hook postrouting priority srcnat;\n\
             snat to {MASQUERADE}\n}}\n}}\n"
        );
        if dialect == "nftables" {
            self.host.load(&["nft", "-f", "-"], &table).unwrap();
        }
        for (of, tool) in [("iptables", "iptables-nft"), ("iptables-legacy", "iptables-legacy")] {
            if of == dialect || dialect == "nftables" {
                let rule = format!("-t nat -A POSTROUTING -j SNAT --to-source {MASQUERADE}");
                let argv: Vec<&str> = std::iter::once(tool).chain(rule.split(' ')).collect();
                self.host.load(&argv, "").unwrap();
            }
        }
    }

    /// Starts kubelet, in its cgroup or where the test is.
    fn kubelet(&self, in_cgroup: bool) -> Player {
        let fifo = self.program("fifo");
        let join =
            if in_cgroup { format!("echo $$ > {}; ", self.cgroup.procs()) } else { String::new() };
        let script = format!(
            "{join}echo ready; while true; do read -r to port < {} || continue; {}; done",
            fifo.display(),
            connect("$to", "$port"),
        );
        let program = Program::new(self.program("kubelet")).args(["-c", script.as_str()]);
        let mut running = program.within(self.host.netns()).start().unwrap();
        running.wait_ready().unwrap();
        Player { running, fifo }
    }

    /// A root process of the host network that is not kubelet.
    fn other(&self, to: &str, port: u16) -> String {
        let script = connect(to, &port.to_string());
        let program = Program::new("bash").args(["-c", script.as_str()]);
        program.within(self.host.netns()).check().unwrap().trim().to_owned()
    }

    fn config(&self, programmer: Programmer) -> Config {
        Config::new(self.netns(), "/proc", programmer)
    }

    fn ruleset(&self) -> String {
        self.host.load(&["nft", "list", "ruleset"], "").unwrap()
    }

    fn netns(&self) -> Netns {
        Netns::open(self.host.path()).unwrap()
    }

    fn keeper(&self, dialect: &str) -> (Keeper, Receiver<Event>) {
        let (sender, events) = mpsc::channel();
        let keeper = Keeper::start(self.config(programmer(dialect)), sender).unwrap();
        (keeper, events)
    }
}

fn connect(to: &str, port: &str) -> String {
    let inner = "exec 3<>/dev/tcp/$0/$1 && read -r -t 12 line <&3 && echo \"$line\"";
    format!("timeout 15 bash -c '{inner}' {to} {port} 2>/dev/null || echo failed")
}

/// The process that plays kubelet.
struct Player {
    running: Running,
    fifo: PathBuf,
}

impl Player {
    fn probe(&mut self, to: &str, port: u16) -> String {
        std::fs::write(&self.fifo, format!("{to} {port}\n")).unwrap();
        self.running.line().unwrap().unwrap()
    }
}

fn owner(pod: &str) -> Owner {
    Owner { pod: pod.to_owned(), sandbox: "1".to_owned() }
}

fn targets(of: &[(&str, u16)]) -> BTreeSet<Target> {
    let target =
        |(address, port): &(&str, u16)| Target { address: address.parse().unwrap(), port: *port };
    of.iter().map(target).collect()
}

fn both() -> BTreeSet<Target> {
    targets(&[(POD, 8080), (POD6, 8080)])
}

/// Waits for an event; what comes before it is shown.
fn wait_for(events: &Receiver<Event>, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).unwrap();
        if wanted(&event) {
            return event;
        }
        println!("before: {event:?}");
    }
}

#[test]
fn a_probe_reaches_the_app_and_nothing_else_does() {
    for dialect in DIALECTS {
        let stage = Stage::create("probe", dialect);
        let mut kubelet = stage.kubelet(true);
        assert_eq!(kubelet.probe(POD, 8080), CAPTURED, "{dialect}: without rules");
        let (keeper, _events) = stage.keeper(dialect);
        keeper.upsert(owner("a"), both()).unwrap();
        let status = keeper.status().unwrap();
        println!("{dialect}: {} ({})", status.kubelet.word(), status.kubelet);
        assert_eq!(status.kubelet.word(), "cgroup");
        assert!(status.holds && status.ahead.is_empty(), "{status:?}");
        for _ in 0..3 {
            assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}");
            assert_eq!(kubelet.probe(POD6, 8080), SOURCE6, "{dialect}");
            // Not a probe's port, not the pod's other address, not kubelet.
            assert_eq!(kubelet.probe(POD, 9090), CAPTURED, "{dialect}");
            assert_eq!(kubelet.probe(POD6, 9090), CAPTURED6, "{dialect}");
            assert_eq!(kubelet.probe("10.77.0.3", 8080), CAPTURED, "{dialect}");
            assert_eq!(stage.other(POD, 8080), CAPTURED, "{dialect}");
            assert_eq!(stage.other(POD6, 8080), CAPTURED6, "{dialect}");
            assert_eq!(stage.other(POD, 9090), CAPTURED, "{dialect}");
        }
        if let Some(packets) = keeper.status().unwrap().packets {
            assert_eq!(packets, 6, "connections that got the source");
        }
        keeper.complete().unwrap();
        keeper.release(owner("a")).unwrap();
        assert_eq!(kubelet.probe(POD, 8080), CAPTURED, "{dialect}: released");
        keeper.remove().unwrap();
        let left = stage.ruleset();
        assert!(!left.contains("sluice") && !left.contains("SLUICE"), "{left}");
    }
}

#[test]
fn without_its_cgroup_kubelet_is_its_user_and_the_ports_stay() {
    for dialect in DIALECTS {
        let stage = Stage::create("uid", dialect);
        // Where the test itself is: the root cgroup on some machines, one that is
        // shared with others on the rest.
        let root = std::fs::read_to_string("/proc/self/cgroup").unwrap().contains("0::/\n");
        let kubelet = root.then(|| stage.kubelet(false));
        let (keeper, _events) = stage.keeper(dialect);
        keeper.upsert(owner("a"), both()).unwrap();
        let status = keeper.status().unwrap();
        println!("{dialect}: {} ({})", status.kubelet.word(), status.kubelet);
        assert_eq!(status.kubelet.word(), "uid", "{}", status.kubelet);
        assert_eq!(status.kubelet.process.is_some(), root);
        if let Some(mut kubelet) = kubelet {
            assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}");
            assert_eq!(kubelet.probe(POD, 9090), CAPTURED, "{dialect}");
        }
        // What is wider than it should be; `status` says so.
        assert_eq!(stage.other(POD, 8080), SOURCE, "{dialect}");
        assert_eq!(stage.other(POD6, 8080), SOURCE6, "{dialect}");
        assert_eq!(stage.other(POD, 9090), CAPTURED, "{dialect}");
    }
}

#[test]
fn knowing_kubelet_by_its_cgroup_can_be_switched_off() {
    let stage = Stage::create("off", "nftables");
    let _kubelet = stage.kubelet(true);
    let mut config = stage.config(Programmer::Nftables);
    config.cgroups = false;
    let (sender, _events) = mpsc::channel();
    let keeper = Keeper::start(config, sender).unwrap();
    let kubelet = keeper.status().unwrap().kubelet;
    assert_eq!(kubelet.word(), "uid");
    assert!(kubelet.to_string().ends_with("it is switched off"), "{kubelet}");
    assert!(!stage.ruleset().contains("cgroupv2"));
}

#[test]
fn harm_is_repaired() {
    for (dialect, harms) in [
        (
            "nftables",
            &[
                "nft flush ruleset",
                "nft delete table inet sluice-probe",
                "nft flush chain inet sluice-probe postrouting",
                "nft flush set inet sluice-probe sluice-probe-v4",
                "nft insert rule inet sluice-probe output accept",
            ][..],
        ),
        (
            "iptables",
            &[
                "nft flush ruleset",
                "iptables -t nat -F",
                "ip6tables -t nat -F SLUICE_PROBE",
                "iptables -t nat -I POSTROUTING 1 -j MASQUERADE",
                // One set each, or a look in between finds half of the harm.
                "ipset flush sluice-probe-v4",
                "ipset flush sluice-probe-v6",
            ],
        ),
        ("iptables-legacy", &["iptables-legacy -t nat -F", "ipset flush sluice-probe-v4"]),
    ] {
        let stage = Stage::create("harm", dialect);
        let mut kubelet = stage.kubelet(true);
        let (keeper, events) = stage.keeper(dialect);
        keeper.upsert(owner("a"), both()).unwrap();
        for (n, harm) in harms.iter().enumerate() {
            let argv: Vec<&str> = harm.split(' ').collect();
            stage.host.load(&argv, "").unwrap();
            let repaired = wait_for(&events, |event| matches!(event, Event::Repaired { .. }));
            let Event::Repaired { after, cause, diff, elements } = repaired else { panic!() };
            println!("{dialect}: {harm}: {after:?} by {cause:?}, {elements} elements, {diff}");
            // Nobody notifies of legacy tables.
            if n == 0 {
                let heard = dialect != "iptables-legacy";
                assert_eq!(cause == Cause::Notification, heard, "{dialect}: {harm}");
            }
            assert!(!diff.is_empty() || elements > 0, "{dialect}: {harm}");
            assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}: {harm}");
            assert_eq!(kubelet.probe(POD6, 8080), SOURCE6, "{dialect}: {harm}");
            assert_eq!(keeper.status().unwrap().repairs, n as u64 + 1, "{dialect}: {harm}");
        }
    }
}

#[test]
fn a_flush_in_a_loop_makes_no_hot_loop() {
    let stage = Stage::create("loop", "nftables");
    let mut kubelet = stage.kubelet(true);
    let (keeper, events) = stage.keeper("nftables");
    keeper.upsert(owner("a"), both()).unwrap();
    let begin = Instant::now();
    let mut flushes = 0;
    while begin.elapsed() < Duration::from_secs(4) {
        stage.host.load(&["nft", "flush", "ruleset"], "").unwrap();
        flushes += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    let repairs = keeper.status().unwrap().repairs;
    let longest = events.try_iter().filter_map(|event| match event {
        Event::Repaired { after, .. } => Some(after),
        _ => None,
    });
    println!("{flushes} flushes, {repairs} repairs, the longest wait {:?}", longest.max());
    // Four in the first second (gaps of 50 to 400 ms), then one each 0.8 s.
    assert!((2..=12).contains(&repairs), "{repairs} repairs of {flushes} flushes");
    let end = Instant::now() + PATIENCE;
    while kubelet.probe(POD, 8080) != SOURCE {
        assert!(Instant::now() < end, "not repaired after the last flush");
    }
}

#[test]
fn whoever_comes_first_is_told() {
    let stage = Stage::create("ahead", "nftables");
    let mut kubelet = stage.kubelet(true);
    let (keeper, events) = stage.keeper("nftables");
    keeper.upsert(owner("a"), both()).unwrap();
    let table = format!(
        "table inet eager {{\nchain post {{\ntype nat hook postrouting priority -195;\n\
         ip daddr {POD} snat ip to {MASQUERADE}\n}}\n}}\n"
    );
    stage.host.load(&["nft", "-f", "-"], &table).unwrap();
    let told = wait_for(&events, |event| matches!(event, Event::Ahead(_)));
    let Event::Ahead(chains) = told else { panic!() };
    assert_eq!(chains, ["chain inet eager post priority -195"]);
    assert_eq!(kubelet.probe(POD, 8080), CAPTURED, "it does what it can do");
    assert_eq!(keeper.status().unwrap().ahead, chains);
}

#[test]
fn kubelet_starts_again_in_a_new_cgroup() {
    for dialect in DIALECTS {
        let stage = Stage::create("again", dialect);
        let mut player = stage.kubelet(true);
        let (keeper, events) = stage.keeper(dialect);
        keeper.upsert(owner("a"), both()).unwrap();
        let id = |event: &Event| match event {
            Event::Kubelet(kubelet) => match kubelet.caller {
                Caller::Cgroup { id, .. } => Some(id),
                Caller::Uid(_) => None,
            },
            _ => None,
        };
        let before = id(&wait_for(&events, |event| id(event).is_some()));
        assert_eq!(player.probe(POD, 8080), SOURCE, "{dialect}");
        drop(player);
        Cgroup::remove(&stage.cgroup.dir);
        std::fs::create_dir(&stage.cgroup.dir).unwrap();
        player = stage.kubelet(true);
        let now = wait_for(&events, |event| id(event).is_some_and(|now| Some(now) != before));
        println!("{dialect}: cgroup {before:?}, then {:?}", id(&now));
        assert_eq!(player.probe(POD, 8080), SOURCE, "{dialect}");
        assert_eq!(stage.other(POD, 8080), CAPTURED, "{dialect}");
        assert_eq!(keeper.status().unwrap().kubelet.word(), "cgroup", "{dialect}");
    }
}

#[test]
fn an_address_is_used_again_and_a_restart_forgets_nothing() {
    for dialect in DIALECTS {
        let stage = Stage::create("reuse", dialect);
        let mut kubelet = stage.kubelet(true);
        let (keeper, _events) = stage.keeper(dialect);
        keeper.complete().unwrap();
        keeper.upsert(owner("a"), both()).unwrap();
        keeper.upsert(owner("b"), both()).unwrap();
        keeper.release(owner("a")).unwrap();
        assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}: b has it");
        keeper.upsert(owner("c"), targets(&[(POD, 9090)])).unwrap();
        drop(keeper);
        assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}: stopped");

        let (keeper, events) = stage.keeper(dialect);
        assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}: started again");
        keeper.release_pod("b").unwrap();
        keeper.upsert(owner("c"), targets(&[(POD, 9090)])).unwrap();
        assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}: not all pods are told");
        keeper.complete().unwrap();
        wait_for(&events, |event| matches!(event, Event::Pruned(2)));
        assert_eq!(kubelet.probe(POD, 8080), CAPTURED, "{dialect}: pruned");
        assert_eq!(kubelet.probe(POD, 9090), SOURCE, "{dialect}");
        assert_eq!(keeper.status().unwrap().repairs, 0, "{dialect}");
    }
}

#[test]
fn another_backend_takes_over() {
    let stage = Stage::create("switch", "iptables");
    let mut kubelet = stage.kubelet(true);
    let mut tools = None;
    for (n, dialect) in ["iptables", "nftables", "iptables"].into_iter().enumerate() {
        let mut config = stage.config(programmer(dialect));
        if let Programmer::Iptables(found) = &config.programmer {
            tools = Some(Arc::clone(found));
        }
        config.tools.clone_from(&tools);
        let (sender, _events) = mpsc::channel();
        let keeper = Keeper::start(config, sender).unwrap();
        // Nobody tells the later ones of the pod.
        if n == 0 {
            keeper.upsert(owner("a"), both()).unwrap();
        }
        assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{dialect}");
        assert_eq!(kubelet.probe(POD6, 8080), SOURCE6, "{dialect}");
        let ruleset = stage.ruleset();
        assert_eq!(ruleset.contains("table inet sluice-probe"), dialect == "nftables", "{ruleset}");
        assert_eq!(ruleset.contains("SLUICE_PROBE"), dialect == "iptables", "{ruleset}");
    }
}

/// AWS' strict mode: a pod behind a branch interface has a table of its own, whose
/// default route leaves through the VPC, and the host's own addresses come after it.
#[test]
fn a_probe_reaches_a_pod_behind_a_branch_interface() {
    let stage = Stage::create("branch", "nftables");
    stage.host.sysctl("ipv4/tcp_early_demux", "0").unwrap();
    stage
        .host
        .ip("link add vlan0 type veth peer name vpc0\nlink set vlan0 up\nlink set vpc0 up\n\
             route del 10.77.0.0/24 dev veth0\nroute add default dev vlan0\n\
             route add 10.77.0.2 dev veth0 table 101\nroute add default dev vlan0 table 101\n\
             rule add iif vlan0 lookup 101 priority 10\nrule add iif veth0 lookup 101 priority 10\n\
             rule add lookup local priority 20\nrule del priority 0")
        .unwrap();
    let rules = || stage.host.load(&["ip", "rule"], "").unwrap();
    let before = rules();
    let mut kubelet = stage.kubelet(true);
    assert_eq!(kubelet.probe(POD, 8080), "failed");
    let (keeper, _events) = stage.keeper("nftables");
    keeper.upsert(owner("a"), both()).unwrap();
    assert_eq!(kubelet.probe(POD, 8080), SOURCE, "{}", rules());
    keeper.release(owner("a")).unwrap();
    // Not all pods are told, so the rules may be another's.
    drop(keeper);
    assert_ne!(rules(), before);
    let (keeper, _events) = stage.keeper("nftables");
    keeper.complete().unwrap();
    assert_eq!(rules(), before, "what another agent made is found and removed");
    keeper.upsert(owner("a"), both()).unwrap();
    assert_eq!(kubelet.probe(POD, 8080), SOURCE);
    keeper.release(owner("a")).unwrap();
    assert_eq!(rules(), before);
}

/// Where the test for containers finds host and /proc.
const CONTAINER: &str = "SLUICE_TEST_CONTAINER";

/// The agent in a container: a cgroup of its own, a cgroup namespace whose root that
/// is, and the host's processes in another /proc.
#[test]
fn the_agent_is_in_a_container() {
    let stage = Stage::create("container", "nftables");
    let mut kubelet = stage.kubelet(true);
    let proc = stage.scratch.dir("proc").unwrap();
    let pid = kubelet.running.pid().to_string();
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, proc.join(to)).unwrap();
    link(&format!("/proc/{pid}"), &pid);
    link("/proc/uptime", "uptime");
    // Not seen: kubelet is outside of what the agent sees.
    for first in [None, Some(format!("/proc/{pid}"))] {
        if let Some(first) = &first {
            link(first, "1");
        }
        let agent = stage.cgroup.top.join("agent");
        std::fs::create_dir(&agent).unwrap();
        let join = format!(
            "echo $$ > {}; exec unshare --cgroup \"$0\" \"$@\"",
            agent.join("cgroup.procs").display()
        );
        let program = Program::new("sh").args(["-c", join.as_str()]);
        let program = program.arg(std::env::current_exe().unwrap());
        let program = program.args(["--exact", "inside_the_container", "--ignored", "--nocapture"]);
        let value = format!("{}:{}", stage.host.path().display(), proc.display());
        let said = program.env(CONTAINER, value).check().unwrap();
        println!("{said}");
        let by_cgroup = first.is_some();
        assert_eq!(said.contains("[cgroup] cgroup /sluice-e2e-"), by_cgroup, "{said}");
        assert_eq!(
            said.contains("[uid] ") && said.contains("outside of what"),
            !by_cgroup,
            "{said}"
        );
        assert_eq!(kubelet.probe(POD, 8080), SOURCE);
        assert_eq!(kubelet.probe(POD, 9090), CAPTURED);
        assert_eq!(stage.other(POD, 8080), if by_cgroup { CAPTURED } else { SOURCE });
        Cgroup::remove(&agent);
    }
}

#[test]
#[ignore = "the part of the_agent_is_in_a_container that is inside"]
fn inside_the_container() {
    #[expect(clippy::disallowed_methods, reason = "from the test that started this one")]
    let value = std::env::var(CONTAINER).unwrap();
    let (host, proc) = value.split_once(':').unwrap();
    let host = Netns::open(Path::new(host)).unwrap();
    let (sender, _events) = mpsc::channel();
    let keeper = Keeper::start(Config::new(host, proc, Programmer::Nftables), sender).unwrap();
    keeper.upsert(owner("a"), both()).unwrap();
    let kubelet = keeper.status().unwrap().kubelet;
    println!("[{}] {kubelet}", kubelet.word());
}

#[test]
fn istios_rules_work_until_ours_do() {
    let stage = Stage::create("istio", "nftables");
    let mut kubelet = stage.kubelet(true);
    let table = format!(
        "table inet istio-ambient-nat {{\nset istio-inpod-probes-v4 {{\ntype ipv4_addr\n\
         elements = {{ {POD} }}\n}}\nchain postrouting {{\n\
         type nat hook postrouting priority 99;\n\
         meta l4proto tcp skuid 0 ip daddr @istio-inpod-probes-v4 counter snat to 169.254.7.127\n\
         }}\n}}\n"
    );
    stage.host.load(&["nft", "-f", "-"], &table).unwrap();
    assert_eq!(stage.other(POD, 9090), SOURCE, "as Istio has it");
    let (keeper, _events) = stage.keeper("nftables");
    assert!(keeper.take_over().is_err(), "pods are missing in our set");
    assert_eq!(kubelet.probe(POD, 8080), SOURCE);
    keeper.upsert(owner("a"), both()).unwrap();
    keeper.complete().unwrap();
    assert_eq!(keeper.status().unwrap().upstream, ["table inet istio-ambient-nat"]);
    assert_eq!(keeper.take_over().unwrap(), ["table inet istio-ambient-nat"]);
    assert_eq!(keeper.take_over().unwrap(), Vec::<String>::new());
    assert_eq!(kubelet.probe(POD, 8080), SOURCE);
    assert_eq!(stage.other(POD, 9090), CAPTURED);
}

/// The image of the agent has no iptables by default.
#[test]
fn istios_rules_by_iptables_go_without_iptables() {
    let stage = Stage::create("bare", "iptables");
    let mut kubelet = stage.kubelet(true);
    let sets = format!(
        "create istio-inpod-probes-v4 hash:ip comment\nadd istio-inpod-probes-v4 {POD}\n\
         create istio-inpod-probes-v6 hash:ip family inet6 comment\n"
    );
    stage.host.load(&["ipset", "restore"], &sets).unwrap();
    for (program, family, source) in
        [("iptables", "v4", "169.254.7.127"), ("ip6tables", "v6", "fd16::1")]
    {
        let rules = format!(
            "*nat\n-N ISTIO_POSTRT\n-N ISTIO_POSTRT_OTHERS\n-A POSTROUTING -j ISTIO_POSTRT_OTHERS\n\
             -I POSTROUTING 1 -j ISTIO_POSTRT\n-A ISTIO_POSTRT -m owner --socket-exists -p tcp \
             -m set --match-set istio-inpod-probes-{family} dst -j SNAT --to-source {source}\nCOMMIT\n"
        );
        let program = format!("{program}-nft-restore");
        stage.host.load(&[program.as_str(), "--noflush"], &rules).unwrap();
    }
    assert_eq!(stage.other(POD, 9090), SOURCE, "as Istio has it");
    let (keeper, _events) = stage.keeper("nftables");
    keeper.upsert(owner("a"), both()).unwrap();
    keeper.complete().unwrap();
    let found = [
        "ip nat ISTIO_POSTRT",
        "ip6 nat ISTIO_POSTRT",
        "ipset istio-inpod-probes-v4",
        "ipset istio-inpod-probes-v6",
    ];
    assert_eq!(keeper.status().unwrap().upstream, found);
    assert_eq!(keeper.take_over().unwrap(), found);
    assert_eq!(keeper.take_over().unwrap(), Vec::<String>::new());
    assert_eq!(kubelet.probe(POD, 8080), SOURCE);
    assert_eq!(stage.other(POD, 9090), CAPTURED);
    let left = stage.ruleset();
    assert_eq!(left.matches("jump ISTIO_POSTRT_OTHERS").count(), 2, "not Istio's: {left}");
}

#[test]
fn many_pods_cost_little() {
    for dialect in ["nftables", "iptables"] {
        let stage = Stage::create("many", dialect);
        let _kubelet = stage.kubelet(true);
        let (keeper, _events) = stage.keeper(dialect);
        let address = |n: u16| IpAddr::from([10, 78, (n >> 8) as u8, n as u8]);
        let wanted = |n: u16| -> BTreeSet<Target> {
            let ports = [8080, 8081, 8082];
            ports.into_iter().map(|port| Target { address: address(n), port }).collect()
        };
        let begin = Instant::now();
        for n in 0..250 {
            keeper.upsert(owner(&n.to_string()), wanted(n)).unwrap();
        }
        let added = begin.elapsed();
        let begin = Instant::now();
        keeper.complete().unwrap();
        let checked = begin.elapsed();
        let begin = Instant::now();
        let found = kubelet::find(Path::new("/proc"), stage.host.netns().id()).unwrap();
        let looked = begin.elapsed();
        assert!(found.is_some());
        let processes = std::fs::read_dir("/proc").unwrap().count();
        println!("{dialect}: finding kubelet among {processes} entries of /proc takes {looked:?}");
        let status = keeper.status().unwrap();
        assert_eq!((status.elements, status.owners, status.holds), (750, 250, true));
        let begin = Instant::now();
        for n in 0..250 {
            keeper.release_pod(&n.to_string()).unwrap();
        }
        println!(
            "{dialect}: 250 pods with 3 ports: {:?} a pod, a check of all {checked:?}, {:?} a pod to release",
            added / 250,
            begin.elapsed() / 250
        );
        let status = keeper.status().unwrap();
        assert_eq!((status.elements, status.holds), (0, true));
    }
}

/// Times of connections through rules of both callers, beside none.
#[test]
fn a_connection_costs_little() {
    let stage = Stage::create("cost", "nftables");
    stage.pod.load(&["nft", "flush", "ruleset"], "").unwrap();
    stage.host.load(&["nft", "flush", "ruleset"], "").unwrap();
    let mounts = kubelet::mounts(Path::new("/proc"));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    let level = u8::try_from(path.split('/').filter(|name| !name.is_empty()).count()).unwrap();
    let id = kubelet::look(&mounts, &path).unwrap().id;
    let by_cgroup = Caller::Cgroup { path, level, id };
    let measure = |to: SocketAddr| {
        within(stage.host.netns(), || {
            let mut times: Vec<Duration> = (0..1000)
                .map(|_| {
                    let begin = Instant::now();
                    let stream = TcpStream::connect(to).unwrap();
                    let time = begin.elapsed();
                    // A reset: no port waits a minute for its end.
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &linger,
                    )
                    .unwrap();
                    time
                })
                .collect();
            times.sort_unstable();
            times[times.len() / 2]
        })
        .unwrap()
    };
    let to: SocketAddr = (POD.parse::<IpAddr>().unwrap(), 8080).into();
    // Translation by somebody, as on every node.
    let table = "table ip cni {\nchain post {\ntype nat hook postrouting priority srcnat;\n}\n\
         chain out {\ntype nat hook output priority -100;\n}\n}\n";
    stage.host.load(&["nft", "-f", "-"], table).unwrap();
    for (name, caller, elements) in [
        ("no rules", None, both()),
        ("kubelet by cgroup, a probe", Some(by_cgroup.clone()), both()),
        ("kubelet by cgroup, another port", Some(by_cgroup), targets(&[(POD, 1)])),
        ("kubelet by user, a probe", Some(Caller::Uid(0)), both()),
        ("no rules", None, both()),
    ] {
        let programmer = Programmer::Nftables;
        assert_eq!(programmer.kind(), BackendKind::Nftables);
        within(stage.host.netns(), || {
            programmer.remove().unwrap();
            if let Some(caller) = &caller {
                let rules = HostRules { caller: caller.clone(), sources: Sources::default() };
                programmer.install(&rules, &elements).unwrap();
            }
        })
        .unwrap();
        println!("{name}: a connection takes {:?} (median of 1000)", measure(to));
    }
}
