use super::*;
use crate::lab::plan;

fn cidrs(list: &[&str]) -> Vec<Cidr> {
    list.iter().map(|c| c.parse().unwrap()).collect()
}

fn first(plan: &Plan, family: Family) -> Option<String> {
    let own = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    outbound(plan, family, &own).first().map(ToString::to_string)
}

#[test]
fn dials_where_nobody_is() {
    assert_eq!(first(&plan(true), Family::V4).unwrap(), "192.0.2.1:15002");
    assert_eq!(first(&plan(true), Family::V6).unwrap(), "[2001:db8::1]:15002");
}

#[test]
fn dials_what_is_included_and_not_excluded() {
    let mut p = plan(true);
    p.outbound.exclude = cidrs(&["192.0.2.0/24", "2001:db8::/32"]);
    assert_eq!(first(&p, Family::V4).unwrap(), "198.51.100.1:15002");
    assert_eq!(first(&p, Family::V6).unwrap(), "[3fff::1]:15002");

    p.outbound.exclude_ports = vec![15002, 15003];
    assert_eq!(first(&p, Family::V4).unwrap(), "198.51.100.1:15004");

    p.outbound.include = Destinations::Only(cidrs(&["10.96.0.0/12"]));
    assert_eq!(first(&p, Family::V4).unwrap(), "10.96.0.1:15004");
    assert_eq!(first(&p, Family::V6), None);

    // All but the last quarter of an included prefix is excluded.
    p.outbound.exclude = cidrs(&["10.96.0.0/13", "10.104.0.0/14"]);
    assert_eq!(first(&p, Family::V4).unwrap(), "10.108.0.0:15004");

    p.outbound.exclude = cidrs(&["0.0.0.0/0"]);
    assert_eq!(first(&p, Family::V4), None);
}

#[test]
fn included_ports_reach_every_address() {
    let mut p = plan(true);
    p.outbound.include = Destinations::Only(Vec::new());
    assert_eq!(first(&p, Family::V4), None);
    p.outbound.include_ports = vec![53, 15020, 443];
    assert_eq!(first(&p, Family::V4).unwrap(), "192.0.2.1:443");
    assert_eq!(first(&p, Family::V6).unwrap(), "[2001:db8::1]:443");
}

#[test]
fn neighbours_are_there_without_a_default_route() {
    let own = ["10.0.0.5".parse().unwrap()];
    let targets = outbound(&plan(true), Family::V4, &own);
    assert!(targets.contains(&"10.0.0.4:15002".parse().unwrap()));
    assert!(!targets.iter().any(|t| t.ip() == own[0]));
}

#[test]
fn an_application_is_not_the_proxy() {
    let mut p = plan(true);
    assert_eq!(application(&p), Some(Identity { uid: 65534, gid: 65534 }));
    p.proxy.uids = vec![Owner::Id(65534)];
    p.proxy.gids = vec![Owner::Id(1000)];
    p.outbound.groups = Groups::AllExcept(vec![Owner::Id(65534)]);
    assert_eq!(application(&p), Some(Identity { uid: 1000, gid: 1001 }));
    p.outbound.groups = Groups::Only(vec![Owner::Id(1000), Owner::Id(202)]);
    assert_eq!(application(&p), Some(Identity { uid: 1000, gid: 202 }));
    p.outbound.groups = Groups::Only(vec![Owner::Id(1000)]);
    assert_eq!(application(&p), None);
}

#[test]
fn root_is_an_application_unless_the_plan_says_otherwise() {
    let root = Identity { uid: 0, gid: 0 };
    let mut p = plan(true);
    assert!(is_application(&p, root));
    p.outbound.groups = Groups::AllExcept(vec![Owner::Id(0)]);
    assert!(!is_application(&p, root));
    p.outbound.groups = Groups::Only(vec![Owner::Id(1000)]);
    assert!(!is_application(&p, root));
    p.outbound.groups = Groups::Only(vec![Owner::Id(0)]);
    assert!(is_application(&p, root));
    p.proxy.gids = vec![Owner::Id(0)];
    assert!(!is_application(&p, root));
    p = plan(true);
    p.proxy.uids.push(Owner::Id(0));
    assert!(!is_application(&p, root));
}

#[test]
fn the_proxy_dials_what_validation_dials() {
    let mut p = plan(true);
    let (from, to) = loopback(&p, Family::V4).unwrap();
    assert_eq!(
        (from.to_string(), to.to_string()),
        ("127.0.0.1:0".into(), "127.0.0.6:15002".into())
    );
    assert_eq!(loopback(&p, Family::V6).unwrap().1.to_string(), "[::6]:15002");
    p.outbound.exclude_ports.push(15002);
    assert_eq!(loopback(&p, Family::V4).unwrap().1.port(), 15003);
    p.loopback_v4 = "127.0.0.0/8".parse().unwrap();
    assert!(loopback(&p, Family::V4).is_err());
    assert!(loopback(&p, Family::V6).is_ok() || p.loopback_v4.contains("::6".parse().unwrap()));
    p.exclude_interfaces = vec!["l*".parse().unwrap()];
    assert!(loopback(&p, Family::V6).is_err());
}

#[test]
fn inbound_ports_are_those_of_the_plan() {
    let mut p = plan(true);
    assert_eq!(inbound_port(&p), Ok((15002, true)));
    p.inbound = Inbound::AllExcept((15002..=15010).collect());
    assert_eq!(inbound_port(&p), Ok((15011, true)));
    p.inbound = Inbound::Only(vec![15008, 8080]);
    assert_eq!(inbound_port(&p), Ok((8080, false)));
    p.inbound = Inbound::Only(vec![15008]);
    assert!(inbound_port(&p).is_err());
    p.inbound = Inbound::Nothing;
    assert!(inbound_port(&p).is_err());
}

#[test]
fn knows_patterns_of_interfaces() {
    let list = ["br-*".parse().unwrap(), "eth1".parse().unwrap()];
    assert!(is_listed(&list, "br-0") && is_listed(&list, "eth1"));
    assert!(!is_listed(&list, "br0") && !is_listed(&list, "eth11"));
}
