//! `sluice rules`: a pod's rules as text that the tools load as it is. Its output is
//! a contract: others compare with it.

use crate::config::{Compat, RulesArgs, RulesFormat};
use crate::input;
use crate::source::manifest;
use anyhow::{Context, Result, bail};
use redirect::ambient::AmbientPlan;
use redirect::case::{AmbientCase, Case};
use redirect::compile::{ambient, compile};
use redirect::desired::{Desired, Dialect, Form};
use redirect::net::Family;
use redirect::plan::Plan;
use redirect::pod::Pod;
use redirect::sidecar::plan;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The rules that are asked for.
///
/// # Errors
///
/// Names the file, the field and the value that is wrong.
pub(crate) fn rules(args: &RulesArgs) -> Result<String> {
    let plan = match (&args.pod, &args.case) {
        (Some(path), _) => of_pod(args, &input::pod(path)?.0, path).map(AnyPlan::sidecar)?,
        (None, Some(path)) => of_case(args, path)?,
        (None, None) => bail!("want --pod or --case"),
    };
    let form = |dialect| match args.compat {
        Some(Compat::Istio) => Form::Istio(dialect),
        None => Form::Sluice,
    };
    let iptables = || plan.compile(form(Dialect::Iptables));
    let nftables = || plan.compile(form(Dialect::Nftables));
    Ok(match args.format {
        RulesFormat::Iptables => redirect::iptables::render(&iptables(), Family::V4),
        RulesFormat::Ip6tables => redirect::iptables::render(&iptables(), Family::V6),
        RulesFormat::Nft => redirect::nft::render(&nftables()),
        RulesFormat::Json => format!("{:#}\n", document(&iptables(), &nftables())),
    })
}

/// What a file makes.
enum AnyPlan {
    Sidecar(Box<Plan>),
    Ambient(AmbientPlan),
}

impl AnyPlan {
    fn sidecar(plan: Plan) -> Self {
        Self::Sidecar(Box::new(plan))
    }

    fn compile(&self, form: Form) -> Desired {
        match self {
            Self::Sidecar(plan) => compile(plan, form),
            Self::Ambient(plan) => ambient(plan, form),
        }
    }
}

fn of_pod(args: &RulesArgs, pod: &Pod, path: &Path) -> Result<Plan> {
    let config = args.policy.config_with_names()?;
    plan(pod, &config, &args.addresses.addresses)
        .with_context(|| format!("{}: pod {}/{}", path.display(), pod.namespace, pod.name))
}

/// A conformance case, as far as it is input.
#[derive(Deserialize)]
struct CaseFile<'a> {
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    pod: Option<&'a RawValue>,
}

fn of_case(args: &RulesArgs, path: &Path) -> Result<AnyPlan> {
    let text = input::text(path)?;
    let at = || path.display().to_string();
    let file: CaseFile<'_> = serde_json::from_str(&text).with_context(at)?;
    match (file.config, file.pod) {
        (Some(config), None) if AmbientCase::is_one(config.get()) => {
            let case = AmbientCase::parse(config.get()).with_context(at)?;
            if case.host {
                bail!("{}: rules of a host, not of a pod", path.display());
            }
            case.plan().map(AnyPlan::Ambient).with_context(at)
        }
        (Some(config), None) => {
            let case = Case::parse(config.get()).with_context(at)?;
            case.plan().map(AnyPlan::sidecar).with_context(at)
        }
        (None, Some(pod)) => {
            let objects = manifest::parse(pod.get()).with_context(at)?;
            let [pod] = objects.pods.as_slice() else {
                bail!("{}: key `pod` holds no Pod", path.display());
            };
            of_pod(args, pod, path).map(AnyPlan::sidecar)
        }
        (Some(_), Some(_)) => bail!("{}: has both `config` and `pod`: want one", path.display()),
        (None, None) => bail!("{}: has neither `config` nor `pod`", path.display()),
    }
}

/// The shape of shared/conformance, with what must hold beside the rules.
fn document(iptables: &Desired, nftables: &Desired) -> Value {
    let routing = &iptables.routing;
    json!({
        "iptables": {
            "v4": tables(&redirect::iptables::render(iptables, Family::V4)),
            "v6": tables(&redirect::iptables::render(iptables, Family::V6)),
        },
        "nftables": redirect::nft::render(nftables).lines().collect::<Vec<_>>(),
        "routing": {
            "loopback": routing.loopback.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "marks": routing.marks.iter().map(|m| json!({
                "family": match m.family { Family::V4 => "v4", Family::V6 => "v6" },
                "mark": m.mark,
                "mask": m.mask,
                "table": m.table,
                "priority": m.priority,
            })).collect::<Vec<_>>(),
        },
    })
}

/// Restore lines by table, chains as `-N`.
fn tables(text: &str) -> Value {
    let mut tables: Map<String, Value> = Map::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if line != "COMMIT" && !line.is_empty() && !line.starts_with('#') {
            let chain = line.strip_prefix(':').and_then(|l| l.split(' ').next());
            let line = chain.map_or_else(|| line.to_owned(), |chain| format!("-N {chain}"));
            if let Value::Array(lines) = tables.entry(&table).or_insert_with(|| json!([])) {
                lines.push(line.into());
            }
        }
    }
    Value::Object(tables)
}
