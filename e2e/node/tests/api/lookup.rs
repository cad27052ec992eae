//! How often the server is asked, and what for.

use crate::stage::{Ended, Stage, mesh, plain};
use e2e_node::api::{Fault, Rule};
use e2e_node::cluster::{NAMESPACE, attempt};
use e2e_node::lab::node::OUTSIDE_V4;
use e2e_node::packet::Transport;
use e2e_node::process::Identity;
use serde_json::json;
use std::net::SocketAddr;

#[test]
fn a_pod_that_the_watch_knows_costs_no_request() {
    let stage = Stage::synced("known", &[]);
    let (sidecar, other) = (stage.publish(mesh("a")), stage.publish(plain("b")));
    stage.await_known(&sidecar);
    stage.server.forget();
    let _world = stage.cluster.serve_world(&[80]).unwrap();
    let (pod, ended) = stage.add(&sidecar);
    assert!(ended.is_captured(), "{ended:?}");
    assert!(stage.add(&other).1.is_left_alone());
    assert_eq!(stage.server.counts(), [].into(), "no request at all");

    let _proxy = pod.serve_proxy(&stage.cluster.programs, false).unwrap();
    let out = attempt(Transport::Tcp, Identity::APP, SocketAddr::from((OUTSIDE_V4, 80)));
    let fates = stage.cluster.send(&pod.sandbox, std::slice::from_ref(&out)).unwrap();
    assert!(fates[&out.label].is_by("proxy", 15001), "{}", fates[&out.label]);

    let runtime = stage.cluster.runtime();
    runtime.check(&stage.cluster.list, &pod.attachment).ok();
    runtime.delete(&stage.cluster.list, &pod.attachment).unwrap();
    assert_eq!(stage.server.counts(), [].into(), "nor for CHECK and DEL");

    // What is written down has no environment in it, and no credential.
    let grep = |text: &str| !text.contains("top-secret-value") && !text.contains("Bearer");
    assert!(grep(&stage.log()));
    for file in walk(&stage.cluster.directories.run) {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
        assert!(grep(&text), "{}", file.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(walk(&path)),
            path => files.push(path),
        }
    }
    files
}

#[test]
fn an_add_that_beats_the_watch_asks_once() {
    let mut stage = Stage::bare("beats");
    // The lists never come.
    stage.server.fail(Rule::from(Fault::Hang).on("watch"));
    stage.start(&[]);
    let pod = stage.publish(mesh("a"));
    let sandboxes: Vec<_> = (0..6).map(|_| stage.cluster.sandbox(&pod).unwrap()).collect();
    stage.server.fail(Rule::from(Fault::Slow(std::time::Duration::from_millis(700))).on("get"));
    std::thread::scope(|scope| {
        let adds: Vec<_> = sandboxes
            .into_iter()
            .map(|mut sandbox| scope.spawn(|| (stage.attach(&mut sandbox), sandbox)))
            .collect();
        for add in adds {
            let (ended, _sandbox) = add.join().unwrap();
            assert!(ended.is_captured(), "{ended:?}");
        }
    });
    assert_eq!(stage.server.count("get", "pods"), 1, "one question for six ADDs");
    assert_eq!(stage.server.count("get", "namespaces"), 0, "its labels decide nothing");
    // The answer is remembered, although the watch has not confirmed it.
    assert!(stage.add(&pod).1.is_captured());
    assert_eq!(stage.server.count("get", "pods"), 1);
}

#[test]
fn a_pod_that_does_not_exist_is_refused() {
    let stage = Stage::synced("absent", &[]);
    let Ended::Refused { code, text } = stage.add(&mesh("nobody")).1 else { panic!("started") };
    assert_eq!(code, 103, "{text}");
    assert!(text.contains("shop/nobody is not known"), "{text}");
}

#[test]
fn a_successor_is_not_its_predecessor() {
    let stage = Stage::synced("successor", &[]);
    let first = stage.publish(plain("web-0"));
    stage.await_known(&first);
    // The watch does not tell any more.
    stage.server.fail(Rule::from(Fault::Hang).on("watch"));
    stage.server.drop_watches();
    stage.eventually("the watch is broken", || stage.log().contains("cannot follow"));
    stage.server.remove("pods", NAMESPACE, "web-0");
    let mut second = mesh("web-0");
    second["metadata"]["uid"] = json!("the second");
    let second = stage.publish(second);
    // A runtime that does not tell uids.
    let mut pod = stage.cluster.sandbox(&second).unwrap();
    pod.attachment.args.retain(|(key, _)| key != "K8S_POD_UID");
    let ended = stage.attach(&mut pod);
    assert!(ended.is_captured(), "{ended:?}");
    let ended = stage.add(&second).1;
    assert!(ended.is_captured(), "{ended:?}");
    let Ended::Refused { code, text } = stage.add(&first).1 else { panic!("the first started") };
    assert_eq!(code, 103, "{text}");
    assert!(text.contains("the second"), "{text}");
}

/// A runtime that does not tell uids, and a pod that is made anew while its predecessor
/// is asked for: the answer about that one decides nothing.
#[test]
fn no_answer_counts_that_is_older_than_the_question() {
    let mut stage = Stage::bare("older");
    stage.server.fail(Rule::from(Fault::Hang).on("watch"));
    stage.start(&[]);
    let first = stage.publish(plain("web-0"));
    // As it was when it was asked for, some time later.
    let (before, pause) = (first.clone(), std::time::Duration::from_millis(800));
    let late = Fault::lie(move |object| {
        std::thread::sleep(pause);
        *object = before.clone();
    });
    stage.server.fail(Rule::from(late).on("get").of("pods").times(1));
    let nameless = |manifest: &serde_json::Value| {
        let mut pod = stage.cluster.sandbox(manifest).unwrap();
        pod.attachment.args.retain(|(key, _)| key != "K8S_POD_UID");
        stage.attach(&mut pod)
    };
    let second = std::thread::scope(|scope| {
        let asked = scope.spawn(|| stage.add(&first).1);
        stage.eventually("it is asked for", || stage.server.count("get", "pods") == 1);
        stage.server.remove("pods", NAMESPACE, "web-0");
        let mut second = mesh("web-0");
        second["metadata"]["uid"] = json!("the second");
        let second = stage.publish(second);
        assert!(nameless(&second).is_captured());
        assert!(asked.join().unwrap().is_left_alone());
        second
    });
    assert_eq!(stage.server.count("get", "pods"), 2);
    // What was answered last is what the first pod was. It is asked for once more.
    assert!(nameless(&second).is_captured());
    assert_eq!(stage.server.count("get", "pods"), 3);
}

#[test]
fn a_name_alone_is_enough_only_for_a_pod_that_is_about_to_start() {
    let stage = Stage::synced("nameless", &[]);
    let nameless = |manifest: &serde_json::Value| {
        let mut pod = stage.cluster.sandbox(manifest).unwrap();
        pod.attachment.args.retain(|(key, _)| key != "K8S_POD_UID");
        stage.attach(&mut pod)
    };
    let mut pod = mesh("a");
    pod["status"] = json!({"phase": "Pending"});
    let pod = stage.publish(pod);
    stage.await_known(&pod);
    assert!(nameless(&pod).is_captured());
    assert_eq!(stage.server.count("get", "pods"), 0);
    let mut pod = pod;
    pod["status"] = json!({"phase": "Running", "podIP": "10.0.0.9"});
    stage.publish(pod.clone());
    stage.eventually("it is asked for", || {
        stage.server.forget();
        nameless(&pod).is_captured() && stage.server.count("get", "pods") == 1
    });
}

#[test]
fn a_deleted_pod_is_forgotten() {
    let stage = Stage::synced("deleted", &[]);
    let pod = stage.publish(mesh("a"));
    stage.await_known(&pod);
    stage.server.remove("pods", NAMESPACE, "a");
    stage
        .eventually("it is gone", || matches!(stage.add(&pod).1, Ended::Refused { code: 103, .. }));
}
