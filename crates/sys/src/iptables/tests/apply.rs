//! Apply, observe and remove.

use super::fixture::{
    Lab, VARIANTS, basic, change, dump, families, istio, load, load_istio, namespace, ours, plans,
    rich, rules, stem, suffix,
};
use crate::backend::Applied;
use crate::netns::within;
use crate::routing;
use redirect::net::Family;

#[test]
fn a_fresh_namespace_takes_one_restore_a_family_and_no_look() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for (name, plan) in plans() {
            for want in [ours(&plan), istio(&plan)] {
                let ns = namespace();
                lab.executions();
                assert_eq!(lab.apply(&ns, &want, None).unwrap(), Applied::Created);
                let ran: Vec<String> = families(&plan)
                    .iter()
                    .map(|family| format!("{}-{}-restore", stem(*family), suffix(variant)))
                    .collect();
                assert_eq!(lab.executions(), ran, "{name}");
                assert_eq!(lab.observe(&ns, &want), "", "{variant} {name}");
            }
        }
    }
}

#[test]
fn the_second_time_nothing_is_written() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for (name, plan) in plans() {
            let want = ours(&plan);
            let ns = namespace();
            lab.apply(&ns, &want, None).unwrap();
            let before = [Family::V4, Family::V6].map(|family| dump(&ns, variant, family));
            lab.executions();
            for _ in 0..2 {
                let applied = lab.apply(&ns, &want, Some(&istio(&plan))).unwrap();
                assert_eq!(applied, Applied::Unchanged, "{variant} {name}");
            }
            let ran = lab.executions();
            assert!(ran.iter().all(|name| name.ends_with("-save")), "{ran:?}");
            let after = [Family::V4, Family::V6].map(|family| dump(&ns, variant, family));
            assert_eq!(before, after, "{variant} {name}");
        }
    }
}

#[test]
fn what_istio_programmed_is_left_alone() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for (name, plan) in plans() {
            let ns = namespace();
            load_istio(&ns, variant, &plan);
            let before = rules(&ns, variant, Family::V4);
            lab.executions();
            // Routing is not in the file; it is written the first time.
            lab.apply(&ns, &ours(&plan), Some(&istio(&plan))).unwrap();
            let applied = lab.apply(&ns, &ours(&plan), Some(&istio(&plan))).unwrap();
            assert_eq!(applied, Applied::Unchanged, "{variant} {name}");
            assert_eq!(rules(&ns, variant, Family::V4), before);
            let ran = lab.executions();
            assert!(ran.iter().all(|name| name.ends_with("-save")), "{ran:?}");
            // Not when the form is not offered as equal.
            let applied = lab.apply(&ns, &ours(&plan), None).unwrap();
            assert_eq!(applied, Applied::Replaced, "{variant} {name}");
            assert_eq!(lab.observe(&ns, &ours(&plan)), "");
        }
    }
}

#[test]
fn drift_is_seen_and_repaired_by_one_restore() {
    let drifts = [
        (Family::V4, "-t nat -D ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN"),
        (Family::V4, "-t nat -F ISTIO_IN_REDIRECT"),
        (Family::V4, "-t nat -D OUTPUT -j ISTIO_OUTPUT"),
        (Family::V4, "-t nat -A OUTPUT -j ISTIO_OUTPUT"),
        (Family::V4, "-t nat -I ISTIO_OUTPUT -d 192.0.2.0/24 -j RETURN"),
        (Family::V4, "-t nat -N ISTIO_LEFTOVER"),
        (Family::V6, "-t mangle -I ISTIO_DIVERT -j ACCEPT"),
        (
            Family::V6,
            "-t mangle -D OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
        ),
        (Family::V4, "-t raw -F"),
        (Family::V4, "-t mangle -I PREROUTING -i eth9 -j RETURN"),
    ];
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let want = ours(&rich(true));
        let ns = namespace();
        lab.apply(&ns, &want, None).unwrap();
        let clean = [Family::V4, Family::V6].map(|family| rules(&ns, variant, family));
        for (family, words) in drifts {
            change(&ns, variant, family, words);
            assert_ne!(lab.observe(&ns, &want), "", "{variant} {words}");
            lab.executions();
            let applied = lab.apply(&ns, &want, None).unwrap();
            assert_eq!(applied, Applied::Replaced, "{variant} {words}");
            let mut ran = lab.executions();
            ran.retain(|name| name.ends_with("-restore"));
            let one = format!("{}-{}-restore", stem(family), suffix(variant));
            assert_eq!(ran, [one], "{variant} {words}");
            let after = [Family::V4, Family::V6].map(|family| rules(&ns, variant, family));
            assert_eq!(after, clean, "{variant} {words}");
        }
    }
}

#[test]
fn an_order_that_differs_is_drift() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let want = ours(&basic(false));
        let ns = namespace();
        lab.apply(&ns, &want, None).unwrap();
        let rule = "ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN";
        change(&ns, variant, Family::V4, &format!("-t nat -D {rule}"));
        change(&ns, variant, Family::V4, &format!("-t nat -A {rule}"));
        let seen = lab.observe(&ns, &want);
        assert_eq!(seen, "~ iptables -t nat -S ISTIO_OUTPUT", "{variant}");
        assert_eq!(lab.apply(&ns, &want, None).unwrap(), Applied::Replaced);
        assert_eq!(lab.observe(&ns, &want), "");
    }
}

#[test]
fn a_difference_says_what_and_where() {
    let lab = Lab::new(crate::iptables::Variant::Nft);
    let want = ours(&basic(true));
    let ns = namespace();
    lab.apply(&ns, &want, None).unwrap();
    let variant = crate::iptables::Variant::Nft;
    change(&ns, variant, Family::V6, "-t nat -D OUTPUT -j ISTIO_OUTPUT");
    change(&ns, variant, Family::V4, "-t nat -A ISTIO_REDIRECT -p udp -j RETURN");
    assert_eq!(
        lab.observe(&ns, &want),
        "- ip6tables -t nat -A OUTPUT -j ISTIO_OUTPUT\n\
         + iptables -t nat -A ISTIO_REDIRECT -p udp -j RETURN"
    );
}

#[test]
fn what_an_earlier_plan_left_is_gone() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for (from, earlier) in plans() {
            for (to, plan) in plans() {
                let ns = namespace();
                load_istio(&ns, variant, &earlier);
                lab.apply(&ns, &ours(&plan), None).unwrap();
                assert_eq!(lab.observe(&ns, &ours(&plan)), "", "{variant} {from} -> {to}");
                let fresh = namespace();
                lab.apply(&fresh, &ours(&plan), None).unwrap();
                for family in [Family::V4, Family::V6] {
                    assert_eq!(
                        rules(&ns, variant, family),
                        rules(&fresh, variant, family),
                        "{variant} {from} -> {to}"
                    );
                }
            }
        }
    }
}

#[test]
fn routing_comes_and_goes_with_the_plan() {
    let lab = Lab::new(crate::iptables::Variant::Nft);
    let ns = namespace();
    let wants = ours(&rich(true)).routing;
    let missing = || within(&ns, || routing::missing(&wants)).unwrap().unwrap().len();
    lab.apply(&ns, &ours(&rich(true)), None).unwrap();
    assert_eq!(missing(), 0);
    // The IPv6 address is wanted by both.
    lab.apply(&ns, &ours(&basic(true)), None).unwrap();
    assert_eq!(missing(), 4);
    lab.apply(&ns, &ours(&rich(true)), None).unwrap();
    assert_eq!(missing(), 0);
    within(&ns, || routing::remove(&wants)).unwrap().unwrap();
    assert!(lab.observe(&ns, &ours(&rich(true))).contains("fwmark"));
    assert_eq!(lab.apply(&ns, &ours(&rich(true)), None).unwrap(), Applied::Replaced);
    lab.remove(&ns).unwrap();
    assert_eq!(missing(), 5);
}

/// Rules of somebody else, one before ours and one behind, and a chain.
const STRANGER: &str = "*nat
:MINE - [0:0]
-A MINE -p tcp -m comment --comment \"say \\\"hi\\\" -j ISTIO_OUTPUT\" -j RETURN
-A PREROUTING -p tcp -m tcp --dport 9999 -j MINE
-A OUTPUT -o eth5 -p tcp -j RETURN
COMMIT
*mangle
-A PREROUTING -p udp -m mark --mark 0x539 -j RETURN
-A OUTPUT -p tcp -j MARK --set-xmark 0x5/0xff
COMMIT
*filter
-A INPUT -p 255 -j DROP
COMMIT
";
const STRANGER_BEHIND: &str = "*nat
-A OUTPUT -o eth6 -j RETURN
-A PREROUTING -i eth6 -j ACCEPT
COMMIT
*mangle
-A OUTPUT -m mark --mark 0x77 -j ACCEPT
COMMIT
";

#[test]
fn rules_of_others_keep_their_place() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for family in [Family::V4, Family::V6] {
            let ns = namespace();
            load(&ns, variant, family, STRANGER);
            let before = rules(&ns, variant, family);
            let applied = lab.apply(&ns, &ours(&rich(true)), None).unwrap();
            assert_eq!(applied, Applied::Created);
            load(&ns, variant, family, STRANGER_BEHIND);
            let first = dump(&ns, variant, family);
            assert_eq!(lab.observe(&ns, &ours(&rich(true))), "", "{variant}");

            // There and back: the stranger's rules stand where they stood.
            let applied = lab.apply(&ns, &ours(&basic(true)), None).unwrap();
            assert_eq!(applied, Applied::Replaced);
            let position = |text: &str, rule: &str| text.find(rule).unwrap();
            let now = dump(&ns, variant, family);
            let jump = position(&now, "-A OUTPUT -j ISTIO_OUTPUT");
            assert!(position(&now, "-A OUTPUT -o eth5") < jump, "{now}");
            assert!(jump < position(&now, "-A OUTPUT -o eth6"), "{now}");
            let jump = position(&now, "-A PREROUTING -p tcp -j ISTIO_INBOUND");
            assert!(position(&now, "--dport 9999 -j MINE") < jump, "{now}");
            lab.apply(&ns, &ours(&rich(true)), None).unwrap();
            assert_eq!(lab.observe(&ns, &ours(&rich(true))), "");
            let lines = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&dump(&ns, variant, family)), lines(&first));

            lab.remove(&ns).unwrap();
            let bare = namespace();
            load(&bare, variant, family, STRANGER);
            assert_eq!(rules(&bare, variant, family), before);
            load(&bare, variant, family, STRANGER_BEHIND);
            assert_eq!(
                lines(&rules(&ns, variant, family)),
                lines(&rules(&bare, variant, family)),
                "{variant}"
            );
        }
    }
}

#[test]
fn remove_leaves_nothing_of_ours_or_istios() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        for (name, plan) in plans() {
            let ns = namespace();
            load_istio(&ns, variant, &plan);
            lab.remove(&ns).unwrap();
            for family in [Family::V4, Family::V6] {
                assert_eq!(rules(&ns, variant, family), "", "{variant} {name}");
            }
            assert_eq!(lab.apply(&ns, &ours(&plan), None).unwrap(), Applied::Created);
            lab.remove(&ns).unwrap();
            for family in [Family::V4, Family::V6] {
                assert_eq!(rules(&ns, variant, family), "", "{variant} {name}");
            }
        }
    }
}

#[test]
fn remove_of_nothing_runs_nothing() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        lab.remove(&namespace()).unwrap();
        assert_eq!(lab.executions(), [""; 0]);
    }
}
