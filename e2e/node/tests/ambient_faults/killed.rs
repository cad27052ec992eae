//! The agent is killed at every moment of an ADD: the pod is captured or has not started.

use crate::stage::{Stage, Started, records};
use e2e_node::cluster::Pod;
use e2e_node::ztunnel::{Faults, Ztunnel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Moments of an ADD that are tried.
const MOMENTS: u32 = 8;

/// ADD of a pod, during which the agent is killed after this time.
fn interrupted(stage: &mut Stage, manifest: &Value, after: Duration) -> anyhow::Result<Pod> {
    let mut pod = stage.cluster.sandbox(manifest).unwrap();
    let pid = stage.cluster.agent.as_ref().unwrap().pid();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let cluster = &stage.cluster;
    let attached = std::thread::scope(|scope| {
        let attaching = scope.spawn(|| cluster.attach(&mut pod));
        std::thread::sleep(after);
        kill(pid, Signal::SIGKILL).unwrap();
        attaching.join().unwrap()
    });
    stage.cluster.agent.take().unwrap().kill().unwrap();
    attached.map(|()| pod)
}

/// The pod is with ztunnel, in its own namespace, and its traffic goes there.
fn is_captured(stage: &Stage, ztunnel: &Ztunnel, pod: &Started, peer: &Started) {
    let own = pod.pod.sandbox.netns().id();
    let is_up = |status: &e2e_node::ztunnel::Status| {
        let view = status.workloads.get(pod.uid());
        status.snapshot && view.is_some_and(|v| v.up && v.netns == Some((own.dev, own.ino)))
    };
    let status = ztunnel.wait("a pod of an ADD", is_up);
    let status = status.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    let mut seen = status.records.len();
    for v6 in [false, true] {
        let answer = stage.answer(&pod.pod.sandbox, peer.app(v6));
        assert_eq!(answer.peer, pod.ip(v6));
        assert_eq!(records(ztunnel, &mut seen).len(), 2, "{}", stage.cluster.agent_log());
    }
}

fn started(stage: &Stage, manifest: Value, pod: Pod) -> Started {
    let mut pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    pause = pause.timeout(Duration::from_secs(900));
    let mut pause = pause.start().unwrap();
    pause.wait_ready().unwrap();
    stage.publish(&manifest);
    Started { pod, manifest, _pause: pause }
}

fn killed(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("killed-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let peer = stage.start(stage.manifest("peer")).unwrap();
    let _server = stage.serve(&peer);
    let begun = Instant::now();
    let mut pods = vec![stage.start(stage.manifest("warm")).unwrap()];
    let whole = begun.elapsed();
    let mut completed = 0;
    for moment in 0..=MOMENTS {
        let manifest = stage.manifest(&format!("p{moment}"));
        // The last waits for ztunnel, however fast the rest is.
        let after = if moment == MOMENTS {
            let uid = manifest["metadata"]["uid"].as_str().unwrap().to_owned();
            let delay_ms = [(uid, 1500)].into();
            ztunnel.fail(Faults { delay_ms, ..Faults::default() }).unwrap();
            whole + Duration::from_millis(500)
        } else {
            whole * moment * 3 / (MOMENTS - 1) / 2
        };
        let result = interrupted(&mut stage, &manifest, after);
        ztunnel.fail(Faults::default()).unwrap();
        stage.start_agent();
        let pod = match result {
            Ok(pod) => {
                completed += 1;
                started(&stage, manifest, pod)
            }
            // As the runtime does: again, with a sandbox of its own.
            Err(_) => stage.start(manifest).unwrap(),
        };
        is_captured(&stage, &ztunnel, &pod, &peer);
        pods.push(pod);
    }
    println!("{backend}: an ADD takes {whole:?}; {completed} of {} were through", MOMENTS + 1);
    pods.push(peer);
    for pod in &pods {
        let name = &pod.manifest["metadata"]["name"];
        let check = stage.cluster.runtime().check(&stage.cluster.list, &pod.pod.attachment);
        check.unwrap_or_else(|why| panic!("{name}: {why:#}; {}", stage.cluster.agent_log()));
    }
    // No ghost of a sandbox that never was.
    let status = ztunnel.wait("as many pods as there are", |s| s.workloads.len() == pods.len());
    status.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
}

#[test]
fn during_an_add_with_nftables() {
    killed("nftables");
}

#[test]
fn during_an_add_with_iptables() {
    killed("iptables");
}

#[test]
fn a_pod_deleted_while_the_agent_is_dead_is_no_ghost() {
    let mut stage = Stage::with_manifests("killed-gone", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let [a, b] = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.cluster.runtime().delete(&stage.cluster.list, &a.pod.attachment).unwrap();
    std::fs::remove_file(stage.cluster.directories.pods.join("Pod-shop-a.json")).unwrap();
    let uid = a.uid().to_owned();
    drop(a);
    stage.start_agent();
    let status = ztunnel.wait("only the other", |s| s.snapshot && !s.workloads.contains_key(&uid));
    let status = status.unwrap_or_else(|why| panic!("{why:#}; {}", stage.cluster.agent_log()));
    assert!(status.workloads[b.uid()].up, "{status:#?}");
}
