//! The agent is away, frozen or being removed: who starts, who waits, and what is
//! left for the agent to look at.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use wire::code;
use wire::passed::{MAX_FILES, Passed};

use crate::stand::{Call, Fake, Outcome, Sandbox, answer, config};

const INJECTED: &str = r#"{"sidecar.istio.io/status":"{}","kubernetes.io/config.source":"api"}"#;
const PLAIN: &str = r#"{"kubernetes.io/config.source":"api"}"#;

/// A run directory without an agent.
struct Away {
    directory: tempfile::TempDir,
    sandbox: Sandbox,
}

fn snapshot() -> Value {
    let pod = |mesh| json!({"namespace": "shop", "name": "cart", "mesh": mesh});
    json!({
        "version": 1, "policy": "p", "agent_namespace": "mesh-system", "excluded": ["left-alone"],
        "ambient": {"enabled": false, "by_pod_label": false, "outside": []},
        "pods": {"u-out": pod(false), "u-in": pod(true)},
    })
}

fn with_hints(run_dir: &str, annotations: &str) -> String {
    let hints = format!(
        r#","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{annotations},"cgroupPath":"/kubepods/pod7"}},"prevResult":{{"ips":[{{"address":"10.0.0.5/24"}}]}}"#
    );
    config("1.0.0", run_dir, &hints)
}

impl Away {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), sandbox: Sandbox::new() }
    }

    fn with(snapshot: &Value) -> Self {
        let away = Self::new();
        away.leave("snapshot.json", &snapshot.to_string());
        away
    }

    fn leave(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn call(&self, command: &str, annotations: &str) -> Call {
        let stdin = with_hints(self.path().to_str().unwrap(), annotations);
        Call::new(command, &self.sandbox.path(), stdin)
    }

    fn add(&self, annotations: &str) -> Outcome {
        self.call("ADD", annotations).run()
    }

    #[track_caller]
    fn waits(&self, annotations: &str, why: &str) {
        let outcome = self.add(annotations);
        let (msg, details) = outcome.failure(code::AGENT_UNREACHABLE);
        assert!(msg.contains("not started") && msg.contains(why), "{msg}");
        assert!(details.contains("kubectl"), "{details}");
        // It does not try until its deadline.
        assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
        assert_eq!(self.passed(), 0);
    }

    fn passed(&self) -> usize {
        std::fs::read_dir(self.path().join("passed")).map_or(0, Iterator::count)
    }
}

fn uid(call: Call, uid: &str) -> Call {
    let args =
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID={uid}");
    call.set("CNI_ARGS", &args)
}

#[test]
fn a_pod_without_a_sidecar_passes_and_that_is_written_down() {
    let away = Away::with(&snapshot());
    let outcome = away.add(PLAIN);
    assert_eq!(outcome.success(), r#"{"ips":[{"address":"10.0.0.5/24"}]}"#);
    assert_eq!(outcome.log()["level"], "warn");
    let path = away.path().join("passed/0123abcd.json");
    let passed: Passed = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((passed.dev, passed.ino), away.sandbox.id());
    assert_eq!((passed.namespace.as_str(), passed.name.as_str()), ("shop", "cart"));
    assert_eq!((passed.uid.as_str(), passed.interface.as_str()), ("u-1", "eth0"));
    assert_eq!(passed.netns, away.sandbox.path());
    assert!(passed.annotations.unwrap().is_empty());
    assert!(passed.reason.contains("No such file"), "{}", passed.reason);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(away.call("CHECK", PLAIN).run().success(), "");
    assert_eq!(away.call("DEL", "null").run().success(), "");
    assert_eq!(away.passed(), 0, "a sandbox that is gone needs no look");
}

/// With Multus the chain runs for each interface of a sandbox.
#[test]
fn only_the_first_interface_takes_the_files_away() {
    let away = Away::with(&snapshot());
    std::fs::create_dir(away.path().join("sandboxes")).unwrap();
    let record = away.leave("sandboxes/0123abcd.json", r#"{"version":1,"interface":"eth0"}"#);
    let call = |command: &str, interface: &str| {
        away.call(command, PLAIN).set("CNI_IFNAME", interface).run().success();
    };
    call("ADD", "eth0");
    let path = away.path().join("passed/0123abcd.json");
    let note = std::fs::read(&path).unwrap();
    call("ADD", "net1");
    call("DEL", "net1");
    assert!(record.exists());
    assert_eq!(std::fs::read(&path).unwrap(), note);
    call("DEL", "eth0");
    assert!(!record.exists() && !path.exists());
    // What is no such file helps nobody.
    away.leave("passed/0123abcd.json", "junk");
    call("DEL", "net1");
    assert_eq!(away.passed(), 0);
}

#[test]
fn whoever_could_be_of_the_mesh_waits() {
    let away = Away::with(&snapshot());
    away.waits(INJECTED, "it is a pod of the mesh");
    away.waits("null", "passed no annotations");
    away.waits("{}", "passed no annotations");
    away.waits("[1]", "passed no annotations");
    away.call("CHECK", INJECTED).run().failure(code::AGENT_UNREACHABLE);

    let mut ambient = snapshot();
    ambient["ambient"] = json!({"enabled": true, "by_pod_label": true, "outside": ["shop"]});
    let away = Away::with(&ambient);
    away.waits(PLAIN, "its own labels");
    ambient["ambient"] = json!({"enabled": true, "by_pod_label": false, "outside": ["other"]});
    let away = Away::with(&ambient);
    away.waits(PLAIN, "its namespace's labels");
    ambient["ambient"] = json!({"enabled": true, "by_pod_label": false, "outside": ["shop"]});
    Away::with(&ambient).add(PLAIN).success();
}

#[test]
fn a_pod_that_the_agent_saw_needs_no_annotations() {
    let away = Away::with(&snapshot());
    uid(away.call("ADD", "null"), "u-out").run().success();
    assert_eq!(away.passed(), 1);
    let (msg, _) = uid(away.call("ADD", PLAIN), "u-in").run().failure(code::AGENT_UNREACHABLE);
    assert!(msg.contains("of the mesh"), "{msg}");
}

#[test]
fn where_manifests_count_the_runtimes_annotations_do_not() {
    let mut manifests = snapshot();
    manifests["source"] = json!("manifests");
    let away = Away::with(&manifests);
    away.waits(PLAIN, "its manifest");
    away.waits(INJECTED, "its manifest");
    let known = |annotations| uid(away.call("ADD", annotations), "u-out").run();
    let (msg, _) = known(INJECTED).failure(code::AGENT_UNREACHABLE);
    assert!(msg.contains("of the mesh"), "{msg}");
    known(PLAIN).success();
    known("null").success();
    // Of a newer agent.
    manifests["source"] = json!("oracle");
    Away::with(&manifests).waits(PLAIN, "its manifest");
}

#[test]
fn the_agents_pod_and_excluded_namespaces_of_the_snapshot_pass() {
    let away = Away::with(&snapshot());
    // Not even a journal that cannot be written keeps the agent from coming back.
    away.leave("passed", "no directory");
    let pod = |namespace: &str, name: &str| {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        away.call("ADD", "null").set("CNI_ARGS", &args).run()
    };
    pod("mesh-system", "istio-cni-node-abc").success();
    pod("left-alone", "anybody").failure(code::RECORD_NOT_WRITTEN);
    std::fs::remove_file(away.path().join("passed")).unwrap();
    pod("left-alone", "anybody").success();
}

#[test]
fn without_a_snapshot_to_be_trusted_nobody_passes() {
    let good = snapshot().to_string();
    let away = Away::new();
    away.waits(PLAIN, "No such file");
    away.waits(INJECTED, "it is a pod of the mesh");
    for (bad, why) in [
        (String::new(), "cannot be decoded"),
        (good[..good.len() / 2].to_owned(), "cannot be decoded"),
        ("\0".repeat(100), "cannot be decoded"),
        (good.replace("\"version\":1", "\"version\":2"), "has format 2"),
        (format!("{good}{}", " ".repeat(2 << 20)), "larger than"),
    ] {
        away.leave("snapshot.json", &bad);
        away.waits(PLAIN, why);
    }
    let path = away.leave("snapshot.json", &good);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o622);
    away.waits(PLAIN, "only root can write");
    mode(&path, 0o600);
    chown(&path, Some(1000), None).unwrap();
    away.waits(PLAIN, "only root can write");
    chown(&path, Some(0), None).unwrap();
    mode(away.path(), 0o777);
    away.waits(PLAIN, "written by others");
    mode(away.path(), 0o700);
    std::fs::rename(&path, away.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &path).unwrap();
    away.waits(PLAIN, "");
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    away.waits(PLAIN, "");
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(away.path().join("elsewhere"), &path).unwrap();
    away.add(PLAIN).success();
}

#[test]
fn what_cannot_be_written_down_does_not_pass() {
    let away = Away::with(&snapshot());
    let directory = away.path().join("passed");
    let refused = |cause: &str| {
        let (msg, _) = away.add(PLAIN).failure(code::RECORD_NOT_WRITTEN);
        assert!(msg.contains(cause), "{msg}");
    };
    away.leave("passed", "no directory");
    refused("not a directory");
    std::fs::remove_file(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    refused("written by others");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
    for number in 0..MAX_FILES {
        std::fs::write(directory.join(format!("{number}.json")), "").unwrap();
    }
    refused("has 1024 files already");
    assert_eq!(away.passed(), MAX_FILES, "nothing is left behind");
    std::fs::rename(directory.join("7.json"), directory.join("0123abcd.json")).unwrap();
    away.add(PLAIN).success();
    assert_eq!(away.passed(), MAX_FILES, "the same sandbox again takes no more room");
}

/// A snapshot beside an agent's socket.
fn beside(fake: &Fake) {
    std::fs::write(Path::new(fake.run_dir()).join("snapshot.json"), snapshot().to_string())
        .unwrap();
}

fn ask(fake: &Fake, annotations: &str) -> Outcome {
    beside(fake);
    let sandbox = Sandbox::new();
    Call::new("ADD", &sandbox.path(), with_hints(fake.run_dir(), annotations)).run()
}

#[test]
fn a_frozen_agent_keeps_only_the_mesh_waiting() {
    let frozen = || {
        Fake::serve(|stream| {
            let _ = stream.read(&mut [0]);
        })
    };
    let outcome = ask(&frozen(), PLAIN);
    outcome.success();
    assert!(outcome.elapsed >= Duration::from_millis(900), "it was given a moment");
    assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
    let fake = frozen();
    beside(&fake);
    let stdin = with_hints(fake.run_dir(), INJECTED)
        .replace("\"agent_timeout_ms\":15000", "\"agent_timeout_ms\":2000");
    let outcome = Call::new("ADD", &Sandbox::new().path(), stdin).run();
    let (msg, _) = outcome.failure(code::AGENT_TIMED_OUT);
    assert!(msg.contains("it is a pod of the mesh"), "{msg}");
    assert!(outcome.elapsed >= Duration::from_millis(1900), "{:?}", outcome.elapsed);
}

#[test]
fn who_answers_nothing_usable_keeps_nobody_outside_waiting() {
    let overloaded = r#"{"code":111,"msg":"too many requests","details":"later"}"#;
    for (status, body) in [("503 Busy", overloaded), ("200 OK", ""), ("500 Oops", "")] {
        ask(&answer(status, body), PLAIN).success();
        let outcome = ask(&answer(status, body), INJECTED);
        assert_eq!(outcome.status, Some(1), "{status}");
    }
}

#[test]
fn what_the_agent_refuses_is_refused() {
    for (number, text) in [(103, "not known"), (104, "wrong"), (109, "ambient")] {
        let body = json!({"code": number, "msg": text, "details": "look"}).to_string();
        let fake = answer("500 No", &body);
        ask(&fake, PLAIN).failure(number);
        assert!(!Path::new(fake.run_dir()).join("passed").exists());
    }
}

#[test]
fn hints_are_handed_on() {
    let skip = r#"{"decision":"skip","reason":""}"#;
    for (annotations, expected) in [
        (INJECTED, json!({"sidecar.istio.io/status": "{}"})),
        (PLAIN, json!({})),
        ("null", Value::Null),
    ] {
        let fake = answer("200 OK", skip);
        ask(&fake, annotations).success();
        let seen = fake.seen();
        assert_eq!(seen.body["Sluice"]["PodAnnotations"], expected);
        assert_eq!(seen.body["Sluice"]["CgroupPath"], "/kubepods/pod7");
        assert!(!Path::new(fake.run_dir()).join("passed").exists(), "the agent saw it");
    }
}

#[test]
fn a_mesh_that_is_being_removed_stops_nothing() {
    let fake = answer("500 No", r#"{"code":106,"msg":"no rules","details":"look"}"#);
    let marker = Path::new(fake.run_dir()).join("removed");
    std::fs::write(&marker, "").unwrap();
    let sandbox = Sandbox::new();
    let call = |command: &str| {
        let stdin = with_hints(fake.run_dir(), INJECTED).replace("1.0.0", "1.1.0");
        Call::new(command, &sandbox.path(), stdin)
    };
    assert_eq!(call("ADD").run().success(), r#"{"ips":[{"address":"10.0.0.5/24"}]}"#);
    for command in ["CHECK", "DEL", "GC", "STATUS"] {
        assert_eq!(call(command).run().success(), "", "{command}");
    }
    fake.unasked();
    // Only root's word counts.
    chown(&marker, Some(1000), None).unwrap();
    assert_eq!(marker.metadata().unwrap().uid(), 1000);
    call("ADD").run().failure(code::RULES_NOT_PROGRAMMED);
}

/// A reboot empties /run, and the API server may be away: nothing but the entry and
/// what the runtime says is left.
#[test]
fn without_any_snapshot_annotations_tell_where_the_entry_says_so() {
    let parent = tempfile::tempdir().unwrap();
    let run_dir = parent.path().join("istio-cni");
    let sandbox = Sandbox::new();
    let call = |more: &str, annotations: &str| {
        let stdin = with_hints(run_dir.to_str().unwrap(), annotations);
        let stdin = stdin.replacen('{', &format!("{{{more}"), 1);
        Call::new("ADD", &sandbox.path(), stdin).run()
    };
    let key = r#""agent_goes_by_annotations":true,"#;
    let waits = |outcome: Outcome, why: &str| {
        let (msg, _) = outcome.failure(code::AGENT_UNREACHABLE);
        assert!(msg.contains(why), "{msg}");
    };
    for more in ["", r#""agent_goes_by_annotations":false,"#] {
        waits(call(more, PLAIN), "no snapshot");
    }
    waits(call(key, INJECTED), "sidecar.istio.io/status");
    waits(call(key, "null"), "passed no annotations");
    assert!(!run_dir.exists(), "who waits leaves nothing");
    call(key, PLAIN).success();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&run_dir), 0o700);
    let note = std::fs::read(run_dir.join("passed/0123abcd.json")).unwrap();
    let note: Passed = serde_json::from_slice(&note).unwrap();
    assert!(note.reason.contains("not among them"), "{}", note.reason);
    // Something is there that cannot be read: no reboot, and nothing is certain.
    std::fs::write(run_dir.join("snapshot.json"), "{").unwrap();
    waits(call(key, PLAIN), "no snapshot");
}
