//! Our table on the host over netlink: written whole in one batch, and its
//! elements in one batch each time they change.

use super::HostError;
use super::expression::expressions;
use super::picture::has_table;
use crate::netlink::{Batch, Buffer, NetlinkError, Protocol, Rejected, Socket};
use crate::nftables::abi::*;
use nix::errno::Errno;
use redirect::host::rules::{FLOW_MS, FLOWS, PRIORITY, Point, Set, TABLE, Term, targets_set};
use redirect::host::{Change, HostRules, Target};
use redirect::net::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Somebody else writes at the same time; after this many rounds it is an error.
const ROUNDS: u32 = 16;
const ANY_GENERATION: u32 = 0;
const DELSETELEM: u16 = message(14);
pub(super) const POSTROUTING: u32 = 4;
const SET_TIMEOUT: u16 = 11;
const SET_GC_INTERVAL: u16 = 12;
pub(super) const SET_F_TIMEOUT: u32 = 0x10;
pub(super) const SET_F_EVAL: u32 = 0x20;
/// nft's own numbers of its types, six bits each in a concatenation; the kernel
/// only keeps them, so that `nft list` can show the set.
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
/// Elements of one message; its attribute has 16 bits for its length.
const ELEMENTS: usize = 1000;

/// Bytes of an element: the address, the port and two bytes of nothing.
fn key(target: &Target) -> Vec<u8> {
    let mut key = match target.address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    key.extend(target.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// A batch, and what each of its messages does.
struct Transaction {
    batch: Batch,
    steps: Vec<String>,
}

impl Transaction {
    fn new(generation: u32) -> Self {
        Self { batch: Batch::new(generation), steps: Vec::new() }
    }

    fn push(&mut self, step: String, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer)) {
        self.steps.push(step);
        self.batch.push(kind, flags, |b| {
            b.raw(&nfgenmsg(NFPROTO_INET));
            body(b);
        });
    }

    fn delete_table(&mut self) {
        self.batch.deletes();
        let step = format!("delete table inet {TABLE}");
        self.push(step, DELTABLE, 0, |b| b.text(TABLE_NAME, TABLE));
    }

    fn create(&mut self, rules: &HostRules, targets: &BTreeSet<Target>) {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        let step = format!("create table inet {TABLE}");
        self.push(step, NEWTABLE, new, |b| b.text(TABLE_NAME, TABLE));
        for (id, set) in (1..).zip(rules.sets()) {
            self.set(set, id);
        }
        for (family, _) in rules.sources.families() {
            self.elements(family, NEWSETELEM, targets);
        }
        for chain in rules.chains() {
            let name = chain.name();
            let number = match chain.point {
                Point::Output => OUTPUT,
                Point::Postrouting => POSTROUTING,
            };
            self.push(format!("create chain inet {TABLE} {name}"), NEWCHAIN, new, |b| {
                b.text(CHAIN_TABLE, TABLE);
                b.text(CHAIN_NAME, name);
                b.nested(CHAIN_HOOK, |b| {
                    b.be32(HOOK_NUMBER, number);
                    b.attribute(HOOK_PRIORITY, &PRIORITY.to_be_bytes());
                });
                b.be32(CHAIN_POLICY, ACCEPT);
                b.text(CHAIN_TYPE, "nat");
            });
            for rule in &chain.rules {
                self.rule(name, rule);
            }
        }
    }

    fn rule(&mut self, chain: &'static str, rule: &[Term]) {
        let step = format!("create rule inet {TABLE} {chain} {rule:?}");
        self.push(step, NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |b| {
            b.text(RULE_TABLE, TABLE);
            b.text(RULE_CHAIN, chain);
            b.nested(RULE_EXPRESSIONS, |b| {
                for expression in expressions(rule) {
                    expression.write(b);
                }
            });
        });
    }

    fn set(&mut self, set: Set, id: u32) {
        let (address, len) = match set.family {
            Family::V4 => (TYPE_IPADDR, 4),
            Family::V6 => (TYPE_IP6ADDR, 16),
        };
        let end = (address << 6) | TYPE_INET_SERVICE;
        let len = len + 4;
        let new = NLM_F_CREATE | NLM_F_EXCL;
        self.push(format!("create set inet {TABLE} {}", set.name), NEWSET, new, |b| {
            b.text(SET_TABLE, TABLE);
            b.text(SET_NAME, set.name);
            b.be32(SET_ID, id);
            if set.flows {
                b.be32(SET_FLAGS, SET_F_TIMEOUT | SET_F_EVAL);
                b.be32(SET_KEY_TYPE, (end << 12) | end);
                b.be32(SET_KEY_LEN, 2 * len);
                b.attribute(SET_TIMEOUT, &FLOW_MS.to_be_bytes());
                b.be32(SET_GC_INTERVAL, 1000);
                b.nested(SET_DESC, |b| b.be32(SET_DESC_SIZE, FLOWS));
            } else {
                b.be32(SET_FLAGS, 0);
                b.be32(SET_KEY_TYPE, end);
                b.be32(SET_KEY_LEN, len);
            }
        });
    }

    /// Adds or deletes those of a family.
    fn elements(&mut self, family: Family, kind: u16, targets: &BTreeSet<Target>) {
        let of_family: Vec<&Target> =
            targets.iter().filter(|target| Family::of(target.address) == family).collect();
        let set = targets_set(family);
        let (flags, verb) = match kind {
            NEWSETELEM => (NLM_F_CREATE, "add"),
            _ => (0, "delete"),
        };
        if kind != NEWSETELEM && !of_family.is_empty() {
            self.batch.deletes();
        }
        for some in of_family.chunks(ELEMENTS) {
            let step = format!("{verb} {} elements of set inet {TABLE} {set}", some.len());
            self.push(step, kind, flags, |b| {
                b.text(ELEM_LIST_TABLE, TABLE);
                b.text(ELEM_LIST_SET, set);
                b.nested(ELEM_LIST_ELEMENTS, |b| {
                    for target in some {
                        b.nested(LIST_ELEM, |b| {
                            b.nested(ELEM_KEY, |b| b.attribute(DATA_VALUE, &key(target)));
                        });
                    }
                });
            });
        }
    }

    /// The inner error is the kernel's refusal of the whole, with its number.
    fn commit(self, socket: Socket) -> Result<Result<(), (Errno, NetlinkError)>, NetlinkError> {
        let Self { batch, steps } = self;
        Ok(socket.transact(batch)?.map_err(|rejected| refusal(&steps, rejected)))
    }
}

fn refusal(steps: &[String], rejected: Rejected) -> (Errno, NetlinkError) {
    let Rejected { message, errno, detail } = rejected;
    let step = message.and_then(|n| steps.get(n));
    let object = step.cloned().unwrap_or_else(|| "nf_tables batch".to_owned());
    (errno, NetlinkError::Refused { object, detail, source: errno })
}

/// A socket that is kept from one change of elements to the next, in the namespace
/// in which it was opened.
#[derive(Debug, Default)]
pub(super) struct Line {
    socket: Option<Socket>,
    port: u32,
}

impl Line {
    /// What notifications of changes made over it bear.
    pub(super) fn port(&self) -> u32 {
        self.port
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.close_late();
        }
    }
}

/// Puts our table in place, with these elements and no others, in the place of the
/// one that is there.
pub(super) fn install(rules: &HostRules, targets: &BTreeSet<Target>) -> Result<(), HostError> {
    let mut rounds = 0;
    loop {
        rounds += 1;
        let mut socket = Socket::open(Protocol::Netfilter)?;
        let present = has_table(&mut socket, TABLE)?;
        // Whether our table is there decides what the batch says, and the kernel
        // refuses the whole when that is not so any more.
        let mut transaction = Transaction::new(ANY_GENERATION);
        if present {
            transaction.delete_table();
        }
        transaction.create(rules, targets);
        match transaction.commit(socket)? {
            Ok(()) => return Ok(()),
            Err((Errno::EEXIST | Errno::ENOENT | Errno::ERESTART, _)) if rounds < ROUNDS => (),
            Err((_, error)) => return Err(error.into()),
        }
    }
}

/// Changes elements. False when the kernel has not got what that takes for granted:
/// our sets, and the elements that go.
pub(super) fn update(
    line: &mut Line,
    rules: &HostRules,
    change: &Change,
) -> Result<bool, HostError> {
    let mut transaction = Transaction::new(ANY_GENERATION);
    for (family, _) in rules.sources.families() {
        transaction.elements(family, DELSETELEM, &change.remove);
        transaction.elements(family, NEWSETELEM, &change.add);
    }
    if transaction.batch.is_empty() {
        return Ok(true);
    }
    let mut socket = match line.socket.take() {
        Some(socket) => socket,
        None => Socket::open(Protocol::Netfilter)?,
    };
    let Transaction { batch, steps } = transaction;
    let taken = socket.transact_kept(batch);
    // After anything else than success an answer may be left on it.
    match taken {
        Ok(Ok(())) => {
            line.port = socket.port();
            line.socket = Some(socket);
            Ok(true)
        }
        Ok(Err(rejected)) => {
            socket.close_late();
            match refusal(&steps, rejected) {
                (Errno::ENOENT, _) => Ok(false),
                (_, error) => Err(error.into()),
            }
        }
        Err(error) => {
            socket.close_late();
            Err(error.into())
        }
    }
}

/// Removes a table of family inet; fine when it is not there.
pub(super) fn remove(name: &str) -> Result<(), HostError> {
    let mut transaction = Transaction::new(ANY_GENERATION);
    transaction.batch.deletes();
    let step = format!("delete table inet {name}");
    transaction.push(step, DELTABLE, 0, |b| b.text(TABLE_NAME, name));
    match transaction.commit(Socket::open(Protocol::Netfilter)?)? {
        Ok(()) | Err((Errno::ENOENT, _)) => Ok(()),
        Err((_, error)) => Err(error.into()),
    }
}
