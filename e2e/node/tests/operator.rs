//! The operator's view of a real agent: what `pods`, `status`, `verify` and `drain`
//! say of pods in order, of pods with each layer broken in turn, and without an agent.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "ambient/stage.rs"]
#[expect(dead_code, reason = "parts of it are for the tests of ambient mode")]
mod stage;

use e2e_node::agent::sidecar_pod;
use e2e_node::api::{Fault, Rule};
use e2e_node::cluster::NAMESPACE;
use e2e_node::lab::Namespace;
use e2e_node::process::{Identity, Output, Program};
use e2e_node::ztunnel::Faults;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stage::{Stage, Started};
use std::time::{Duration, Instant};

/// How agents look after captured pods: what is broken stays so for a moment.
pub(crate) const AUDIT: &[&str] = &["--audit-seconds=1", "--audit-on-change=false"];

/// Runs the command line on the node.
fn sluice(stage: &Stage, args: &[&str]) -> Output {
    let cluster = &stage.cluster;
    let program = cluster.node.host.program(&cluster.programs.sluice).args(args.iter().copied());
    program.arg("--run-dir").arg(&cluster.directories.run).run().unwrap()
}

/// The same as JSON, with the exit status.
#[track_caller]
fn json_of(stage: &Stage, args: &[&str]) -> (Value, bool) {
    let output = sluice(stage, &[args, &["--output", "json"]].concat());
    let json = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    (json, output.status.success())
}

fn verify(stage: &Stage, name: &str) -> (Value, bool) {
    json_of(stage, &["verify", &format!("{NAMESPACE}/{name}")])
}

/// Layers by state.
fn layers<'a>(answer: &'a Value, state: &str) -> Vec<&'a str> {
    let all = answer["layers"].as_array().unwrap().iter();
    all.filter(|l| l["state"] == state).map(|l| l["name"].as_str().unwrap()).collect()
}

/// The pod is in order.
#[track_caller]
fn is_well(stage: &Stage, name: &str) -> Value {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let (answer, success) = verify(stage, name);
        if success && answer["verdict"] == "ok" {
            assert_eq!(layers(&answer, "broken"), [""; 0], "{answer:#}");
            assert_eq!(answer["broken"], Value::Null);
            return answer;
        }
        assert!(Instant::now() < end, "{answer:#}; {}", stage.cluster.agent_log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Breaks a layer and sees just that one named. The agent may put it right in between,
/// so it is broken again if need be.
#[track_caller]
fn is_named(stage: &Stage, name: &str, layer: &str, mut breaks: impl FnMut()) -> Value {
    let mut answer = Value::Null;
    let end = Instant::now() + Duration::from_secs(90);
    while Instant::now() < end {
        breaks();
        let success;
        (answer, success) = verify(stage, name);
        if answer["verdict"] != "ok" {
            assert!(!success, "{answer:#}");
            break;
        }
    }
    assert_eq!(layers(&answer, "broken"), [layer], "{answer:#}");
    assert_eq!((&answer["verdict"], &answer["broken"]), (&json!("broken"), &json!(layer)));
    assert!(!answer["next"].as_str().unwrap().is_empty());
    let shown = sluice(stage, &["verify", name]);
    assert!(shown.stdout.contains("BROKEN") || shown.status.success(), "{shown}");
    answer
}

fn sidecar(stage: &Stage, name: &str) -> Value {
    let uid = stage.manifest(name)["metadata"]["uid"].clone();
    let mut manifest = sidecar_pod(NAMESPACE, name, &json!({}), &[]);
    manifest["metadata"]["uid"] = uid;
    manifest["spec"]["nodeName"] = stage.manifest(name)["spec"]["nodeName"].clone();
    manifest
}

fn flush(pod: &Started, backend: &str) {
    let sandbox = &pod.pod.sandbox;
    if backend == "nftables" {
        // Tables that the agent is about to write again may be there or not.
        for table in ["istio-ambient-nat", "istio-proxy-nat"] {
            drop(sandbox.program("nft").args(["delete", "table", "inet", table]).run());
        }
        return;
    }
    for tool in ["iptables", "iptables-legacy", "iptables-nft"] {
        drop(sandbox.program(tool).args(["-t", "nat", "-F"]).run());
    }
}

fn record_of(stage: &Stage, pod: &Started) -> std::path::PathBuf {
    let dir = stage.cluster.directories.run.join("sandboxes");
    let all = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let mut own =
        all.filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(pod.uid())));
    own.next().unwrap_or_else(|| panic!("no record of {} in {}", pod.uid(), dir.display()))
}

/// Another namespace at a path, until dropped.
struct Replaced(std::path::PathBuf);

impl Replaced {
    fn at(path: &std::path::Path, by: &Namespace) -> Self {
        let none: Option<&str> = None;
        mount(Some(by.path()), path, none, MsFlags::MS_BIND, none).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

/// A process that is stopped, until dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).ok();
    }
}

fn walk(backend: &'static str) {
    let stage = Stage::with_api(&format!("walk-{backend}"), backend);
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let start = |name: &str| stage.start(stage.manifest(name)).unwrap();
    let (a, b, c, d) = (start("a"), start("b"), start("c"), start("d"));
    let answer = is_well(&stage, "a");
    let all = [
        "source",
        "decision",
        "record",
        "namespace",
        "rules",
        "routing",
        "ztunnel",
        "listeners",
        "canary",
        "probes",
        "annotation",
    ];
    assert_eq!(layers(&answer, "ok"), all, "{answer:#}");
    assert_eq!((&answer["mode"], &answer["uid"]), (&json!("ambient"), &json!(a.uid())));
    // By its name alone, as a person would.
    let shown = sluice(&stage, &["verify", "a"]).success().unwrap();
    assert!(shown.ends_with("captured\n"), "{shown}");

    let answer = is_named(&stage, "b", "rules", || flush(&b, backend));
    assert_eq!(layers(&answer, "not-tried"), ["listeners", "canary"], "{answer:#}");
    let answer = is_named(&stage, "c", "routing", || {
        let remove = ["rule", "del", "fwmark", "0x111/0xfff"];
        drop(c.pod.sandbox.program("ip").args(remove).run());
    });
    let routing = answer["layers"].as_array().unwrap().iter().find(|l| l["name"] == "routing");
    assert!(routing.unwrap()["why"].as_str().unwrap().contains("ip rule"), "{answer:#}");
    let record = record_of(&stage, &d);
    is_named(&stage, "d", "record", || drop(std::fs::remove_file(&record)));

    let other = Namespace::create(stage.cluster.node.host.scratch(), "other").unwrap();
    let replaced = Replaced::at(a.pod.sandbox.path(), &other);
    let answer = is_named(&stage, "a", "namespace", || ());
    let ino = other.netns().id().ino.to_string();
    assert!(answer.to_string().contains(&ino), "{answer:#}");
    drop(replaced);
    is_well(&stage, "a");

    // It says that it has the pod, and does not listen in it.
    let faults = Faults { lying: true, ..Faults::default() };
    ztunnel.fail(faults).unwrap();
    let _e = start("e");
    is_named(&stage, "e", "listeners", || ());

    drop(ztunnel);
    let answer =
        is_named(&stage, "a", "ztunnel", || std::thread::sleep(Duration::from_millis(200)));
    assert_eq!(layers(&answer, "not-tried"), ["listeners", "canary"], "{answer:#}");
    let (status, ready) = json_of(&stage, &["status"]);
    assert!(!ready && status["ready"] == false, "{status:#}");
    assert_eq!(status["ambient"]["ztunnels"], json!([]));
}

#[test]
fn each_layer_that_breaks_is_named_with_nftables() {
    walk("nftables");
}

#[test]
fn each_layer_that_breaks_is_named_with_iptables() {
    walk("iptables");
}

#[test]
fn sidecar_pods_are_walked_too() {
    let stage = Stage::with_manifests("walk-sidecar", "nftables");
    let pod = stage.start(sidecar(&stage, "s")).unwrap();
    let answer = is_named(&stage, "s", "listeners", || ());
    assert_eq!(answer["mode"], "sidecar");
    assert_eq!(layers(&answer, "not-tried"), ["canary"], "{answer:#}");
    let _proxy = pod.pod.serve_proxy(&stage.cluster.programs, false).unwrap();
    let answer = is_well(&stage, "s");
    let all =
        ["source", "decision", "record", "namespace", "rules", "routing", "listeners", "canary"];
    assert_eq!(layers(&answer, "ok"), all, "{answer:#}");
    is_named(&stage, "s", "rules", || flush(&pod, "nftables"));
    // What is not of the mesh is in order.
    let mut outside = stage.manifest("outside");
    outside["metadata"]["labels"] = json!({stage::MODE: "none"});
    let _outside = stage.start(outside).unwrap();
    let (answer, success) = verify(&stage, "outside");
    assert_eq!((&answer["verdict"], success), (&json!("outside"), true), "{answer:#}");
    std::fs::remove_file(stage.cluster.directories.pods.join(format!("Pod-{NAMESPACE}-s.json")))
        .unwrap();
    stage.eventually("its manifest's end is seen", |stage| {
        verify(stage, "s").0["broken"] == "source"
    });
    let unknown = sluice(&stage, &["verify", "nobody"]);
    assert!(!unknown.status.success() && unknown.stdout.is_empty(), "{unknown}");
    assert!(unknown.stderr.contains("pod nobody is not known on this node"), "{unknown}");
}

/// Layers that the agent does not have in its hands, or only with others.
#[test]
fn what_others_break_is_named() {
    let stage = Stage::with_api("walk-others", "nftables");
    stage.label(Some("ambient"));
    let _ztunnel = stage.ztunnel("zt");
    let pod = stage.start(stage.probed("a")).unwrap();
    is_well(&stage, "a");

    // Rules of somebody before ours, which are as they must be.
    let drop = "add table inet others\nflush table inet others\nadd chain inet others first \
                { type filter hook output priority -350; }\n\
                add rule inet others first tcp dport != 22 drop\n";
    let others = |script: &str| pod.pod.sandbox.load(&["nft", "-f", "-"], script).unwrap();
    let answer = is_named(&stage, "a", "canary", || {
        others(drop);
    });
    assert!(layers(&answer, "ok").contains(&"rules"), "{answer:#}");
    others("delete table inet others\n");
    is_well(&stage, "a");

    let host = &stage.cluster.node.host;
    is_named(&stage, "a", "probes", || {
        // It may be on its way back.
        host.load(&["nft", "delete", "table", "inet", "sluice-probe"], "").ok();
    });
    is_well(&stage, "a");

    let server = stage.server.as_ref().unwrap();
    server.fail(Rule::from(Fault::Status(500)).on("patch"));
    let mut now = stage.seen(&pod);
    now["metadata"]["annotations"] = Value::Null;
    stage.publish(&now);
    is_named(&stage, "a", "annotation", || ());
    server.heal();
    is_well(&stage, "a");

    let mut now = stage.seen(&pod);
    now["status"]["phase"] = json!("Succeeded");
    stage.publish(&now);
    stage.eventually("it has ended", |stage| {
        let (answer, success) = verify(stage, "a");
        success && answer["verdict"] == "outside" && answer.to_string().contains("has ended")
    });
}

#[test]
fn pods_and_status_tell_what_is_so() {
    let stage = Stage::with_manifests("tell", "nftables");
    let (status, ready) = json_of(&stage, &["status"]);
    assert!(!ready, "no ztunnel: {status:#}");
    let _ztunnel = stage.ztunnel("zt");
    let start = |manifest: Value| stage.start(manifest).unwrap();
    let (b, a) = (start(stage.manifest("b")), start(stage.manifest("a")));
    let s = start(sidecar(&stage, "s"));
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let _proxy = s.pod.serve_proxy(&stage.cluster.programs, false).unwrap();
    let row = |name: &str| {
        let (answer, success) = json_of(&stage, &["pods"]);
        assert!(success && answer["agent"]["answers"] == true);
        let rows = answer["pods"].as_array().unwrap().clone();
        let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "s"]);
        rows.into_iter().find(|row| row["name"] == name).unwrap()
    };
    let before = row("a");
    for (key, want) in [
        ("namespace", json!(NAMESPACE)),
        ("uid", json!(a.uid())),
        ("mode", json!("ambient")),
        ("backend", json!("nftables")),
        ("standing", json!("verified")),
        ("reason", Value::Null),
    ] {
        assert_eq!(before[key], want, "{key}: {before:#}");
    }
    assert!(before["verified_seconds_ago"].as_u64().unwrap() < 20, "{before:#}");
    assert_eq!(before["ztunnel"]["state"], "acked", "{before:#}");
    assert_eq!(before["netns"]["ino"], a.pod.sandbox.netns().id().ino);
    assert_eq!(before["rules"]["hash"].as_str().unwrap().len(), 16);
    let generation = before["rules"]["generation"].as_u64().unwrap();
    for _ in 0..3 {
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(false)).by, "app");
    }
    let count = |row: &Value, what: &str| row["captured"][what].as_u64().unwrap();
    let after = row("a");
    assert_eq!(count(&after, "outbound"), count(&before, "outbound") + 3, "{after:#}");
    assert_eq!(after["rules"]["generation"], generation, "to look changes nothing");
    let s = row("s");
    assert_eq!(
        (&s["mode"], &s["ztunnel"], &s["standing"]),
        (&json!("sidecar"), &Value::Null, &json!("verified"))
    );
    flush(&b, "nftables");
    let b = row("b");
    if b["standing"] != "verified" {
        assert_eq!(b["standing"], "exposed", "{b:#}");
        // What is missing, or that it is being put right.
        let reason = b["reason"].as_str().unwrap();
        assert!(reason.contains("istio-ambient-nat") || reason.contains("drifted"), "{b:#}");
    }

    let table = sluice(&stage, &["pods"]).success().unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("POD "), "{table}");
    assert!(lines[1].starts_with("shop/a ") && !table.contains('\u{1b}'), "{table}");

    stage.eventually("it is ready, and all is put right", |stage| {
        let (status, ready) = json_of(stage, &["status"]);
        ready && status["unverified"] == json!({})
    });
    let (status, _) = json_of(&stage, &["status"]);
    assert_eq!(status["backend"]["name"], "nftables");
    assert!(status["backend"]["proof"].as_str().unwrap().contains("captured"), "{status:#}");
    assert_eq!(status["ambient"]["pods"], 2, "{status:#}");
    assert_eq!(status["ambient"]["ztunnels"][0]["taken"], 2, "{status:#}");
    assert_eq!(status["source"]["name"], "manifests");
    let shown = sluice(&stage, &["status"]).success().unwrap();
    for part in ["ready", "backend", "nf_tables over netlink", "source", "ztunnel", "kubelet"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn a_drained_node_has_nothing_of_ambient_left() {
    let stage = Stage::with_manifests("drain", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pods: Vec<Started> =
        ["a", "b", "c"].map(|name| stage.start(stage.manifest(name)).unwrap()).into();
    let s = stage.start(sidecar(&stage, "s")).unwrap();
    let _proxy = s.pod.serve_proxy(&stage.cluster.programs, false).unwrap();
    let output = sluice(&stage, &["drain", "--wait", "60s"]);
    let text = output.clone().success().unwrap();
    assert!(text.starts_with("drained: "), "{output}");
    assert!(text.contains("1 pods captured for their sidecars are not touched"), "{output}");
    for pod in &pods {
        let rules = pod.pod.sandbox.program("nft").args(["list", "ruleset"]).check().unwrap();
        assert!(!rules.contains("istio"), "{rules}");
        let rules = pod.pod.sandbox.program("ip").args(["rule"]).check().unwrap();
        assert!(!rules.contains("0x111"), "{rules}");
    }
    assert!(ztunnel.status().unwrap().workloads.is_empty());
    is_well(&stage, "s");
    let answer = is_named(&stage, "a", "decision", || ());
    assert!(answer.to_string().contains("sluice drain"), "{answer:#}");
    assert_eq!(layers(&answer, "ok"), ["source"], "{answer:#}");
    // Until the agent starts anew.
    let (status, ready) = json_of(&stage, &["status"]);
    assert!(!ready && status["ambient"]["drained"] == true, "{status:#}");
    let (answer, success) = json_of(&stage, &["drain"]);
    assert!(success && answer["drained"] == true && answer["left"] == json!([]), "{answer:#}");
}

#[test]
fn a_drain_that_cannot_end_says_what_is_left() {
    let stage = Stage::with_manifests("undrained", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let _pod = stage.start(stage.manifest("a")).unwrap();
    ztunnel.fail(Faults { silent: true, ..Faults::default() }).unwrap();
    let begun = Instant::now();
    // Less than the agent gives ztunnel for an answer.
    let output = sluice(&stage, &["drain", "--wait", "1s"]);
    let log = || stage.cluster.agent_log();
    assert!(output.stdout.contains("NOT drained, 1 pods are left"), "{output}; {}", log());
    assert!(!output.status.success() && begun.elapsed() < Duration::from_secs(60), "{output}");
    assert!(output.stdout.contains("shop/a"), "{output}");
    assert!(output.stderr.contains("1 ambient pods are left"), "{output}");
}

#[test]
fn without_an_agent_records_and_kernel_are_told() {
    let mut stage = Stage::with_manifests("alone", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let (a, b) =
        (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
    is_well(&stage, "a");
    let run = stage.cluster.directories.run.clone();
    assert_eq!(mode_of(&run.join("operator.sock")), 0o600);

    // One that hangs is given up on in time.
    let stopped = Stopped::new(stage.cluster.agent.as_ref().unwrap().pid());
    let begun = Instant::now();
    let output = sluice(&stage, &["verify", "a", "--timeout", "2s"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{output}");
    assert!(output.stderr.contains("does not answer within 2 s"), "{output}");
    assert!(!output.status.success() && !output.stdout.contains("BROKEN"), "{output}");
    let output = sluice(&stage, &["status", "--timeout", "2s"]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
    let output = sluice(&stage, &["drain", "--timeout", "2s"]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
    drop(stopped);
    // What nobody waits for any more is not done: the pod is still captured.
    is_well(&stage, "a");
    let (status, _) = json_of(&stage, &["status"]);
    assert_eq!(status["ambient"]["draining"], false, "{status:#}");

    stage.cluster.agent.take().unwrap().kill().unwrap();
    let output = sluice(&stage, &["status"]);
    let socket = run.join("operator.sock").display().to_string();
    assert!(!output.status.success() && output.stderr.contains(&socket), "{output}");
    flush(&b, "nftables");
    let (answer, success) = json_of(&stage, &["pods"]);
    assert!(!success && answer["agent"]["answers"] == false, "{answer:#}");
    assert!(answer["agent"]["error"].as_str().unwrap().contains(&socket), "{answer:#}");
    let standings: Vec<_> =
        answer["pods"].as_array().unwrap().iter().map(|row| row["standing"].clone()).collect();
    assert_eq!(standings[0], "verified", "{answer:#}");
    assert_ne!(standings[1], "verified", "{answer:#}");
    let (answer, success) = verify(&stage, "a");
    assert!(!success && answer["verdict"] == "incomplete", "{answer:#}");
    assert_eq!(
        layers(&answer, "ok"),
        ["record", "namespace", "rules", "routing", "listeners", "canary"],
        "{answer:#}"
    );
    let (answer, _) = verify(&stage, "b");
    assert_eq!(answer["broken"], "rules", "{answer:#}");
    let other = Namespace::create(stage.cluster.node.host.scratch(), "other").unwrap();
    let _replaced = Replaced::at(a.pod.sandbox.path(), &other);
    assert_eq!(verify(&stage, "a").0["broken"], "namespace");
    drop(ztunnel);
}

fn mode_of(path: &std::path::Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn many_pods_are_told_of_at_once() {
    const PODS: usize = 250;
    let stage = Stage::with_manifests("many", "nftables");
    let _ztunnel = stage.ztunnel("zt");
    let begin = |number: usize| {
        let name = format!("p{number:03}");
        let sidecar_too = number.is_multiple_of(2);
        let manifest = if sidecar_too { sidecar(&stage, &name) } else { stage.manifest(&name) };
        stage.publish(&manifest);
        let mut pod = stage.cluster.sandbox(&manifest).unwrap();
        stage.cluster.attach(&mut pod).unwrap();
        pod
    };
    let _pods: Vec<_> = (0..PODS).map(begin).collect();
    let begun = Instant::now();
    let (answer, success) = json_of(&stage, &["pods"]);
    let took = begun.elapsed();
    println!("pods: {PODS} told of in {} ms", took.as_millis());
    let rows = answer["pods"].as_array().unwrap();
    assert!(success && rows.len() == PODS, "{}", rows.len());
    for row in rows {
        assert_eq!(
            (&row["standing"], &row["reason"]),
            (&json!("verified"), &Value::Null),
            "{row:#}"
        );
    }
}

#[test]
fn others_than_root_are_told_so() {
    let stage = Stage::with_manifests("others", "nftables");
    // Where they may run it. By another process: whoever starts a program while this one
    // writes a file has it open too for a moment, and nobody can execute it.
    let place = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let copy = place.path().join("sluice");
    Program::new("cp").arg(&stage.cluster.programs.sluice).arg(&copy).check().unwrap();
    for command in [&["pods"][..], &["status"], &["verify", "a"], &["drain"]] {
        let program = stage.cluster.node.host.program(&copy).as_user(Identity::APP);
        let program = program.args(command.iter().copied()).arg("--run-dir");
        let output = program.arg(&stage.cluster.directories.run).run().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
        assert!(output.stderr.contains("run this as root (this is uid 1000)"), "{output}");
    }
}
