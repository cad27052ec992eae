//! containerd's `config.toml`, versions 1 to 3, with what it imports.

use super::Said;
use super::root::Root;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where the CRI plugin's settings are, by version of the file: 3, 2, 1.
const SECTIONS: [&str; 3] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];
/// Reads the file; `None` when there is none.
pub(super) fn read(root: &Root, config: &Path) -> Result<Option<Said>, String> {
    let mut said = Said::default();
    Ok(merge(root, config, &mut said, &mut Vec::new())?.then_some(said))
}

/// Reads one file over what was read before, once; an import comes after its importer.
fn merge(
    root: &Root,
    config: &Path,
    said: &mut Said,
    read: &mut Vec<PathBuf>,
) -> Result<bool, String> {
    if read.iter().any(|path| path == config) {
        return Ok(false);
    }
    read.push(config.to_owned());
    let Some(text) = root.read(config)? else { return Ok(false) };
    let table: Table = super::parse(&text)?;
    let place = |text: &str| PathBuf::from(expanded(text));
    for section in SECTIONS {
        let Some(cni) = section_of(&table, section) else { continue };
        if let Some(net) = cni.get("conf_dir").and_then(Value::as_str) {
            said.net = Some(place(net));
        }
        let bins = cni.get("bin_dirs").and_then(Value::as_array);
        let bins: Vec<&str> = match bins {
            Some(bins) => bins.iter().filter_map(Value::as_str).collect(),
            None => cni.get("bin_dir").and_then(Value::as_str).into_iter().collect(),
        };
        let bins: Vec<PathBuf> = bins.into_iter().filter(|b| !b.is_empty()).map(place).collect();
        if !bins.is_empty() {
            said.bins = bins;
        }
        break;
    }
    let imports = table.get("imports").and_then(Value::as_array).into_iter().flatten();
    for import in imports.filter_map(Value::as_str) {
        // Relative to the importer.
        let import = config.with_file_name("").join(expanded(import));
        for file in matches(root, &import) {
            merge(root, &file, said, read)?;
        }
    }
    Ok(true)
}

fn section_of<'a>(table: &'a Table, name: &str) -> Option<&'a Table> {
    table.get("plugins")?.as_table()?.get(name)?.as_table()?.get("cni")?.as_table()
}

/// MicroK8s' file is a template of its snap's variables.
fn expanded(text: &str) -> String {
    text.replace("${SNAP_DATA}", "/var/snap/microk8s/current")
        .replace("${SNAP_COMMON}", "/var/snap/microk8s/common")
        .replace("${SNAP}", "/snap/microk8s/current")
}

/// The files of an import, whose last part may have `*` in it.
fn matches(root: &Root, import: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(pattern)) =
        (import.parent(), import.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    if !pattern.contains('*') {
        return vec![import.to_owned()];
    }
    let names = root.names(directory);
    names.iter().filter(|name| is_match(pattern, name)).map(|name| directory.join(name)).collect()
}

fn is_match(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).any(|at| name.get(at..).is_some_and(|tail| is_match(rest, tail)))
}
