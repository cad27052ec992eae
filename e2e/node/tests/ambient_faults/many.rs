//! A full node's pods at once, by their namespace's label and by their sandboxes' ADDs,
//! one of which ztunnel does not answer about. Nothing here is about time: while the answer is missing, all others must come about and be said
//! to be enrolled, and nothing may be lost on the way.

use crate::stage::Stage;
use e2e_node::agent::{NODE_NAME, plain_pod};
use e2e_node::cluster::NAMESPACE;
use e2e_node::lab::Namespace;
use e2e_node::process::Running;
use e2e_node::ztunnel::{Faults, Status, Ztunnel};
use serde_json::json;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PODS: usize = 500;

/// Longer than any patience of the agent's: the answer does not come while the fault is
/// there. It is less than the longest wait that the fake has.
const DELAY_MS: u64 = 60_000;

/// For a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(240);

/// A pod that is a namespace with an address, and a process.
struct Cheap {
    uid: String,
    name: String,
    address: Ipv4Addr,
    netns: Namespace,
    _process: Running,
}

impl Cheap {
    /// `runs`: the kubelet has said so.
    fn start(stage: &Stage, number: usize, runs: bool) -> Self {
        let netns = Namespace::create(stage.cluster.node.host.scratch(), &format!("cheap{number}"))
            .unwrap();
        let address = address(number);
        let lines = format!(
            "link add eth0 type veth peer name eth1\nlink set eth1 up\nlink set eth0 up\naddr add {address}/32 dev eth0\n\
             route add default dev eth0\n"
        );
        netns.ip(&lines).unwrap();
        let process = netns.program("cat").timeout(2 * PATIENCE).start().unwrap();
        let name = format!("cheap-{number}");
        let mut manifest = plain_pod(NAMESPACE, &name);
        let uid = format!("0a1b2c3d-0000-4000-9000-{:08x}{number:04x}", std::process::id());
        manifest["metadata"]["uid"] = json!(uid);
        manifest["spec"]["serviceAccountName"] = json!(name);
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        manifest["status"] = if runs {
            json!({"phase": "Running", "podIPs": [{"ip": address.to_string()}]})
        } else {
            json!({"phase": "Pending"})
        };
        stage.publish(&manifest);
        Self { uid, name, address, netns, _process: process }
    }

    /// ADD of the pod's sandbox. A runtime tries again what failed.
    fn add(&self, stage: &Stage) {
        let end = Instant::now() + PATIENCE;
        while let Err(why) = self.add_once(stage) {
            assert!(Instant::now() < end, "{}: {why:#}", self.name);
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn add_once(&self, stage: &Stage) -> anyhow::Result<String> {
        let netns = self.netns.path().display().to_string();
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "istio-cni",
            "cni_agent_run_dir": stage.cluster.directories.run,
            "ambient_enabled": true,
            "agent_timeout_ms": 10_000,
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": netns}],
                "ips": [{"address": format!("{}/32", self.address), "interface": 0}],
                "dns": {},
            },
        });
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={};\
             K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.name, self.uid, self.uid
        );
        let env = [
            ("CNI_CONTAINERID", self.uid.as_str()),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args.as_str()),
        ];
        let output =
            stage.cluster.runtime().execute("istio-cni", "ADD", &env, config.to_string())?;
        output.success()
    }
}

/// Of a range that no other test's pods are from: namespaces are found by addresses on
/// the whole machine.
fn address(number: usize) -> Ipv4Addr {
    let (pid, number) = (std::process::id(), u32::try_from(number).unwrap());
    let base = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    Ipv4Addr::from(base + pid % 8000 * 512 + number)
}

/// Those of the pods that ztunnel runs as it should.
fn up<'a>(pods: &'a [Cheap], status: &Status) -> Vec<&'a Cheap> {
    let own = |pod: &&Cheap| {
        let id = std::fs::metadata(pod.netns.path()).map(|meta| (meta.dev(), meta.ino())).ok();
        status.workloads.get(&pod.uid).is_some_and(|view| {
            view.netns == id
                && view.pod == format!("{NAMESPACE}/{}", pod.name)
                && view.identity.ends_with(&format!("/sa/{}", pod.name))
        })
    };
    pods.iter().filter(own).collect()
}

#[track_caller]
fn wait<T>(stage: &Stage, what: &str, look: impl Fn() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => {
                let log = stage.cluster.agent_log();
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                panic!("never: {what}; {why}; the agent's last words, newest first: {last:#?}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What istiod would read of a pod.
fn is_said(stage: &Stage, pod: &Cheap) -> bool {
    let pod = stage.server.as_ref().unwrap().object("pods", NAMESPACE, &pod.name).unwrap();
    pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled"
}

fn late(ztunnel: &Ztunnel, pod: &Cheap) {
    let delay_ms = [(pod.uid.clone(), DELAY_MS)].into();
    // What handles the pod is given up with the connection, as a task of the real one.
    ztunnel.fail(Faults { delay_ms, gives_up: true, ..Faults::default() }).unwrap();
}

#[test]
fn one_late_answer_delays_nobody_else() {
    let stage = Stage::with_api("many", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods: Vec<Cheap> = (0..PODS).map(|number| Cheap::start(&stage, number, true)).collect();
    let slow = &pods[PODS / 3];
    late(&ztunnel, slow);
    let begun = Instant::now();
    stage.label(Some("ambient"));

    wait(&stage, "all others run in ztunnel", || {
        let status = ztunnel.status().map_err(|error| format!("{error:#}"))?;
        let up = up(&pods, &status);
        let others = up.iter().filter(|pod| pod.uid != slow.uid).count();
        if others == PODS - 1 { Ok(()) } else { Err(format!("{others} of them do")) }
    });
    let run = begun.elapsed();
    wait(&stage, "all others are said to be enrolled", || {
        let others = pods.iter().filter(|pod| pod.uid != slow.uid && is_said(&stage, pod)).count();
        if others == PODS - 1 { Ok(()) } else { Err(format!("{others} of them are")) }
    });
    let known = begun.elapsed();
    assert!(!is_said(&stage, slow), "it is said of the slow one, too");

    ztunnel.fail(Faults::default()).unwrap();
    wait(&stage, "the slow one is said to be enrolled", || {
        if is_said(&stage, slow) { Ok(()) } else { Err(String::new()) }
    });
    let status = ztunnel.status().unwrap();
    assert_eq!(up(&pods, &status).len(), PODS);
    assert_eq!(status.workloads.len(), PODS, "no ghost");
    assert_eq!((status.started, status.stopped), (PODS as u64, 0), "each was started once");
    println!(
        "{PODS} pods, one answer late: the others run in ztunnel after {run:?}, enrolled after \
         {known:?}; {} connections",
        status.connections
    );

    // And all of them out again.
    stage.label(None);
    wait(&stage, "all are un-enrolled", || {
        let left = ztunnel.status().map_err(|error| format!("{error:#}"))?.workloads.len();
        let said = pods.iter().filter(|pod| is_said(&stage, pod)).count();
        if (left, said) == (0, 0) { Ok(()) } else { Err(format!("{left} in ztunnel, {said} said")) }
    });
}

/// A node that boots: all sandboxes are made at once. The agent has room for 256 requests
/// at a time, and the runtime comes again with the rest.
#[test]
fn one_late_answer_fails_nobody_elses_add() {
    let stage = Stage::with_api("many-add", "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let pods: Vec<Cheap> = (0..PODS).map(|number| Cheap::start(&stage, number, false)).collect();
    let slow = &pods[PODS / 3];
    late(&ztunnel, slow);
    let begun = Instant::now();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for pod in &pods {
            let (stage, done) = (&stage, &done);
            // A few hundred kB each: a stack of its own would be 2 MB.
            let thread = std::thread::Builder::new().stack_size(256 * 1024);
            let add = move || {
                pod.add(stage);
                done.fetch_add(1, Ordering::Relaxed);
            };
            thread.spawn_scoped(scope, add).unwrap();
        }
        wait(&stage, "all other ADDs are done", || {
            let done = done.load(Ordering::Relaxed);
            if done >= PODS - 1 { Ok(()) } else { Err(format!("{done} of them are")) }
        });
        let took = begun.elapsed();
        assert_eq!(done.load(Ordering::Relaxed), PODS - 1, "the slow one, too");
        println!("{PODS} ADDs at once, one answer late: the others are done after {took:?}");
        // An ADD that is done is true.
        let status = ztunnel.status().unwrap();
        let up = up(&pods, &status).iter().filter(|pod| pod.uid != slow.uid).count();
        assert_eq!(up, PODS - 1);
        ztunnel.fail(Faults::default()).unwrap();
    });
    let status = ztunnel.status().unwrap();
    assert_eq!(up(&pods, &status).len(), PODS);
    assert_eq!(status.workloads.len(), PODS, "no ghost");
    assert_eq!((status.started, status.stopped), (PODS as u64, 0), "each was started once");
    wait(&stage, "all are said to be enrolled", || {
        let said = pods.iter().filter(|pod| is_said(&stage, pod)).count();
        if said == PODS { Ok(()) } else { Err(format!("{said} of them are")) }
    });
}
