//! Capture options in the words of upstream's command line (reference 3.1), as the
//! conformance cases have them.

mod ambient;

pub use ambient::AmbientCase;

use crate::net::{Cidr, CidrError, Interface, InterfaceError, Owner, OwnerError};
use crate::plan::{
    Destinations, Dns, Groups, INBOUND_PORT, Inbound, Mode, OUTBOUND_PORT, Outbound, Plan, Proxy,
    TPROXY_MARK, TPROXY_TABLE, TUNNEL_PORT,
};
use crate::sidecar::parse_port;
use serde::Deserialize;
use std::net::IpAddr;
use std::str::FromStr;

/// The options; lists are comma-separated text, what is absent is off or empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Case {
    proxy_port: Option<u16>,
    inbound_capture_port: Option<u16>,
    inbound_tunnel_port: Option<u16>,
    proxy_uid: String,
    proxy_gid: String,
    inbound_interception_mode: String,
    inbound_tproxy_mark: Option<u32>,
    inbound_tproxy_route_table: Option<u32>,
    inbound_ports_include: String,
    inbound_ports_exclude: String,
    owner_groups_include: String,
    owner_groups_exclude: String,
    outbound_ports_include: String,
    outbound_ports_exclude: String,
    outbound_ip_ranges_include: String,
    outbound_ip_ranges_exclude: String,
    reroute_virtual_interfaces: String,
    exclude_interfaces: String,
    host_ipv4_loopback_cidr: String,
    redirect_dns: bool,
    capture_all_dns: bool,
    dns_servers_v4: Vec<IpAddr>,
    dns_servers_v6: Vec<IpAddr>,
    enable_ipv6: bool,
    dual_stack: bool,
    drop_invalid: bool,
}

/// Why a case makes no plan.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// Not JSON, or not the options.
    #[error("capture options")]
    Json(#[from] serde_json::Error),
    /// A value that is not allowed.
    #[error("{option}: {value:?}: {problem}")]
    Value {
        /// Name of the option.
        option: &'static str,
        /// The item that is wrong.
        value: String,
        /// What is wrong with it and what is right.
        problem: String,
    },
}

impl Case {
    /// Reads the options from the text of a JSON object.
    ///
    /// # Errors
    ///
    /// [`CaseError::Json`] on malformed JSON, an unknown option or a wrong type.
    pub fn parse(json: &str) -> Result<Self, CaseError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The plan.
    ///
    /// # Errors
    ///
    /// [`CaseError::Value`] names the option, the item and what is allowed.
    pub fn plan(&self) -> Result<Plan, CaseError> {
        let default = Proxy::default();
        let owners = |option, text: &str, default: Vec<Owner>| {
            let list: Vec<Owner> = items(option, text)?;
            Ok::<_, CaseError>(if list.is_empty() { default } else { list })
        };
        Ok(Plan {
            proxy: Proxy {
                uids: owners("proxy_uid", &self.proxy_uid, default.uids)?,
                gids: owners("proxy_gid", &self.proxy_gid, default.gids)?,
                outbound_port: self.proxy_port.unwrap_or(OUTBOUND_PORT),
                inbound_port: self.inbound_capture_port.unwrap_or(INBOUND_PORT),
                tunnel_port: self.inbound_tunnel_port.unwrap_or(TUNNEL_PORT),
            },
            mode: self.mode()?,
            ipv6: self.enable_ipv6,
            loopback_v4: self.loopback()?,
            inbound: self.inbound()?,
            outbound: self.outbound()?,
            dns: self.dns(),
            exclude_interfaces: items("exclude_interfaces", &self.exclude_interfaces)?,
            virtual_interfaces: items(
                "reroute_virtual_interfaces",
                &self.reroute_virtual_interfaces,
            )?,
            drop_invalid: self.drop_invalid,
        })
    }

    fn mode(&self) -> Result<Mode, CaseError> {
        match self.inbound_interception_mode.as_str() {
            "" | "REDIRECT" => Ok(Mode::Redirect),
            "TPROXY" => Ok(Mode::Tproxy {
                mark: self.inbound_tproxy_mark.unwrap_or(TPROXY_MARK),
                table: self.inbound_tproxy_route_table.unwrap_or(TPROXY_TABLE),
            }),
            other => Err(CaseError::Value {
                option: "inbound_interception_mode",
                value: other.to_owned(),
                problem: "want REDIRECT or TPROXY".to_owned(),
            }),
        }
    }

    fn loopback(&self) -> Result<Cidr, CaseError> {
        match self.host_ipv4_loopback_cidr.as_str() {
            "" => Ok(Plan::default_loopback_v4()),
            text => item("host_ipv4_loopback_cidr", text),
        }
    }

    fn inbound(&self) -> Result<Inbound, CaseError> {
        Ok(match self.inbound_ports_include.as_str() {
            "" => Inbound::Nothing,
            "*" => Inbound::AllExcept(ports("inbound_ports_exclude", &self.inbound_ports_exclude)?),
            list => Inbound::Only(ports("inbound_ports_include", list)?),
        })
    }

    fn outbound(&self) -> Result<Outbound, CaseError> {
        let groups = match self.owner_groups_include.as_str() {
            "*" | "" => {
                Groups::AllExcept(items("owner_groups_exclude", &self.owner_groups_exclude)?)
            }
            list => Groups::Only(items("owner_groups_include", list)?),
        };
        let include = match self.outbound_ip_ranges_include.as_str() {
            "*" => Destinations::All,
            list => Destinations::Only(items("outbound_ip_ranges_include", list)?),
        };
        let exclude = &self.outbound_ip_ranges_exclude;
        Ok(Outbound {
            include,
            exclude: items("outbound_ip_ranges_exclude", exclude)?,
            include_ports: ports("outbound_ports_include", &self.outbound_ports_include)?,
            exclude_ports: ports("outbound_ports_exclude", &self.outbound_ports_exclude)?,
            groups,
        })
    }

    fn dns(&self) -> Dns {
        if !self.redirect_dns {
            Dns::Off
        } else if self.capture_all_dns {
            Dns::All
        } else {
            Dns::Servers(self.dns_servers_v4.iter().chain(&self.dns_servers_v6).copied().collect())
        }
    }
}

/// Parses one item.
trait Item: Sized {
    fn parse_item(text: &str) -> Result<Self, String>;
}

impl Item for Cidr {
    fn parse_item(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|e: CidrError| e.to_string())
    }
}

impl Item for Interface {
    fn parse_item(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|e: InterfaceError| e.to_string())
    }
}

impl Item for Owner {
    fn parse_item(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|e: OwnerError| e.to_string())
    }
}

struct Port(u16);

impl Item for Port {
    fn parse_item(text: &str) -> Result<Self, String> {
        parse_port(text).map(Port).ok_or_else(|| "want a port from 0 to 65535".to_owned())
    }
}

fn item<T: Item>(option: &'static str, text: &str) -> Result<T, CaseError> {
    T::parse_item(text).map_err(|problem| CaseError::Value {
        option,
        value: text.to_owned(),
        problem,
    })
}

/// Upstream's command line drops empty items of a list (3.1).
fn items<T: Item>(option: &'static str, text: &str) -> Result<Vec<T>, CaseError> {
    text.split(',').filter(|i| !i.is_empty()).map(|i| item(option, i)).collect()
}

fn ports(option: &'static str, text: &str) -> Result<Vec<u16>, CaseError> {
    Ok(items::<Port>(option, text)?.into_iter().map(|p| p.0).collect())
}
