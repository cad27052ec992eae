use super::*;
use crate::compile::compile;
use crate::desired::{Dialect, Form};
use crate::net::Family;
use crate::plan::Groups;
use crate::pod::Container;
use crate::{iptables, nft};
use proptest::prelude::*;
use std::collections::BTreeMap;

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));

fn v6() -> IpAddr {
    "fd00::5".parse().unwrap()
}

fn pod(annotations: &[(&str, &str)], env: &[(&str, &str)]) -> Pod {
    let own = |l: &[(&str, &str)]| -> Vec<(String, String)> {
        l.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    };
    Pod {
        annotations: own(annotations).into_iter().collect::<BTreeMap<_, _>>(),
        containers: vec![Container {
            name: "istio-proxy".into(),
            env: own(env),
            ..Container::default()
        }],
        ..Pod::default()
    }
}

fn of(annotations: &[(&str, &str)]) -> Result<Plan, PlanError> {
    plan(&pod(annotations, &[]), &Config::default(), &[V4])
}

#[test]
fn defaults_are_istios() {
    let p = of(&[]).unwrap();
    assert_eq!(p.mode, Mode::Redirect);
    assert_eq!(p.inbound, Inbound::AllExcept(vec![15020, 15021, 15090]));
    assert_eq!(p.outbound.include, Destinations::All);
    assert_eq!(p.outbound.exclude_ports, [15020]);
    assert_eq!(p.outbound.groups, Groups::AllExcept(vec![]));
    assert_eq!(p.dns, Dns::Off);
    assert!(!p.ipv6 && !p.drop_invalid);
    assert_eq!(p.proxy, Proxy::default());
}

#[test]
fn ports_are_deduplicated_and_blanks_tolerated() {
    let p = of(&[(annotation::EXCLUDE_INBOUND_PORTS, " 15021, 80 ,80,15020")]).unwrap();
    assert_eq!(p.inbound, Inbound::AllExcept(vec![15021, 80, 15020, 15090]));
    let p = of(&[(annotation::INCLUDE_INBOUND_PORTS, "")]).unwrap();
    assert_eq!(p.inbound, Inbound::Nothing);
    let p = of(&[(annotation::EXCLUDE_OUTBOUND_PORTS, "")]).unwrap();
    assert!(p.outbound.exclude_ports.is_empty());
}

#[test]
fn the_newer_name_of_virtual_interfaces_is_preferred() {
    let old = (annotation::KUBEVIRT_INTERFACES, "net1");
    assert_eq!(of(&[old]).unwrap().virtual_interfaces[0].to_string(), "net1");
    let new = (annotation::REROUTE_VIRTUAL_INTERFACES, "br-*, tap0");
    let p = of(&[old, new]).unwrap();
    let names: Vec<_> = p.virtual_interfaces.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["br-*", "tap0"]);
}

#[test]
fn ipv6_follows_the_first_address_or_dual_stack() {
    let dual = [("ISTIO_DUAL_STACK", "true")];
    let ipv6 = |env: &[(&str, &str)], addresses: &[IpAddr]| {
        plan(&pod(&[], env), &Config::default(), addresses).unwrap().ipv6
    };
    assert!(!ipv6(&[], &[V4, v6()]));
    assert!(ipv6(&[], &[v6(), V4]));
    assert!(ipv6(&[], &[v6()]));
    assert!(ipv6(&dual, &[V4, v6()]));
    assert!(!ipv6(&dual, &[V4]));
    assert_eq!(plan(&pod(&[], &[]), &Config::default(), &[]), Err(PlanError::NoAddress));
}

#[test]
fn user_and_group_come_from_the_container() {
    let ids = |user, group| {
        let mut pod = pod(&[], &[]);
        pod.containers[0].run_as_user = user;
        pod.containers[0].run_as_group = group;
        let p = plan(&pod, &Config::default(), &[V4])?;
        Ok::<_, PlanError>((p.proxy.uids[0].to_string(), p.proxy.gids[0].to_string()))
    };
    assert_eq!(ids(Some(0), Some(0)).unwrap(), ("1337".into(), "1337".into()));
    let (user, group) = (Some(1_000_670_000), Some(1_000_670_001));
    assert_eq!(ids(user, group).unwrap(), ("1000670000".into(), "1000670001".into()));
    let error = ids(Some(-1), None).unwrap_err().to_string();
    assert!(error.contains("runAsUser -1"), "{error}");
    assert!(ids(None, Some(i64::from(u32::MAX))).is_err());
}

#[test]
fn switches_that_are_no_boolean_are_warned_of() {
    let odd = pod(&[], &[("ISTIO_META_DNS_CAPTURE", "yes"), ("INVALID_DROP", "true")]);
    let p = plan(&odd, &Config::default(), &[V4]).unwrap();
    assert_eq!(p.dns, Dns::Off);
    assert!(p.drop_invalid);
    let warnings = warnings(&odd);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("ISTIO_META_DNS_CAPTURE=\"yes\""), "{}", warnings[0]);
}

#[test]
fn errors_name_annotation_value_and_what_is_allowed() {
    let table = [
        (annotation::INTERCEPTION_MODE, "tproxy", "REDIRECT, TPROXY or NONE"),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, "10.0.0.0/8, 11.0.0.0/8", "without spaces"),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, "10.0.0.0", "cidr '10.0.0.0'"),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, "*,10.0.0.0/8", "cidr '*'"),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, "*", "cidr '*'"),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, "10.0.0.0/8,", "cidr ''"),
        (annotation::EXCLUDE_INBOUND_PORTS, "*", "port \"*\""),
        (annotation::EXCLUDE_OUTBOUND_PORTS, "70000", "port \"70000\""),
        (annotation::EXCLUDE_OUTBOUND_PORTS, "80,", "port \"\""),
        (annotation::INCLUDE_OUTBOUND_PORTS, "+80", "port \"+80\""),
        (annotation::INCLUDE_INBOUND_PORTS, "80;ls", "*, or ports"),
        (annotation::EXCLUDE_INTERFACES, "eth0,,eth1", "empty interface name"),
        (annotation::EXCLUDE_INTERFACES, "eth0 -j ACCEPT", "invalid characters"),
        (annotation::KUBEVIRT_INTERFACES, "abcdefghijklmnop", "too long"),
        (annotation::REROUTE_VIRTUAL_INTERFACES, "a\nb", "invalid characters"),
    ];
    for (key, value, want) in table {
        let error = of(&[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
        assert!(error.contains(&format!("{value:?}")), "{error}");
        assert!(error.contains(want), "{error} lacks {want}");
    }
}

/// Lines that a dialect's text may have, by their beginning.
fn assert_own(text: &str, beginnings: &[&str]) {
    for line in text.lines() {
        assert!(beginnings.iter().any(|b| line.starts_with(b)), "{line:?}");
        let fine = |c: char| c.is_ascii_alphanumeric() || " -_.:/,+!*={}()&|;\"".contains(c);
        assert!(line.chars().all(fine), "{line:?}");
        assert!(line.matches('"').count() % 2 == 0, "{line:?}");
    }
}

const KEYS: [&str; 10] = [
    annotation::INTERCEPTION_MODE,
    annotation::INCLUDE_OUTBOUND_IP_RANGES,
    annotation::EXCLUDE_OUTBOUND_IP_RANGES,
    annotation::EXCLUDE_INBOUND_PORTS,
    annotation::INCLUDE_INBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_PORTS,
    annotation::INCLUDE_OUTBOUND_PORTS,
    annotation::EXCLUDE_INTERFACES,
    annotation::REROUTE_VIRTUAL_INTERFACES,
    annotation::KUBEVIRT_INTERFACES,
];

/// Values near to valid ones, so that a good part of them passes.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9]{1,5}(,[0-9 ]{1,5}){0,3}",
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}",
        "[a-f0-9:]{2,9}/[0-9]{1,3}",
        "[a-z*,\\-+.\"';{}$()|&\\\\ \n]{0,20}",
        Just("*".to_owned()),
        Just("TPROXY".to_owned()),
        Just(String::new()),
    ]
}

proptest! {
    /// Whatever the annotations say: an error, or rules in our own tables only.
    #[test]
    fn no_annotation_leaves_our_tables(values in proptest::collection::vec((0..KEYS.len(), value()), 0..6)) {
        let annotations: Vec<_> = values.iter().map(|(k, v)| (KEYS[*k], v.as_str())).collect();
        let p = plan(&pod(&annotations, &[("ISTIO_META_DNS_CAPTURE", "1")]), &Config::default(), &[v6(), V4]);
        if let Ok(p) = p {
            for form in [Form::Sluice, Form::Istio(Dialect::Iptables), Form::Istio(Dialect::Nftables)] {
                let desired = compile(&p, form);
                for family in [Family::V4, Family::V6] {
                    let own = ["*nat", "*mangle", "*raw", "-N ISTIO_", "-A ISTIO_", "-A PREROUTING ", "-A OUTPUT ", "COMMIT"];
                    assert_own(&iptables::render(&desired, family), &own);
                }
                let own = ["add table inet istio-proxy-", "flush table inet istio-proxy-", "add chain inet istio-proxy-", "add rule inet istio-proxy-"];
                assert_own(&nft::render(&desired), &own);
            }
        }
    }
}
