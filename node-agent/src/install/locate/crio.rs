//! CRI-O's `crio.conf` and its drop-in directory.

use super::Said;
use super::root::Root;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Reads the file and then the directory beside it, in which every file counts,
/// whatever its extension (OpenShift's is `00-default`); `None` when there is none.
pub(super) fn read(root: &Root, config: &Path) -> Result<Option<Said>, String> {
    let drop_in = PathBuf::from(format!("{}.d", config.display()));
    let files = root.names(&drop_in).into_iter().map(|name| drop_in.join(name));
    let mut said = None;
    for file in std::iter::once(config.to_owned()).chain(files) {
        let Some(text) = root.read(&file)? else { continue };
        let table = super::parse(&text).map_err(|why| format!("{}: {why}", file.display()))?;
        merge(&table, said.get_or_insert_default());
    }
    Ok(said)
}

fn merge(table: &Table, said: &mut Said) {
    let network = |key| table.get("crio")?.as_table()?.get("network")?.as_table()?.get(key);
    if let Some(net) = network("network_dir").and_then(Value::as_str).filter(|net| !net.is_empty())
    {
        said.net = Some(net.into());
    }
    if let Some(bins) = network("plugin_dirs").and_then(Value::as_array).filter(|b| !b.is_empty()) {
        said.bins = bins.iter().filter_map(Value::as_str).map(PathBuf::from).collect();
    }
    // Its older, single form.
    if let Some(bin) = network("plugin_dir").and_then(Value::as_str).filter(|bin| !bin.is_empty()) {
        said.bins.push(bin.into());
    }
}
