//! Ambient rules beyond a comparison of one set with one: two generations at once, as
//! for a moment of every conversion, and what the routing is for.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::conformance::{Case, Kind, cases};
use e2e_node::lab::Scratch;
use e2e_node::matrix::Stage;
use e2e_node::packet::{Fate, Fates};
use e2e_node::programs::Programs;
use e2e_node::rules::{Form, Script, Tool};
use std::sync::Arc;

struct Lab {
    scratch: Arc<Scratch>,
    programs: Programs,
}

impl Lab {
    fn create() -> Self {
        Self { scratch: Scratch::create().unwrap(), programs: Programs::find().unwrap() }
    }

    /// Fates of a case's packets with all of these rules loaded.
    fn fates(&self, name: &str, case: &Case, rules: &[(Form, Tool)], route: bool) -> Fates {
        let mut stage = Stage::set(&self.scratch, name, &case.facts, &self.programs).unwrap();
        let file = self.scratch.file("case.json", &case.numbered().unwrap()).unwrap();
        for (form, tool) in rules {
            let script = Script::of(case, &file, *form, *tool, &self.programs).unwrap();
            script.unwrap().load(&stage.hood.pod, *tool).unwrap();
        }
        if route {
            stage.route().unwrap();
        }
        stage.populate().unwrap();
        stage.fates().unwrap()
    }
}

fn case(name: &str) -> Option<Case> {
    let Some(cases) = cases(Kind::Ambient).unwrap() else {
        println!("shared/conformance is not there: left out");
        return None;
    };
    Some(cases.into_iter().find(|case| case.name == name).unwrap())
}

#[test]
fn two_generations_at_once_are_as_one() {
    let lab = Lab::create();
    for name in ["ambient/default_ipv6", "ambient/virtual_interfaces_ipv6"] {
        let Some(case) = case(name) else {
            return;
        };
        let one = lab.fates("one", &case, &[(Form::Own, Tool::Nft)], true);
        for old in [Tool::Iptables, Tool::Legacy] {
            let both = [(Form::Expected, old), (Form::Own, Tool::Nft)];
            let found = lab.fates("both", &case, &both, true);
            let differ = one.iter().filter(|(label, fate)| found[*label] != **fate);
            let lines: Vec<_> =
                differ.map(|(l, fate)| format!("{l}: {fate}, with both {}", found[l])).collect();
            assert!(lines.is_empty(), "{name} with {old:?}:\n{}", lines.join("\n"));
            println!("{name}: {} packets, the same with Istio's by {old:?} beside", one.len());
        }
    }
}

#[test]
fn without_its_route_a_reply_to_ztunnel_goes_to_the_client() {
    let Some(case) = case("ambient/default_ipv6") else {
        return;
    };
    let fates = Lab::create().fates("lost", &case, &[(Form::Own, Tool::Nft)], false);
    let spoofed = |label: &&String| label.starts_with("ztunnel") && label.contains(" from ");
    let labels: Vec<_> = fates.keys().filter(spoofed).collect();
    assert_eq!(labels.len(), 6, "{labels:?}");
    for label in labels {
        assert!(!matches!(fates[label], Fate::Answered(_)), "{label}: {}", fates[label]);
    }
}
