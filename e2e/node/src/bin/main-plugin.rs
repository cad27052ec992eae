//! A main plugin that speaks CNI 1.1.0, which Debian's `bridge` does not yet: it
//! lets `bridge` do the work in 1.0.0 and adds to the result what 1.1.0 may have,
//! and what no version has, for the chain to pass on untouched.

use anyhow::{Context, Result, bail};
use e2e_node::process::Program;
use e2e_node::programs::{PLUGIN_DIR, variable};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;

const WRAPPED: &str = "1.0.0";
const OWN: &str = "1.1.0";

fn main() -> Result<()> {
    let command = variable("CNI_COMMAND").context("CNI_COMMAND is not set")?;
    match command.as_str() {
        "VERSION" => print(&json!({"cniVersion": OWN, "supportedVersions": [OWN]}).to_string()),
        "STATUS" | "GC" => Ok(()),
        "ADD" | "CHECK" | "DEL" => wrap(),
        other => bail!("unknown CNI_COMMAND {other}"),
    }
}

fn wrap() -> Result<()> {
    let mut config = String::new();
    std::io::stdin().read_to_string(&mut config)?;
    let mut config: Value = serde_json::from_str(&config)?;
    set_version(&mut config, WRAPPED);
    if let Some(previous) = config.get_mut("prevResult") {
        set_version(previous, WRAPPED);
    }
    let bridge = Path::new(PLUGIN_DIR).join("bridge");
    let output = Program::new(bridge).input(config.to_string()).run()?;
    if !output.status.success() {
        print(&output.stdout)?;
        bail!("{output}");
    }
    let Ok(mut result) = serde_json::from_str::<Value>(&output.stdout) else {
        return print(&output.stdout);
    };
    set_version(&mut result, OWN);
    if let Some(Value::Array(interfaces)) = result.get_mut("interfaces") {
        for interface in interfaces.iter_mut().filter_map(Value::as_object_mut) {
            interface.insert("mtu".to_owned(), json!(1500));
        }
    }
    let text = serde_json::to_string_pretty(&result)?;
    // A number that no double holds, a form that no printer chooses, and a key
    // that no version knows.
    let odd = "{\n\"x-unknown\": [12345678901234567890123, 1.10, \"\\u00e9\"],";
    print(&text.replacen('{', odd, 1))
}

fn set_version(value: &mut Value, version: &str) {
    if let Some(object) = value.as_object_mut() {
        object.insert("cniVersion".to_owned(), json!(version));
    }
}

fn print(text: &str) -> Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
