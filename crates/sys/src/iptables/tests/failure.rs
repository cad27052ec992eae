//! Errors: nothing half done, and words that help.

use super::fixture::{
    Lab, VARIANTS, basic, change, load, load_istio, namespace, ours, rich, rules, stem, suffix,
};
use crate::backend::{Applied, BackendError};
use crate::iptables::{Error, Iptables, Search, Variant};
use crate::netns::within;
use crate::process::Command;
use redirect::net::{Family, Owner};
use std::error::Error as _;

/// Makes the IPv6 tool refuse to load anything.
fn break_ipv6(lab: &Lab, variant: Variant) {
    let name = format!("{}-{}-restore", stem(Family::V6), suffix(variant));
    let lines = "echo 'line 3: CHAIN_ADD failed (Operation not supported)' >&2; exit 4";
    lab.tools.script(&name, lines);
}

#[test]
fn a_failure_of_the_second_family_takes_back_the_first() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        break_ipv6(&lab, variant);
        let ns = namespace();
        let err = lab.apply(&ns, &ours(&rich(true)), None).unwrap_err();
        assert!(err.to_string().starts_with("load IPv6 rules: table mangle, '-N ISTIO_"), "{err}");
        let cause = err.source().unwrap().to_string();
        assert!(cause.ends_with("line 3: CHAIN_ADD failed (Operation not supported)"), "{cause}");
        assert_eq!(rules(&ns, variant, Family::V4), "", "{variant}");
        assert!(!err.is_transient());
    }
}

#[test]
fn a_running_pod_keeps_its_rules_when_a_repair_fails() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let ns = namespace();
        lab.apply(&ns, &ours(&basic(true)), None).unwrap();
        break_ipv6(&lab, variant);
        for family in [Family::V4, Family::V6] {
            change(&ns, variant, family, "-t nat -F ISTIO_OUTPUT");
        }
        lab.apply(&ns, &ours(&basic(true)), None).unwrap_err();
        let seen = lab.observe(&ns, &ours(&basic(true)));
        assert!(seen.lines().all(|line| line.starts_with("- ip6tables ")), "{seen}");
    }
}

#[test]
fn part_of_a_family_is_taken_back_too() {
    // Tables are loaded one by one; the file's later tables fail here, since
    // there is a chain already that no rule of ours may jump to.
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let name = format!("{}-{}-restore", stem(Family::V4), suffix(variant));
        let lines = format!(
            "if [ -e {0}/once ]; then exec /usr/sbin/{name} \"$@\"; fi\n\
             : > {0}/once\n/bin/sed '0,/^COMMIT/!s/^COMMIT/nonsense/' | /usr/sbin/{name} \"$@\"",
            lab.tools.0.display()
        );
        lab.tools.script(&name, &lines);
        let ns = namespace();
        lab.apply(&ns, &ours(&rich(false)), None).unwrap_err();
        assert_eq!(rules(&ns, variant, Family::V4), "", "{variant}");
        let applied = lab.apply(&ns, &ours(&rich(false)), None).unwrap();
        assert_eq!(applied, Applied::Created);
    }
}

#[test]
fn rules_are_taken_back_when_routing_fails() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let ns = namespace();
        let switch = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        within(&ns, || std::fs::write(switch, "1")).unwrap().unwrap();
        let err = lab.apply(&ns, &ours(&rich(true)), None).unwrap_err();
        assert!(matches!(err, BackendError::Ipv6Disabled { .. }), "{err}");
        for family in [Family::V4, Family::V6] {
            assert_eq!(rules(&ns, variant, family), "", "{variant}");
        }
        let left = within(&ns, || crate::routing::missing(&ours(&rich(false)).routing));
        assert_eq!(left.unwrap().unwrap().len(), 2, "rule and route are gone again");
    }
}

#[test]
fn tables_of_ipv6_that_cannot_be_read_are_no_reason_to_refuse_a_pod_without() {
    let lab = Lab::new(Variant::Nft);
    lab.tools.script("ip6tables-nft-save", "echo 'Parsing nftables rule failed' >&2; exit 3");
    let ns = namespace();
    load(&ns, Variant::Nft, Family::V6, "*nat\n-A OUTPUT -p 255 -j RETURN\nCOMMIT\n");
    assert_eq!(lab.apply(&ns, &ours(&basic(false)), None).unwrap(), Applied::Created);
    lab.apply(&ns, &ours(&basic(true)), None).unwrap_err();
}

#[test]
fn without_ip6tables_only_ipv6_fails() {
    let tools = super::fixture::Directory::new();
    for program in ["iptables-nft", "iptables-nft-save", "iptables-nft-restore"] {
        tools.script(program, &format!("exec /usr/sbin/{program} \"$@\""));
    }
    let backend = Iptables::detect_with(&Search { dirs: vec![tools.0.clone()], force: None });
    let lab = Lab { backend: backend.unwrap(), tools };
    let ns = namespace();
    lab.apply(&ns, &ours(&basic(false)), None).unwrap();
    let err = lab.apply(&ns, &ours(&basic(true)), None).unwrap_err();
    assert_eq!(
        err.to_string(),
        "IPv6 rules are wanted: no usable ip6tables: ip6tables-legacy: not installed; \
         ip6tables-nft: not installed; ip6tables: not installed"
    );
    assert!(lab.backend.describe().contains("no IPv6: no usable"));
    lab.remove(&ns).unwrap();
}

#[test]
fn a_name_of_a_user_is_refused_before_anything_is_run() {
    let lab = Lab::new(Variant::Nft);
    let mut plan = basic(false);
    plan.proxy.uids = vec![Owner::Name("istio-proxy".to_owned())];
    let ns = namespace();
    let err = lab.apply(&ns, &ours(&plan), None).unwrap_err();
    assert!(matches!(err, BackendError::OwnerName { name } if name == "istio-proxy"));
    assert_eq!(lab.executions(), [""; 0]);
}

#[test]
fn a_table_of_native_nft_is_named() {
    let lab = Lab::new(Variant::Nft);
    let ns = namespace();
    let command = Command::new("/usr/sbin/nft").args([
        "add table ip nat; add chain ip nat OUTPUT { type filter hook output priority 5; }",
    ]);
    within(&ns, || command.run()).unwrap().unwrap();
    let err = lab.apply(&ns, &ours(&basic(false)), None).unwrap_err();
    assert!(
        matches!(&err, BackendError::Iptables(Error::Incompatible { note }) if note.contains("`nat'")),
        "{err}"
    );

    // One that is not needed is no obstacle.
    let ns = namespace();
    let command = Command::new("/usr/sbin/nft").args([
        "add table ip filter; add chain ip filter OUTPUT { type filter hook output priority 5; }",
    ]);
    within(&ns, || command.run()).unwrap().unwrap();
    assert_eq!(lab.apply(&ns, &ours(&basic(false)), None).unwrap(), Applied::Created);
    lab.remove(&ns).unwrap();
}

#[test]
fn remove_goes_on_past_errors() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let ns = namespace();
        load_istio(&ns, variant, &rich(true));
        let name = format!("{}-{}-save", stem(Family::V4), suffix(variant));
        lab.tools.script(&name, "echo broken >&2; exit 3");
        let errors = lab.remove(&ns).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().ends_with("exit status 3: broken"));
        assert_eq!(rules(&ns, variant, Family::V6), "");
        assert_ne!(rules(&ns, variant, Family::V4), "");
    }
}

#[test]
fn output_that_is_no_dump_is_an_error() {
    let lab = Lab::new(Variant::Nft);
    let ns = namespace();
    load(&ns, Variant::Nft, Family::V4, "*nat\n-A OUTPUT -p 255 -j RETURN\nCOMMIT\n");
    for (text, quoted) in [
        ("*nat", "*nat without COMMIT"),
        ("hello", "hello"),
        ("COMMIT", "COMMIT"),
        ("*nat\\n-X FOO", "-X FOO"),
    ] {
        lab.tools.script("iptables-nft-save", &format!("/usr/bin/printf '{text}\\n'"));
        let err = lab.apply(&ns, &ours(&basic(false)), None).unwrap_err();
        assert!(err.to_string().contains(&format!("'{quoted}'")), "{err}");
    }
}
