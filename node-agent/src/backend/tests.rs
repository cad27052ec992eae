//! What the backend of a node does with rules for ztunnel that others left in a pod.

use super::*;
use redirect::ambient::{Ipv6, PROBE_V4, PROBE_V6, ProbePorts};
use sys::netns::{Netns, within};
use sys::process::Command;

fn plan() -> AmbientPlan {
    AmbientPlan {
        ipv6: Ipv6::Present,
        inbound: true,
        dns: false,
        virtual_interfaces: Vec::new(),
        probe_v4: PROBE_V4,
        probe_v6: PROBE_V6,
        probe_ports: ProbePorts::Only(vec![8080]),
    }
}

fn load(program: &str, args: &[&str], input: &str) -> String {
    let done = Command::new(program).args(args).stdin(input.as_bytes()).run().unwrap();
    String::from_utf8(done.stdout).unwrap()
}

/// As Istio's agent leaves a pod of the same options, by iptables-nft.
fn load_istios() {
    let rules = ambient(&plan(), Form::Istio(Dialect::Iptables));
    for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        let text = redirect::iptables::render(&rules, family);
        load(&format!("/usr/sbin/{program}-nft-restore"), &["--noflush"], &text);
    }
    sys::routing::ensure(&rules.routing).unwrap();
}

/// The default image has no iptables.
fn bare() -> NodeBackend {
    NodeBackend::unproved(BackendKind::Nftables, &Search { dirs: Vec::new(), force: None })
}

#[test]
fn rules_of_iptables_nft_are_converted_and_removed_without_iptables() {
    within(&Netns::create().unwrap(), || {
        let backend = bare();
        load_istios();
        assert!(!backend.observe(&plan()).unwrap().is_empty(), "Istio's are not ours");
        let done = backend.program(&plan()).unwrap();
        assert_eq!((done.kind, done.applied), (BackendKind::Nftables, Applied::Replaced));
        assert_eq!(backend.observe(&plan()).unwrap().to_string(), "");
        let list = load("/usr/sbin/nft", &["list", "ruleset"], "");
        assert!(!list.contains("ISTIO_"), "{list}");
        assert_eq!(backend.program(&plan()).unwrap().applied, Applied::Unchanged);

        load_istios();
        assert!(!backend.observe(&plan()).unwrap().is_empty(), "they are beside ours");
        backend.clear().unwrap();
        assert!(backend.is_bare().unwrap());
    })
    .unwrap();
}

#[test]
fn istios_form_is_converted_by_the_same_backend() {
    within(&Netns::create().unwrap(), || {
        let backend = bare();
        let istios = ambient(&plan(), Form::Istio(Dialect::Nftables));
        load("/usr/sbin/nft", &["-f", "-"], &redirect::nft::render(&istios));
        sys::routing::ensure(&istios.routing).unwrap();
        let diff = backend.observe(&plan()).unwrap();
        assert!(!diff.is_empty(), "it lets kubelet's address pass to every port");
        assert_eq!(backend.program(&plan()).unwrap().applied, Applied::Replaced);
        assert_eq!(backend.observe(&plan()).unwrap().to_string(), "");
    })
    .unwrap();
}

#[test]
fn legacy_rules_are_looked_at_each_time() {
    within(&Netns::create().unwrap(), || {
        let before = generation().unwrap();
        load("/usr/sbin/nft", &["add", "table", "inet", "somebodys"], "");
        assert_ne!(generation().unwrap(), before);
        load("/usr/sbin/ip6tables-legacy", &["-w", "60", "-t", "nat", "-N", "SOMEBODYS"], "");
        assert_eq!(generation(), None);
    })
    .unwrap();
}
