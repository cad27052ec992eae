//! From what iptables left, by Istio or by us, to our tables.

use super::*;
use crate::backend::{clear, convert};
use crate::iptables::{Iptables, Search, Variant};
use crate::lab::ambient_plan;
use redirect::ambient::{AmbientPlan, Ipv6};
use redirect::compile::ambient;
use redirect::desired::{Dialect, Form};
use redirect::net::Family;

fn plan() -> AmbientPlan {
    AmbientPlan { virtual_interfaces: vec!["br-*".parse().unwrap()], ..ambient_plan() }
}

/// Loads Istio's iptables rules by the tool that Istio uses.
fn load_istios(variant: &str) {
    let istio = ambient(&plan(), Form::Istio(Dialect::Iptables));
    for (tool, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        let text = redirect::iptables::render(&istio, family);
        run(&format!("{tool}-{variant}-restore --noflush"), &text);
    }
    routing::ensure(&istio.routing).unwrap();
}

fn saved(variant: &str) -> String {
    let mut all = String::new();
    for tool in ["iptables", "ip6tables"] {
        all.push_str(&run(&format!("{tool}-{variant}-save"), ""));
    }
    all
}

fn iptables(force: Variant) -> Iptables {
    Iptables::detect_with(&Search { force: Some(force), ..Search::default() }).unwrap()
}

#[test]
fn what_iptables_nft_left_goes_in_the_same_batch() {
    let want = ambient(&plan(), Form::Sluice);
    fresh(|| {
        load_istios("nft");
        nft("add rule ip nat OUTPUT counter accept\nadd chain ip nat MINE\n\
             add rule ip nat MINE counter drop");
        let found = observe(&want);
        assert!(found.contains("+ chain ip nat ISTIO_PRERT"), "{found}");
        let before = generation().unwrap();
        assert_eq!(apply(&want), Applied::Replaced);
        assert_eq!(generation().unwrap(), before + 1, "one transaction");
        assert_eq!(observe(&want), "");
        assert_eq!(apply(&want), Applied::Unchanged);
        let left = listing();
        assert!(!left.contains("ISTIO_"), "{left}");
        assert!(left.contains("chain MINE") && left.contains("accept"), "a stranger's: {left}");
        assert!(iptables_residue().unwrap().is_empty());
    });
}

#[test]
fn ours_over_a_sidecars_and_over_istios_own() {
    let want = ambient(&plan(), Form::Sluice);
    let sidecar = plans::compiled().into_iter().find(|(name, _)| name == "tproxy dual, ours");
    let istio = ambient(&plan(), Form::Istio(Dialect::Nftables));
    for old in [sidecar.unwrap().1, istio] {
        fresh(|| {
            apply(&old);
            let before = generation().unwrap();
            assert_eq!(apply(&want), Applied::Replaced);
            assert_eq!(generation().unwrap(), before + 1, "one transaction");
            assert_eq!(observe(&want), "");
            assert!(!listing().contains("istio-proxy"));
            let left = routing::missing(&routing::stale(&want.routing)).unwrap();
            assert_eq!(left.len(), 5, "::6, two rules, two routes: {left:?}");
        });
    }
}

#[test]
fn either_backend_converts_what_the_other_left_and_clears_everything() {
    let want = ambient(&plan(), Form::Sluice);
    let nftables = Nftables::new();
    for variant in [Variant::Legacy, Variant::Nft] {
        let iptables = iptables(variant);
        let name = if variant == Variant::Legacy { "legacy" } else { "nft" };
        fresh(|| {
            load_istios(name);
            let done = convert(&nftables, Some(&iptables), &want).unwrap();
            assert_eq!(done, Applied::Replaced);
            assert!(!saved(name).contains("ISTIO_"), "{}", saved(name));
            assert_eq!(observe(&want), "");

            let done = convert(&iptables, Some(&nftables), &want).unwrap();
            assert_eq!(done, Applied::Replaced);
            assert_eq!(observe(&Desired::default()), "");
            assert_eq!(iptables.observe(&want).unwrap().to_string(), "");
            assert_eq!(iptables.apply(&want, None).unwrap(), Applied::Unchanged);

            nftables.apply(&want, None).unwrap();
            clear(&[&nftables, &iptables]).unwrap();
            assert_eq!(observe(&Desired::default()), "");
            assert!(!saved(name).contains("ISTIO_"));
            assert_eq!(routing::missing(&routing::everything()).unwrap().len(), 9);
            clear(&[&nftables, &iptables]).unwrap();
        });
    }
}

#[test]
fn iptables_alone_knows_istios_rules_and_drops_stale_tables() {
    let off = AmbientPlan { dns: false, ipv6: Ipv6::Absent, ..plan() };
    for variant in [Variant::Legacy, Variant::Nft] {
        let iptables = iptables(variant);
        let name = if variant == Variant::Legacy { "legacy" } else { "nft" };
        fresh(|| {
            load_istios(name);
            let istio = ambient(&plan(), Form::Istio(Dialect::Iptables));
            let ours = ambient(&plan(), Form::Sluice);
            assert_eq!(iptables.observe(&istio).unwrap().to_string(), "");
            let done = iptables.apply(&ours, Some(&istio)).unwrap();
            assert_eq!(done, Applied::Unchanged, "Istio's count as equal");
            assert_eq!(iptables.apply(&ours, None).unwrap(), Applied::Replaced);
            assert_eq!(iptables.observe(&ours).unwrap().to_string(), "");
            let off = ambient(&off, Form::Sluice);
            assert_eq!(iptables.apply(&off, None).unwrap(), Applied::Replaced);
            let left = saved(name);
            assert!(!left.contains("--zone"), "raw is kept by Istio (10.1 #13): {left}");
            assert!(!left.contains("::1/128"), "{left}");
            let v6 = routing::missing(&routing::everything()).unwrap();
            assert!(v6.contains(&"ip -6 rule fwmark 0x111/0xfff lookup 100".to_owned()), "{v6:?}");
            iptables.remove().unwrap();
            assert!(!saved(name).contains("ISTIO_"));
        });
    }
}

#[test]
fn without_iptables_its_chains_can_be_removed_too() {
    fresh(|| {
        assert!(!remove_compat().unwrap());
        load_istios("nft");
        assert!(remove_compat().unwrap());
        assert!(!listing().contains("ISTIO_"), "{}", listing());
        assert!(!remove_compat().unwrap());
    });
}
