//! Many pods at once, and one that ztunnel is slow with. It handles one request after
//! the other, so those behind a slow one wait for it, and no longer.

use crate::stage::Stage;
use e2e_node::ztunnel::Faults;
use std::time::Instant;

/// How long ztunnel takes for the slow one.
const SLOW_MS: u64 = 700;

fn crowd(backend: &'static str, pods: usize) {
    let stage = Stage::with_api(&format!("crowd-{backend}"), backend);
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let manifests: Vec<_> = (0..pods).map(|n| stage.manifest(&format!("p{n}"))).collect();
    let slow = manifests[0]["metadata"]["uid"].as_str().unwrap().to_owned();
    ztunnel
        .fail(Faults { delay_ms: [(slow.clone(), SLOW_MS)].into(), ..Faults::default() })
        .unwrap();
    let begun = Instant::now();
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |manifest: &serde_json::Value| {
            let manifest = manifest.clone();
            let stage = &stage;
            scope.spawn(move || {
                let result = stage.start(manifest);
                (result, begun.elapsed())
            })
        };
        let threads: Vec<_> = manifests.iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut times = Vec::new();
    for (number, (result, took)) in results.iter().enumerate() {
        if let Err(error) = result {
            panic!("pod {number}: {error:#}");
        }
        times.push(*took);
    }
    times.sort();
    let (half, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{backend}: {pods} at once, one slow: p50 {half:?}, last {last:?}");
    let up = |s: &e2e_node::ztunnel::Status| s.workloads.values().filter(|w| w.up).count();
    let status = ztunnel.wait("all of them", |status| up(status) == pods).unwrap();
    assert_eq!(status.connections, 1, "nobody lost patience");
    assert!(status.workloads.contains_key(&slow));
}

#[test]
fn many_pods_start_at_once_with_nftables() {
    crowd("nftables", 40);
}

#[test]
fn many_pods_start_at_once_with_iptables() {
    crowd("iptables", 15);
}
