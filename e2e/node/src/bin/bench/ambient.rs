//! Ambient capture at the size of a full node: enrolment, the audit, a restart of the
//! agent. ztunnel is the fake one of the suite, which answers at once.

use super::figure::{Figure, Samples};
use super::memory::resident;
use super::node::{self, MESH, Pod, Sandbox, addition, addresses, call, programs};
use anyhow::{Context, Result, bail, ensure};
use e2e_node::agent::{self, Directories, NODE_NAME, namespace};
use e2e_node::api::Server;
use e2e_node::flow::{Flow, come_on, finish};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::page::Page;
use e2e_node::process::Running;
use e2e_node::programs::Programs;
use e2e_node::ztunnel::{Config, Faults, Status, Ztunnel};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use sys::netns::within;

/// Pods that are enrolled at once.
const PODS: usize = 500;
/// Pods that are enrolled one by one.
const ALONE: usize = 40;
/// Pods and connections that are there while the agent restarts, and pods of the audit.
const HELD: usize = 250;
const CONNECTIONS: usize = 1000;
/// ADDs that a runtime has under way at a time.
const RUNTIME: usize = 32;
/// Processes that a node has besides those of its pods.
const OTHERS: usize = 1000;
/// How long the audit is watched, with one look a second.
const WATCHED: Duration = Duration::from_secs(20);
/// What one pod's answer is late by.
const LATE_MS: u64 = 10_000;
const PORT: u16 = 8080;
const METRICS: u16 = 15014;
const MODE: &str = "istio.io/dataplane-mode";
const PATIENCE: Duration = Duration::from_secs(120);

/// A node in ambient mode.
struct Stage {
    node: Namespace,
    server: Server,
    directories: Directories,
    programs: Programs,
    ztunnel: Ztunnel,
    agent: Option<agent::Agent>,
    pods: Vec<Member>,
}

/// A pod that runs.
struct Member {
    pod: Pod,
    number: usize,
    sandbox: Sandbox,
    _process: Running,
}

/// Times in milliseconds, connections lost. Processor times are the agent's.
pub(crate) fn figures(dist: &Path, scratch: &Arc<Scratch>) -> Result<Vec<Figure>> {
    let mut stage = Stage::set(dist, scratch)?;
    let mut figures = stage.at_once()?;
    figures.extend(stage.alone("by-label")?);
    stage.pass(ALONE)?;
    figures.extend(stage.alone("by-label-after-add")?.into_iter().take(1));
    figures.extend(stage.by_add()?);
    figures.extend(stage.restart()?);
    figures.extend(stage.audit()?);
    Ok(figures)
}

impl Stage {
    fn set(dist: &Path, scratch: &Arc<Scratch>) -> Result<Self> {
        let node = node::create(scratch, "ambient-node")?;
        let directories = Directories::create(scratch, "ambient")?;
        let server = Server::start_in(node.netns())?;
        server.put(namespace(MESH))?;
        let config = Config::new(scratch, "ambient-zt", directories.ztunnel());
        let ztunnel = Ztunnel::start(&config, Some(&node))?;
        let programs = programs(dist);
        let mut stage =
            Self { node, server, directories, programs, ztunnel, agent: None, pods: Vec::new() };
        for number in 0..PODS {
            let sandbox = Sandbox::create(&stage.node)?;
            let process = sandbox.netns.program("cat").start()?;
            let pod = Pod { namespace: MESH, number };
            let number = sandbox.number();
            stage.pods.push(Member { pod, number, sandbox, _process: process });
            stage.put(number, None)?;
        }
        stage.start_agent()?;
        stage.wait("the snapshot", |status| status.snapshot)?;
        Ok(stage)
    }

    fn start_agent(&mut self) -> Result<()> {
        let args = ["--ambient-enabled", "--monitoring-port=15014", "--audit-seconds=1"];
        let (host, directories) = (&self.node, &self.directories);
        let agent =
            agent::Agent::follow(&self.programs, host, directories, &self.server.url(), &args)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The pod of a sandbox as the API has it, with its own mode.
    fn put(&self, number: usize, mode: Option<&str>) -> Result<()> {
        let member = self.pods.iter().find(|m| m.number == number).context("no such pod")?;
        let (v4, v6) = addresses(number);
        let status = json!({"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]});
        self.publish(member.pod, status, mode)
    }

    fn publish(&self, pod: Pod, status: Value, mode: Option<&str>) -> Result<()> {
        let mut manifest = pod.plain();
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        manifest["status"] = status;
        if let Some(mode) = mode {
            manifest["metadata"]["labels"] = json!({MODE: mode});
        }
        self.server.put(manifest)
    }

    fn label(&self, mode: Option<&str>) -> Result<()> {
        let mut manifest = namespace(MESH);
        if let Some(mode) = mode {
            manifest["metadata"]["labels"] = json!({MODE: mode});
        }
        self.server.put(manifest)
    }

    /// Waits until ztunnel is so; how long that took.
    fn wait(&self, what: &str, is: impl Fn(&Status) -> bool) -> Result<Duration> {
        let begun = Instant::now();
        while !is(&self.ztunnel.glance()?) {
            if begun.elapsed() > PATIENCE {
                bail!(
                    "in vain: {what}; {}",
                    self.agent.as_ref().map(agent::Agent::log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(begun.elapsed())
    }

    /// A namespace is labelled; and again, while ztunnel is late about one pod.
    fn at_once(&self) -> Result<Vec<Figure>> {
        let (mut all, mut work) = (Samples::default(), Samples::default());
        let pid = self.agent.as_ref().context("no agent")?.pid();
        let before = cpu(pid)?;
        self.label(Some("ambient"))?;
        all.add(self.wait("all pods", |status| status.active() == PODS)?);
        work.add(cpu(pid)?.saturating_sub(before));
        self.label(None)?;
        self.wait("no pod", |status| status.workloads.is_empty())?;

        let late = self.pods.get(PODS / 2).context("no pods")?.pod.uid();
        let delay_ms = [(late.clone(), LATE_MS)].into();
        self.ztunnel.fail(Faults { delay_ms, gives_up: true, ..Faults::default() })?;
        let mut others = Samples::default();
        self.label(Some("ambient"))?;
        let up = |status: &Status| {
            status.workloads.iter().filter(|(uid, view)| view.up && **uid != late).count()
        };
        others.add(self.wait("all others", |status| up(status) == PODS - 1)?);
        self.ztunnel.fail(Faults::default())?;
        self.wait("the late one", |status| status.active() == PODS)?;
        self.label(None)?;
        self.wait("no pod", |status| status.workloads.is_empty())?;
        Ok(vec![
            Figure::new(&format!("ambient/enrol/{PODS}-at-once"), "ms", &all, None)?,
            Figure::new(&format!("ambient/enrol/{PODS}-at-once/cpu"), "ms", &work, None)?,
            Figure::new(
                &format!("ambient/enrol/{}-beside-one-late", PODS - 1),
                "ms",
                &others,
                None,
            )?,
        ])
    }

    /// One pod after the other is labelled, and the agent's own figures of the steps.
    fn alone(&self, way: &str) -> Result<Vec<Figure>> {
        let before = self.stages()?;
        let mut alone = Samples::default();
        for member in self.pods.iter().take(ALONE) {
            let uid = member.pod.uid();
            self.put(member.number, Some("ambient"))?;
            let up = |s: &Status| s.workloads.get(&uid).is_some_and(|view| view.up);
            alone.add(self.wait("a pod", up)?);
        }
        let after = self.stages()?;
        for member in self.pods.iter().take(ALONE) {
            self.put(member.number, None)?;
        }
        self.wait("no pod", |status| status.workloads.is_empty())?;
        let mut figures =
            vec![Figure::new(&format!("ambient/enrol/alone/{way}"), "ms", &alone, None)?];
        for (stage, (sum, count)) in after {
            let (former, had) =
                before.iter().find(|(s, _)| *s == stage).map_or((0.0, 0.0), |(_, of)| *of);
            if count > had {
                let mean = Samples::single((sum - former) / (count - had) * 1e3);
                figures.push(Figure::new(
                    &format!("ambient/step/{stage}/mean"),
                    "ms",
                    &mean,
                    None,
                )?);
            }
        }
        Ok(figures)
    }

    /// The runtime makes the sandboxes of pods that are outside the mesh.
    fn pass(&self, pods: usize) -> Result<()> {
        let (plugin, run) = (&self.programs.plugin, &self.directories.run);
        self.pods.iter().take(pods).try_for_each(|member| add(plugin, run, member).map(drop))
    }

    /// Other pods in the same sandboxes: ambient from the start. Some of them one after
    /// the other, then the rest as fast as a runtime can.
    fn by_add(&mut self) -> Result<Vec<Figure>> {
        for member in &mut self.pods {
            self.server.remove("pods", MESH, &member.pod.name());
            member.pod.number += PODS;
        }
        for member in &self.pods {
            self.publish(member.pod, json!({"phase": "Pending"}), Some("ambient"))?;
        }
        let (mut alone, mut each) = (Samples::default(), Samples::default());
        let (first, rest) = self.pods.split_at(ALONE);
        let (plugin, run) = (&self.programs.plugin, &self.directories.run);
        for member in first {
            alone.add(add(plugin, run, member)?);
        }
        let pid = self.agent.as_ref().context("no agent")?.pid();
        let (begun, before) = (Instant::now(), cpu(pid)?);
        let next = AtomicUsize::new(0);
        let again = AtomicUsize::new(0);
        // A runtime tries again what its plugin's deadline ended.
        let persist = |member: &Member| loop {
            match add(plugin, run, member) {
                Err(error) if again.fetch_add(1, Ordering::Relaxed) > PODS => return Err(error),
                Err(_) => {}
                done => return done,
            }
        };
        let work = || -> Result<Vec<Duration>> {
            let take = || rest.get(next.fetch_add(1, Ordering::Relaxed));
            std::iter::from_fn(take).map(persist).collect()
        };
        let times = std::thread::scope(|scope| -> Result<Vec<Duration>> {
            let workers: Vec<_> = (0..RUNTIME).map(|_| scope.spawn(work)).collect();
            let ended = workers.into_iter().map(|worker| {
                worker.join().map_err(|_| anyhow::anyhow!("a thread that adds pods panicked"))?
            });
            Ok(ended.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        })?;
        #[expect(clippy::cast_precision_loss, reason = "at most some hundreds")]
        let again = again.into_inner() as f64;
        let (mut all, mut spent) = (Samples::default(), Samples::default());
        all.add(begun.elapsed());
        spent.add(cpu(pid)?.saturating_sub(before));
        each.extend(times);
        ensure!(self.ztunnel.glance()?.active() == PODS, "an ADD succeeded without ztunnel");
        for member in &self.pods {
            self.put(member.number, Some("ambient"))?;
        }
        let name = format!("ambient/add/{}-by-{RUNTIME}", rest.len());
        let mut figures = resident(pid, &format!("{PODS}-ambient-pods"))?;
        figures.extend([
            Figure::new("ambient/add/alone", "ms", &alone, None)?,
            Figure::new(&format!("{name}/each"), "ms", &each, None)?,
            Figure::new(&format!("{name}/all"), "ms", &all, None)?,
            Figure::new(&format!("{name}/cpu"), "ms", &spent, None)?,
            Figure::new(&format!("{name}/tried-again"), "ADDs", &Samples::single(again), None)?,
        ]);
        Ok(figures)
    }

    /// Seconds and number of each step so far, by the agent's metrics.
    fn stages(&self) -> Result<Vec<(String, (f64, f64))>> {
        let page = Page::get(self.node.netns(), METRICS, "/metrics")?;
        let value = |kind: &str, stage: &str| {
            let name = format!("sluice_ambient_stage_seconds_{kind}{{stage=\"{stage}\"}}");
            page.sample::<f64>(&name).unwrap_or_default()
        };
        let stages = ["namespace", "rules", "ztunnel", "probes", "annotation"];
        Ok(stages.map(|s| (s.to_owned(), (value("sum", s), value("count", s)))).into())
    }

    /// The agent is killed under open connections and started again.
    fn restart(&mut self) -> Result<Vec<Figure>> {
        let gone = self.pods.split_off(HELD);
        for member in &gone {
            self.server.remove("pods", MESH, &member.pod.name());
        }
        self.wait("the rest", |s| s.workloads.len() == HELD && s.active() == HELD)?;
        drop(gone);
        for member in &self.pods {
            serve(&member.sandbox.netns)?;
        }
        let mut flows = Vec::new();
        for number in 0..CONNECTIONS {
            let [from, to] = [number, number + 1].map(|n| self.pods.get(n % HELD));
            let (from, to) = from.zip(to).context("no pods")?;
            let to = SocketAddr::new(addresses(to.number).0.parse()?, PORT);
            flows.push(Flow::start(from.sandbox.netns.netns(), to, Duration::from_millis(500))?);
        }
        come_on(&flows)?;
        let before = self.ztunnel.status()?;
        self.agent.take().context("no agent")?.kill()?;
        let begun = Instant::now();
        self.start_agent()?;
        let wanted = before.connections + 1;
        self.wait("the snapshot", |s| s.connections >= wanted && s.snapshot)?;
        let ready = begun.elapsed();
        come_on(&flows)?;
        let after = self.ztunnel.status()?;
        ensure!(after.stopped == before.stopped, "proxies were stopped by a restart");
        let lost = finish(flows).len();
        #[expect(clippy::cast_precision_loss, reason = "at most a thousand")]
        let lost = Samples::single(lost as f64);
        let mut time = Samples::default();
        time.add(ready);
        let name = format!("ambient/restart/{HELD}-pods");
        Ok(vec![
            Figure::new(&format!("{name}/until-snapshot"), "ms", &time, None)?,
            Figure::new(&format!("{name}/lost-of-{CONNECTIONS}"), "conns", &lost, None)?,
        ])
    }

    /// Processor time of a look at all pods, of which none has changed; and again on a
    /// node that runs more than its pods.
    fn audit(&self) -> Result<Vec<Figure>> {
        let name = format!("ambient/audit/{HELD}-pods");
        let alone = self.look()?;
        let others = (0..OTHERS).map(|_| self.node.program("cat").start());
        let others = others.collect::<Result<Vec<_>>>()?;
        let beside = self.look()?;
        drop(others);
        Ok(vec![
            Figure::new(&format!("{name}/cpu"), "ms", &alone, None)?,
            Figure::new(&format!("{name}+{OTHERS}-processes/cpu"), "ms", &beside, None)?,
        ])
    }

    /// Processor time of one look.
    fn look(&self) -> Result<Samples> {
        let pid = self.agent.as_ref().context("no agent")?.pid();
        let before = cpu(pid)?;
        std::thread::sleep(WATCHED);
        let spent = cpu(pid)?.saturating_sub(before);
        let mut each = Samples::default();
        each.add(spent / u32::try_from(WATCHED.as_secs())?);
        Ok(each)
    }
}

/// ADD of a pod, as the runtime has it done.
fn add(plugin: &Path, run_dir: &Path, member: &Member) -> Result<Duration> {
    let config = addition(run_dir, &member.sandbox);
    let added = call(plugin, "ADD", &config, &member.sandbox, member.pod);
    added.with_context(|| format!("ADD of {}", member.pod.name()))
}

/// Processor time of a process.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    // utime and stime, in hundredths of a second.
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// Says a line, then echoes; ends with the process.
fn serve(namespace: &Namespace) -> Result<()> {
    let listener = within(namespace.netns(), || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                // Whoever connected goes when it likes.
                let _ = stream.write_all(b"app\n");
                let _ = stream.try_clone().map(|mut to| std::io::copy(&mut stream, &mut to));
            });
        }
    });
    Ok(())
}
