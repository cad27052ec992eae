//! Rule sets as text, from the conformance data or from `sluice rules`, and
//! their loading with the real tools.

use crate::conformance::{Case, Kind};
use crate::lab::Namespace;
use crate::process::Program;
use crate::programs::Programs;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Which tool loads the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// iptables-nft and ip6tables-nft.
    Iptables,
    /// iptables-legacy and ip6tables-legacy.
    Legacy,
    /// nft.
    Nft,
}

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What Istio's tools produce, from the data.
    Expected,
    /// `sluice rules --compat istio`.
    Compat,
    /// `sluice rules`.
    Own,
}

/// A rule set as the tools take it.
#[derive(Debug, Clone)]
pub enum Script {
    /// Input of `iptables-restore` and of `ip6tables-restore`; empty means none.
    Restore {
        /// IPv4.
        v4: String,
        /// IPv6.
        v6: String,
    },
    /// Input of `nft -f`.
    Nft(String),
}

impl Script {
    /// The rules of a case. `file` is the case's file as `sluice` is to read it.
    /// None where the data has no such rules.
    ///
    /// # Errors
    /// When `sluice rules` fails.
    pub fn of(
        case: &Case,
        file: &Path,
        form: Form,
        tool: Tool,
        programs: &Programs,
    ) -> Result<Option<Self>> {
        if form == Form::Expected {
            return Ok(match tool {
                Tool::Nft => case.nft().map(Self::Nft),
                Tool::Iptables | Tool::Legacy => {
                    Some(Self::Restore { v4: case.restore("v4"), v6: case.restore("v6") })
                }
            });
        }
        Self::printed(case.kind, file, None, (form, tool), programs).map(Some)
    }

    /// What `sluice rules` prints for a file. A pod has IPv4 only unless `addresses`,
    /// a comma list, says otherwise.
    ///
    /// # Errors
    /// When it fails.
    pub fn printed(
        kind: Kind,
        file: &Path,
        addresses: Option<&str>,
        (form, tool): (Form, Tool),
        programs: &Programs,
    ) -> Result<Self> {
        let source = match kind {
            Kind::Sidecar | Kind::Ambient => "--case",
            Kind::Pod => "--pod",
        };
        let print = |format: &str| {
            let mut program = Program::new(&programs.sluice)
                .args(["rules", source])
                .arg(file)
                .args(["--format", format]);
            if let Some(addresses) = addresses {
                program = program.args(["--addresses", addresses]);
            }
            if form == Form::Compat {
                program = program.args(["--compat", "istio"]);
            }
            program.check()
        };
        Ok(match tool {
            Tool::Nft => Self::Nft(print("nft")?),
            Tool::Iptables | Tool::Legacy => {
                Self::Restore { v4: print("iptables")?, v6: print("ip6tables")? }
            }
        })
    }

    /// Loads it into a namespace.
    ///
    /// # Errors
    /// When the tool refuses it.
    pub fn load(&self, pod: &Namespace, tool: Tool) -> Result<()> {
        match (self, tool) {
            (Self::Nft(text), Tool::Nft) => {
                pod.load(&["nft", "-f", "-"], text)?;
            }
            (Self::Restore { v4, v6 }, Tool::Iptables | Tool::Legacy) => {
                let suffix = tool.suffix();
                for (program, text) in [("iptables", v4), ("ip6tables", v6)] {
                    if !text.trim().is_empty() {
                        restore(pod, &format!("{program}-{suffix}-restore"), text)?;
                    }
                }
            }
            _ => bail!("{tool:?} does not load this kind of script"),
        }
        Ok(())
    }
}

impl Tool {
    /// `nft` or `legacy`, as in the names of the iptables programs.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Iptables | Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

fn restore(pod: &Namespace, program: &str, text: &str) -> Result<()> {
    // The legacy tools lock a file of the machine; ours is the run's own.
    let lock = pod.scratch().path().join("xtables.lock");
    pod.program(program)
        .args(["--noflush"])
        .env("XTABLES_LOCKFILE", lock)
        .input(text)
        .check()
        .with_context(|| format!("input was:\n{text}"))?;
    Ok(())
}

/// Adds what ztunnel's rules need besides themselves (reference 4.4).
///
/// # Errors
/// When it exists or the kernel refuses it.
pub fn route_replies(pod: &Namespace, ipv6: bool) -> Result<()> {
    let families = [("", "0.0.0.0/0"), ("-6 ", "::/0")];
    let lines = families.iter().take(1 + usize::from(ipv6)).map(|(family, all)| {
        format!(
            "{family}rule add fwmark 0x111/0xfff lookup 100 pref 32764\n\
             {family}route add local {all} dev lo table 100\n"
        )
    });
    pod.ip(&lines.collect::<String>())
}

/// Adds what rules need besides themselves (reference 3.5): the ip rule and
/// route of TPROXY. `::6` is the neighbourhood's matter.
///
/// # Errors
/// When they exist or the kernel refuses them.
pub fn route_marked(pod: &Namespace, ipv6: bool) -> Result<()> {
    let mut lines = "rule add fwmark 1337 lookup 133\n\
         route add local 0.0.0.0/0 dev lo table 133\n"
        .to_owned();
    if ipv6 {
        lines.push_str("-6 rule add fwmark 1337 lookup 133\n");
        lines.push_str("-6 route add local ::/0 dev lo table 133\n");
    }
    pod.ip(&lines)
}
