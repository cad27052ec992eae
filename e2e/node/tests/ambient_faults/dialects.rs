//! The agent comes back with the other backend: kubelet's probes pass at every moment of
//! that, by the old rules of the host or by the new.

use crate::kubelet::{Kubelet, SOURCES};
use crate::stage::Stage;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const PODS: usize = 6;

/// Probes that still pass when only the new rules are there.
const AFTER: u32 = 30;

fn switched(from: &'static str, to: &'static str) {
    let mut stage = Stage::with_api(&format!("dialect-{}", &from[..3]), from);
    stage.label(Some("ambient"));
    let mut kubelet = Kubelet::start(&stage);
    // So that it looks for kubelet at once.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent();
    let _ztunnel = stage.ztunnel("zt");
    kubelet.await_known(&stage);
    let pods: Vec<_> =
        (0..PODS).map(|n| stage.start(stage.probed(&format!("p{n}"))).unwrap()).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| stage.serve(pod)).collect();
    let apps = [false, true].map(|v6| pods[PODS / 2].app(v6));
    assert!(apps.iter().all(|app| kubelet.passes(*app)));

    let (stop, probes) = (AtomicBool::new(false), AtomicU32::new(0));
    let captured = std::thread::scope(|scope| {
        let (kubelet, stop, probes) = (&mut kubelet, &stop, &probes);
        let prober = scope.spawn(move || {
            let mut captured = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for app in apps {
                    let line = kubelet.probe(app);
                    let source = SOURCES[usize::from(app.is_ipv6())].to_string();
                    if !line.contains(&source) || !line.contains("\"app\"") {
                        captured.push(line);
                    }
                    probes.fetch_add(1, Ordering::Relaxed);
                }
            }
            captured
        });
        // Whatever fails in here, the prober is to end.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stage.cluster.agent.take().unwrap().kill().unwrap();
            stage.backend = to;
            stage.start_agent();
            stage.eventually("the old rules are gone", |stage| {
                let list = stage.cluster.node.host.load(&["nft", "list", "ruleset"], "");
                let (old, new) = match to {
                    "nftables" => ("SLUICE_PROBE", "table inet sluice-probe"),
                    _ => ("table inet sluice-probe", "SLUICE_PROBE"),
                };
                list.is_ok_and(|list| !list.contains(old) && list.contains(new))
            });
            let more = probes.load(Ordering::Relaxed) + AFTER;
            stage.eventually("kubelet goes on", |_| probes.load(Ordering::Relaxed) >= more);
        }));
        stop.store(true, Ordering::Relaxed);
        let captured = prober.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        captured
    });
    println!("{from} to {to}: {} of {} probes", captured.len(), probes.load(Ordering::Relaxed));
    assert_eq!(captured, Vec::<String>::new(), "{}", stage.cluster.agent_log());
}

#[test]
fn kubelets_probes_pass_from_nftables_to_iptables() {
    switched("nftables", "iptables");
}

#[test]
fn kubelets_probes_pass_from_iptables_to_nftables() {
    switched("iptables", "nftables");
}
