//! `sluice explain`: what would happen to a pod, in words.

use crate::config::{ExplainArgs, ExplainFormat};
use crate::input;
use anyhow::{Context, Result};
use redirect::enroll::{Decision, decide};
use redirect::plan::{Destinations, Dns, Groups, Inbound, Mode, Plan};
use redirect::pod::Pod;
use redirect::sidecar::{plan, warnings};
use serde_json::{Value, json};
use std::fmt::Display;

/// The explanation that is asked for. A pod that is left alone is one as well.
///
/// # Errors
///
/// When the manifest cannot be read, or the pod would be refused: with the reason
/// that ADD would give.
pub(crate) fn explain(args: &ExplainArgs) -> Result<String> {
    let (pod, namespace) = input::pod(&args.manifest)?;
    let at = || format!("{}: pod {}/{}", args.manifest.display(), pod.namespace, pod.name);
    let config = args.policy.config_with_names()?;
    let decision = decide(&pod, namespace.as_ref(), &config).with_context(at)?;
    let (word, code, reason) = match decision {
        Decision::Sidecar => {
            ("sidecar", "sidecar", "it has an injected istio-proxy sidecar".to_owned())
        }
        Decision::Ambient => (
            "ambient",
            "ambient",
            "an enablement selector matches the pod and its namespace".to_owned(),
        ),
        Decision::Skip(reason) => ("skip", reason.code(), reason.to_string()),
    };
    let plan = match decision {
        Decision::Sidecar => Some(plan(&pod, &config, &args.addresses.addresses).with_context(at)?),
        _ => None,
    };
    let warnings = if plan.is_some() { warnings(&pod) } else { Vec::new() };
    let lines = plan.as_ref().map(words).unwrap_or_default();
    Ok(match args.format {
        ExplainFormat::Json => format!(
            "{:#}\n",
            json!({
                "pod": pod.name,
                "namespace": pod.namespace,
                "decision": word,
                "reason": code,
                "text": reason,
                "plan": lines.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.clone())))
                    .collect::<serde_json::Map<_, _>>(),
                "warnings": warnings,
            })
        ),
        ExplainFormat::Text => text(&pod, decision, &reason, &lines, &warnings),
    })
}

fn text(
    pod: &Pod,
    decision: Decision,
    reason: &str,
    lines: &[(&str, String)],
    warnings: &[String],
) -> String {
    let verdict = match decision {
        Decision::Sidecar => "captured for its sidecar",
        Decision::Ambient => "captured for the node's ztunnel",
        Decision::Skip(_) => "left alone",
    };
    let mut text = format!("pod {}/{}: {verdict}: {reason}\n", pod.namespace, pod.name);
    for (key, value) in lines {
        text.push_str(&format!("  {key:<10} {value}\n"));
    }
    for warning in warnings {
        text.push_str(&format!("  warning    {warning}\n"));
    }
    text
}

/// A plan as (subject, sentence).
fn words(plan: &Plan) -> Vec<(&'static str, String)> {
    let proxy = &plan.proxy;
    let mut words = vec![
        (
            "proxy",
            format!(
                "user {}, group {}; listens on {} (outbound) and {} (inbound)",
                list(&proxy.uids),
                list(&proxy.gids),
                proxy.outbound_port,
                proxy.inbound_port
            ),
        ),
        ("mode", mode(plan.mode)),
        (
            "families",
            if plan.ipv6 { "IPv4 and IPv6" } else { "IPv4; IPv6 is not captured" }.to_owned(),
        ),
        ("inbound", inbound(plan)),
        ("outbound", outbound(plan)),
        ("dns", dns(&plan.dns)),
    ];
    if !plan.exclude_interfaces.is_empty() {
        words.push(("excluded", format!("interfaces {}", list(&plan.exclude_interfaces))));
    }
    if !plan.virtual_interfaces.is_empty() {
        words.push((
            "guests",
            format!(
                "traffic from interfaces {} counts as outbound",
                list(&plan.virtual_interfaces)
            ),
        ));
    }
    if plan.drop_invalid {
        words.push(("invalid", "TCP packets that conntrack finds invalid are dropped".to_owned()));
    }
    words
}

fn mode(mode: Mode) -> String {
    match mode {
        Mode::Redirect => "REDIRECT: the application sees connections from 127.0.0.6".to_owned(),
        Mode::Tproxy { mark, table } => {
            format!("TPROXY: addresses are kept; mark {mark}, routing table {table}")
        }
    }
}

fn inbound(plan: &Plan) -> String {
    let tunnel = plan.proxy.tunnel_port;
    match &plan.inbound {
        Inbound::Nothing => "nothing".to_owned(),
        Inbound::AllExcept(ports) if ports.is_empty() => format!("every TCP port except {tunnel}"),
        Inbound::AllExcept(ports) => format!("every TCP port except {tunnel}, {}", list(ports)),
        Inbound::Only(ports) => format!("TCP ports {}", list(ports)),
    }
}

fn outbound(plan: &Plan) -> String {
    let outbound = &plan.outbound;
    let mut text = match &outbound.include {
        Destinations::All => "TCP to every address".to_owned(),
        Destinations::Only(prefixes) if prefixes.is_empty() => "TCP to no address".to_owned(),
        Destinations::Only(prefixes) => format!("TCP to {}", list(prefixes)),
    };
    if !outbound.include_ports.is_empty() {
        text.push_str(&format!("; to ports {} of any address", list(&outbound.include_ports)));
    }
    if !outbound.exclude.is_empty() {
        text.push_str(&format!("; not to {}", list(&outbound.exclude)));
    }
    if !outbound.exclude_ports.is_empty() {
        text.push_str(&format!("; not to ports {}", list(&outbound.exclude_ports)));
    }
    match &outbound.groups {
        Groups::AllExcept(groups) if groups.is_empty() => {}
        Groups::AllExcept(groups) => text.push_str(&format!("; not from groups {}", list(groups))),
        Groups::Only(groups) => text.push_str(&format!("; from groups {} only", list(groups))),
    }
    text
}

fn dns(dns: &Dns) -> String {
    match dns {
        Dns::Off => "not captured".to_owned(),
        Dns::All => format!("queries to port 53 go to the proxy on {}", redirect::plan::DNS_PORT),
        Dns::Servers(servers) => format!("queries to {} go to the proxy", list(servers)),
    }
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
