//! Numbers of `linux/netfilter/nf_tables.h`, those that are used. libc has the
//! message types and keys but not the attributes.

/// Type of a message of nf_tables.
pub(crate) const fn message(number: u16) -> u16 {
    // NFNL_SUBSYS_NFTABLES
    (10 << 8) | number
}

pub(crate) const NEWTABLE: u16 = message(0);
pub(crate) const GETTABLE: u16 = message(1);
pub(crate) const DELTABLE: u16 = message(2);
pub(crate) const NEWCHAIN: u16 = message(3);
pub(crate) const GETCHAIN: u16 = message(4);
pub(crate) const DELCHAIN: u16 = message(5);
pub(crate) const NEWRULE: u16 = message(6);
pub(crate) const GETRULE: u16 = message(7);
pub(crate) const DELRULE: u16 = message(8);
pub(crate) const NEWSET: u16 = message(9);
pub(crate) const NEWSETELEM: u16 = message(12);
pub(crate) const GETSETELEM: u16 = message(13);
pub(crate) const NEWGEN: u16 = message(15);
pub(crate) const GETGEN: u16 = message(16);

pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

pub(crate) const NFPROTO_UNSPEC: u8 = 0;
pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

/// `struct nfgenmsg`: family, version, resource.
pub(crate) const fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

pub(crate) const GEN_ID: u16 = 1;

pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const TABLE_FLAGS: u16 = 2;
/// The table's chains are not called.
pub(crate) const TABLE_F_DORMANT: u32 = 1;

pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_NUMBER: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
pub(crate) const PREROUTING: u32 = 0;
pub(crate) const OUTPUT: u32 = 3;
pub(crate) const ACCEPT: u32 = 1;
pub(crate) const DROP: u32 = 0;

pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;

pub(crate) const SET_TABLE: u16 = 1;
pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
pub(crate) const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LEN: u16 = 5;
pub(crate) const SET_DESC: u16 = 9;
pub(crate) const SET_ID: u16 = 10;
pub(crate) const SET_DESC_SIZE: u16 = 1;
/// NFT_SET_ANONYMOUS | NFT_SET_CONSTANT
pub(crate) const SET_F_ANONYMOUS_CONSTANT: u32 = 3;
/// nft's own number of its type `inet_service`; the kernel only keeps it.
pub(crate) const TYPE_INET_SERVICE: u32 = 13;
pub(crate) const ELEM_KEY: u16 = 1;
pub(crate) const ELEM_FLAGS: u16 = 3;
pub(crate) const ELEM_KEY_END: u16 = 10;
pub(crate) const ELEM_LIST_TABLE: u16 = 1;
pub(crate) const ELEM_LIST_SET: u16 = 2;
pub(crate) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(crate) const ELEM_LIST_SET_ID: u16 = 4;

pub(crate) const LIST_ELEM: u16 = 1;
pub(crate) const EXPR_NAME: u16 = 1;
pub(crate) const EXPR_DATA: u16 = 2;
pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;
/// Negative in the header: -3 and -5.
pub(crate) const JUMP: u32 = 0xffff_fffd;
pub(crate) const RETURN: u32 = 0xffff_fffb;

pub(crate) const REG_VERDICT: u32 = 0;
pub(crate) const REG_1: u32 = 1;
/// NFT_REG32_00, other names of the four-byte parts of the registers 1 to 4.
pub(crate) const REG32_00: u32 = 8;

pub(crate) const META_DREG: u16 = 1;
pub(crate) const META_KEY: u16 = 2;
pub(crate) const META_SREG: u16 = 3;
pub(crate) const KEY_MARK: u32 = 3;
pub(crate) const KEY_IIFNAME: u32 = 6;
pub(crate) const KEY_OIFNAME: u32 = 7;
pub(crate) const KEY_SKUID: u32 = 10;
pub(crate) const KEY_SKGID: u32 = 11;
pub(crate) const KEY_NFPROTO: u32 = 15;
pub(crate) const KEY_L4PROTO: u32 = 16;
/// IFNAMSIZ
pub(crate) const NAME_LEN: usize = 16;

pub(crate) const CT_DREG: u16 = 1;
pub(crate) const CT_KEY: u16 = 2;
pub(crate) const CT_DIRECTION: u16 = 3;
pub(crate) const CT_SREG: u16 = 4;
pub(crate) const CT_STATE: u32 = 0;
pub(crate) const CT_MARK: u32 = 3;
pub(crate) const CT_ZONE: u32 = 17;
pub(crate) const STATE_INVALID: u32 = 1;
/// ESTABLISHED | RELATED
pub(crate) const STATE_KNOWN: u32 = 2 | 4;

pub(crate) const PAYLOAD_DREG: u16 = 1;
pub(crate) const PAYLOAD_BASE: u16 = 2;
pub(crate) const PAYLOAD_OFFSET: u16 = 3;
pub(crate) const PAYLOAD_LEN: u16 = 4;
pub(crate) const NETWORK: u32 = 1;
pub(crate) const TRANSPORT: u32 = 2;
pub(crate) const IP_SOURCE: u32 = 12;
pub(crate) const IP_DESTINATION: u32 = 16;
pub(crate) const IP6_SOURCE: u32 = 8;
pub(crate) const IP6_DESTINATION: u32 = 24;
pub(crate) const SOURCE_PORT: u32 = 0;
pub(crate) const DESTINATION_PORT: u32 = 2;
pub(crate) const TCP_FLAGS: u32 = 13;
/// SYN, and SYN | ACK | FIN | RST.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_MASK: u8 = 0x17;

pub(crate) const BITWISE_SREG: u16 = 1;
pub(crate) const BITWISE_DREG: u16 = 2;
pub(crate) const BITWISE_LEN: u16 = 3;
pub(crate) const BITWISE_MASK: u16 = 4;
pub(crate) const BITWISE_XOR: u16 = 5;
pub(crate) const BITWISE_OP: u16 = 6;

pub(crate) const CMP_SREG: u16 = 1;
pub(crate) const CMP_OP: u16 = 2;
pub(crate) const CMP_DATA: u16 = 3;
pub(crate) const EQ: u32 = 0;
pub(crate) const NEQ: u32 = 1;

pub(crate) const LOOKUP_SET: u16 = 1;
pub(crate) const LOOKUP_SREG: u16 = 2;
pub(crate) const LOOKUP_DREG: u16 = 3;
pub(crate) const LOOKUP_SET_ID: u16 = 4;
pub(crate) const LOOKUP_FLAGS: u16 = 5;
pub(crate) const LOOKUP_F_INV: u32 = 1;

pub(crate) const IMMEDIATE_DREG: u16 = 1;
pub(crate) const IMMEDIATE_DATA: u16 = 2;

pub(crate) const REDIR_PROTO_MIN: u16 = 1;
pub(crate) const REDIR_PROTO_MAX: u16 = 2;
pub(crate) const REDIR_FLAGS: u16 = 3;
/// NF_NAT_RANGE_PROTO_SPECIFIED
pub(crate) const REDIR_PORT_GIVEN: u32 = 2;

pub(crate) const TPROXY_FAMILY: u16 = 1;
pub(crate) const TPROXY_ADDR: u16 = 2;
pub(crate) const TPROXY_PORT: u16 = 3;
