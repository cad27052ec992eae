//! The same packets through Istio's rules and through ours: each must end where
//! it did, with the same original destination, but for [`INTENDED`].

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a test")]

use e2e_node::agent::{Agent, Directories, namespace};
use e2e_node::conformance::{Case, Kind, cases};
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::matrix::Stage;
use e2e_node::packet::{Fate, Fates};
use e2e_node::programs::Programs;
use e2e_node::rules::{Form, Script, Tool};
use e2e_node::runtime::{Attachment, Conflist, Runtime};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A difference that is wanted.
struct Intended {
    name: &'static str,
    /// Why ours is right.
    #[expect(dead_code, reason = "it is for the reader")]
    reason: &'static str,
    applies: fn(&Seen<'_>) -> bool,
}

/// One packet's fates.
struct Seen<'a> {
    case: &'a Case,
    tool: Tool,
    label: &'a str,
    /// Through Istio's rules of the same dialect.
    istio: &'a Fate,
    /// Through Istio's iptables rules.
    reference: &'a Fate,
    ours: &'a Fate,
}

const INTENDED: [Intended; 1] = [Intended {
    name: "nft captures no IPv6 where IPv6 is off",
    reason: "upstream's inet chains see IPv6 packets too, so its nft rules capture IPv6 where \
             its iptables rules, and the pod's configuration, do not (reference 10.1)",
    applies: |seen| {
        let ipv6 = seen.label.contains('[');
        let captured = matches!(seen.istio, Fate::Answered(answer) if answer.by == "proxy");
        let off = seen.tool == Tool::Nft && !seen.case.facts.ipv6;
        off && ipv6 && captured && seen.ours == seen.reference
    },
}];

#[test]
fn sidecar_cases_by_iptables() {
    sidecar(Tool::Iptables);
}

#[test]
fn sidecar_cases_by_legacy_iptables() {
    sidecar(Tool::Legacy);
}

#[test]
fn sidecar_cases_by_nft() {
    let used = sidecar(Tool::Nft);
    let all: BTreeSet<_> = INTENDED.iter().map(|intended| intended.name).collect();
    assert_eq!(used, all, "an intended difference was not seen");
}

#[test]
fn pod_cases_by_tools_and_by_the_agent() {
    let Some(lab) = Lab::create(Kind::Pod) else {
        return;
    };
    let mut failures = Vec::new();
    for case in &lab.cases {
        let expected = || lab.by_tool(case, Form::Expected, Tool::Iptables);
        let first = expected();
        let mut like_istio = |what: &str, ours: &dyn Fn() -> Fates| {
            let found = again_if_it_differs(|attempt| {
                let anew = (attempt > 0).then(expected);
                let reference = anew.as_ref().unwrap_or(&first);
                compare(what, case, Tool::Iptables, [reference; 2], &ours())
            });
            failures.extend(found.1);
        };
        for tool in [Tool::Iptables, Tool::Nft] {
            let what = format!("{} by {tool:?}", case.name);
            like_istio(&what, &|| lab.by_tool(case, Form::Own, tool));
        }
        for backend in ["nftables", "iptables"] {
            let what = format!("{} by the agent with {backend}", case.name);
            like_istio(&what, &|| lab.by_agent(case, backend));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn ambient_cases_by_iptables() {
    by_tool(Kind::Ambient, Tool::Iptables);
}

#[test]
fn ambient_cases_by_legacy_iptables() {
    by_tool(Kind::Ambient, Tool::Legacy);
}

#[test]
fn ambient_cases_by_nft() {
    let used = by_tool(Kind::Ambient, Tool::Nft);
    let all: BTreeSet<_> = INTENDED.iter().map(|intended| intended.name).collect();
    assert_eq!(used, all, "an intended difference was not seen");
}

fn sidecar(tool: Tool) -> BTreeSet<&'static str> {
    by_tool(Kind::Sidecar, tool)
}

fn by_tool(kind: Kind, tool: Tool) -> BTreeSet<&'static str> {
    let mut used = BTreeSet::new();
    let Some(lab) = Lab::create(kind) else {
        return INTENDED.iter().map(|intended| intended.name).collect();
    };
    let mut failures = Vec::new();
    for case in &lab.cases {
        let (found, lines) = again_if_it_differs(|_| {
            let reference = lab.by_tool(case, Form::Expected, Tool::Iptables);
            let ours = lab.by_tool(case, Form::Own, tool);
            let what = format!("{} by {tool:?}", case.name);
            if tool == Tool::Nft {
                let istio = lab.by_tool(case, Form::Expected, tool);
                compare(&what, case, tool, [&istio, &reference], &ours)
            } else {
                compare(&what, case, tool, [&reference; 2], &ours)
            }
        });
        used.extend(found);
        failures.extend(lines);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    used
}

/// What rules decide they decide each time. A machine that stands still for seconds loses
/// packets once.
fn again_if_it_differs(
    mut look: impl FnMut(u32) -> (BTreeSet<&'static str>, Vec<String>),
) -> (BTreeSet<&'static str>, Vec<String>) {
    for attempt in 0..2 {
        let found = look(attempt);
        let Some(line) = found.1.first() else { return found };
        println!("again, since {line}");
    }
    look(2)
}

/// Names of the intended differences seen, and lines about the others.
fn compare(
    what: &str,
    case: &Case,
    tool: Tool,
    [istio, reference]: [&Fates; 2],
    ours: &Fates,
) -> (BTreeSet<&'static str>, Vec<String>) {
    let (mut used, mut lines, mut more) = (BTreeSet::new(), Vec::new(), 0);
    let (mut captured, mut intended) = (0, 0);
    for (label, istio) in istio {
        let seen =
            Seen { case, tool, label, istio, reference: &reference[label], ours: &ours[label] };
        captured +=
            usize::from(matches!(seen.ours, Fate::Answered(answer) if answer.by == "proxy"));
        // Where Istio's rules lead nowhere ours may too: in TPROXY mode, answers to
        // what a pod forwards for others on an excluded port are diverted.
        let nowhere = matches!(seen.ours, Fate::Silence | Fate::Failed(_));
        if nowhere && !(case.facts.tproxy && label.starts_with("vm ")) {
            lines.push(format!("{what}: {label}: nobody answered: {}", seen.ours));
        }
        if seen.ours == istio {
            continue;
        }
        if let Some(found) = INTENDED.iter().find(|each| (each.applies)(&seen)) {
            used.insert(found.name);
            intended += 1;
        } else if lines.len() < 12 {
            lines.push(format!("{what}: {label}: Istio {istio}, ours {}", seen.ours));
        } else {
            more += 1;
        }
    }
    if more > 0 {
        lines.push(format!("{what}: and {more} more"));
    }
    assert_eq!(istio.len(), ours.len());
    println!(
        "{what}: {} packets, {captured} captured, {intended} intended differences",
        ours.len()
    );
    (used, lines)
}

struct Lab {
    scratch: Arc<Scratch>,
    programs: Programs,
    cases: Vec<Case>,
    next: Mutex<u32>,
}

impl Lab {
    fn create(kind: Kind) -> Option<Self> {
        let Some(cases) = cases(kind).unwrap() else {
            println!("shared/conformance is not there: left out");
            return None;
        };
        Some(Self {
            scratch: Scratch::create().unwrap(),
            programs: Programs::find().unwrap(),
            cases,
            next: Mutex::new(0),
        })
    }

    fn name(&self) -> String {
        let mut next = self.next.lock().unwrap();
        *next += 1;
        format!("n{next}")
    }

    fn input(&self, case: &Case) -> PathBuf {
        let text = match case.pod() {
            Some(pod) => pod.to_string(),
            None => case.numbered().unwrap(),
        };
        self.scratch.file(&format!("{}.json", self.name()), &text).unwrap()
    }

    fn by_tool(&self, case: &Case, form: Form, tool: Tool) -> Fates {
        let mut stage =
            Stage::set(&self.scratch, &self.name(), &case.facts, &self.programs).unwrap();
        let file = self.input(case);
        let script = Script::of(case, &file, form, tool, &self.programs).unwrap();
        script.expect("the data has this dialect").load(&stage.hood.pod, tool).unwrap();
        stage.route().unwrap();
        stage.populate().unwrap();
        stage.fates().unwrap()
    }

    /// Through the plugin and the agent, which programs and routes by itself.
    fn by_agent(&self, case: &Case, backend: &str) -> Fates {
        let name = self.name();
        let mut stage = Stage::set(&self.scratch, &name, &case.facts, &self.programs).unwrap();
        let host = Namespace::create(&self.scratch, &format!("{name}-host")).unwrap();
        let directories = Directories::create(&self.scratch, &name).unwrap();
        let pod = case.pod().unwrap();
        let text = |pointer: &str| pod.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        directories.publish(&namespace(&text("/metadata/namespace"))).unwrap();
        directories.publish(pod).unwrap();
        let agent = Agent::start(&self.programs, &host, &directories, backend).unwrap();
        let runtime = Runtime {
            node: &host,
            path: vec![self.programs.dir.clone()],
            cache: self.scratch.path().join("cache"),
        };
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "only",
            "plugins": [{"type": "istio-cni", "cni_agent_run_dir": directories.run}],
        });
        let list = Conflist::parse(&list.to_string()).unwrap();
        let path = stage.hood.pod.path();
        let (namespace, pod) = (text("/metadata/namespace"), text("/metadata/name"));
        let attachment = Attachment::of_pod(&name, path, &namespace, &pod, "");
        if let Err(err) = runtime.add(&list, &attachment) {
            panic!("{} with {backend}: {err:#}\n{}", case.name, agent.log());
        }
        stage.populate().unwrap();
        stage.fates().unwrap()
    }
}
