//! What `iptables-save` says, and which of it is ours.

use super::Error;
use super::spec::Spec;
use super::wanted::WantedTable;
use std::collections::BTreeMap;

/// Every chain with this prefix is Istio's or ours, whoever made it: names are
/// shared so that either agent cleans up after the other (reference 10.7).
pub(super) const PREFIX: &str = "ISTIO_";
/// Mark of packets for the proxy's transparent listener, as normalised text.
const MARK_PROXY: &str = "0x539";
/// Mark of packets from the proxy to its own pod.
const MARK_LOOP: &str = "0x53a";

/// Tables of one family, by name.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub(super) tables: BTreeMap<String, SavedTable>,
    /// Tables that iptables cannot read or write, with what it says of them.
    pub(super) incompatible: BTreeMap<String, String>,
}

/// A table's chains and rules.
#[derive(Debug, Default)]
pub(super) struct SavedTable {
    /// Its name.
    pub(super) name: String,
    /// All chains, built-in ones too, in the order they were printed.
    pub(super) chains: Vec<String>,
    /// All rules; those of one chain are in their order.
    pub(super) rules: Vec<SavedRule>,
}

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SavedRule {
    pub(super) chain: String,
    /// What follows `-A CHAIN`, as it was printed.
    pub(super) text: String,
    pub(super) spec: Spec,
}

/// True for the name of a chain of ours.
pub(super) fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

impl Saved {
    /// Reads the output of `iptables-save`, with or without counters.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut saved = Self::default();
        let mut open: Option<SavedTable> = None;
        let bad = |line: &str| Error::Unreadable { line: line.to_owned() };
        for line in text.lines() {
            let line = line.trim_end();
            if line.is_empty() {
                continue;
            }
            if let Some(note) = line.strip_prefix('#') {
                saved.note(note.trim());
                continue;
            }
            if let Some(name) = line.strip_prefix('*') {
                if open.is_some() {
                    return Err(bad(line));
                }
                let table = SavedTable { name: name.trim().to_owned(), ..SavedTable::default() };
                open = Some(table);
                continue;
            }
            if line == "COMMIT" {
                let table = open.take().ok_or_else(|| bad(line))?;
                saved.tables.insert(table.name.clone(), table);
                continue;
            }
            let table = open.as_mut().ok_or_else(|| bad(line))?;
            table.line(line).ok_or_else(|| bad(line))?;
        }
        match open {
            None => Ok(saved),
            Some(table) => Err(bad(&format!("*{} without COMMIT", table.name))),
        }
    }

    /// The nft variant says so of a table that another tool made with rules or
    /// chains that it cannot express: "Table `nat' is incompatible, use 'nft' tool".
    fn note(&mut self, note: &str) {
        let name = note.split_once('`').and_then(|(_, rest)| rest.split_once('\''));
        if let Some((name, _)) = name.filter(|_| note.contains("incompatible")) {
            self.incompatible.insert(name.to_owned(), note.to_owned());
        }
    }

    /// Chains of ours and all rules of a table; one that is not there is equal to
    /// an empty one, which a failed attempt may leave.
    pub(super) fn content(&self, table: &str) -> (Vec<&str>, &[SavedRule]) {
        let Some(table) = self.tables.get(table) else { return (Vec::new(), &[]) };
        let chains = table.chains.iter().map(String::as_str);
        (chains.filter(|chain| is_ours(chain)).collect(), &table.rules)
    }

    /// True when a table has a chain of ours, or a rule that is ours whatever is
    /// wanted.
    pub(super) fn has_ours(&self) -> bool {
        self.tables.values().any(|table| {
            table.chains.iter().any(|chain| is_ours(chain))
                || table.ours(&[]).iter().any(|ours| *ours)
        })
    }
}

impl SavedTable {
    fn line(&mut self, line: &str) -> Option<()> {
        if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split_whitespace().next()?;
            self.chains.push(name.to_owned());
            return Some(());
        }
        // `[12:3456] -A ...` when counters were asked for.
        let line = match line.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?.1.trim_start(),
            None => line,
        };
        let rule = line.strip_prefix("-A ")?;
        let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
        self.rules.push(SavedRule {
            chain: chain.to_owned(),
            text: text.to_owned(),
            spec: Spec::parse(text),
        });
        Some(())
    }

    /// For each rule, whether it is ours. In a chain of ours each one is. In any
    /// other chain, the kernel's or a stranger's, these are:
    ///
    /// 1. a rule that is equal to a wanted rule of that chain;
    /// 2. a rule whose target is a chain of ours;
    /// 3. what an earlier generation, or Istio, leaves beside its chains, known by
    ///    its exact shape and only in a table that has a chain of ours: in
    ///    mangle's PREROUTING and OUTPUT the TPROXY rules on the marks 1337 and
    ///    1338 ([`is_mark_rule`]); in PREROUTING and OUTPUT of nat and mangle a
    ///    RETURN whose one condition is an interface (an excluded or virtual one),
    ///    unless it stands behind our general rule there, one that is not for a
    ///    single interface: then it lets nothing pass us and is a stranger's.
    ///
    /// A stranger's rule of the third kind's shape in front of our jumps is taken
    /// for ours and removed: it would exempt traffic from capture that the plan
    /// wants captured.
    pub(super) fn ours(&self, wanted: &[&WantedTable]) -> Vec<bool> {
        let has_chain = self.chains.iter().any(|chain| is_ours(chain));
        let mangle = self.name == "mangle";
        let known = |rule: &SavedRule| {
            is_ours(&rule.chain)
                || is_ours(&rule.spec.target)
                || wanted.iter().any(|table| table.has(&rule.chain, &rule.spec))
                || (has_chain && mangle && is_mark_rule(rule))
        };
        let mut ours: Vec<bool> = self.rules.iter().map(known).collect();
        if has_chain && (mangle || self.name == "nat") {
            for hook in ["PREROUTING", "OUTPUT"] {
                self.claim_interface_returns(hook, &mut ours);
            }
        }
        ours
    }

    /// The last of the shapes of [`Self::ours`].
    fn claim_interface_returns(&self, hook: &str, ours: &mut [bool]) {
        for (rule, ours) in self.rules.iter().zip(ours) {
            if rule.chain != hook {
                continue;
            }
            if is_interface_return(rule) {
                *ours = true;
            } else if *ours && !rule.spec.matches.iter().any(|text| text.starts_with("-i ")) {
                break;
            }
        }
    }
}

/// `-i NIC -j RETURN` in PREROUTING, `-o NIC -j RETURN` in OUTPUT.
fn is_interface_return(rule: &SavedRule) -> bool {
    let flag = match rule.chain.as_str() {
        "PREROUTING" => "-i ",
        "OUTPUT" => "-o ",
        _ => return false,
    };
    let spec = &rule.spec;
    spec.target == "RETURN"
        && spec.options.is_empty()
        && spec.matches.len() == 1
        && spec.matches.iter().all(|text| text.starts_with(flag))
}

/// The rules of TPROXY in mangle's built-in chains (reference 3.2 step 17): TCP,
/// and a mark of 1337 or 1338, all bits, as condition or as what is set.
fn is_mark_rule(rule: &SavedRule) -> bool {
    if !matches!(rule.chain.as_str(), "PREROUTING" | "OUTPUT") {
        return false;
    }
    let spec = &rule.spec;
    let has = |text: String| spec.matches.contains(&text);
    let marked = has(format!("mark --mark {MARK_PROXY}"));
    let marked_connection = has(format!("connmark --mark {MARK_PROXY}"));
    let option = |text: &str| spec.options.len() == 1 && spec.options.contains(text);
    let sets = |mark: &str| option(&format!("MARK --set-xmark {mark}"));
    has("-p tcp".to_owned())
        && match spec.target.as_str() {
            "CONNMARK" => {
                (marked && option("CONNMARK --save-mark"))
                    || (marked_connection && option("CONNMARK --restore-mark"))
            }
            "RETURN" => marked && has("-o lo".to_owned()),
            "MARK" => has("-o lo".to_owned()) && (sets(MARK_LOOP) || sets(MARK_PROXY)),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `lines` are ours in a table that has a chain of ours.
    fn ours(table: &str, lines: &[&str]) -> Vec<bool> {
        let rules: String = lines.iter().map(|line| format!("-A {line}\n")).collect();
        let text =
            format!("*{table}\n:PREROUTING ACCEPT [0:0]\n:ISTIO_INBOUND - [0:0]\n{rules}COMMIT\n");
        let saved = Saved::parse(&text).unwrap();
        saved.tables[table].ours(&[])
    }

    #[test]
    fn knows_what_istio_leaves_beside_its_chains() {
        let lines = [
            "PREROUTING -i eth7 -j RETURN",
            "PREROUTING -i br-+ -j RETURN",
            "PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP",
            "PREROUTING -p tcp -j ISTIO_INBOUND",
            "PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "OUTPUT -o eth7 -j RETURN",
            "OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN",
            "OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --gid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff",
            "OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "MINE -g ISTIO_INBOUND",
        ];
        assert_eq!(ours("mangle", &lines), [true; 10]);
    }

    #[test]
    fn leaves_what_only_looks_alike() {
        let lines = [
            "PREROUTING -i eth7 -p tcp -j RETURN",
            "PREROUTING -i eth7 -j ACCEPT",
            "PREROUTING -p tcp -m mark --mark 0x539/0xfff -j CONNMARK --save-mark",
            "PREROUTING -p tcp -m mark --mark 0x53b -j CONNMARK --save-mark",
            "PREROUTING -p tcp -m mark --mark 0x539 -j ACCEPT",
            "OUTPUT -p udp -m connmark --mark 0x539 -j CONNMARK --restore-mark",
            "OUTPUT -o lo -p tcp -j MARK --set-xmark 0x539/0xfff",
            "OUTPUT -i eth7 -j RETURN",
            "FORWARD -i eth7 -j RETURN",
            "INPUT -m comment --comment ISTIO_INBOUND -j RETURN",
        ];
        assert_eq!(ours("mangle", &lines), [false; 10]);
        // Shapes count where Istio leaves them, and only beside its chains.
        assert_eq!(ours("raw", &["PREROUTING -i eth7 -j RETURN"]), [false]);
        let mark = "PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark";
        assert_eq!(ours("nat", &[mark]), [false]);
        let alone = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i eth7 -j RETURN\nCOMMIT\n";
        assert!(!Saved::parse(alone).unwrap().has_ours());
    }

    #[test]
    fn a_return_behind_our_jump_is_a_strangers() {
        let lines = [
            "PREROUTING -i tap0 -j ISTIO_REDIRECT",
            "PREROUTING -i tap0 -j RETURN",
            "PREROUTING -p tcp -j ISTIO_INBOUND",
            "PREROUTING -i eth8 -j RETURN",
        ];
        assert_eq!(ours("nat", &lines), [true, true, true, false]);
    }

    #[test]
    fn reads_counters_and_strange_tables() {
        let saved = Saved::parse(
            "# Table `mangle' is incompatible, use 'nft' tool.\n*nat\n:OUTPUT ACCEPT [5:300]\n\
             [7:420] -A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n",
        );
        let saved = saved.unwrap();
        assert_eq!(saved.tables["nat"].rules[0].text, "-j ISTIO_OUTPUT");
        assert!(saved.incompatible.contains_key("mangle"));
    }
}
