//! Lists, streamed and paged; watches, their ends and their news.

use crate::stage::{Ended, Stage, mesh, plain};
use e2e_node::agent::{NODE_NAME, namespace};
use e2e_node::api::{Fault, Rule, WatchList};
use e2e_node::cluster::NAMESPACE;
use e2e_node::page::Page;
use serde_json::json;
use std::time::{Duration, Instant};

fn streamed(stage: &Stage) -> usize {
    let asked = stage.server.asked();
    asked.iter().filter(|asked| asked.query.contains("sendInitialEvents")).count()
}

#[test]
fn a_streamed_list_needs_one_request_a_resource() {
    let stage = Stage::synced("streamed", &[]);
    let counts = stage.server.counts();
    assert_eq!(counts, [("watch namespaces".to_owned(), 1), ("watch pods".to_owned(), 1)].into());
    let asked = stage.server.asked();
    let pods = asked.iter().find(|asked| asked.resource == "pods").unwrap();
    assert!(pods.query.contains(&format!("fieldSelector=spec.nodeName%3D{NODE_NAME}")), "{pods:?}");
}

#[test]
fn an_older_server_is_listed_and_remembered() {
    let mut stage = Stage::bare("older");
    stage.server.set(|options| options.watch_list = WatchList::Refused);
    let pod = stage.publish(mesh("a"));
    stage.start(&[]);
    stage.await_sync();
    assert_eq!(stage.server.count("list", "pods"), 1);
    assert_eq!(stage.server.count("list", "namespaces"), 1);
    stage.await_known(&pod);
    let later = stage.publish(mesh("b"));
    stage.await_known(&later);
    // Neither a broken watch nor a list anew asks for a stream again.
    stage.server.forget();
    stage.server.drop_watches();
    stage.server.expire();
    stage.eventually("listed anew", || stage.server.count("list", "pods") > 0);
    assert!(stage.add(&later).1.is_captured());
    assert_eq!(streamed(&stage), 0);
}

#[test]
fn a_server_that_takes_no_notice_is_found_out() {
    let mut stage = Stage::bare("ignorant");
    stage.server.set(|options| options.watch_list = WatchList::Ignored);
    let pod = stage.publish(mesh("a"));
    stage.start(&[]);
    // What it sends is used meanwhile.
    stage.await_known(&pod);
    stage.eventually("listed", || stage.server.count("list", "pods") == 1);
    stage.await_sync();
    assert!(stage.add(&pod).1.is_captured());
}

#[test]
fn pages_are_put_together() {
    let mut stage = Stage::bare("pages");
    stage.server.set(|options| {
        options.watch_list = WatchList::Refused;
        options.always_paged = true;
    });
    stage.server.fill(NODE_NAME, 600, 20).unwrap();
    let last = stage.publish(mesh("zzz"));
    stage.start(&[]);
    stage.await_sync();
    assert_eq!(stage.server.count("list", "pods"), 3, "{:?}", stage.server.asked());
    assert!(stage.add(&last).1.is_captured());
    assert_eq!(stage.server.count("get", "pods"), 0);
}

#[test]
fn a_storm_of_410_is_weathered() {
    let stage = Stage::synced("storm", &[]);
    let known = stage.publish(mesh("known"));
    stage.await_known(&known);
    stage.server.forget();
    let begun = Instant::now();
    for round in 0..30 {
        stage.server.expire();
        if round % 10 == 0 {
            assert!(stage.add(&known).1.is_captured());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let lists = stage.server.count("watch", "pods");
    let took = begun.elapsed();
    assert!(lists <= 4 + 3 * took.as_secs_f64().ceil() as usize, "{lists} lists within {took:?}");
    let later = stage.publish(mesh("later"));
    stage.await_known(&later);
}

#[test]
fn watches_that_break_are_taken_up_again() {
    let stage = Stage::synced("broken", &[]);
    for round in 0..3 {
        stage.server.drop_watches();
        let pod = stage.publish(mesh(&format!("pod-{round}")));
        stage.await_known(&pod);
    }
    assert_eq!(streamed(&stage), 0, "where they were left, without a list");
    // An event that is cut off is not half believed.
    stage.server.fail(Rule::from(Fault::Cut(700)).on("watch").of("pods").times(2));
    stage.server.drop_watches();
    let pod = stage.publish(mesh("cut"));
    stage.await_known(&pod);
}

#[test]
fn labels_of_namespaces_are_followed() {
    let stage = Stage::synced("labels", &["--ambient-enabled", "true"]);
    let pod = stage.publish(plain("a"));
    stage.await_known(&pod);
    stage.server.forget();
    let mut labelled = namespace(NAMESPACE);
    labelled["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "ambient"});
    stage.server.put(labelled).unwrap();
    stage.eventually("it is ambient", || !stage.add(&pod).1.is_left_alone());
    stage.server.put(namespace(NAMESPACE)).unwrap();
    stage.eventually("it is not", || stage.add(&pod).1.is_left_alone());
    assert_eq!(stage.server.count("get", "namespaces"), 0);

    // One that is not known is asked for, and never taken for one without labels.
    stage.server.fail(Rule::from(Fault::Hang).on("watch"));
    stage.server.drop_watches();
    stage.eventually("the watch is broken", || stage.log().contains("cannot follow"));
    let mut other = namespace("other");
    other["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "ambient"});
    stage.server.put(other).unwrap();
    stage.server.forget();
    let pod = stage.publish(e2e_node::agent::plain_pod("other", "b"));
    stage.server.fail(Rule::from(Fault::Status(500)).of("namespaces").on("get"));
    let Ended::Refused { text, .. } = stage.add(&pod).1 else { panic!("started") };
    assert!(text.contains("namespace other"), "{text}");
    stage.server.heal();
    stage.server.fail(Rule::from(Fault::Hang).on("watch"));
    assert!(!stage.add(&pod).1.is_left_alone());
}

/// The role lets the agent follow pods and no namespaces any more.
#[test]
fn a_label_that_the_broken_watch_did_not_tell_is_asked_for() {
    let stage = Stage::synced("stale", &["--ambient-enabled", "true"]);
    let pod = stage.publish(plain("a"));
    stage.await_known(&pod);
    stage.server.fail(Rule::from(Fault::Status(403)).on("watch").of("namespaces"));
    stage.server.fail(Rule::from(Fault::Status(403)).on("list").of("namespaces"));
    stage.server.drop_watches();
    let behind = || {
        let page = Page::get(stage.cluster.node.host.netns(), 15014, "/metrics");
        page.ok().and_then(|page| page.sample("sluice_watch_behind"))
    };
    stage.eventually("it is behind", || behind() == Some(1) && stage.log().contains("403"));
    assert!(stage.add(&pod).1.is_left_alone(), "asked for, and it has no label");
    let mut labelled = namespace(NAMESPACE);
    labelled["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "ambient"});
    stage.server.put(labelled).unwrap();
    stage.server.forget();
    assert!(!stage.add(&pod).1.is_left_alone(), "asked for, and it has");
    assert!(stage.server.count("get", "namespaces") > 0);
    // Whom labels do not make ambient does not wait for them.
    let sidecar = stage.publish(mesh("b"));
    stage.await_known(&sidecar);
    stage.server.forget();
    assert!(stage.add(&sidecar).1.is_captured());
    assert_eq!(stage.server.count("get", "namespaces"), 0);

    // Nobody answers: what was known last counts.
    let mut removed = namespace(NAMESPACE);
    removed["metadata"]["labels"] = json!({});
    stage.server.put(removed).unwrap();
    stage.eventually("asked for", || stage.add(&pod).1.is_left_alone());
    stage.server.fail(Rule::from(Fault::Hang).on("get").of("namespaces"));
    assert!(stage.add(&pod).1.is_left_alone());
}

#[test]
fn an_agent_starts_without_the_api() {
    let mut stage = Stage::bare("down");
    let pod = stage.publish(mesh("a"));
    stage.server.down().unwrap();
    stage.start(&[]);
    let Ended::Refused { code, text } = stage.add(&pod).1 else { panic!("started") };
    assert_eq!(code, 103, "{text}");
    assert!(text.contains("could not be asked for"), "{text}");
    stage.server.up().unwrap();
    // The next ADD has its answer, whether or not the agent has noticed.
    let ended = stage.add(&pod).1;
    assert!(ended.is_captured(), "{ended:?}");
    stage.await_sync();
}
