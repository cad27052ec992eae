//! From a pod's annotations, its proxy's environment and its addresses to a plan
//! (reference 2.6 and 2.7).

use crate::annotation;
use crate::enroll::Config;
use crate::net::{Cidr, Interface, Owner};
use crate::plan::{
    Destinations, Dns, Inbound, Mode, Outbound, Plan, Proxy, TPROXY_MARK, TPROXY_TABLE,
};
use crate::pod::{Pod, parse_bool};
use std::net::IpAddr;

/// User and group of the proxy unless its container says otherwise (reference 2.6).
const PROXY_ID: u32 = 1337;

/// Ports of the sidecar itself that are never captured inbound: status, readiness,
/// statistics (reference 2.6).
const SIDECAR_PORTS: [u16; 3] = [15020, 15021, 15090];

/// Outbound port that is not captured unless the annotation says otherwise
/// (reference 2.6).
const DEFAULT_EXCLUDE_OUTBOUND: &str = "15020";

/// Why a pod's plan cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A value that is not allowed.
    #[error("annotation {key}: {value:?} is not allowed: {problem}; want {want}")]
    Annotation {
        /// The annotation's key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        problem: String,
        /// What is allowed.
        want: &'static str,
    },
    /// The proxy's container names a user or group that no process can have.
    #[error("container istio-proxy: {field} {value} is not allowed; want 0 to 4294967294")]
    ProxyId {
        /// `runAsUser` or `runAsGroup`.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The pod's namespace has no address, so there is nothing to capture for.
    #[error(
        "no valid local IP address found: the pod's network namespace has no address besides loopback and link-local ones; the plugins before istio-cni in the chain must assign one"
    )]
    NoAddress,
    /// The pod has no proxy to send anything to.
    #[error("the pod has no istio-proxy container")]
    NoProxy,
}

const WANT_PORTS: &str = "ports from 0 to 65535, separated by commas";
const WANT_CIDRS: &str = "CIDR prefixes separated by commas without spaces";
const WANT_NICS: &str = "interface names separated by commas, each at most 15 characters: a letter, then letters, digits, '_', '.', '-', and at most one '*' at the end";

/// Makes the plan of a sidecar pod.
///
/// `addresses` are those of the pod's network namespace in the kernel's order,
/// without loopback and link-local ones.
///
/// # Errors
///
/// [`PlanError`]: names the annotation, its value and what is allowed.
pub fn plan(pod: &Pod, config: &Config, addresses: &[IpAddr]) -> Result<Plan, PlanError> {
    let proxy = pod.proxy().ok_or(PlanError::NoProxy)?;
    let flag = |name| proxy.var(name).and_then(parse_bool) == Some(true);
    let first = addresses.first().ok_or(PlanError::NoAddress)?;
    // Upstream's rule: with dual stack any IPv6 address, otherwise the first address
    // decides, since that is what Envoy's listeners then follow (2.7).
    let ipv6 = if flag("ISTIO_DUAL_STACK") {
        addresses.iter().any(IpAddr::is_ipv6)
    } else {
        first.is_ipv6()
    };
    let values = Annotations(pod);
    // In upstream's order, so that of several errors the same one is reported.
    let mode = values.mode()?;
    let include = values.destinations()?;
    let exclude = values.cidrs(annotation::EXCLUDE_OUTBOUND_IP_RANGES, "")?;
    let exclude_inbound = values.ports(annotation::EXCLUDE_INBOUND_PORTS, "15020")?;
    let inbound = values.inbound(exclude_inbound)?;
    let exclude_ports =
        values.ports(annotation::EXCLUDE_OUTBOUND_PORTS, DEFAULT_EXCLUDE_OUTBOUND)?;
    let include_ports = values.ports(annotation::INCLUDE_OUTBOUND_PORTS, "")?;
    let exclude_interfaces = values.interfaces(annotation::EXCLUDE_INTERFACES)?;
    let guests = match pod.annotation(annotation::REROUTE_VIRTUAL_INTERFACES) {
        Some(_) => annotation::REROUTE_VIRTUAL_INTERFACES,
        None => annotation::KUBEVIRT_INTERFACES,
    };
    let virtual_interfaces = values.interfaces(guests)?;
    Ok(Plan {
        proxy: Proxy {
            uids: vec![id("runAsUser", proxy.run_as_user)?],
            gids: vec![id("runAsGroup", proxy.run_as_group)?],
            ..Proxy::default()
        },
        mode,
        ipv6,
        loopback_v4: config.loopback_v4,
        inbound,
        outbound: Outbound {
            include,
            exclude,
            include_ports,
            exclude_ports,
            groups: config.owner_groups.clone(),
        },
        // The pod's resolv.conf is not known here, so every server counts (2.6).
        dns: if flag("ISTIO_META_DNS_CAPTURE") { Dns::All } else { Dns::Off },
        exclude_interfaces,
        virtual_interfaces,
        drop_invalid: flag("INVALID_DROP"),
    })
}

/// Settings of the proxy that are ignored because they are no boolean, each as a
/// sentence for the log.
#[must_use]
pub fn warnings(pod: &Pod) -> Vec<String> {
    let proxy = pod.proxy().unwrap_or_default();
    ["ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"]
        .into_iter()
        .filter_map(|name| {
            let value = proxy.var(name)?;
            parse_bool(value).is_none().then(|| {
                format!("container istio-proxy: {name}={value:?} is no boolean and counts as false; want true or false")
            })
        })
        .collect()
}

/// Unset and 0 mean the default: a TPROXY sidecar runs as root and is still known
/// as 1337 by its group (2.6).
fn id(field: &'static str, value: Option<i64>) -> Result<Owner, PlanError> {
    match value {
        None | Some(0) => Ok(Owner::Id(PROXY_ID)),
        Some(value) => match u32::try_from(value) {
            Ok(id) if id != u32::MAX => Ok(Owner::Id(id)),
            _ => Err(PlanError::ProxyId { field, value }),
        },
    }
}

struct Annotations<'a>(&'a Pod);

impl Annotations<'_> {
    fn value(&self, key: &'static str, default: &'static str) -> &str {
        self.0.annotation(key).unwrap_or(default)
    }

    fn error(
        &self,
        key: &'static str,
        problem: impl std::fmt::Display,
        want: &'static str,
    ) -> PlanError {
        let value = self.value(key, "").to_owned();
        PlanError::Annotation { key, value, problem: problem.to_string(), want }
    }

    fn mode(&self) -> Result<Mode, PlanError> {
        let key = annotation::INTERCEPTION_MODE;
        match self.value(key, "REDIRECT") {
            "REDIRECT" => Ok(Mode::Redirect),
            "TPROXY" => Ok(Mode::Tproxy { mark: TPROXY_MARK, table: TPROXY_TABLE }),
            _ => Err(self.error(key, "no such mode", "REDIRECT, TPROXY or NONE")),
        }
    }

    fn destinations(&self) -> Result<Destinations, PlanError> {
        let key = annotation::INCLUDE_OUTBOUND_IP_RANGES;
        if self.value(key, "*") == "*" {
            return Ok(Destinations::All);
        }
        let cidrs = self.cidrs(key, "*");
        cidrs.map(Destinations::Only).map_err(|e| match e {
            PlanError::Annotation { key, value, problem, .. } => {
                let want = "*, or CIDR prefixes separated by commas without spaces";
                PlanError::Annotation { key, value, problem, want }
            }
            other => other,
        })
    }

    fn cidrs(&self, key: &'static str, default: &'static str) -> Result<Vec<Cidr>, PlanError> {
        let value = self.value(key, default);
        if value.is_empty() {
            return Ok(Vec::new());
        }
        let parse = |item: &str| item.parse::<Cidr>().map_err(|e| self.error(key, e, WANT_CIDRS));
        value.split(',').map(parse).collect()
    }

    fn ports(&self, key: &'static str, default: &'static str) -> Result<Vec<u16>, PlanError> {
        let value = self.value(key, default).trim();
        let mut ports = Vec::new();
        if value.is_empty() {
            return Ok(ports);
        }
        for item in value.split(',') {
            let port = parse_port(item).ok_or_else(|| {
                self.error(key, format_args!("failed parsing port {item:?}"), WANT_PORTS)
            })?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        Ok(ports)
    }

    /// An explicit list ignores the exclusions (3.2 step 5).
    fn inbound(&self, exclude: Vec<u16>) -> Result<Inbound, PlanError> {
        let key = annotation::INCLUDE_INBOUND_PORTS;
        if self.value(key, "*").trim() == "*" {
            let mut except = exclude;
            for port in SIDECAR_PORTS {
                if !except.contains(&port) {
                    except.push(port);
                }
            }
            return Ok(Inbound::AllExcept(except));
        }
        let only = self.ports(key, "*").map_err(|e| match e {
            PlanError::Annotation { key, value, problem, .. } => {
                let want = "*, or ports from 0 to 65535, separated by commas";
                PlanError::Annotation { key, value, problem, want }
            }
            other => other,
        })?;
        Ok(if only.is_empty() { Inbound::Nothing } else { Inbound::Only(only) })
    }

    fn interfaces(&self, key: &'static str) -> Result<Vec<Interface>, PlanError> {
        let value = self.value(key, "");
        if value.is_empty() {
            return Ok(Vec::new());
        }
        let parse = |item: &str| {
            item.trim().parse::<Interface>().map_err(|e| self.error(key, e, WANT_NICS))
        };
        value.split(',').map(parse).collect()
    }
}

/// A port in decimal digits, blanks around it allowed; `u16::from_str` alone would
/// also take a sign, which upstream refuses.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
