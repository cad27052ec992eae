//! Pods that started without rules, on a node whose agent is told of them by the API:
//! they are programmed, deleted or labelled. The real agent, namespaces and packets.

#![expect(clippy::unwrap_used, reason = "a test")]

use e2e_node::agent::{Agent, NODE_NAME, namespace, plain_pod, sidecar_pod};
use e2e_node::api::{Fault, Rule, Server};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod, attempt};
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::packet::Transport;
use e2e_node::page::Page;
use e2e_node::process::{Identity, Running};
use e2e_node::runtime::Conflist;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const METRICS: u16 = 15014;

struct Stage {
    cluster: Cluster,
    server: Server,
}

/// A pod that the runtime started, with a process to find it by.
struct Started {
    pod: Pod,
    manifest: Value,
    _pause: Running,
}

impl Stage {
    /// A node without an agent, whose network leaves the plugin out. Its addresses are
    /// no other test's: namespaces are found by them on the whole machine.
    fn set(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut cluster = Cluster::without_agent(name, &Network::default()).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let subnet = format!("10.{}.{number}.0/24", 100 + std::process::id() % 100);
        let text = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": cluster.node.host.scratch().dir("ipam-own").unwrap(),
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }]});
        cluster.list = Conflist::parse(&text.to_string()).unwrap();
        let server = Server::start_in(cluster.node.host.netns()).unwrap();
        server.put(namespace(NAMESPACE)).unwrap();
        Self { cluster, server }
    }

    fn start_agent(&mut self, mode: &str) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let args = ["--backend", "nftables", mode];
        let url = self.server.url();
        let agent = Agent::follow(programs, &node.host, directories, &url, &args).unwrap();
        self.cluster.agent = Some(agent);
        self.eventually("repair begins", |stage| {
            stage.metric("sluice_ready{condition=\"synced\"}") == 1
        });
    }

    /// A sandbox with an address and without rules, that the API tells of.
    fn start_pod(&self, mut manifest: Value, status: &Value) -> Started {
        let pod = self.cluster.run_pod(&manifest).unwrap();
        let mut pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
        pause = pause.timeout(Duration::from_secs(900));
        let mut pause = pause.start().unwrap();
        pause.wait_ready().unwrap();
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        let mut started = Started { pod, manifest, _pause: pause };
        self.tell(&mut started, status);
        started
    }

    /// The kubelet reports.
    fn tell(&self, started: &mut Started, status: &Value) {
        let mut status = status.clone();
        status["podIPs"] = json!([{"ip": started.pod.address(false).unwrap()}]);
        started.manifest["status"] = status;
        self.server.put(started.manifest.clone()).unwrap();
    }

    /// Answer of a server on the node.
    fn get(&self, port: u16, path: &str) -> anyhow::Result<Page> {
        Page::get(self.cluster.node.host.netns(), port, path)
    }

    fn repaired(&self, kind: &str, result: &str) -> u64 {
        let name = "istio_cni_repair_pods_repaired_total";
        self.metric(&format!("{name}{{type=\"{kind}\",result=\"{result}\"}}"))
    }

    fn metric(&self, sample: &str) -> u64 {
        let page = self.get(METRICS, "/metrics");
        page.ok().and_then(|page| page.sample(sample)).unwrap_or_default()
    }

    fn events(&self) -> Vec<Value> {
        let page = self.get(self.server.port(), "/api/v1/events").unwrap();
        let list: Value = serde_json::from_str(&page.body).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !holds(self) {
            assert!(Instant::now() < end, "never: {what}; {}", self.cluster.agent_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_captured(&self, pod: &Pod) -> bool {
        let _proxy = pod.serve_proxy(&self.cluster.programs, false).unwrap();
        let to = SocketAddr::new(OUTSIDE_V4.into(), 80);
        let attempt = attempt(Transport::Tcp, Identity::APP, to);
        let fates = self.cluster.send(&pod.sandbox, std::slice::from_ref(&attempt)).unwrap();
        fates[&attempt.label].is_by("proxy", 15001)
    }

    /// Exit status of the injected init container, in the pod.
    fn validate(&self, pod: &Pod) -> i32 {
        let program = self.cluster.programs.stand_in.with_file_name("validation");
        let program = pod.sandbox.program(program).as_user(Identity::PROXY);
        program.env("PROBE_TIMEOUT", "2s").run().unwrap().status.code().unwrap()
    }
}

fn has_rules(pod: &Pod) -> bool {
    pod.sandbox.load(&["nft", "list", "ruleset"], "").unwrap().contains("redirect to :15001")
}

fn mesh(name: &str) -> Value {
    sidecar_pod(NAMESPACE, name, &json!({}), &[])
}

/// The validation has failed for the first time.
fn failed() -> Value {
    let end = json!({"terminated": {"exitCode": 126, "reason": "Error"}});
    json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "istio-validation", "state": end},
    ]})
}

/// It is about to be started again.
fn broken() -> Value {
    json!({"phase": "Pending", "initContainerStatuses": [{
        "name": "istio-validation",
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 126, "reason": "Error"}},
    }]})
}

#[test]
fn a_broken_pod_is_programmed_and_its_validation_passes() {
    let mut stage = Stage::set("mend");
    stage.start_agent("--repair-repair-pods");
    let mut broken_pod = stage.start_pod(mesh("late"), &failed());
    assert_eq!(stage.validate(&broken_pod.pod), 126);
    assert!(!has_rules(&broken_pod.pod), "one failure is not enough");
    assert!(!stage.is_captured(&broken_pod.pod));

    stage.tell(&mut broken_pod, &broken());
    stage.eventually("it is counted", |stage| stage.repaired("repair", "success") == 1);
    assert_eq!(stage.validate(&broken_pod.pod), 0);
    assert!(stage.is_captured(&broken_pod.pod));
    // Its validation is started again by the kubelet, later; nothing more is done.
    let mut again = broken();
    again["message"] = json!("changed");
    again["phase"] = json!("Running");
    stage.tell(&mut broken_pod, &again);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.repaired("repair", "success"), 1);
    assert_eq!(stage.repaired("repair", "fail"), 0);
    assert!(stage.events().is_empty());
}

#[test]
fn what_cannot_be_told_apart_or_is_the_nodes_is_never_programmed() {
    let mut stage = Stage::set("refuse");
    stage.start_agent("--repair-repair-pods");
    let mut first = stage.start_pod(mesh("first"), &failed());
    let second = stage.start_pod(plain_pod(NAMESPACE, "second"), &json!({"phase": "Running"}));
    let shared = first.pod.address(false).unwrap();
    second.pod.sandbox.ip(&format!("addr add {shared}/32 dev lo")).unwrap();
    stage.tell(&mut first, &broken());
    stage.eventually("it is refused", |stage| {
        stage.repaired("repair", "fail") > 1
            && stage.cluster.agent_log().contains("2 network namespaces have one")
    });
    assert!(!has_rules(&first.pod) && !has_rules(&second.pod));
    // The other one is gone: the next try is right.
    second.pod.sandbox.ip(&format!("addr del {shared}/32 dev lo")).unwrap();
    stage.eventually("it is programmed", |_| has_rules(&first.pod));
    assert!(!has_rules(&second.pod));

    let mut host = mesh("host");
    host["spec"]["hostNetwork"] = json!(true);
    let host = stage.start_pod(host, &broken());
    stage.eventually("it is left alone", |stage| {
        stage.cluster.agent_log().contains("host's network is never programmed")
    });
    assert!(!has_rules(&host.pod));
    let node = stage.cluster.node.host.load(&["nft", "list", "ruleset"], "").unwrap();
    assert!(!node.contains("istio"), "{node}");
}

#[test]
fn pods_from_before_the_agent_are_programmed_at_once() {
    let mut stage = Stage::set("early");
    let early = stage.start_pod(mesh("early"), &json!({"phase": "Running"}));
    let plain = stage.start_pod(plain_pod(NAMESPACE, "plain"), &json!({"phase": "Running"}));
    assert!(!stage.is_captured(&early.pod));
    stage.start_agent("--repair-repair-pods");
    let sample = "sluice_early_pods_total{result=\"success\"}";
    stage.eventually("it is found", |stage| stage.metric(sample) == 1);
    assert!(stage.is_captured(&early.pod));
    assert!(!has_rules(&plain.pod));
    assert_eq!(stage.metric("sluice_early_pods_total{result=\"fail\"}"), 0);
    let page = stage.get(METRICS, "/metrics").unwrap();
    let never = "istio_cni_repair_pods_repaired_total{type=\"repair\",result=\"fail\"}";
    assert_eq!(page.sample(never), Some(0), "{page:?}");

    // A new agent finds that it is well.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent("--repair-repair-pods");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.metric(sample), 0);
    assert!(has_rules(&early.pod));
}

/// Its sandbox was made anew while the plugin was not in the chain.
#[test]
fn a_record_of_a_former_sandbox_hides_nothing() {
    let mut stage = Stage::set("anew");
    let pod = stage.start_pod(mesh("anew"), &json!({"phase": "Running"}));
    let records = stage.cluster.directories.run.join("sandboxes");
    std::fs::create_dir_all(&records).unwrap();
    let record = json!({
        "version": 1, "sandbox": "former", "interface": "eth0",
        "pod": {"namespace": NAMESPACE, "name": "anew", "uid": "uid-of-anew"},
        // No namespace has that number.
        "netns": {"dev": 4, "ino": 1}, "path": "/run/netns/former-of-anew",
        "backend": "nftables", "rules": "0", "addresses": [pod.pod.address(false).unwrap()],
        "facts": {"annotations": {}, "env": [], "run_as_user": null, "run_as_group": null},
    });
    std::fs::write(records.join("former.json"), record.to_string()).unwrap();
    assert!(!stage.is_captured(&pod.pod));
    stage.start_agent("--repair-repair-pods");
    // By the audit, should that be first.
    let early = "sluice_early_pods_total{result=\"success\"}";
    let audited = "sluice_drift_repaired_total{reason=\"namespace\"}";
    stage.eventually("it is found", |stage| stage.metric(early) + stage.metric(audited) >= 1);
    assert!(stage.is_captured(&pod.pod));
    // What took its place is looked after, and nothing is left of the former.
    stage.eventually("the former record is dropped", |_| !records.join("former.json").exists());
    stage.eventually("one is left", |_| std::fs::read_dir(&records).unwrap().count() == 1);
}

#[test]
fn a_broken_pod_is_deleted() {
    let mut stage = Stage::set("delete");
    stage.start_agent("--repair-delete-pods");
    stage.server.fail(Rule::from(Fault::Status(409)).on("delete").of("pods").times(1));
    stage.server.fail(Rule::from(Fault::Status(500)).on("delete").of("pods").times(1));
    stage.server.fail(Rule::from(Fault::Status(500)).on("create").of("events").times(1));
    let pod = stage.start_pod(mesh("late"), &broken());
    stage.eventually("it is deleted", |stage| {
        stage.server.object("pods", NAMESPACE, "late").is_none()
    });
    stage.eventually("it is told", |stage| stage.events().len() == 3);
    assert_eq!(stage.repaired("delete", "success"), 1);
    assert_eq!(stage.repaired("delete", "fail"), 2);
    for event in stage.events() {
        assert_eq!(event["reason"], "DeleteBrokenPod", "{event}");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["source"]["component"], "cni-repair");
        assert_eq!(event["involvedObject"]["uid"], "uid-of-late");
        assert_eq!(event["metadata"]["namespace"], NAMESPACE);
        let at = event["firstTimestamp"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.len() == 20, "{at}");
    }
    assert_eq!(stage.server.count("patch", "pods/status"), 0);
    assert!(!has_rules(&pod.pod));
}

#[test]
fn a_broken_pod_is_labelled_once() {
    let mut stage = Stage::set("label");
    stage.start_agent("--repair-label-pods");
    stage.server.fail(Rule::from(Fault::Status(500)).on("patch").times(1));
    let mut pod = stage.start_pod(mesh("late"), &broken());
    stage.eventually("it is labelled", |stage| {
        let object = stage.server.object("pods", NAMESPACE, "late").unwrap();
        object["metadata"]["labels"]["cni.istio.io/uninitialized"] == "true"
    });
    stage.eventually("and seen to be", |stage| stage.repaired("label", "skip") > 0);
    assert_eq!(stage.repaired("label", "success"), 1);
    assert_eq!(stage.repaired("label", "fail"), 1);
    let events = stage.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events.iter().all(|event| event["reason"] == "LabelBrokenPod"), "{events:?}");
    let asked = stage.server.asked().into_iter();
    let writes: Vec<String> = asked
        .filter(|asked| !["get", "list", "watch"].contains(&asked.verb))
        .map(|asked| format!("{} {}", asked.verb, asked.resource))
        .collect();
    let right = |write: &String| write == "patch pods/status" || write == "create events";
    assert!(writes.iter().all(right), "{writes:?}");
    pod.manifest["metadata"]["labels"] = json!({"cni.istio.io/uninitialized": ""});
    stage.tell(&mut pod, &broken());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.repaired("label", "success"), 1, "any value of the key will do");
}

#[test]
fn tries_end_and_a_pod_that_is_gone_is_forgotten() {
    let mut stage = Stage::set("gone");
    stage.start_agent("--repair-delete-pods");
    stage.server.fail(Rule::from(Fault::Status(500)).on("delete"));
    let _pod = stage.start_pod(mesh("late"), &broken());
    stage.eventually("it fails", |stage| stage.repaired("delete", "fail") > 0);
    stage.server.remove("pods", NAMESPACE, "late");
    std::thread::sleep(Duration::from_secs(1));
    let before = stage.server.count("delete", "pods");
    assert!(before < 5, "{before}");
    let _stuck = stage.start_pod(mesh("stuck"), &broken());
    stage.eventually("it is given up", |stage| {
        stage.cluster.agent_log().contains("cannot be helped")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.server.count("delete", "pods"), before + 5);
}
