//! What runtimes remember of sandboxes that were made with our plugin.

use super::Settings;
use super::entry::TYPE;
use super::file::{self, FileError};
use super::json::{Object, string};
use std::fs;
use std::path::Path;

/// libcni's folder of attachments below its cache directory, which is
/// `/var/lib/cni` for containerd and CRI-O.
const RESULTS: &str = "results";

/// What became of the plugin's binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryFate {
    /// It was not there.
    Absent,
    /// Nothing named it any more.
    Removed,
    /// So many sandboxes were made with it, and may be taken down with it: CRI-O
    /// uses the configuration of then, and keeps a sandbox for ever when a plugin
    /// is not found. The binary answers DEL without an agent.
    Needed(usize),
}

/// Removes the plugin's binary once no sandbox names it. `cache` is libcni's cache
/// directory as the agent sees it. For after [`super::remove`]; may be repeated.
///
/// # Errors
///
/// When the cache cannot be read: then the binary stays.
pub(crate) fn remove_binary(settings: &Settings, cache: &Path) -> Result<BinaryFate, FileError> {
    let needed = count(&cache.join(RESULTS))?;
    if needed > 0 {
        return Ok(BinaryFate::Needed(needed));
    }
    let removed = file::discard(&settings.bin_dir.join(TYPE))?;
    Ok(if removed { BinaryFate::Removed } else { BinaryFate::Absent })
}

/// Attachments whose chain had us, or that cannot be understood.
fn count(results: &Path) -> Result<usize, FileError> {
    let mut count = 0;
    for entry in fs::read_dir(results).map_err(FileError::at("read directory", results))? {
        let path = entry.map_err(FileError::at("read directory", results))?.path();
        match fs::read_to_string(&path) {
            Ok(text) => count += usize::from(names_us(&text)),
            // Its sandbox went meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => count += 1,
        }
    }
    Ok(count)
}

fn names_us(text: &str) -> bool {
    let Ok(object) = Object::parse(text) else { return true };
    let Some(config) = object.get("config").and_then(string) else { return true };
    let config = decode(&config);
    config.windows(TYPE.len()).any(|part| part == TYPE.as_bytes())
}

/// Base64 as Go writes it; what does not belong there is passed over.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.extend((bits >> held).to_be_bytes().last());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests::Node;
    use super::*;
    use crate::install::{BinaryFate, Mode, remove_binary};

    /// `{"plugins":[{"type":"main"},{"type":"istio-cni"}]}` and the same without us.
    const WITH: &str = "eyJwbHVnaW5zIjpbeyJ0eXBlIjoibWFpbiJ9LHsidHlwZSI6ImlzdGlvLWNuaSJ9XX0=";
    const WITHOUT: &str = "eyJwbHVnaW5zIjpbeyJ0eXBlIjoibWFpbiJ9XX0=";

    #[test]
    fn the_binary_stays_while_a_sandbox_names_it() {
        assert_eq!(decode(WITHOUT), br#"{"plugins":[{"type":"main"}]}"#);
        let node = Node::new(Mode::InPlace);
        let cache = node.settings.run_dir.join("cache");
        let binary = node.settings.bin_dir.join(TYPE);
        fs::write(&binary, "x").unwrap();
        assert!(remove_binary(&node.settings, &cache).is_err() && binary.exists());
        let results = cache.join(RESULTS);
        fs::create_dir_all(&results).unwrap();
        for (name, config) in [("net-a-eth0", WITH), ("net-b-eth0", WITHOUT), ("net-c-eth0", WITH)]
        {
            let text = format!(r#"{{"kind":"cniCacheV1","config":"{config}","ifName":"eth0"}}"#);
            fs::write(results.join(name), text).unwrap();
        }
        fs::write(results.join("net-d-eth0"), "odd").unwrap();
        assert_eq!(remove_binary(&node.settings, &cache).unwrap(), BinaryFate::Needed(3));
        for name in ["net-a-eth0", "net-c-eth0", "net-d-eth0"] {
            assert!(binary.exists());
            fs::remove_file(results.join(name)).unwrap();
        }
        assert_eq!(remove_binary(&node.settings, &cache).unwrap(), BinaryFate::Removed);
        assert_eq!(remove_binary(&node.settings, &cache).unwrap(), BinaryFate::Absent);
    }
}
