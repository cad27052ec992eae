//! What pods outside the mesh wait for while the agent is dead: printed, with a bound
//! that only a wait would break, since the machine is shared.

use crate::fault::Fault;
use crate::pod::{Kind, Subject};
use crate::stage::Stage;
use std::time::{Duration, Instant};

const PODS: usize = 20;

#[test]
fn outside_the_mesh_with_the_agent_dead() {
    let stage = Stage::set(Fault::AgentKilled);
    for (what, hints, known) in [("annotations", true, false), ("uid", false, true)] {
        let kind = Kind { mesh: false, hints, known };
        let subjects: Vec<_> = (0..PODS).map(|_| Subject::publish(&stage, kind)).collect();
        stage.await_known(&subjects);
        stage.kill();
        let mut ours = stage.chain();
        ours.plugins.remove(0);
        let add = |subject: &Subject| {
            let begun = Instant::now();
            stage.runtime().add(&ours, &subject.pod.attachment).unwrap();
            begun.elapsed()
        };
        let mut took: Vec<Duration> = subjects.iter().map(add).collect();
        took.sort();
        let (median, slowest) = (took[PODS / 2], took[PODS - 1]);
        println!(
            "agent dead, outside the mesh by {what}: ADD of ours p50 {median:?}, slowest {slowest:?}"
        );
        assert!(median < Duration::from_secs(5), "{median:?}");
        stage.start();
        stage.await_ready();
    }
}
