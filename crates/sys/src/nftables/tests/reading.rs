//! Expressions that other writers use for the same condition, and bytes that no
//! kernel sends.

use crate::netlink::Buffer;
use crate::nftables::abi::*;
use crate::nftables::decode::rule;
use crate::nftables::expression::value;
use proptest::prelude::*;
use redirect::desired::Is;
use redirect::net::{Family, Owner};
use redirect::nft::Statement;

fn expression(b: &mut Buffer, name: &str, body: impl FnOnce(&mut Buffer)) {
    b.nested(LIST_ELEM, |b| {
        b.text(EXPR_NAME, name);
        b.nested(EXPR_DATA, body);
    });
}

fn meta(b: &mut Buffer, register: u32, key: u32) {
    expression(b, "meta", |b| {
        b.be32(META_DREG, register);
        b.be32(META_KEY, key);
    });
}

fn cmp(b: &mut Buffer, register: u32, bytes: &[u8]) {
    expression(b, "cmp", |b| {
        b.be32(CMP_SREG, register);
        b.be32(CMP_OP, EQ);
        value(b, CMP_DATA, bytes);
    });
}

fn payload(b: &mut Buffer, offset: u32, len: u32) {
    expression(b, "payload", |b| {
        b.be32(PAYLOAD_DREG, REG_1);
        b.be32(PAYLOAD_BASE, NETWORK);
        b.be32(PAYLOAD_OFFSET, offset);
        b.be32(PAYLOAD_LEN, len);
    });
}

fn mask(b: &mut Buffer, mask: &[u8], xor: u8) {
    expression(b, "bitwise", |b| {
        b.be32(BITWISE_SREG, REG_1);
        b.be32(BITWISE_DREG, REG_1);
        b.be32(BITWISE_LEN, 4);
        value(b, BITWISE_MASK, mask);
        value(b, BITWISE_XOR, &[xor; 4]);
    });
}

fn read(write: impl FnOnce(&mut Buffer)) -> Result<Vec<Statement>, String> {
    let mut buffer = Buffer::default();
    write(&mut buffer);
    rule(buffer.as_slice(), &mut |_| None).map_err(|foreign| foreign.0)
}

#[test]
fn a_prefix_of_whole_bytes_through_a_mask() {
    let found = read(|b| {
        meta(b, REG_1, KEY_NFPROTO);
        cmp(b, REG_1, &[NFPROTO_IPV4]);
        payload(b, IP_SOURCE, 4);
        mask(b, &[255, 0, 0, 0], 0);
        cmp(b, REG_1, &[10, 0, 0, 0]);
    });
    let source = Statement::Source("10.0.0.0/8".parse().unwrap());
    assert_eq!(found.unwrap(), [Statement::Nfproto(Family::V4), source]);
}

#[test]
fn registers_by_either_name() {
    let found = read(|b| {
        meta(b, REG32_00 + 4, KEY_SKUID);
        meta(b, REG_1, KEY_SKGID);
        cmp(b, 2, &7u32.to_ne_bytes());
        cmp(b, REG32_00, &8u32.to_ne_bytes());
    });
    let uid = Statement::SkUid(Is::Eq(Owner::Id(7)));
    let gid = Statement::SkGid(Is::Eq(Owner::Id(8)));
    assert_eq!(found.unwrap(), [uid, gid]);
}

#[test]
fn what_only_looks_alike_is_foreign() {
    let v4 = |b: &mut Buffer| {
        meta(b, REG_1, KEY_NFPROTO);
        cmp(b, REG_1, &[NFPROTO_IPV4]);
    };
    type Write = Box<dyn Fn(&mut Buffer)>;
    let cases: [(&str, Write); 6] = [
        (
            "no family",
            Box::new(|b| {
                payload(b, IP_SOURCE, 4);
                cmp(b, REG_1, &[10, 0, 0, 1]);
            }),
        ),
        (
            "other family",
            Box::new(move |b| {
                v4(b);
                payload(b, IP6_SOURCE, 1);
                cmp(b, REG_1, &[3]);
            }),
        ),
        (
            "mask with a hole",
            Box::new(move |b| {
                v4(b);
                payload(b, IP_SOURCE, 4);
                mask(b, &[255, 0, 255, 0], 0);
                cmp(b, REG_1, &[10, 0, 1, 0]);
            }),
        ),
        (
            "xor",
            Box::new(move |b| {
                v4(b);
                payload(b, IP_SOURCE, 4);
                mask(b, &[255, 0, 0, 0], 1);
                cmp(b, REG_1, &[10, 0, 0, 0]);
            }),
        ),
        ("nothing loaded", Box::new(|b| cmp(b, REG_1, &[6]))),
        (
            "condition after an action",
            Box::new(|b| {
                expression(b, "immediate", |b| {
                    b.be32(IMMEDIATE_DREG, REG_1);
                    value(b, IMMEDIATE_DATA, &1337u32.to_ne_bytes());
                });
                expression(b, "meta", |b| {
                    b.be32(META_SREG, REG_1);
                    b.be32(META_KEY, KEY_MARK);
                });
                meta(b, REG_1, KEY_L4PROTO);
                cmp(b, REG_1, &[6]);
            }),
        ),
    ];
    for (name, write) in cases {
        assert!(read(&write).is_err(), "{name}");
    }
}

const NAMES: [&str; 10] = [
    "counter",
    "meta",
    "ct",
    "payload",
    "bitwise",
    "cmp",
    "lookup",
    "immediate",
    "redir",
    "tproxy",
];

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        parts in prop::collection::vec(
            (proptest::sample::select(NAMES.to_vec()),
             prop::collection::vec((0u16..8, prop::collection::vec(any::<u8>(), 0..20)), 0..6)),
            0..8,
        ),
    ) {
        let _ = rule(&bytes, &mut |_| None);
        let _ = read(|b| {
            for (name, fields) in &parts {
                expression(b, name, |b| {
                    for (kind, bytes) in fields {
                        b.attribute(*kind, bytes);
                    }
                });
            }
        });
    }
}
