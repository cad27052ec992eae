//! Numbers of `linux/netfilter/nf_tables.h`, those that are used. libc has the
//! message types and keys but not the attributes.

/// Type of a message of nf_tables.
pub(super) const fn message(number: u16) -> u16 {
    // NFNL_SUBSYS_NFTABLES
    (10 << 8) | number
}

pub(super) const NEWTABLE: u16 = message(0);
pub(super) const GETTABLE: u16 = message(1);
pub(super) const DELTABLE: u16 = message(2);
pub(super) const NEWCHAIN: u16 = message(3);
pub(super) const GETCHAIN: u16 = message(4);
pub(super) const DELCHAIN: u16 = message(5);
pub(super) const NEWRULE: u16 = message(6);
pub(super) const GETRULE: u16 = message(7);
pub(super) const DELRULE: u16 = message(8);
pub(super) const NEWSET: u16 = message(9);
pub(super) const NEWSETELEM: u16 = message(12);
pub(super) const GETSETELEM: u16 = message(13);
pub(super) const NEWGEN: u16 = message(15);
pub(super) const GETGEN: u16 = message(16);

pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

pub(super) const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// `struct nfgenmsg`: family, version, resource.
pub(super) const fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

pub(super) const GEN_ID: u16 = 1;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
/// The table's chains are not called.
pub(super) const TABLE_F_DORMANT: u32 = 1;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const PREROUTING: u32 = 0;
pub(super) const OUTPUT: u32 = 3;
pub(super) const ACCEPT: u32 = 1;
pub(super) const DROP: u32 = 0;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DESC: u16 = 9;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_DESC_SIZE: u16 = 1;
/// NFT_SET_ANONYMOUS | NFT_SET_CONSTANT
pub(super) const SET_F_ANONYMOUS_CONSTANT: u32 = 3;
/// nft's own number of its type `inet_service`; the kernel only keeps it.
pub(super) const TYPE_INET_SERVICE: u32 = 13;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_FLAGS: u16 = 3;
pub(super) const ELEM_KEY_END: u16 = 10;
pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_LIST_SET_ID: u16 = 4;

pub(super) const LIST_ELEM: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
/// Negative in the header: -3 and -5.
pub(super) const JUMP: u32 = 0xffff_fffd;
pub(super) const RETURN: u32 = 0xffff_fffb;

pub(super) const REG_VERDICT: u32 = 0;
pub(super) const REG_1: u32 = 1;
/// NFT_REG32_00, other names of the four-byte parts of the registers 1 to 4.
pub(super) const REG32_00: u32 = 8;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;
pub(super) const KEY_MARK: u32 = 3;
pub(super) const KEY_IIFNAME: u32 = 6;
pub(super) const KEY_OIFNAME: u32 = 7;
pub(super) const KEY_SKUID: u32 = 10;
pub(super) const KEY_SKGID: u32 = 11;
pub(super) const KEY_NFPROTO: u32 = 15;
pub(super) const KEY_L4PROTO: u32 = 16;
/// IFNAMSIZ
pub(super) const NAME_LEN: usize = 16;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;
pub(super) const CT_STATE: u32 = 0;
pub(super) const CT_MARK: u32 = 3;
pub(super) const CT_ZONE: u32 = 17;
pub(super) const STATE_INVALID: u32 = 1;
/// ESTABLISHED | RELATED
pub(super) const STATE_KNOWN: u32 = 2 | 4;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const NETWORK: u32 = 1;
pub(super) const TRANSPORT: u32 = 2;
pub(super) const IP_SOURCE: u32 = 12;
pub(super) const IP_DESTINATION: u32 = 16;
pub(super) const IP6_SOURCE: u32 = 8;
pub(super) const IP6_DESTINATION: u32 = 24;
pub(super) const SOURCE_PORT: u32 = 0;
pub(super) const DESTINATION_PORT: u32 = 2;
pub(super) const TCP_FLAGS: u32 = 13;
/// SYN, and SYN | ACK | FIN | RST.
pub(super) const SYN: u8 = 0x02;
pub(super) const SYN_MASK: u8 = 0x17;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const EQ: u32 = 0;
pub(super) const NEQ: u32 = 1;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_SET_ID: u16 = 4;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const LOOKUP_F_INV: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const REDIR_PROTO_MIN: u16 = 1;
pub(super) const REDIR_PROTO_MAX: u16 = 2;
pub(super) const REDIR_FLAGS: u16 = 3;
/// NF_NAT_RANGE_PROTO_SPECIFIED
pub(super) const REDIR_PORT_GIVEN: u32 = 2;

pub(super) const TPROXY_FAMILY: u16 = 1;
pub(super) const TPROXY_ADDR: u16 = 2;
pub(super) const TPROXY_PORT: u16 = 3;
