//! Which tool is chosen, with tools that only pretend.

use super::fixture::Directory;
use crate::iptables::detect::{FamilyTools, family_tools};
use crate::iptables::{DetectError, Search, Variant};
use redirect::net::Family;

/// A tool that is installed.
struct Fake {
    name: &'static str,
    /// What `-save --version` prints; nothing for one that does not know it.
    version: Option<&'static str>,
    /// The kernel takes its rules.
    works: bool,
    /// There are rules already.
    has_rules: bool,
}

const WORKS: Fake = Fake { name: "", version: None, works: true, has_rules: false };

fn install(fakes: &[Fake]) -> Directory {
    let dir = Directory::new();
    for fake in fakes {
        let rules = if fake.has_rules {
            "echo '*nat'; echo ':INPUT ACCEPT [0:0]'; echo COMMIT"
        } else {
            ":"
        };
        let version = match fake.version {
            Some(text) => format!("echo '{text}'"),
            None => {
                format!("echo \"{}-save: unrecognized option '--version'\" >&2; exit 1", fake.name)
            }
        };
        let save = format!("if [ \"$1\" = --version ]; then {version}; else {rules}; fi");
        dir.script(&format!("{}-save", fake.name), &save);
        dir.script(&format!("{}-restore", fake.name), "exit 0");
        // Its own arguments are kept, to see whether it waits for the lock.
        let log = dir.0.join(format!("{}.log", fake.name));
        let result = if fake.works {
            "exit 0"
        } else {
            "echo 'Perhaps iptables or your kernel needs to be upgraded.' >&2; exit 3"
        };
        let lines = format!("echo \"$XTABLES_LOCKFILE $*\" >> {}\n{result}", log.display());
        dir.script(fake.name, &lines);
    }
    dir
}

fn choose(fakes: &[Fake], force: Option<Variant>) -> (Result<FamilyTools, DetectError>, Directory) {
    let dir = install(fakes);
    let search = Search { dirs: vec!["/nonexistent".into(), dir.0.clone()], force };
    (family_tools(&search, Family::V4), dir)
}

/// Version of each distribution (reference 9.3), and the options of its writes.
#[test]
fn distributions() {
    let lock = "/proc/self/ns/net";
    for (name, version, shown, wait, locked) in [
        ("iptables-nft", "iptables-save v1.8.7 (nf_tables)", "v1.8.7 (nf_tables)", false, false),
        ("iptables-legacy", "iptables-save v1.8.7 (legacy)", "v1.8.7 (legacy)", true, true),
        ("iptables", "", "v0.0.0 (legacy)", false, false),
        ("iptables", "iptables-save v1.6.1", "v1.6.1 (legacy)", false, false),
        ("iptables", "iptables-save v1.4.21", "v1.4.21 (legacy)", false, false),
        ("iptables", "iptables-save v1.8.4 (nf_tables)", "v1.8.4 (nf_tables)", false, false),
        ("iptables", "iptables-save v1.8.4 (legacy)", "v1.8.4 (legacy)", true, false),
        ("iptables", "iptables-save v1.8.9 (legacy)", "v1.8.9 (legacy)", true, true),
    ] {
        let fake = Fake { name, version: (!version.is_empty()).then_some(version), ..WORKS };
        let force = (name == "iptables-legacy").then_some(Variant::Legacy);
        let (found, dir) = choose(&[fake], force);
        let tool = found.unwrap().default;
        let want = format!("{}/{name} {shown}", dir.0.display());
        assert_eq!(tool.to_string(), want);
        let log = std::fs::read_to_string(dir.0.join(format!("{name}.log"))).unwrap();
        let tail = if wait { " --wait=30" } else { "" };
        let lock = if locked { lock } else { "" };
        let rule = "INPUT -p 255 -j RETURN";
        assert_eq!(
            log,
            format!("{lock} -t nat -A {rule}{tail}\n{lock} -t nat -D {rule}{tail}\n"),
            "{version}"
        );
    }
}

/// Name that is chosen, and that of the tool for namespaces with legacy rules.
fn names(found: &FamilyTools) -> (String, String) {
    let name = |tool: &crate::iptables::Tool| {
        let name = tool.base.file_name().unwrap();
        name.to_string_lossy().into_owned()
    };
    let legacy = found.legacy.as_ref().map(name).unwrap_or_default();
    (name(&found.default), legacy)
}

#[test]
fn preference() {
    let legacy = |works, has_rules| Fake {
        name: "iptables-legacy",
        version: Some("iptables-save v1.8.9 (legacy)"),
        works,
        has_rules,
    };
    let nft = |works| Fake {
        name: "iptables-nft",
        version: Some("iptables-save v1.8.9 (nf_tables)"),
        works,
        has_rules: true,
    };
    let plain = |works| Fake {
        name: "iptables",
        version: Some("iptables-save v1.8.9 (legacy)"),
        works,
        has_rules: false,
    };
    let cases = [
        (vec![legacy(true, false), nft(true)], "iptables-nft", "iptables-legacy"),
        (vec![legacy(true, true), nft(true)], "iptables-legacy", "iptables-legacy"),
        (vec![legacy(false, true), nft(true)], "iptables-nft", ""),
        (vec![legacy(true, false), nft(false), plain(true)], "iptables", "iptables-legacy"),
        (vec![nft(true), plain(true)], "iptables-nft", ""),
        (vec![plain(true)], "iptables", ""),
    ];
    for (fakes, default, legacy) in cases {
        let (found, _dir) = choose(&fakes, None);
        let want = (default.to_owned(), legacy.to_owned());
        assert_eq!(names(&found.unwrap()), want);
    }

    let (found, _dir) = choose(&[legacy(true, false), nft(true)], Some(Variant::Legacy));
    assert_eq!(names(&found.unwrap()).0, "iptables-legacy");
    let (found, _dir) = choose(&[legacy(true, true), nft(true)], Some(Variant::Nft));
    assert_eq!(names(&found.unwrap()), ("iptables-nft".to_owned(), String::new()));
    let (found, _dir) = choose(&[legacy(true, true), plain(true)], Some(Variant::Nft));
    let err = found.unwrap_err().to_string();
    assert_eq!(err, "no usable iptables: iptables-nft: not installed");
    let (found, _dir) = choose(&[nft(false), plain(false)], None);
    let err = found.unwrap_err().to_string();
    assert!(err.contains("iptables-legacy: not installed; iptables-nft: "), "{err}");
    assert!(err.contains("exit status 3: Perhaps iptables or your kernel"), "{err}");
}

#[test]
fn a_forced_kind_is_read_as_istio_reads_it() {
    assert_eq!("legacy".parse::<Variant>().unwrap(), Variant::Legacy);
    assert_eq!("nft".parse::<Variant>().unwrap(), Variant::Nft);
    let err = "ebtables".parse::<Variant>().unwrap_err().to_string();
    assert_eq!(err, "iptables binary \"ebtables\" unsupported: want \"legacy\" or \"nft\"");
}
