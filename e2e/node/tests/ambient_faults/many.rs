//! Many pods at once, one of which ztunnel does not answer about.

use crate::stage::{Stage, Started};
use e2e_node::ztunnel::Faults;
use std::time::Instant;

/// The benchmark has 500; this is what a test has time for.
const PODS: usize = 40;

/// Longer than all others together may take on a busy machine. It is less than the
/// longest wait that the fake has.
const DELAY_MS: u64 = 60_000;

#[test]
fn one_late_answer_delays_nobody_else() {
    let stage = Stage::with_api("many", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let start = |n| stage.start(stage.manifest(&format!("p{n}"))).unwrap();
    let pods: Vec<Started> = (0..PODS).map(start).collect();
    let slow = pods[PODS / 3].uid().to_owned();
    let delay_ms = [(slow.clone(), DELAY_MS)].into();
    // What handles the pod is given up with the connection, as a task of the real one.
    ztunnel.fail(Faults { delay_ms, gives_up: true, ..Faults::default() }).unwrap();
    let begun = Instant::now();
    stage.label(Some("ambient"));
    let is_up = |s: &e2e_node::ztunnel::Status| {
        let up = |pod: &&Started| s.workloads.get(pod.uid()).is_some_and(|view| view.up);
        pods.iter().filter(|pod| pod.uid() != slow).filter(up).count() == PODS - 1
    };
    let status = ztunnel.wait("all others", is_up);
    status.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    let others = begun.elapsed();
    stage.eventually("the agent knows", |stage| {
        stage.cluster.agent_log().matches("captured for ztunnel").count() >= PODS - 1
    });
    let known = begun.elapsed();
    for pod in pods.iter().filter(|pod| pod.uid() != slow) {
        stage.eventually("others are said to be enrolled", |stage| {
            stage.redirection(pod).as_deref() == Some("enabled")
        });
    }
    assert!(begun.elapsed().as_millis() < u128::from(DELAY_MS), "they waited");
    let own = pods.iter().find(|pod| pod.uid() == slow).unwrap();
    assert_ne!(stage.redirection(own).as_deref(), Some("enabled"), "it is not said of the slow");
    ztunnel.fail(Faults::default()).unwrap();
    stage.eventually("the slow one", |stage| stage.redirection(own).as_deref() == Some("enabled"));
    let connections = ztunnel.status().unwrap().connections;
    println!(
        "{PODS} pods, one answer late: the others run in ztunnel after {others:?}, enrolled \
         after {known:?}; {connections} connections"
    );
}
