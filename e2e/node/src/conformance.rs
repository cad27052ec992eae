//! Cases of `shared/conformance`: what Istio's own tools produce.

use crate::programs::{required, workspace};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Groups that the data names and no machine has.
const GROUPS: [(&str, u32); 2] = [("java", 59001), ("ftp", 59002)];

/// Which kind of case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Options of the rule generator.
    Sidecar,
    /// A pod, in a namespace with IPv4 only.
    Pod,
    /// Options of an ambient pod. Cases about the host's rules are left out.
    Ambient,
}

/// A case, group names replaced by numbers.
#[derive(Debug, Clone)]
pub struct Case {
    /// `sidecar/tproxy`.
    pub name: String,
    /// What the input is.
    pub kind: Kind,
    /// The file.
    pub path: PathBuf,
    /// What the packet matrix has to know.
    pub facts: Facts,
    data: Data,
}

/// What the packet matrix has to know of a case.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The proxy's users.
    pub uids: Vec<u32>,
    /// The proxy's groups.
    pub gids: Vec<u32>,
    /// Groups that the case names for the application.
    pub groups: Vec<u32>,
    /// IPv6 rules are on.
    pub ipv6: bool,
    /// Inbound by TPROXY, with rules for it.
    pub tproxy: bool,
    /// For ztunnel: where kubelet's probes come from.
    pub ambient: Option<Probes>,
}

/// Source addresses of kubelet's probes.
#[derive(Debug, Clone, Copy)]
pub struct Probes {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

#[derive(Debug, Clone, Deserialize)]
struct Data {
    config: Option<Value>,
    pod: Option<Value>,
    iptables: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    nftables: Option<Vec<String>>,
}

/// Where the data is.
#[must_use]
pub fn dir() -> PathBuf {
    workspace().join("../shared/conformance")
}

/// All cases of one kind, by name; None when the data is not there and need not be.
///
/// # Errors
/// When it is broken, or missing with REQUIRE_CONFORMANCE=1.
pub fn cases(kind: Kind) -> Result<Option<Vec<Case>>> {
    let folder = match kind {
        Kind::Sidecar => "sidecar",
        Kind::Pod => "pod",
        Kind::Ambient => "ambient",
    };
    let dir = dir().join(folder);
    if !dir.is_dir() {
        if required("REQUIRE_CONFORMANCE") {
            bail!("{} is not there and REQUIRE_CONFORMANCE=1", dir.display());
        }
        return Ok(None);
    }
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    let of_host = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hostprobe"))
    };
    paths.retain(|path| kind != Kind::Ambient || !of_host(path));
    paths.sort();
    let cases = paths.iter().map(|path| Case::read(kind, folder, path));
    let cases = cases.collect::<Result<Vec<_>>>()?;
    if cases.is_empty() {
        bail!("{} has no cases", dir.display());
    }
    Ok(Some(cases))
}

/// Replaces the group names of the data by numbers, and its guests' interfaces by
/// those that a guest of ours has.
#[must_use]
pub fn number_groups(text: &str) -> String {
    let mut text = text.replace("fake1s0f0", "eth1").replace("fake1s0f1", "eth9");
    for (name, number) in GROUPS {
        // A whole word in a comma list, a JSON string or a rule.
        for (before, after) in [(" ", " "), ("\"", ","), (",", "\""), (" ", "\n")] {
            let word = format!("{before}{name}{after}");
            text = text.replace(&word, &format!("{before}{number}{after}"));
        }
    }
    text
}

impl Case {
    fn read(kind: Kind, folder: &str, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let data: Data = serde_json::from_str(&number_groups(&text))
            .with_context(|| format!("parse {}", path.display()))?;
        let facts = match (&data.config, &data.pod) {
            (Some(config), None) if kind == Kind::Ambient => Facts::of_ambient(config)?,
            (Some(config), None) => Facts::of_config(config)?,
            (None, Some(pod)) => Facts::of_pod(pod),
            _ => bail!("{}: neither config nor pod", path.display()),
        };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        Ok(Self {
            name: format!("{folder}/{}", stem.unwrap_or_default()),
            kind,
            path: path.to_owned(),
            facts,
            data,
        })
    }

    /// The file's text with numbers for group names.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn numbered(&self) -> Result<String> {
        Ok(number_groups(&std::fs::read_to_string(&self.path)?))
    }

    /// The pod of a pod case, as JSON.
    #[must_use]
    pub fn pod(&self) -> Option<&Value> {
        self.data.pod.as_ref()
    }

    /// Istio's rules as input of `iptables-restore --noflush`, `v4` or `v6`; empty
    /// when there are none.
    #[must_use]
    pub fn restore(&self, family: &str) -> String {
        let mut text = String::new();
        for (table, lines) in self.data.iptables.get(family).into_iter().flatten() {
            text.push_str(&format!("*{table}\n{}\nCOMMIT\n", lines.join("\n")));
        }
        text
    }

    /// Istio's rules as input of `nft -f`; None where the data has none.
    #[must_use]
    pub fn nft(&self) -> Option<String> {
        self.data.nftables.as_ref().map(|lines| lines.join("\n") + "\n")
    }
}

impl Probes {
    /// Both.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Facts {
    fn of_config(config: &Value) -> Result<Self> {
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
        let numbers = |key: &str| -> Result<Vec<u32>> {
            let items = text(key).split(',').filter(|item| !item.is_empty() && *item != "*");
            items.map(|item| item.parse().with_context(|| format!("{key}: {item:?}"))).collect()
        };
        let mut groups = numbers("owner_groups_include")?;
        groups.extend(numbers("owner_groups_exclude")?);
        Ok(Self {
            uids: numbers("proxy_uid")?,
            gids: numbers("proxy_gid")?,
            groups,
            ipv6: config.get("enable_ipv6").and_then(Value::as_bool) == Some(true),
            tproxy: text("inbound_interception_mode") == "TPROXY"
                && !text("inbound_ports_include").is_empty(),
            ambient: None,
        })
    }

    fn of_ambient(config: &Value) -> Result<Self> {
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
        let v4 = text("host_probe_snat_v4").parse().context("host_probe_snat_v4")?;
        let v6 = text("host_probe_snat_v6").parse().context("host_probe_snat_v6")?;
        Ok(Self {
            ipv6: config.get("enable_ipv6").and_then(Value::as_bool) == Some(true),
            ambient: Some(Probes { v4, v6 }),
            ..Self::default()
        })
    }

    fn of_pod(pod: &Value) -> Self {
        let mode = "/metadata/annotations/sidecar.istio.io~1interceptionMode";
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        let proxy = containers
            .into_iter()
            .flatten()
            .find(|container| container.get("name").and_then(Value::as_str) == Some("istio-proxy"));
        let id = |key: &str| -> u32 {
            let value = proxy.and_then(|proxy| proxy.pointer(key)).and_then(Value::as_u64);
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.filter(|value| *value != 0).unwrap_or(1337)
        };
        let ids = BTreeSet::from([id("/securityContext/runAsUser")]);
        Self {
            uids: ids.into_iter().collect(),
            gids: vec![id("/securityContext/runAsGroup")],
            groups: Vec::new(),
            ipv6: false,
            tproxy: pod.pointer(mode).and_then(Value::as_str) == Some("TPROXY"),
            ambient: None,
        }
    }
}
