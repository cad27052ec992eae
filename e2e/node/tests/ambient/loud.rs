//! A pod that stays stuck is told so in the cluster: an Event, a condition, a figure. And
//! that it is well again.

use crate::stage::{MODE, Stage, Started};
use e2e_node::agent::{NODE_NAME, plain_pod};
use e2e_node::cluster::NAMESPACE;
use e2e_node::ztunnel::Faults;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Retries grow up to half a minute, and nothing is said twice within ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

const CONDITION: &str = "sluice.dev/captured";

#[track_caller]
fn await_it(stage: &Stage, what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}; {}", stage.cluster.agent_log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Types and reasons of the Events about a pod.
fn events(stage: &Stage, uid: &str) -> Vec<(String, String)> {
    let all = stage.server.as_ref().unwrap().objects("events", NAMESPACE);
    let own = all.iter().filter(|event| event["involvedObject"]["uid"] == uid);
    let word = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    own.map(|event| (word(event, "type"), word(event, "reason"))).collect()
}

/// Status and reason of our condition.
fn condition(stage: &Stage, pod: &Started) -> Option<(String, String)> {
    let seen = stage.seen(pod);
    let all = seen["status"]["conditions"].as_array()?;
    let own = all.iter().find(|one| one["type"] == CONDITION)?;
    let word = |key: &str| own[key].as_str().unwrap().to_owned();
    Some((word("status"), word("reason")))
}

fn said(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.to_owned(), reason.to_owned()))
}

fn stuck(stage: &Stage, reason: &str) -> Option<f64> {
    stage.metric(&format!("sluice_stuck_pods{{reason=\"{reason}\"}}"))
}

fn refusing() -> Faults {
    Faults { refuse: [("*".to_owned(), 1_000_000)].into(), ..Faults::default() }
}

#[test]
fn what_ztunnel_refuses_is_said_and_taken_back() {
    let stage = Stage::with_api("loud-refused", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pod = stage.start(stage.manifest("p")).unwrap();
    ztunnel.fail(refusing()).unwrap();
    stage.label(Some("ambient"));
    let no = said("False", "ZtunnelRefused");
    await_it(&stage, "it is said that it is stuck", || condition(&stage, &pod) == no);
    let warned = ("Warning".to_owned(), "ZtunnelRefused".to_owned());
    assert_eq!(events(&stage, pod.uid()), std::slice::from_ref(&warned));
    assert_eq!(stuck(&stage, "not-accepted"), Some(1.0));
    ztunnel.fail(Faults::default()).unwrap();
    let yes = said("True", "Captured");
    await_it(&stage, "it is said that it is well", || condition(&stage, &pod) == yes);
    let well = ("Normal".to_owned(), "Captured".to_owned());
    assert_eq!(events(&stage, pod.uid()), [warned, well]);
    await_it(&stage, "it is counted no more", || stuck(&stage, "not-accepted") == Some(0.0));
    // Not to be captured any more: nothing is said of it.
    stage.label(None);
    await_it(&stage, "the condition is gone", || condition(&stage, &pod).is_none());
    assert_eq!(events(&stage, pod.uid()).len(), 2);
    let phase = stage.seen(&pod)["status"]["phase"].clone();
    assert_eq!(phase, "Running", "the rest of its status is as it was");
}

/// The agent waits for a minute before it calls it trouble: a ztunnel may be upgraded.
#[test]
fn that_no_ztunnel_is_there_is_said_of_each_pod_and_taken_back() {
    let stage = Stage::with_api("loud-alone", "nftables");
    let pods = ["p", "q"].map(|name| stage.start(stage.manifest(name)).unwrap());
    stage.label(Some("ambient"));
    let no = said("False", "NoZtunnel");
    await_it(&stage, "it is said that they are stuck", || {
        pods.iter().all(|pod| condition(&stage, pod) == no)
    });
    let warned = ("Warning".to_owned(), "NoZtunnel".to_owned());
    for pod in &pods {
        assert_eq!(events(&stage, pod.uid()), std::slice::from_ref(&warned));
        assert_ne!(stage.redirection(pod).as_deref(), Some("enabled"));
    }
    await_it(&stage, "both are counted", || stuck(&stage, "no-ztunnel") == Some(2.0));
    let _ztunnel = stage.ztunnel("zt");
    let yes = said("True", "Captured");
    await_it(&stage, "it is said that they are well", || {
        pods.iter().all(|pod| condition(&stage, pod) == yes)
    });
    let well = ("Normal".to_owned(), "Captured".to_owned());
    for pod in &pods {
        assert_eq!(events(&stage, pod.uid()), [warned.clone(), well.clone()]);
    }
    await_it(&stage, "nobody is counted", || stuck(&stage, "no-ztunnel") == Some(0.0));
}

#[test]
fn a_new_agent_takes_back_what_the_last_one_said() {
    let mut stage = Stage::with_api("loud-restart", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let pod = stage.start(stage.manifest("p")).unwrap();
    ztunnel.fail(refusing()).unwrap();
    stage.label(Some("ambient"));
    let no = said("False", "ZtunnelRefused");
    await_it(&stage, "it is said that it is stuck", || condition(&stage, &pod) == no);
    drop(stage.cluster.agent.take());
    ztunnel.fail(Faults::default()).unwrap();
    stage.start_agent();
    let yes = said("True", "Captured");
    await_it(&stage, "it is said that it is well", || condition(&stage, &pod) == yes);
}

#[test]
fn many_stuck_pods_do_not_flood_the_server() {
    const PODS: usize = 60;
    let stage = Stage::with_api("loud-many", "nftables");
    let server = stage.server.as_ref().unwrap();
    let begun = Instant::now();
    // They run nowhere.
    let pods: Vec<Value> = (0..PODS)
        .map(|number| {
            let mut pod = plain_pod(NAMESPACE, &format!("lost{number}"));
            pod["metadata"]["uid"] = json!(format!("0a1b2c3d-1111-4000-8000-{number:012}"));
            pod["metadata"]["labels"] = json!({MODE: "ambient"});
            pod["spec"]["nodeName"] = json!(NODE_NAME);
            pod["status"] = json!({"phase": "Running", "podIP": format!("192.0.2.{number}")});
            pod
        })
        .collect();
    pods.iter().for_each(|pod| server.put(pod.clone()).unwrap());
    let told = || server.objects("events", NAMESPACE).len();
    await_it(&stage, "each is said to be stuck", || {
        assert!(told() <= PODS, "more than one Event of a pod");
        told() == PODS && stuck(&stage, "namespace-not-found") == Some(PODS as f64)
    });
    // Twenty at once, five a second.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(7), "all in {took:?}");
    let all = server.objects("events", NAMESPACE);
    assert!(all.iter().all(|event| event["reason"] == "NetworkNamespaceNotFound"), "{all:?}");
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        server.remove("pods", NAMESPACE, name);
    }
    await_it(&stage, "none is counted", || stuck(&stage, "namespace-not-found") == Some(0.0));
}

#[test]
fn without_an_api_it_is_counted() {
    let stage = Stage::with_manifests("loud-manifests", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let mut pod = stage.start(stage.manifest("p")).unwrap();
    ztunnel.fail(refusing()).unwrap();
    // Another identity: ztunnel is to take it anew.
    pod.manifest["spec"]["serviceAccountName"] = json!("other");
    stage.publish(&pod.manifest);
    await_it(&stage, "it is counted", || stuck(&stage, "not-accepted") == Some(1.0));
    ztunnel.fail(Faults::default()).unwrap();
    await_it(&stage, "it is well", || stuck(&stage, "not-accepted") == Some(0.0));
}
