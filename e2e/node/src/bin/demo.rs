//! `scripts/demo`: a node, the real chain, a meshed pod and one that is not, and
//! a table of who accepted what.

use anyhow::{Context, Result, bail};
use e2e_node::agent::{plain_pod, sidecar_pod};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod};
use e2e_node::lab::Namespace;
use e2e_node::lab::node;
use e2e_node::packet::{Attempt, Fate, Transport};
use e2e_node::process::Identity;
use e2e_node::runtime::cni_error;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use serde_json::json;
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Set by the first SIGINT or SIGTERM; the demo ends between two steps.
static STOP: AtomicBool = AtomicBool::new(false);

/// Exit status after SIGINT, as shells have it.
const STOPPED: u8 = 130;

/// CNI error code of a plugin that cannot reach its agent.
const AGENT_UNREACHABLE: u32 = 100;

fn main() -> Result<ExitCode> {
    // Before any thread exists, so that all of them leave the signals to us.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    let demo = std::thread::spawn(run);
    while !demo.is_finished() {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50_u8))? > 0 {
            signals.read_signal()?;
            STOP.store(true, Ordering::Relaxed);
            say("stopping, and cleaning up")?;
        }
    }
    match demo.join() {
        Ok(Ok(true)) => Ok(ExitCode::SUCCESS),
        Ok(Ok(false)) => Ok(ExitCode::FAILURE),
        Ok(Err(_)) if STOP.load(Ordering::Relaxed) => Ok(ExitCode::from(STOPPED)),
        Ok(Err(err)) => {
            writeln!(std::io::stderr(), "demo: {err:#}")?;
            Ok(ExitCode::FAILURE)
        }
        Err(_) => bail!("the demo panicked"),
    }
}

/// One line of the table.
struct Flow {
    from: &'static str,
    what: String,
    expected: Expected,
    seen: Fate,
}

enum Expected {
    /// The sidecar, at a listener, told where the connection was meant to go.
    Proxy(u16),
    /// Whoever was meant.
    Direct(&'static str),
}

impl Flow {
    fn holds(&self, to: SocketAddr) -> bool {
        let Fate::Answered(answer) = &self.seen else {
            return false;
        };
        let told = answer.original.is_none_or(|original| original == to);
        match self.expected {
            Expected::Proxy(port) => answer.by == "proxy" && answer.port == port && told,
            Expected::Direct(name) => answer.by == name && answer.port == to.port() && told,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy(port) => write!(f, "proxy :{port}"),
            Self::Direct(name) => write!(f, "{name}, directly"),
        }
    }
}

fn say(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

fn step(begun: Instant, text: &str) -> Result<()> {
    if STOP.load(Ordering::Relaxed) {
        bail!("stopped");
    }
    say(&format!("[{:5.2}s] {text}", begun.elapsed().as_secs_f64()))
}

/// All of it; whether everything was as expected.
fn run() -> Result<bool> {
    let begun = Instant::now();
    let backend = std::env::args().nth(1).unwrap_or_else(|| "nftables".to_owned());
    step(begun, &format!("a node with the {backend} backend, and the world behind it"))?;
    let mut cluster = Cluster::create("demo", &backend, &Network::default())?;
    let _world = cluster.serve_world(&[53, 80, 8443])?;

    step(begun, "a meshed pod, `checkout`, through bridge, host-local and istio-cni")?;
    let annotations = json!({
        "traffic.sidecar.istio.io/excludeOutboundPorts": "8443",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
    });
    let env = [("ISTIO_META_DNS_CAPTURE", "true"), ("ISTIO_DUAL_STACK", "true")];
    let checkout = cluster.run_pod(&sidecar_pod(NAMESPACE, "checkout", &annotations, &env))?;
    say(&format!("         addresses: {:?}", checkout.addresses))?;
    let _proxy = checkout.serve_proxy(&cluster.programs, false)?;
    let _app = checkout.serve_app(&cluster.programs, &[8080, 9090])?;

    step(begun, "a pod outside of the mesh, `batch`")?;
    let batch = cluster.run_pod(&plain_pod(NAMESPACE, "batch"))?;
    let _batch = batch.serve_app(&cluster.programs, &[8080])?;

    step(begun, "packets")?;
    let good = table(&flows(&cluster, &checkout, &batch)?)?;

    step(begun, "the agent is killed; another meshed pod must not start")?;
    let refused = refused(&mut cluster)?;
    let gone = checkout.attachment.clone();
    cluster.runtime().delete(&cluster.list, &gone).context("DEL without an agent")?;
    step(begun, "DEL succeeded without the agent; cleaning up")?;
    drop((checkout, batch, cluster));
    let good = good && refused;
    let verdict = if good { "all as expected" } else { "NOT as expected" };
    say(&format!("[{:5.2}s] {verdict}", begun.elapsed().as_secs_f64()))?;
    Ok(good)
}

/// Whether ADD of a meshed pod fails as promised when nobody can capture it.
fn refused(cluster: &mut Cluster) -> Result<bool> {
    cluster.agent.take().context("no agent")?.kill()?;
    let late = sidecar_pod(NAMESPACE, "late", &json!({}), &[]);
    let Err(err) = cluster.run_pod(&late) else {
        say("  ✗ it started, not captured")?;
        return Ok(false);
    };
    let Some(err) = cni_error(&err) else {
        say(&format!("  ✗ not a CNI error: {err:#}"))?;
        return Ok(false);
    };
    let good = err.code == AGENT_UNREACHABLE;
    say(&format!("  {} code {}: {}", mark(good), err.code, err.msg))?;
    say(&format!("           {}", err.details))?;
    Ok(good)
}

struct Plan<'a> {
    place: &'a Namespace,
    from: &'static str,
    what: &'static str,
    transport: Transport,
    who: Identity,
    to: SocketAddr,
    expected: Expected,
}

/// Tries everything; each flow with its destination.
fn flows(cluster: &Cluster, checkout: &Pod, batch: &Pod) -> Result<Vec<(SocketAddr, Flow)>> {
    let mut done = Vec::new();
    for (number, plan) in plans(cluster, checkout, batch)?.into_iter().enumerate() {
        let attempt = Attempt {
            label: number.to_string(),
            transport: plan.transport,
            uid: plan.who.uid,
            gid: plan.who.gid,
            from: None,
            to: plan.to,
            mark: None,
            spoofed: false,
        };
        let mut fates = cluster.send(plan.place, std::slice::from_ref(&attempt))?;
        let seen = fates.remove(&attempt.label).context("no fate")?;
        let transport = match plan.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let flow = Flow {
            from: plan.from,
            what: format!("{transport} {} ({})", plan.to, plan.what),
            expected: plan.expected,
            seen,
        };
        done.push((plan.to, flow));
    }
    Ok(done)
}

fn plans<'a>(cluster: &'a Cluster, checkout: &'a Pod, batch: &'a Pod) -> Result<Vec<Plan<'a>>> {
    use Expected::{Direct, Proxy};
    use Transport::{Tcp, Udp};
    let (app, proxy) = (Identity::APP, Identity::PROXY);
    let (pod, world) = (&checkout.sandbox, &cluster.node.world);
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let (out4, out6) = (IpAddr::from(node::OUTSIDE_V4), IpAddr::from(node::OUTSIDE_V6));
    let (own4, own6) = (checkout.address(false)?, checkout.address(true)?);
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    let other = batch.address(false)?;
    let resolver = IpAddr::from(node::RESOLVER_V4);
    let rows = [
        (pod, "checkout app", "the world", Tcp, app, at(out4, 80), Proxy(15001)),
        (pod, "checkout app", "the world, IPv6", Tcp, app, at(out6, 80), Proxy(15001)),
        (pod, "checkout app", "excluded port", Tcp, app, at(out4, 8443), Direct("world")),
        (pod, "checkout app", "another pod", Tcp, app, at(other, 8080), Proxy(15001)),
        (pod, "checkout app", "itself", Tcp, app, at(local, 8080), Direct("app")),
        (pod, "checkout app", "a DNS query", Udp, app, at(resolver, 53), Proxy(15053)),
        (pod, "checkout app", "other UDP", Udp, app, at(out4, 80), Direct("world")),
        (pod, "checkout proxy", "what it forwards", Tcp, proxy, at(out4, 80), Direct("world")),
        (world, "world", "the application", Tcp, app, at(own4, 8080), Proxy(15006)),
        (world, "world", "the same, IPv6", Tcp, app, at(own6, 8080), Proxy(15006)),
        (world, "world", "excluded port", Tcp, app, at(own4, 9090), Direct("app")),
        (&batch.sandbox, "batch app", "the meshed pod", Tcp, app, at(own4, 8080), Proxy(15006)),
        (&batch.sandbox, "batch app", "the world", Tcp, app, at(out4, 80), Direct("world")),
        (world, "world", "the pod outside the mesh", Tcp, app, at(other, 8080), Direct("app")),
    ];
    let plan = |(place, from, what, transport, who, to, expected)| Plan {
        place,
        from,
        what,
        transport,
        who,
        to,
        expected,
    };
    Ok(rows.into_iter().map(plan).collect())
}

fn mark(good: bool) -> char {
    if good { '✓' } else { '✗' }
}

fn table(flows: &[(SocketAddr, Flow)]) -> Result<bool> {
    let heading = ["", "from", "to", "expected", "accepted by", "original destination"];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut good = true;
    for (to, flow) in flows {
        let holds = flow.holds(*to);
        good &= holds;
        let (by, original) = match &flow.seen {
            Fate::Answered(answer) => (
                format!("{} :{}", answer.by, answer.port),
                answer.original.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            ),
            fate => (fate.to_string(), "-".to_owned()),
        };
        rows.push([
            mark(holds).to_string(),
            flow.from.to_owned(),
            flow.what.clone(),
            flow.expected.to_string(),
            by,
            original,
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        say(&format!("  {}", line.trim_end()))?;
    }
    Ok(good)
}
