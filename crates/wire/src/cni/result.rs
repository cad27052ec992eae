//! prevResult: kept as the bytes it is, read only for its addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::value::RawValue;

use super::{Error, Version};
use crate::code;
use crate::request::{IpConfig, IpNet};

/// The result of the plugin before ours in the chain.
///
/// It is never decoded as a whole: typed decoding drops keys that are not
/// known, collapses equal keys, turns large integers into floats and loses the
/// order, and the plugins behind us as well as the runtime must get what the
/// plugin before us said.
///
/// Its own `cniVersion` may differ from the configuration's when the plugin
/// before us answered in another version (libcni hands it on as it is). It is
/// echoed all the same, not converted: the result says in itself which version
/// it has, libcni reads that before anything else, and converting would lose
/// what byte for byte keeps.
#[derive(Debug, Clone, Copy)]
pub struct PrevResult<'a>(&'a RawValue);

impl<'a> PrevResult<'a> {
    pub(super) fn new(raw: &'a RawValue) -> Result<Self, Error> {
        if raw.get().starts_with('{') {
            return Ok(Self(raw));
        }
        Err(undecodable("it is no JSON object"))
    }

    /// The bytes to print.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0.get().as_bytes()
    }

    /// What a plugin prints that stands first in its chain: a result without
    /// content. Before 1.0.0 `dns` is always there.
    #[must_use]
    pub fn empty(version: Version) -> String {
        let dns = if version < Version::V1_0_0 { r#","dns":{}"# } else { "" };
        format!(r#"{{"cniVersion":"{version}"{dns}}}"#)
    }

    /// The addresses, in order. The layout decides, not the version: `ips` as
    /// in 0.3.0 and later, `ip4` and `ip6` as in 0.2.0 where a plugin answers
    /// in that.
    ///
    /// # Errors
    /// [`code::DECODING_FAILURE`], naming what is malformed.
    pub fn addresses(&self) -> Result<Vec<IpConfig>, Error> {
        let result = object(self.0, "it")?;
        let mut found = Vec::new();
        if let Some(ips) = result.get("ips") {
            // null is how Go writes an empty list.
            let ips: Option<Vec<&RawValue>> =
                serde_json::from_str(ips.get()).map_err(|e| undecodable(&format!("ips: {e}")))?;
            for ip in ips.iter().flatten() {
                let ip = object(ip, "an entry of ips")?;
                found.push(entry(&ip, "address")?);
            }
        }
        for legacy in ["ip4", "ip6"] {
            let Some(ip) = result.get(legacy).filter(|raw| raw.get() != "null") else {
                continue;
            };
            found.push(entry(&object(ip, legacy)?, "ip")?);
        }
        Ok(found)
    }
}

type Object<'a> = BTreeMap<String, &'a RawValue>;

/// A map, and no struct: with equal keys the last one counts here, as it does
/// for the Go plugins of the chain, while serde's structs refuse them.
fn object<'a>(raw: &'a RawValue, what: &str) -> Result<Object<'a>, Error> {
    serde_json::from_str(raw.get()).map_err(|e| undecodable(&format!("{what}: {e}")))
}

fn entry(ip: &Object<'_>, address_key: &str) -> Result<IpConfig, Error> {
    let address = string(ip, address_key)?;
    let gateway = string(ip, "gateway")?;
    let interface = match ip.get("interface") {
        None => None,
        Some(raw) => {
            serde_json::from_str(raw.get()).map_err(|e| undecodable(&format!("interface: {e}")))?
        }
    };
    Ok(IpConfig { interface, address: network(&address)?, gateway })
}

fn string(ip: &Object<'_>, key: &str) -> Result<String, Error> {
    let Some(raw) = ip.get(key) else {
        return Ok(String::new());
    };
    let text: Option<String> =
        serde_json::from_str(raw.get()).map_err(|e| undecodable(&format!("{key}: {e}")))?;
    Ok(text.unwrap_or_default())
}

fn network(text: &str) -> Result<IpNet, Error> {
    let malformed =
        || undecodable(&format!("{text:?} is no address with a prefix length such as 10.0.0.5/24"));
    let (ip, prefix) = text.split_once('/').ok_or_else(malformed)?;
    let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
    let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
    if prefix > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(malformed());
    }
    Ok(IpNet::new(ip, prefix))
}

fn undecodable(cause: &str) -> Error {
    Error::new(
        code::DECODING_FAILURE,
        format!("decode prevResult: {cause}"),
        "the plugin before istio-cni in the chain has to print a CNI result, and istio-cni has to stand behind it",
    )
}
