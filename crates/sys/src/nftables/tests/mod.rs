//! Against the real kernel, each in a namespace of its own that nothing keeps.

mod convert;
mod drift;
mod golden;
mod plans;
mod random;
mod reading;
mod userns;

use super::*;
use crate::lab::{fresh, nft, run};

/// `nft list ruleset` with counters set to zero.
fn listing() -> String {
    let text = run("nft list ruleset", "");
    let mut words: Vec<&str> = text.split(' ').collect();
    for i in 1..words.len() {
        if matches!(words[i - 1], "packets" | "bytes") {
            words[i] = "0";
        }
    }
    words.join(" ")
}

fn observe(want: &Desired) -> String {
    Nftables::new().observe(want).unwrap().to_string()
}

fn apply(want: &Desired) -> Applied {
    Nftables::new().apply(want, None).unwrap()
}

#[test]
fn creates_then_leaves_alone() {
    for (name, want) in plans::compiled() {
        fresh(|| {
            assert_ne!(observe(&want), "", "{name}");
            assert_eq!(apply(&want), Applied::Created, "{name}");
            assert_eq!(observe(&want), "", "{name}");
            let before = generation().unwrap();
            assert_eq!(apply(&want), Applied::Unchanged, "{name}");
            assert_eq!(generation().unwrap(), before, "{name}: something was written");
        });
    }
}

#[test]
fn other_form_counts_as_equal() {
    for (name, istio, ours) in plans::both_forms() {
        fresh(|| {
            nft(&redirect::nft::render(&istio));
            let before = generation().unwrap();
            let applied = Nftables::new().apply(&ours, Some(&istio)).unwrap();
            // Routing is not nft's business.
            let routed = !ours.routing.loopback.is_empty() || !ours.routing.marks.is_empty();
            let expected = if routed { Applied::Replaced } else { Applied::Unchanged };
            assert_eq!(applied, expected, "{name}");
            assert_eq!(generation().unwrap(), before, "{name}: something was written");
        });
    }
}

#[test]
fn removes_all_of_ours_and_nothing_else() {
    for (name, want) in plans::compiled() {
        fresh(|| {
            let foreign = "add table inet other\nadd chain inet other istio-output\n\
                           add table ip istio-proxy-nat\n";
            nft(foreign);
            let before = listing();
            routing::bring_loopback_up().unwrap();
            apply(&want);
            Nftables::new().remove().unwrap();
            assert_eq!(listing(), before, "{name}");
            let left = routing::missing(&routing::everything()).unwrap();
            assert_eq!(left.len(), 9, "{name}: {left:?}");
            Nftables::new().remove().unwrap();
        });
    }
}

#[test]
fn names_of_owners_are_refused() {
    let (_, mut want) = plans::compiled().remove(0);
    let rule = &mut want.tables[0].chains[0].rules[0];
    let java = redirect::net::Owner::Name("java".to_owned());
    rule.matches.push(redirect::desired::Match::Gid(redirect::desired::Is::Eq(java)));
    fresh(|| {
        let error = Nftables::new().apply(&want, None).unwrap_err();
        assert!(error.to_string().contains("'java'"), "{error}");
        assert_eq!(listing(), "");
    });
}
