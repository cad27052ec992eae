//! Every fault, while one pod is known and another is not: the known one is captured
//! at once; the other is captured or refused, within the plugin's time; and when the
//! server is well again, so is the agent.

use crate::stage::{Ended, Stage, mesh};
use e2e_node::api::Fault;
use serde_json::json;
use std::time::{Duration, Instant};

/// What the plugin waits for the agent, and some for processes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// For a pod that is known. Not a measurement: it only must not wait for the server.
const AT_ONCE: Duration = Duration::from_secs(15);

/// What happened in a round: the unknown pod's words when it was refused.
fn endure(
    stage: &Stage,
    name: &str,
    break_it: impl FnOnce(),
    mend: impl FnOnce(),
) -> Option<String> {
    let known = mesh("known");
    break_it();
    let unknown = stage.publish(mesh(&format!("unknown-{name}")));
    let refusal = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begun = Instant::now();
            (stage.add(&unknown).1, begun.elapsed())
        });
        for _ in 0..3 {
            let begun = Instant::now();
            let ended = stage.add(&known).1;
            assert!(ended.is_captured(), "{name}: the known pod: {ended:?}");
            assert!(begun.elapsed() < AT_ONCE, "{name}: the known pod took {:?}", begun.elapsed());
        }
        let (ended, took) = waiting.join().unwrap();
        assert!(took < PATIENCE, "{name}: answered after {took:?}");
        match ended {
            Ended::Started { captured } => {
                assert!(captured, "{name}: started without capture");
                None
            }
            Ended::Refused { code, text } => {
                assert!(matches!(code, 101 | 103), "{name}: {text}");
                Some(text)
            }
        }
    });
    mend();
    let ended = stage.add(&unknown).1;
    assert!(ended.is_captured(), "{name}: after it was mended: {ended:?}");
    let later = stage.publish(mesh(&format!("later-{name}")));
    stage.await_known(&later);
    refusal
}

fn stage(name: &str) -> Stage {
    let stage = Stage::synced(name, &[]);
    let known = stage.publish(mesh("known"));
    stage.await_known(&known);
    stage
}

fn each(stage: &Stage, faults: Vec<(&str, Fault, &str)>) {
    for (name, fault, words) in faults {
        let break_it = || {
            stage.server.fail(fault.into());
            stage.server.drop_watches();
        };
        let refusal = endure(stage, name, break_it, || stage.server.heal());
        let refusal = refusal.unwrap_or_else(|| panic!("{name}: who told it of the pod?"));
        assert!(refusal.contains(words), "{name}: {refusal}");
    }
}

#[test]
fn refusals() {
    each(
        &stage("refusals"),
        vec![
            ("401", Fault::Status(401), "ServiceAccount"),
            ("403", Fault::Status(403), "ClusterRole"),
            ("410", Fault::Status(410), "410"),
            ("429", Fault::TooMany(3), "429"),
            ("500", Fault::Status(500), "500"),
            ("page", Fault::Page, "Bad Gateway"),
        ],
    );
}

#[test]
fn silence() {
    each(
        &stage("silence"),
        vec![
            ("slow", Fault::Slow(Duration::from_secs(20)), "within"),
            ("hang", Fault::Hang, "within"),
            ("close", Fault::Close, "cannot be asked"),
            ("cut", Fault::Cut(100), "cannot be asked"),
        ],
    );
}

#[test]
fn lies() {
    each(
        &stage("lies"),
        vec![
            ("garbage", Fault::Garbage, "cannot be used"),
            ("null", Fault::lie(|object| *object = json!(null)), "cannot be used"),
            (
                "node",
                Fault::lie(|object| object["spec"]["nodeName"] = json!("elsewhere")),
                "NODE_NAME",
            ),
            (
                "containers",
                Fault::lie(|object| object["spec"]["containers"] = json!([])),
                "spec.containers",
            ),
            (
                "spec",
                Fault::lie(|object| drop(object.as_object_mut().unwrap().remove("spec"))),
                "spec",
            ),
            (
                "shape",
                Fault::lie(|object| object["spec"]["containers"] = json!(7)),
                "cannot be decided",
            ),
            ("uid", Fault::lie(|object| object["metadata"]["uid"] = json!("no")), "uid no"),
            ("name", Fault::lie(|object| object["metadata"]["name"] = json!("x")), "it is pod"),
        ],
    );
}

#[test]
fn absence() {
    let stage = stage("absence");
    let break_it = || stage.server.down().unwrap();
    let refusal = endure(&stage, "down", break_it, || stage.server.up().unwrap()).unwrap();
    assert!(refusal.contains("cannot be asked"), "{refusal}");
}

#[test]
fn many_that_wait_block_nobody() {
    let stage = stage("many");
    stage.server.fail(Fault::Hang.into());
    stage.server.drop_watches();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..24)
            .map(|number| {
                let stage = &stage;
                scope.spawn(move || stage.add(&stage.publish(mesh(&format!("waits-{number}")))).1)
            })
            .collect();
        // Until all of them have asked, or the first has given up.
        let asked = || stage.server.count("get", "pods") >= 24;
        let end = Instant::now() + PATIENCE;
        while !asked() && Instant::now() < end && !waiting.iter().any(|w| w.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let known = mesh("known");
        let begun = Instant::now();
        let ended = stage.add(&known).1;
        assert!(ended.is_captured(), "{ended:?}");
        assert!(begun.elapsed() < AT_ONCE, "the known pod took {:?}", begun.elapsed());
        for ended in waiting.into_iter().map(|w| w.join().unwrap()) {
            assert!(matches!(ended, Ended::Refused { code: 101 | 103, .. }), "{ended:?}");
        }
    });
}
