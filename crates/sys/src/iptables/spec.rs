//! One rule in a form that does not depend on who wrote it.
//!
//! iptables-save prints a rule in other words than those it was loaded with, and
//! each version and variant in words of its own: `-m tcp` appears, marks become
//! hexadecimal, `--set-mark` becomes `--set-xmark`, defaults are spelled out, the
//! order changes. Comparing text would find drift where there is none, and a
//! namespace would be written again and again.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Mask that compares or sets every bit, the default of each mark option.
const ALL_BITS: u32 = u32::MAX;
/// The flags of `--syn`, sorted.
const SYN_MASK: &str = "ACK,FIN,RST,SYN";

/// What follows `-A CHAIN`, normalised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spec {
    /// Conditions, each as canonical text such as `! -d 127.0.0.1` or
    /// `mark --mark 0x539`. Their order says nothing.
    pub(super) matches: BTreeSet<String>,
    /// Name of the target or chain; empty for a rule that only counts.
    pub(super) target: String,
    /// The target's options, canonical.
    pub(super) options: BTreeSet<String>,
}

impl Spec {
    /// Reads the words of a rule. Words that are not known are kept as they are:
    /// a foreign rule is carried along, and unequal to ours.
    pub(super) fn parse(text: &str) -> Self {
        let words = words(text);
        let mut reader = Reader { words: &words };
        let mut spec =
            Self { matches: BTreeSet::new(), target: String::new(), options: BTreeSet::new() };
        let mut module = String::new();
        let mut negated = false;
        while let Some(word) = reader.next() {
            match word.plain().map_or(word.text.as_str(), long_name) {
                "!" if !word.quoted => {
                    negated = true;
                    continue;
                }
                "-m" => {
                    module = reader.argument();
                    if !is_implied(&module) {
                        spec.matches.insert(format!("-m {module}"));
                    }
                }
                name @ ("-j" | "-g") => {
                    spec.target = reader.argument();
                    module.clone_from(&spec.target);
                    if name == "-g" {
                        spec.options.insert("goto".to_owned());
                    }
                }
                name => spec.add(&module, name, &reader.arguments(), negated),
            }
            negated = false;
        }
        spec
    }

    fn add(&mut self, module: &str, name: &str, args: &[String], negated: bool) {
        let clause = match (clause(module, name, args), negated) {
            (Some(clause), false) => clause,
            (Some(clause), true) => format!("! {clause}"),
            (None, false) => return,
            // All packets, negated: matches none, which is something else than
            // saying nothing.
            (None, true) => format!("! {name} any"),
        };
        if self.target.is_empty() {
            self.matches.insert(clause);
        } else {
            self.options.insert(clause);
        }
    }
}

/// Match modules that a protocol implies: iptables-save adds them, and they say
/// nothing by themselves.
fn is_implied(module: &str) -> bool {
    matches!(module, "tcp" | "udp" | "sctp" | "dccp" | "icmp" | "icmp6")
}

/// One spelling of each option that has several.
fn long_name(name: &str) -> &str {
    match name {
        "--match" => "-m",
        "--jump" => "-j",
        "--goto" => "-g",
        "--protocol" | "--proto" => "-p",
        "--source" | "--src" => "-s",
        "--destination" | "--dst" => "-d",
        "--in-interface" => "-i",
        "--out-interface" => "-o",
        "--destination-port" => "--dport",
        "--source-port" => "--sport",
        "--destination-ports" => "--dports",
        "--source-ports" => "--sports",
        "--to-port" => "--to-ports",
        other => other,
    }
}

/// Canonical text of one option; `None` when it says nothing (a default).
fn clause(module: &str, name: &str, args: &[String]) -> Option<String> {
    let first = args.first().map_or("", String::as_str);
    let value = match name {
        "-s" | "-d" => prefix(first)?,
        "-p" => protocol(first)?.to_owned(),
        "--dports" | "--sports" | "--ctstate" => sorted(first),
        "--tcp-flags" => match (sorted(first), args.get(1)) {
            (mask, Some(set)) if mask == SYN_MASK && set == "SYN" => return Some("--syn".into()),
            (mask, set) => format!("{mask} {}", sorted(set.map_or("", String::as_str))),
        },
        "--mark" | "--tproxy-mark" | "--set-xmark" => mark(first),
        "--set-mark" if !first.contains('/') => {
            return Some(format!("{module} --set-xmark {}", mark(first)));
        }
        "--nfmask" | "--ctmask" if number(first) == Some(ALL_BITS) => return None,
        "--on-ip" if first.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) => return None,
        _ => args.join(" "),
    };
    let text = match name {
        // The same option in several modules means several things; the ports of
        // a protocol belong to whatever `-p` says, with or without its module.
        "-s" | "-d" | "-p" | "-i" | "-o" | "--dport" | "--sport" | "--tcp-flags" | "--syn" => {
            format!("{name} {value}")
        }
        _ => format!("{module} {name} {value}"),
    };
    Some(text.trim().to_owned())
}

/// A prefix without a length that says nothing; `None` for every address.
fn prefix(text: &str) -> Option<String> {
    let (addr, len) = text.split_once('/').unwrap_or((text, ""));
    let Ok(addr) = addr.parse::<IpAddr>() else {
        return Some(text.to_owned());
    };
    let whole: u8 = if addr.is_ipv4() { 32 } else { 128 };
    let len = match (len, len.parse::<IpAddr>()) {
        ("", _) => whole,
        // 10.0.0.0/255.0.0.0, as old versions print.
        (_, Ok(IpAddr::V4(mask))) => u8::try_from(mask.to_bits().leading_ones()).ok()?,
        (_, Ok(IpAddr::V6(mask))) => u8::try_from(mask.to_bits().leading_ones()).ok()?,
        (len, Err(_)) => match len.parse() {
            Ok(len) => len,
            Err(_) => return Some(text.to_owned()),
        },
    };
    if len == 0 {
        return None;
    }
    match redirect::net::Cidr::new(addr, len) {
        Some(cidr) if len == whole => Some(cidr.addr().to_string()),
        Some(cidr) => Some(cidr.to_string()),
        None => Some(text.to_owned()),
    }
}

fn protocol(text: &str) -> Option<&str> {
    match text {
        "6" => Some("tcp"),
        "17" => Some("udp"),
        "all" | "0" => None,
        other => Some(other),
    }
}

fn sorted(list: &str) -> String {
    let mut items: Vec<&str> = list.split(',').collect();
    items.sort_unstable();
    items.dedup();
    items.join(",")
}

/// `VALUE[/MASK]` in hexadecimal, without a mask of all bits.
fn mark(text: &str) -> String {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    match (number(value), number(mask)) {
        (Some(value), Some(ALL_BITS)) => format!("{value:#x}"),
        (Some(value), Some(mask)) => format!("{value:#x}/{mask:#x}"),
        _ => text.to_owned(),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A word, and whether it was quoted: then it is no option, whatever it is.
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn plain(&self) -> Option<&str> {
        (!self.quoted).then_some(self.text.as_str())
    }

    fn is_option(&self) -> bool {
        // A single `-` is an argument, `-5` would be one too, but none of the
        // options that are read here takes negative numbers.
        self.plain().is_some_and(|text| text == "!" || (text.len() > 1 && text.starts_with('-')))
    }
}

struct Reader<'a> {
    words: &'a [Word],
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a Word> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(word)
    }

    fn argument(&mut self) -> String {
        let word = self.next();
        word.map(|word| word.text.clone()).unwrap_or_default()
    }

    fn arguments(&mut self) -> Vec<String> {
        let mut args = Vec::new();
        while self.words.first().is_some_and(|word| !word.is_option()) {
            args.push(self.argument());
        }
        args
    }
}

/// Splits as iptables-restore does: at blanks, with double quotes, in which a
/// backslash takes the next character as it is.
fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        let mut word = Word { text: String::new(), quoted: false };
        let mut inside = false;
        while let Some(c) = chars.next_if(|c| inside || !c.is_whitespace()) {
            match c {
                '"' => {
                    inside = !inside;
                    word.quoted = true;
                }
                '\\' if inside => word.text.extend(chars.next()),
                c => word.text.push(c),
            }
        }
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What was loaded (left) and what 1.8.9 of either variant prints (right).
    const SAME: [(&str, &str); 17] = [
        ("-p tcp --dport 15008 -j RETURN", "-p tcp -m tcp --dport 15008 -j RETURN"),
        (
            "-p tcp --syn -j REDIRECT --to-ports 15001",
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports 15001",
        ),
        (
            "-p udp --dport 53 -j REDIRECT --to-port 15053",
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
        ),
        ("-o lo -s 127.0.0.6/32 -j RETURN", "-s 127.0.0.6/32 -o lo -j RETURN"),
        ("-s ::6/128 -o lo -j RETURN", "-s 0:0::6 -o lo -j RETURN"),
        ("-d 0.0.0.0/0 -j RETURN", "-j RETURN"),
        ("-d 10.1.2.3/8 -j RETURN", "-d 10.0.0.0/255.0.0.0 -j RETURN"),
        ("-j MARK --set-mark 1337", "-j MARK --set-xmark 0x539/0xffffffff"),
        (
            "-p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
            "-p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        ),
        (
            "-p tcp -i lo -m mark ! --mark 1338 -j RETURN",
            "-i lo -p tcp -m mark ! --mark 0x53a -j RETURN",
        ),
        (
            "! -d ::1/128 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006",
            "! -d ::1/128 -p tcp -j TPROXY --on-port 15006 --on-ip :: --tproxy-mark 0x539/0xffffffff",
        ),
        (
            "-m owner ! --gid-owner 5 -m owner ! --gid-owner 6 -j RETURN",
            "-m owner ! --gid-owner 6 -m owner ! --gid-owner 5 -j RETURN",
        ),
        (
            "-o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j X",
            "! -d 127.0.0.1/32 -o lo -p tcp -m multiport ! --dports 15008,53 -m owner --uid-owner 1337 -j X",
        ),
        (
            "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j X",
            "-p 6 -m conntrack --ctstate ESTABLISHED,RELATED -j X",
        ),
        ("--protocol tcp --destination 10.0.0.1 --jump X", "-d 10.0.0.1/32 -p tcp -m tcp -j X"),
        ("-p all -j X", "-j X"),
        ("-m comment --comment a -j X", "-m comment --comment \"a\" -j X"),
    ];

    const DIFFERENT: [(&str, &str); 11] = [
        ("-p tcp -j X", "-p udp -j X"),
        ("-d 10.0.0.0/8 -j X", "! -d 10.0.0.0/8 -j X"),
        ("-d 10.0.0.0/8 -j X", "-s 10.0.0.0/8 -j X"),
        ("! -d 0.0.0.0/0 -j X", "-j X"),
        ("-m mark --mark 1337 -j X", "-m connmark --mark 1337 -j X"),
        ("-m mark --mark 1337 -j X", "-m mark --mark 1337/0xfff -j X"),
        ("-j X", "-g X"),
        ("-p tcp --syn -j X", "-p tcp ! --syn -j X"),
        ("-p tcp --syn -j X", "-p tcp --tcp-flags SYN,ACK SYN,ACK -j X"),
        ("-m comment --comment \"-j Y\" -j X", "-m comment --comment \"-j Z\" -j X"),
        ("-m socket -j X", "-j X"),
    ];

    #[test]
    fn knows_the_same_rule_in_other_words() {
        for (loaded, printed) in SAME {
            assert_eq!(Spec::parse(loaded), Spec::parse(printed), "{loaded}");
        }
    }

    #[test]
    fn tells_rules_apart() {
        for (a, b) in DIFFERENT {
            assert_ne!(Spec::parse(a), Spec::parse(b), "{a}");
        }
    }

    #[test]
    fn quoted_text_is_no_option() {
        let spec = Spec::parse(r#"-m comment --comment "say \"-j X\" ! -p udp" -j Y"#);
        assert_eq!(spec.target, "Y");
        assert!(spec.matches.contains(r#"comment --comment say "-j X" ! -p udp"#));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,200}") {
            let _ = Spec::parse(&text);
        }
    }
}
