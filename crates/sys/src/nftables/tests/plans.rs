//! Plans that between them need every statement.

use crate::lab;
use redirect::ambient::{AmbientPlan, Ipv6, ProbePorts};
use redirect::compile::{self, compile};
use redirect::desired::{Desired, Dialect, Form};
use redirect::net::Owner;
use redirect::plan::{
    Destinations, Dns, Groups, Inbound, Mode, Outbound, Plan, Proxy, TPROXY_MARK, TPROXY_TABLE,
};

const TPROXY: Mode = Mode::Tproxy { mark: TPROXY_MARK, table: TPROXY_TABLE };

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(super) fn all() -> Vec<(&'static str, Plan)> {
    let dual = lab::plan(true);
    let ranges = Plan {
        outbound: Outbound {
            include: Destinations::Only(parsed(&[
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "1.2.3.0/24",
                "5.6.7.8/32",
                "128.0.0.0/1",
                "fd00::/8",
                "2001:db8::/33",
                "fc00::/7",
                "::1/128",
            ])),
            exclude: parsed(&["10.1.0.0/16", "10.96.0.0/13", "2001:db8:1::/48", "fe80::/10"]),
            include_ports: vec![80, 443],
            exclude_ports: vec![22, 15020],
            groups: Groups::Only(vec![Owner::Id(5), Owner::Id(202)]),
        },
        ..dual.clone()
    };
    let interfaces = Plan {
        exclude_interfaces: parsed(&["eth1", "net-*"]),
        virtual_interfaces: parsed(&["br-*", "tap0", "averylongname-1"]),
        ..dual.clone()
    };
    let everything = Outbound {
        include: Destinations::Only(parsed(&["0.0.0.0/0", "::/0"])),
        groups: Groups::AllExcept(vec![Owner::Id(7), Owner::Id(8)]),
        ..dual.outbound.clone()
    };
    let some_owners = Proxy {
        uids: vec![Owner::Id(1337), Owner::Id(4_294_967_294), Owner::Id(0)],
        gids: vec![Owner::Id(1337), Owner::Id(99)],
        ..Proxy::default()
    };
    vec![
        ("basic", lab::plan(false)),
        ("dual", dual.clone()),
        ("nothing inbound", Plan { inbound: Inbound::Nothing, ..dual.clone() }),
        ("some inbound", Plan { inbound: Inbound::Only(vec![80, 8080]), ..dual.clone() }),
        ("drop invalid", Plan { drop_invalid: true, ..dual.clone() }),
        ("dns", Plan { dns: Dns::All, ..lab::plan(false) }),
        ("dns dual", Plan { dns: Dns::All, proxy: some_owners, ..dual.clone() }),
        (
            "dns servers",
            Plan { dns: Dns::Servers(parsed(&["10.0.0.10", "fd00::a"])), ..dual.clone() },
        ),
        ("ranges", ranges.clone()),
        ("everything", Plan { outbound: everything, ..dual.clone() }),
        ("interfaces", interfaces.clone()),
        (
            "interfaces and ranges",
            Plan { virtual_interfaces: parsed(&["vnet*"]), ..ranges.clone() },
        ),
        ("tproxy", Plan { mode: TPROXY, ..lab::plan(false) }),
        ("tproxy dual", Plan { mode: TPROXY, dns: Dns::All, ..dual.clone() }),
        (
            "tproxy some inbound",
            Plan { mode: TPROXY, inbound: Inbound::Only(vec![80, 81]), ..ranges },
        ),
        ("tproxy interfaces", Plan { mode: TPROXY, drop_invalid: true, ..interfaces }),
    ]
}

fn ambient() -> Vec<(&'static str, AmbientPlan)> {
    let basic = AmbientPlan { ipv6: Ipv6::Absent, dns: false, ..lab::ambient_plan() };
    let dual = AmbientPlan { ipv6: Ipv6::Present, ..basic.clone() };
    let dns = AmbientPlan { dns: true, ..basic.clone() };
    let nics = parsed(&["br-*", "tap0"]);
    let ports = ProbePorts::Only(vec![8080, 15021]);
    vec![
        ("ambient", basic),
        ("ambient dual", dual.clone()),
        ("ambient dns", dns),
        ("ambient dns dual", AmbientPlan { dns: true, probe_ports: ports, ..dual.clone() }),
        ("ambient ingress", AmbientPlan { inbound: false, ..dual.clone() }),
        ("ambient interfaces", AmbientPlan { virtual_interfaces: nics, dns: true, ..dual }),
    ]
}

/// Every plan in our form and in Istio's.
pub(super) fn compiled() -> Vec<(String, Desired)> {
    let mut found = Vec::new();
    for (name, istio, ours) in both_forms() {
        found.push((format!("{name}, Istio's"), istio));
        found.push((format!("{name}, ours"), ours));
    }
    found
}

pub(super) fn both_forms() -> Vec<(&'static str, Desired, Desired)> {
    let forms = [Form::Istio(Dialect::Nftables), Form::Sluice];
    let mut found = Vec::new();
    for (name, plan) in all() {
        let [istio, ours] = forms.map(|form| compile(&plan, form));
        found.push((name, istio, ours));
    }
    for (name, plan) in ambient() {
        let [istio, ours] = forms.map(|form| compile::ambient(&plan, form));
        found.push((name, istio, ours));
    }
    found
}
