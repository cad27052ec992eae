//! Random rules, valid by construction: what is written is what is read.

use super::{apply, fresh, listing, observe};
use crate::backend::{Applied, Backend};
use crate::nftables::Nftables;
use proptest::prelude::*;
use redirect::desired::{
    Action, Chain, ChainKind, CtState, Desired, Is, Mark, Match, Proto, Routing, Rule, RuleFamily,
    RuleSet, Table, TableKind,
};
use redirect::net::{Cidr, Interface, Owner};
use redirect::nft::table_name;

/// A chain jumps to later ones only, so there is no loop.
const CHAINS: [ChainKind; 9] = [
    ChainKind::Prerouting,
    ChainKind::OutputHook,
    ChainKind::Inbound,
    ChainKind::Output,
    ChainKind::OutputDns,
    ChainKind::Redirect,
    ChainKind::Divert,
    ChainKind::Drop,
    ChainKind::Arrival,
];

fn is<T: std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Is<T>> {
    (value, any::<bool>()).prop_map(|(value, not)| if not { Is::Not(value) } else { Is::Eq(value) })
}

fn cidr(v6: bool) -> BoxedStrategy<Cidr> {
    if v6 {
        let parts = (any::<u128>(), 0u8..=128);
        parts.prop_map(|(bits, len)| Cidr::new(bits_v6(bits), len).unwrap()).boxed()
    } else {
        let parts = (any::<u32>(), 0u8..=32);
        parts.prop_map(|(bits, len)| Cidr::new(bits_v4(bits), len).unwrap()).boxed()
    }
}

fn bits_v4(bits: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(bits).into()
}

fn bits_v6(bits: u128) -> std::net::IpAddr {
    std::net::Ipv6Addr::from_bits(bits).into()
}

fn interface() -> impl Strategy<Value = Interface> {
    let name =
        proptest::sample::select(vec!["lo", "e*", "eth0", "br-*", "averylongname-1", "a.b_c-d*"]);
    name.prop_map(|name| name.parse().unwrap())
}

fn owner() -> impl Strategy<Value = Is<Owner>> {
    is((0..u32::MAX).prop_map(Owner::Id))
}

fn state() -> impl Strategy<Value = CtState> {
    prop_oneof![Just(CtState::Invalid), Just(CtState::RelatedOrEstablished)]
}

fn proto() -> impl Strategy<Value = Proto> {
    prop_oneof![Just(Proto::Tcp), Just(Proto::Udp)]
}

/// All bits, or some; none at all is no condition.
fn mark() -> impl Strategy<Value = Mark> {
    let some = (any::<u32>(), 1u32..).prop_map(|(value, mask)| Mark::masked(value, mask));
    prop_oneof![any::<u32>().prop_map(Mark::exact), some]
}

/// Conditions without ports.
fn conditions(v6: bool) -> impl Strategy<Value = Vec<Match>> {
    let one = prop_oneof![
        interface().prop_map(Match::InInterface),
        is(interface()).prop_map(Match::OutInterface),
        cidr(v6).prop_map(Match::Source),
        is(cidr(v6)).prop_map(Match::Destination),
        owner().prop_map(Match::Uid),
        owner().prop_map(Match::Gid),
        state().prop_map(Match::State),
        is(mark()).prop_map(Match::Mark),
        mark().prop_map(Match::ConnMark),
    ];
    prop::collection::vec(one, 0..4)
}

fn ports() -> impl Strategy<Value = Vec<Match>> {
    let port = prop_oneof![
        any::<u16>().prop_map(Match::SourcePort),
        is(any::<u16>()).prop_map(Match::DestinationPort),
        prop::collection::vec(any::<u16>(), 1..5).prop_map(Match::DestinationPortNotIn),
    ];
    let with_proto = (proto(), prop::collection::vec(port, 0..3), any::<bool>());
    let some = with_proto.prop_map(|(proto, ports, syn)| {
        let mut all = vec![Match::Proto(proto)];
        all.extend(ports);
        if syn && proto == Proto::Tcp {
            all.push(Match::Syn);
        }
        all
    });
    prop_oneof![Just(Vec::new()), some]
}

fn action(table: TableKind, position: usize) -> BoxedStrategy<Action> {
    let mut all = vec![
        Just(Action::Return).boxed(),
        Just(Action::Accept).boxed(),
        Just(Action::Drop).boxed(),
        any::<u32>().prop_map(Action::SetMark).boxed(),
        mark().prop_map(Action::SetConnMark).boxed(),
        Just(Action::SaveMark).boxed(),
        Just(Action::RestoreMark).boxed(),
    ];
    // Hooks are not jumped to.
    let targets: Vec<ChainKind> = CHAINS[(position + 1).max(2)..].to_vec();
    if !targets.is_empty() {
        all.push(proptest::sample::select(targets).prop_map(Action::Jump).boxed());
    }
    match (table, CHAINS[position]) {
        (TableKind::Nat, _) => all.push((1..=u16::MAX).prop_map(Action::Redirect).boxed()),
        (TableKind::Raw, _) => all.push(any::<u16>().prop_map(Action::SetZone).boxed()),
        (TableKind::Mangle, ChainKind::Prerouting) => {
            let parts = (1..=u16::MAX, any::<u32>());
            all.push(parts.prop_map(|(port, mark)| Action::Tproxy { port, mark }).boxed());
        }
        (TableKind::Mangle, _) => (),
    }
    proptest::strategy::Union::new(all).boxed()
}

fn rule(table: TableKind, position: usize) -> impl Strategy<Value = Rule> {
    any::<bool>().prop_flat_map(move |v6| {
        let parts = (conditions(v6), ports(), action(table, position), any::<bool>());
        parts.prop_map(move |(mut matches, ports, action, any_family)| {
            let address = |m: &Match| matches!(m, Match::Source(_) | Match::Destination(_));
            let any_family = any_family && !matches.iter().any(address);
            matches.extend(ports);
            let family = match (any_family, v6) {
                (true, _) => RuleFamily::Any,
                (false, true) => RuleFamily::V6,
                (false, false) => RuleFamily::V4,
            };
            Rule { family, matches, action, why: "random" }
        })
    })
}

fn table(kind: TableKind) -> impl Strategy<Value = Table> {
    let chains: Vec<_> = (0..CHAINS.len())
        .map(|position| {
            prop::collection::vec(rule(kind, position), 0..4)
                .prop_map(move |rules| Chain { kind: CHAINS[position], rules })
        })
        .collect();
    chains.prop_map(move |chains| Table { kind, chains })
}

fn desired() -> impl Strategy<Value = Desired> {
    let tables = proptest::sample::subsequence(
        vec![TableKind::Nat, TableKind::Mangle, TableKind::Raw],
        1..=3,
    );
    let tables = tables.prop_flat_map(|kinds| kinds.into_iter().map(table).collect::<Vec<_>>());
    let set = prop_oneof![Just(RuleSet::Sidecar), Just(RuleSet::Ambient)];
    (set, tables, any::<bool>()).prop_map(|(set, tables, ipv6)| Desired {
        set,
        ipv6,
        tables,
        routing: Routing::default(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_it_writes(want in desired(), other in desired()) {
        fresh(|| {
            assert_eq!(apply(&want), Applied::Created);
            assert_eq!(observe(&want), "");
            assert_eq!(apply(&want), Applied::Unchanged);
            let listed = listing();
            let tables = listed.lines().filter(|line| line.starts_with("table "));
            let name = table_name(want.set, TableKind::Nat).strip_suffix("nat").unwrap();
            let ours = |line: &str| line.starts_with(&format!("table inet {name}"));
            assert!(tables.clone().all(ours), "{listed}");
            assert_eq!(tables.count(), want.tables.len());
            if want != other {
                assert_eq!(apply(&other), Applied::Replaced);
            }
            assert_eq!(observe(&other), "");
            Nftables::new().remove().unwrap();
            assert_eq!(listing(), "");
        });
    }
}
