//! `ip rule fwmark M lookup T` and `ip route local default dev lo table T`.

use super::{
    LOOPBACK, NLM_F_CREATE, NLM_F_EXCL, address_family, family_of, header_table, route_name,
    rule_name, write,
};
use crate::netlink::{NetlinkError, Socket};
use netlink_packet_core::Parseable;
use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use nix::errno::Errno;
use redirect::desired::MarkRoute;
use redirect::net::Family;

/// Duplicates of a rule that are deleted at most; upstream makes one more with
/// every run that fails halfway.
const DUPLICATES: u32 = 64;

pub(super) fn has_rule(socket: &mut Socket, want: &MarkRoute) -> Result<bool, NetlinkError> {
    Ok(find_rule(socket, want)?.is_some())
}

/// The message of the first such rule, as the kernel has it.
fn find_rule(socket: &mut Socket, want: &MarkRoute) -> Result<Option<Vec<u8>>, NetlinkError> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(want.family);
    let object = format!("list rules for {}", rule_name(want));
    let replies = socket.dump(&object, libc::RTM_GETRULE, |b| write(b, &request))?;
    let mut rules = replies.iter().filter(|(kind, _)| *kind == libc::RTM_NEWRULE);
    // A rule that cannot be read is none of ours.
    let found = rules
        .find(|(_, body)| RuleMessage::parse(body).is_ok_and(|rule| is_rule(&rule, want)))
        .map(|(_, body)| body.to_vec());
    Ok(found)
}

fn is_rule(rule: &RuleMessage, want: &MarkRoute) -> bool {
    let header = &rule.header;
    let plain = family_of(header.family) == Some(want.family)
        && header.action == RuleAction::ToTable
        && !header.flags.contains(RuleFlags::Invert)
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0);
    let mut table = u32::from(header.table);
    let (mut mark, mut mask, mut priority) = (0, u32::MAX, 0);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(found) => mark = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::FwMask(found) => mask = *found,
            RuleAttribute::Priority(found) => priority = *found,
            // Conditions that would make the rule hold for some packets only.
            RuleAttribute::Goto(_)
            | RuleAttribute::L3MDev(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => return false,
            _ => (),
        }
    }
    plain
        && (mark, mask, table) == (want.mark, want.mask, want.table)
        && want.priority.is_none_or(|wanted| wanted == priority)
}

fn rule(want: &MarkRoute) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(want.family);
    message.header.action = RuleAction::ToTable;
    message.header.table = header_table(want.table);
    message.attributes = vec![RuleAttribute::FwMark(want.mark), RuleAttribute::Table(want.table)];
    if want.mask != u32::MAX {
        message.attributes.push(RuleAttribute::FwMask(want.mask));
    }
    message.attributes.extend(want.priority.map(RuleAttribute::Priority));
    message
}

pub(super) fn add_rule(socket: &mut Socket, want: &MarkRoute) -> Result<(), NetlinkError> {
    let object = || format!("add {}", rule_name(want));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match socket.request(object, libc::RTM_NEWRULE, flags, |b| write(b, &rule(want))) {
        // The kernel compares all of the rule, so it is ours by somebody faster.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

pub(super) fn delete_rules(socket: &mut Socket, want: &MarkRoute) -> Result<(), NetlinkError> {
    for _ in 0..DUPLICATES {
        let Some(found) = find_rule(socket, want)? else {
            return Ok(());
        };
        let object = || format!("delete {}", rule_name(want));
        // Word for word with its priority: what a request does not mention
        // matches any rule, so `fwmark 1337` would take `fwmark 1337 iif eth0` too.
        match socket.request(object, libc::RTM_DELRULE, 0, |b| b.raw(&found)) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => (),
            other => other?,
        }
    }
    Ok(())
}

pub(super) fn has_route(socket: &mut Socket, want: &MarkRoute) -> Result<bool, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = address_family(want.family);
    let object = format!("list routes for {}", route_name(want));
    let replies = socket.dump(&object, libc::RTM_GETROUTE, |b| write(b, &request))?;
    let mut routes = replies.iter().filter(|(kind, _)| *kind == libc::RTM_NEWROUTE);
    // A route that cannot be read is none of ours.
    Ok(routes.any(|(_, body)| RouteMessage::parse(body).is_ok_and(|route| is_route(&route, want))))
}

fn is_route(route: &RouteMessage, want: &MarkRoute) -> bool {
    let header = &route.header;
    let plain = family_of(header.address_family) == Some(want.family)
        && header.kind == RouteType::Local
        && (header.destination_prefix_length, header.source_prefix_length) == (0, 0);
    let mut table = u32::from(header.table);
    let mut by = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(found) => table = *found,
            RouteAttribute::Oif(index) => by = Some(*index),
            _ => (),
        }
    }
    plain && (by, table) == (Some(LOOPBACK), want.table)
}

fn route(want: &MarkRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(want.family);
    message.header.table = header_table(want.table);
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = match want.family {
        Family::V4 => RouteScope::Host,
        Family::V6 => RouteScope::Universe,
    };
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::Table(want.table)];
    message
}

pub(super) fn add_route(socket: &mut Socket, want: &MarkRoute) -> Result<(), NetlinkError> {
    let object = || format!("add {}", route_name(want));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    socket.request(object, libc::RTM_NEWROUTE, flags, |b| write(b, &route(want)))
}

pub(super) fn delete_routes(socket: &mut Socket, want: &MarkRoute) -> Result<(), NetlinkError> {
    if !has_route(socket, want)? {
        return Ok(());
    }
    let object = || format!("delete {}", route_name(want));
    socket.request(object, libc::RTM_DELROUTE, 0, |b| write(b, &route(want)))
}
