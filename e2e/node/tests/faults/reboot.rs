//! Several at once, as they come: a node boots, its run directory is empty, and its
//! API server does not answer yet.

use crate::check;
use crate::fault::{Fault, wipe};
use crate::moment::batch;
use crate::pod::{Kind, Subject};
use crate::stage::Stage;

const OUTSIDE: Kind = Kind { mesh: false, hints: false, known: false };

#[test]
fn a_node_boots_before_its_api_server() {
    let stage = Stage::set(Fault::ApiDown);
    stage.kill();
    stage.server.down().unwrap();
    wipe(&stage.run_dir());

    // What does not need the agent comes first: the agent itself, and who is excluded.
    for (namespace, name) in [("istio-system", "istio-cni-node-new"), ("kube-system", "dns")] {
        let mut subject = Subject::named(&stage, OUTSIDE, namespace, name);
        subject.add(&stage);
        assert!(subject.started, "{subject:?}");
        subject.look(&stage);
        subject.del(&stage);
        stage.server.remove("pods", namespace, name);
    }
    let mut subjects: Vec<_> =
        Kind::all(false).into_iter().map(|kind| Subject::publish(&stage, kind)).collect();
    batch(&stage, &mut subjects);
    for subject in &mut subjects {
        assert!(!(subject.kind.mesh && subject.started), "{subject:?}");
        // By the runtime's word and the entry's: no snapshot outlives a boot.
        assert!(subject.started || subject.kind.mesh || !subject.kind.hints, "{subject:?}");
        subject.look(&stage);
    }

    // With the agent, but without an API server, the others go on waiting.
    stage.start();
    stage.await_serving();
    batch(&stage, &mut subjects);
    for subject in &mut subjects {
        assert!(!(subject.kind.mesh && subject.started), "{subject:?}");
        subject.look(&stage);
    }

    stage.server.up().unwrap();
    for subject in &mut subjects {
        stage.eventually("everybody starts with an API server", || {
            if !subject.started {
                subject.add(&stage);
            }
            subject.started
        });
        subject.look(&stage);
    }
    stage.await_ready();
    check::whole(&stage, &subjects);
    for subject in &mut subjects {
        subject.del(&stage);
        subject.withdraw(&stage);
    }
    check::tidy(&stage);
}
