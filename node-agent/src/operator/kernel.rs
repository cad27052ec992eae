//! What the kernel has of a pod: its namespace by the record, and what is in it.

use super::known::Known;
use crate::ambient::recorded_plan;
use crate::backend::{NodeBackend, Rules};
use crate::failure::causes;
use crate::place;
use crate::record::Record;
use redirect::ambient::AmbientPlan;
use redirect::desired::{Desired, Form, Routing};
use redirect::plan::{DNS_PORT, INBOUND_PORT, Inbound, OUTBOUND_PORT, Plan, TUNNEL_PORT};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use sys::backend::Diff;
use sys::netns::{Netns, NetnsId, within};

/// Where a path of the host's is seen from the agent's container.
const HOST: &str = "/host";

/// TCP_LISTEN, as /proc/net/tcp has it.
const LISTEN: &str = "0A";

/// Namespaces by their number: the processes are looked at once, and only when a
/// record's own path does not lead there.
#[derive(Debug)]
pub(super) struct Places {
    root: PathBuf,
    by_id: OnceLock<Result<HashMap<NetnsId, PathBuf>, String>>,
}

impl Places {
    /// Of this moment.
    pub(super) fn new() -> Self {
        Self { root: place::root(), by_id: OnceLock::new() }
    }

    /// The namespace that was programmed.
    ///
    /// # Errors
    /// When it is gone or its path leads to another one; the text is one line.
    pub(super) fn open(&self, record: &Record) -> Result<Netns, String> {
        let id = id_of(record);
        let path = record.path.as_str();
        // Numbers of processes are used again.
        if !path.is_empty() && !path.starts_with("/proc/") {
            let paths = [PathBuf::from(format!("{HOST}{path}")), PathBuf::from(path)];
            match paths.iter().find_map(|path| Netns::open(path).ok()) {
                Some(found) if found.id() == id => return Ok(found),
                Some(found) => {
                    return Err(format!("{path} is {} now, and {id} was programmed", found.id()));
                }
                None => {}
            }
        }
        let by_id = self.by_id.get_or_init(|| place::entrances(&self.root).map_err(|e| causes(&e)));
        let by_id = by_id.as_ref().map_err(Clone::clone)?;
        let found = by_id.get(&id).and_then(|path| Netns::open(path).ok());
        // So are those of namespaces.
        let is_its = |found: &Netns| {
            found.id() == id
                && within(found, || owns(&record.addresses)).is_ok_and(|owns| owns.is_ok())
        };
        found.filter(is_its).ok_or_else(|| {
            let at =
                if path.is_empty() { String::new() } else { format!("it is not at {path}, and ") };
            format!(
                "{id} is gone: {at}no process in {} is in it, with an address of the pod",
                self.root.display()
            )
        })
    }
}

/// The namespace that a record names.
pub(super) fn id_of(record: &Record) -> NetnsId {
    NetnsId { dev: record.netns.dev, ino: record.netns.ino }
}

/// What a pod's rules are made of.
pub(super) enum Planned {
    /// For its sidecar.
    Sidecar(Box<Plan>),
    /// For ztunnel.
    Ambient(AmbientPlan),
}

impl Rules for Planned {
    fn rules(&self, form: Form) -> Desired {
        match self {
            Self::Sidecar(plan) => plan.rules(form),
            Self::Ambient(plan) => plan.rules(form),
        }
    }

    fn takes_istios(&self) -> bool {
        match self {
            Self::Sidecar(plan) => plan.takes_istios(),
            Self::Ambient(plan) => plan.takes_istios(),
        }
    }
}

impl Planned {
    /// What was planned by a record, for the calling thread's namespace.
    ///
    /// # Errors
    /// When it cannot be known; the text is one line.
    pub(super) fn of(known: &Known, record: &Record) -> Result<Self, String> {
        if record.ambient.is_none() {
            let plan = redirect::sidecar::plan(&record.pod(), &known.policy, &record.addresses);
            return plan
                .map(|plan| Self::Sidecar(Box::new(plan)))
                .map_err(|error| error.to_string());
        }
        let options = known.options.as_ref().ok_or("ambient mode is off")?;
        let ipv6 = sys::routing::ipv6().map_err(|error| causes(&error))?;
        Ok(Self::Ambient(recorded_plan(record, options, ipv6)))
    }

    /// What must hold beside the rules.
    pub(super) fn routing(&self) -> Routing {
        self.rules(Form::Sluice).routing
    }

    /// Ports that its traffic is sent to, and who must listen there.
    pub(super) fn ports(&self) -> Ports {
        let mut udp = BTreeSet::new();
        let (mut tcp, dns) = match self {
            Self::Sidecar(plan) => {
                let mut tcp = BTreeSet::from([plan.proxy.outbound_port]);
                if plan.inbound != Inbound::Nothing {
                    tcp.insert(plan.proxy.inbound_port);
                }
                (tcp, plan.dns.captures())
            }
            Self::Ambient(plan) => ([OUTBOUND_PORT, INBOUND_PORT, TUNNEL_PORT].into(), plan.dns),
        };
        if dns {
            tcp.insert(DNS_PORT);
            udp.insert(DNS_PORT);
        }
        Ports { tcp, udp }
    }
}

/// The same without the routing, which is a layer of its own.
pub(super) struct RulesAlone<'a>(pub(super) &'a Planned);

impl Rules for RulesAlone<'_> {
    fn rules(&self, form: Form) -> Desired {
        Desired { routing: Routing::default(), ..self.0.rules(form) }
    }

    fn takes_istios(&self) -> bool {
        self.0.takes_istios()
    }
}

/// Ports of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ports {
    pub(super) tcp: BTreeSet<u16>,
    pub(super) udp: BTreeSet<u16>,
}

impl Ports {
    /// Those that have a listener in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not tell; the text is one line.
    pub(super) fn listening() -> Result<Self, String> {
        // /proc/net is the process' first thread's.
        let read = |name: &str| {
            let path = Path::new("/proc/thread-self/net").join(name);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("read {}: {error}", path.display()))
        };
        let mut found = Self::default();
        found.tcp.extend(ports(&read("tcp")?, Some(LISTEN)));
        found.udp.extend(ports(&read("udp")?, None));
        // Not there without IPv6.
        found.tcp.extend(ports(&read("tcp6").unwrap_or_default(), Some(LISTEN)));
        found.udp.extend(ports(&read("udp6").unwrap_or_default(), None));
        Ok(found)
    }

    /// What of these is not among others, for people.
    pub(super) fn missing_in(&self, found: &Self) -> Vec<String> {
        let tcp = self.tcp.difference(&found.tcp).map(|port| format!("{port}/tcp"));
        let udp = self.udp.difference(&found.udp).map(|port| format!("{port}/udp"));
        tcp.chain(udp).collect()
    }

    /// All of them, for people.
    pub(super) fn text(&self) -> String {
        self.missing_in(&Self::default()).join(", ")
    }
}

/// Local ports of a table of sockets: `sl local rem st ...`.
fn ports<'a>(table: &'a str, state: Option<&'a str>) -> impl Iterator<Item = u16> + use<'a> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, of) = (fields.next()?, fields.nth(1)?);
        if state.is_some_and(|state| state != of) {
            return None;
        }
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

/// What a look into a namespace found.
#[derive(Debug)]
pub(super) struct Seen {
    /// How rules and routing differ from the plan.
    pub(super) diff: Diff,
    /// The plan is what was programmed, as far as settings go.
    pub(super) same: bool,
    /// See [`super::answer::Rules`].
    pub(super) generation: Option<u32>,
    /// Packets by port; nftables only.
    pub(super) captured: Option<BTreeMap<u16, u64>>,
}

/// Looks at the calling thread's namespace.
///
/// # Errors
/// When the kernel cannot be asked; the text is one line.
pub(super) fn look(known: &Known, backend: &NodeBackend, record: &Record) -> Result<Seen, String> {
    let plan = Planned::of(known, record)?;
    let diff = backend.observe(&plan)?;
    let captured = sys::nftables::captured().ok().filter(|counts| !counts.is_empty());
    let generation = captured.as_ref().and_then(|_| sys::nftables::generation().ok());
    // The agent's own settings may have changed, and count.
    let same = known.is_certain() || crate::backend::rules_hash(&plan) == record.rules;
    Ok(Seen { diff, same, generation, captured })
}

/// One of the pod's addresses is in the calling thread's namespace.
///
/// # Errors
/// When none is, or the kernel cannot be asked; the text is one line.
pub(super) fn owns(addresses: &[IpAddr]) -> Result<IpAddr, String> {
    let has = sys::routing::addresses().map_err(|error| causes(&error))?;
    let own = addresses.iter().map(IpAddr::to_canonical).find(|ip| has.contains(ip));
    own.ok_or_else(|| format!("it has none of the pod's addresses {addresses:?}, but {has:?}"))
}

/// A difference on one line, the first lines of it.
pub(super) fn short(diff: &Diff) -> String {
    const LINES: usize = 3;
    let text = diff.to_string();
    let all: Vec<&str> = text.lines().collect();
    let more = all.len().saturating_sub(LINES);
    let shown = all[..all.len().min(LINES)].join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_listeners_of_the_kernels_tables() {
        let table = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:3A99 00000000:0000 0A 00000000:0\n   1: 0100007F:3A9E 0100007F:9C40 01 0:0\n   2: broken\n";
        assert_eq!(ports(table, Some(LISTEN)).collect::<Vec<_>>(), [15001]);
        assert_eq!(ports(table, None).collect::<Vec<_>>(), [15001, 15006]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let want = Ports { tcp: [port].into(), udp: BTreeSet::new() };
        assert!(want.missing_in(&Ports::listening().unwrap()).is_empty());
        drop(listener);
        assert_eq!(want.missing_in(&Ports::listening().unwrap()), [format!("{port}/tcp")]);
    }
}
