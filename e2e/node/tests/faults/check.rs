//! The one invariant of all cells.

use crate::fault::Fault;
use crate::pod::Subject;
use crate::stage::Stage;
use e2e_node::host::{PLUGIN, PRIMARY};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Pods that need not wait did not.
#[track_caller]
pub(crate) fn started_at_once(fault: Fault, subjects: &[Subject], away: bool) {
    for subject in subjects {
        let must = fault.starts_at_once(subject.kind, away);
        assert!(subject.started || !must, "{}: it need not wait: {subject:?}", fault.name());
    }
}

/// The fault is over, and these pods run: nothing is lost.
#[track_caller]
pub(crate) fn whole(stage: &Stage, running: &[Subject]) {
    // Of ours alone: a bridge without an address of its own takes a port's, and then
    // its plugin's CHECK finds another than it had.
    let mut ours = stage.chain();
    ours.plugins.remove(0);
    for subject in running {
        let checked = stage.runtime().check(&ours, &subject.pod.attachment);
        checked.unwrap_or_else(|error| panic!("{subject:?}: CHECK: {error:#}; {}", stage.log()));
    }
    // A record for each captured pod, and for nobody else.
    let records = stage.run_dir().join("sandboxes");
    let captured = running.iter().filter(|s| s.kind.mesh && !s.record_lost);
    let expected: BTreeSet<String> =
        captured.clone().map(|s| format!("{}.json", s.pod.attachment.container)).collect();
    // DEL waits for the agent for a moment only, which then still does it.
    stage.eventually(&format!("the records are {expected:?}"), || names(&records) == expected);
    for subject in captured {
        let path = records.join(format!("{}.json", subject.pod.attachment.container));
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(record["pod"]["name"], subject.name, "{record}");
    }
    // Who passed unseen was looked at, and rightly did.
    let passed = stage.run_dir().join("passed");
    stage.eventually("what passed is audited", || names(&passed).is_empty());
    let log = stage.log();
    assert!(!log.contains("passed uncaptured"), "{log}");
    // The plugin could do without the agent again.
    stage.await_known(running);
    // The chain is the primary's newest and ours, and the primary is its owner's.
    let primary = stage.primary.lock().unwrap().clone();
    let mtu = serde_json::from_str::<Value>(&primary).unwrap()["plugins"][0]["mtu"].clone();
    stage.eventually("the primary is followed", || {
        stage.chain().plugins[0].config.get("mtu") == Some(&mtu)
    });
    assert_eq!(std::fs::read_to_string(stage.host.net.join(PRIMARY)).unwrap(), primary);
    stage.eventually("the plugin is the image's", || stage.host.is_current().unwrap_or(false));
}

/// All pods are gone: nothing is left.
#[track_caller]
pub(crate) fn tidy(stage: &Stage) {
    let run = stage.run_dir();
    let ipam = stage.cluster.node.host.scratch().path().join("ipam/pods");
    let leases = || names(&ipam).into_iter().filter(|name| name.starts_with("10.")).count();
    assert_eq!(leases(), 0, "addresses");
    for directory in ["sandboxes", "passed"] {
        let path = run.join(directory);
        stage.eventually(&format!("nothing is in {directory}"), || names(&path).is_empty());
    }
    let own =
        ["log.sock", "operator.sock", "passed", "pluginevent.sock", "sandboxes", "snapshot.json"];
    let own = BTreeSet::from(own.map(str::to_owned));
    stage.eventually("nothing but what belongs there", || {
        let mut there = names(&run);
        // Made when it is needed.
        there.insert("passed".to_owned());
        there == own
    });
    age_leftovers(stage);
    let net = names(&stage.host.net);
    let ours = net.iter().filter(|name| name.as_str() != PRIMARY).collect::<Vec<_>>();
    assert!(matches!(ours[..], [name] if name.ends_with("istio-cni.conflist")), "{net:?}");
    assert_eq!(names(&stage.host.bin), BTreeSet::from([PLUGIN.to_owned()]));
    stage.chain();
}

/// What an installer that was killed was writing stays for some seconds, in case
/// that another one writes it still. They are made to have passed.
fn age_leftovers(stage: &Stage) {
    let directories = [&stage.host.net, &stage.host.bin];
    let find = || {
        let all = directories.iter().flat_map(|dir| {
            names(dir).into_iter().filter(|name| name.starts_with('.')).map(|name| dir.join(name))
        });
        all.collect::<Vec<_>>()
    };
    for path in find() {
        let before = SystemTime::now() - Duration::from_secs(60);
        // It may be swept meanwhile.
        if let Ok(file) = std::fs::File::options().write(true).open(path) {
            file.set_modified(before).unwrap();
        }
    }
    if !find().is_empty() {
        // The installer looks when something changes.
        let primary = stage.host.net.join(PRIMARY);
        let text = std::fs::read(&primary).unwrap();
        std::fs::write(&primary, text).unwrap();
        stage.eventually("leftovers are swept", || find().is_empty());
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
