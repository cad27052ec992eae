//! `sluice rules --compat istio` against what Istio's own tools produce, through
//! the kernel: both are loaded with the real tools, listed and compared.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::conformance::{Case, Kind, cases, number_groups};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::listing::{differences, list, rule_count};
use e2e_node::process::Program;
use e2e_node::programs::Programs;
use e2e_node::rules::{Form, Script, Tool};
use std::path::PathBuf;
use std::sync::Arc;

#[test]
fn sidecar_cases_by_iptables_nft() {
    compare(Kind::Sidecar, Tool::Iptables);
}

#[test]
fn sidecar_cases_by_iptables_legacy() {
    compare(Kind::Sidecar, Tool::Legacy);
}

#[test]
fn sidecar_cases_by_nft() {
    compare(Kind::Sidecar, Tool::Nft);
}

#[test]
fn pod_cases_by_iptables_nft() {
    compare(Kind::Pod, Tool::Iptables);
}

#[test]
fn pod_cases_by_iptables_legacy() {
    compare(Kind::Pod, Tool::Legacy);
}

#[test]
fn ambient_cases_by_iptables_nft() {
    compare(Kind::Ambient, Tool::Iptables);
}

#[test]
fn ambient_cases_by_iptables_legacy() {
    compare(Kind::Ambient, Tool::Legacy);
}

#[test]
fn ambient_cases_by_nft() {
    compare(Kind::Ambient, Tool::Nft);
}

/// Our own form, which takes new connections only, is not Istio's: if it passed
/// for it, nothing here would mean anything.
#[test]
fn a_difference_is_seen() {
    let (scratch, programs) = (Scratch::create().unwrap(), Programs::find().unwrap());
    for kind in [Kind::Sidecar, Kind::Ambient] {
        let Some(cases) = cases(kind).unwrap() else {
            return left_out();
        };
        for tool in [Tool::Iptables, Tool::Nft] {
            let found = one(&cases[0], Form::Own, tool, &scratch, &programs).unwrap_err();
            assert!(found.contains("chain"), "{found}");
        }
    }
}

/// The other tests give `sluice` the data with numbers for group names; with the
/// names it must say the same with names.
#[test]
fn group_names_are_passed_on() {
    let Some(cases) = cases(Kind::Sidecar).unwrap() else {
        return left_out();
    };
    let scratch = Scratch::create().unwrap();
    let programs = Programs::find().unwrap();
    for case in cases {
        let file = input(&case, &scratch);
        for format in ["iptables", "ip6tables", "nft"] {
            let print = |file: &PathBuf| {
                let program = Program::new(&programs.sluice).args(["rules", "--case"]);
                program.arg(file).args(["--format", format]).check().unwrap()
            };
            let named = print(&case.path);
            assert_eq!(number_groups(&named), print(&file), "{} {format}", case.name);
        }
    }
}

fn left_out() {
    println!("shared/conformance is not there: left out");
}

fn input(case: &Case, scratch: &Scratch) -> PathBuf {
    let name = format!("{}.json", case.name.replace('/', "-"));
    let text = match case.pod() {
        Some(pod) => pod.to_string(),
        None => case.numbered().unwrap(),
    };
    scratch.file(&name, &text).unwrap()
}

fn compare(kind: Kind, tool: Tool) {
    let Some(cases) = cases(kind).unwrap() else {
        return left_out();
    };
    let scratch = Scratch::create().unwrap();
    let programs = Programs::find().unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        match one(case, Form::Compat, tool, &scratch, &programs) {
            Ok(0) => println!("{} {tool:?}: not in the data", case.name),
            Ok(rules) => println!("{} {tool:?}: {rules} rules, the same", case.name),
            Err(what) => failures.push(format!("{} {tool:?}:\n{what}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Number of rules compared, or what differs.
fn one(
    case: &Case,
    ours: Form,
    tool: Tool,
    scratch: &Arc<Scratch>,
    programs: &Programs,
) -> Result<usize, String> {
    let file = input(case, scratch);
    let script =
        |form| Script::of(case, &file, form, tool, programs).map_err(|err| format!("{err:#}"));
    let (Some(expected), Some(ours)) = (script(Form::Expected)?, script(ours)?) else {
        return Ok(0);
    };
    let listing = |script: &Script, name: &str| {
        let pod = Namespace::create(scratch, name).unwrap();
        script.load(&pod, tool).map_err(|err| format!("{name}: {err:#}"))?;
        Ok::<_, String>(list(&pod, tool).unwrap())
    };
    let (want, have) = (listing(&expected, "expected")?, listing(&ours, "ours")?);
    let rules = rule_count(&want);
    assert!(rules > 5, "{}: only {rules} rules were loaded", case.name);
    let differences = differences(&want, &have);
    if differences.is_empty() {
        return Ok(rules);
    }
    Err(differences.join("\n"))
}
