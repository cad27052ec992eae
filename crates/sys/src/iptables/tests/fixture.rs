//! What the tests share: tools that write down what they are asked to do,
//! plans, and a look at the kernel that does not go through the code under test.

use crate::backend::{Applied, Backend, BackendError};
use crate::iptables::{Iptables, Search, Variant};
use crate::netns::{Netns, within};
use crate::process::Command;
use redirect::compile::compile;
use redirect::desired::{Desired, Dialect, Form};
use redirect::iptables::render;
use redirect::net::{Cidr, Family, Interface, Owner};
use redirect::plan::{Destinations, Dns, Groups, Inbound, Mode, Plan, TPROXY_MARK, TPROXY_TABLE};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Annotation defaults.
pub(super) use crate::lab::plan as basic;

pub(super) const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];
pub(super) const REAL: &str = "/usr/sbin";

/// A directory that is gone at the end.
#[derive(Debug)]
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-iptables-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// An executable that runs `lines`. Another process writes it: a child that
    /// another test's thread forks meanwhile would hold our descriptor open for
    /// writing, and exec would say "text file busy".
    pub(super) fn script(&self, name: &str, lines: &str) {
        let text = format!("#!/bin/sh\n{lines}\n");
        Command::new("/usr/bin/install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(self.0.join(name))
            .stdin(text.as_bytes())
            .run()
            .unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn suffix(variant: Variant) -> &'static str {
    match variant {
        Variant::Legacy => "legacy",
        Variant::Nft => "nft",
    }
}

pub(super) fn stem(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The backend on tools that keep a log of their executions.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) backend: Iptables,
    pub(super) tools: Directory,
}

impl Lab {
    /// With just this variant.
    pub(super) fn new(variant: Variant) -> Self {
        Self::with(Some(variant))
    }

    /// With both, as an image has them.
    pub(super) fn both() -> Self {
        Self::with(None)
    }

    fn with(force: Option<Variant>) -> Self {
        let tools = Directory::new();
        let log = tools.0.join("log");
        fs::write(&log, "").unwrap();
        // Also root of a user namespace writes to it.
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
        for family in [Family::V4, Family::V6] {
            for variant in VARIANTS {
                for program in ["", "-save", "-restore"] {
                    let name = format!("{}-{}{program}", stem(family), suffix(variant));
                    let lines =
                        format!("echo {name} >> {}\nexec {REAL}/{name} \"$@\"", log.display());
                    tools.script(&name, &lines);
                }
            }
        }
        let search = Search { dirs: vec![tools.0.clone()], force };
        let lab = Self { backend: Iptables::detect_with(&search).unwrap(), tools };
        lab.executions();
        lab
    }

    /// Programs that were run since the last call.
    pub(super) fn executions(&self) -> Vec<String> {
        let log = self.tools.0.join("log");
        let text = fs::read_to_string(&log).unwrap();
        fs::write(&log, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn apply(
        &self,
        ns: &Netns,
        want: &Desired,
        also: Option<&Desired>,
    ) -> Result<Applied, BackendError> {
        within(ns, || self.backend.apply(want, also)).unwrap()
    }

    /// Lines of the difference to `want`.
    pub(super) fn observe(&self, ns: &Netns, want: &Desired) -> String {
        let diff = within(ns, || self.backend.observe(want)).unwrap();
        diff.unwrap().to_string()
    }

    pub(super) fn remove(&self, ns: &Netns) -> Result<(), Vec<BackendError>> {
        within(ns, || self.backend.remove()).unwrap()
    }
}

/// A namespace with `lo` down, as a sandbox is before its first plugin.
pub(super) fn namespace() -> Netns {
    Netns::create().unwrap()
}

/// What the kernel holds, through the real program: chains and rules, without
/// comments and counters.
pub(super) fn dump(ns: &Netns, variant: Variant, family: Family) -> String {
    let program = format!("{REAL}/{}-{}-save", stem(family), suffix(variant));
    let output = within(ns, || Command::new(program).run()).unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| match line.strip_prefix(':') {
        Some(_) => line.split(" [").next().unwrap_or(line),
        None => line,
    });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// The dump without empty built-in chains and tables: what is to be compared
/// between namespaces of different histories.
pub(super) fn rules(ns: &Netns, variant: Variant, family: Family) -> String {
    let text = dump(ns, variant, family);
    let mut table = "";
    let mut kept = Vec::new();
    for line in text.lines() {
        if line.starts_with('*') {
            table = line;
        } else if line.starts_with("-A") || line.starts_with(":ISTIO_") {
            kept.push(format!("{table} {line}\n"));
        }
    }
    // The order of tables and of declarations is the order of creation.
    kept.sort_by_key(|line| (!line.contains(" :"), line.split(' ').next().map(str::to_owned)));
    let declared = kept.iter().take_while(|line| line.contains(" :")).count();
    kept[..declared].sort();
    kept.concat()
}

/// Loads a restore file with the real program.
pub(super) fn load(ns: &Netns, variant: Variant, family: Family, text: &str) {
    let program = format!("{REAL}/{}-{}-restore", stem(family), suffix(variant));
    let command = Command::new(program)
        .arg("--noflush")
        .env("XTABLES_LOCKFILE", "/proc/self/ns/net")
        .stdin(text.as_bytes());
    within(ns, || command.run()).unwrap().unwrap();
}

/// Runs the real `iptables` with these words.
pub(super) fn change(ns: &Netns, variant: Variant, family: Family, words: &str) {
    let program = format!("{REAL}/{}-{}", stem(family), suffix(variant));
    let command =
        Command::new(program).args(words.split(' ')).env("XTABLES_LOCKFILE", "/proc/self/ns/net");
    within(ns, || command.run()).unwrap().unwrap();
}

pub(super) fn load_istio(ns: &Netns, variant: Variant, plan: &Plan) {
    let desired = istio(plan);
    load(ns, variant, Family::V4, &render(&desired, Family::V4));
    if plan.ipv6 {
        load(ns, variant, Family::V6, &render(&desired, Family::V6));
    }
}

/// Everything at once: all tables, and rules of every kind.
pub(super) fn rich(ipv6: bool) -> Plan {
    let nic = |name: &str| name.parse::<Interface>().unwrap();
    let cidr = |text: &str| text.parse::<Cidr>().unwrap();
    let mut plan = basic(ipv6);
    plan.mode = Mode::Tproxy { mark: TPROXY_MARK, table: TPROXY_TABLE };
    plan.dns = Dns::All;
    plan.drop_invalid = true;
    plan.exclude_interfaces = vec![nic("eth7"), nic("br-*")];
    plan.virtual_interfaces = vec![nic("tap0"), nic("tap1")];
    plan.outbound.exclude = vec![cidr("10.9.0.0/16"), cidr("192.0.2.7/32"), cidr("fd00:9::/32")];
    plan.outbound.include_ports = vec![8443];
    plan.outbound.groups = Groups::Only(vec![Owner::Id(2000), Owner::Id(3000)]);
    plan
}

/// Plans that between them use every kind of rule.
pub(super) fn plans() -> Vec<(&'static str, Plan)> {
    let mut redirect_dns = basic(true);
    redirect_dns.dns =
        Dns::Servers(vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()]);
    redirect_dns.drop_invalid = true;
    redirect_dns.outbound.include =
        Destinations::Only(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()]);
    let mut ports = basic(false);
    ports.inbound = Inbound::Only(vec![80, 443]);
    ports.outbound.groups = Groups::AllExcept(vec![Owner::Id(888)]);
    let mut nothing_in = rich(true);
    nothing_in.inbound = Inbound::Nothing;
    vec![
        ("basic", basic(false)),
        ("dual stack", basic(true)),
        ("rich", rich(true)),
        ("rich without IPv6", rich(false)),
        ("DNS servers", redirect_dns),
        ("ports", ports),
        ("nothing inbound", nothing_in),
    ]
}

pub(super) fn ours(plan: &Plan) -> Desired {
    compile(plan, Form::Sluice)
}

pub(super) fn istio(plan: &Plan) -> Desired {
    compile(plan, Form::Istio(Dialect::Iptables))
}

pub(super) fn families(plan: &Plan) -> &'static [Family] {
    if plan.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
}
