//! A plugin of version 1 may run by an entry that a newer installer wrote.

use crate::fault::Fault;
use crate::stage::Stage;
use e2e_node::programs::workspace;
use serde_json::Value;

#[test]
fn the_entry_says_what_version_1_reads() {
    let recorded = workspace().join("crates/wire/tests/version1/entry.json");
    let old: Value = serde_json::from_slice(&std::fs::read(recorded).unwrap()).unwrap();
    let stage = Stage::set(Fault::AgentKilled);
    let chain = stage.chain();
    let today = &chain.plugins[1].config;
    for (key, value) in old.as_object().unwrap() {
        // Which the runtime adds.
        if matches!(key.as_str(), "cniVersion" | "name") {
            continue;
        }
        let now = today.get(key).unwrap_or_else(|| panic!("{key} is gone: {today:?}"));
        let same = std::mem::discriminant(now) == std::mem::discriminant(value);
        assert!(same, "{key} was {value} and is {now}");
    }
    assert_eq!(today["capabilities"], old["capabilities"]);
    assert_eq!(today["cni_agent_run_dir"], stage.run_dir().to_str().unwrap());
    assert_eq!(today["pod_namespace"], "istio-system");
}
