//! Where the programs are that the suite drives, and what its environment says.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Debian's containernetworking-plugins.
pub const PLUGIN_DIR: &str = "/usr/lib/cni";

/// Paths of all programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Where ours are.
    pub dir: PathBuf,
    /// The CNI plugin under test.
    pub plugin: PathBuf,
    /// The agent under test.
    pub sluice: PathBuf,
    /// The suite's proxy and applications.
    pub stand_in: PathBuf,
    /// The suite's client.
    pub packet: PathBuf,
}

impl Programs {
    /// `istio-cni` and `sluice` from SLUICE_BIN_DIR, else from the directory of
    /// the running executable or the one above it (tests are in `deps`). The
    /// suite's own programs are always there.
    ///
    /// # Errors
    /// When one is missing; the message says how to build it.
    pub fn find() -> Result<Self> {
        let own = own_dir()?;
        let dir = variable("SLUICE_BIN_DIR").map_or_else(|| own.clone(), PathBuf::from);
        let found = Self {
            plugin: dir.join("istio-cni"),
            sluice: dir.join("sluice"),
            stand_in: own.join("stand-in"),
            packet: own.join("packet"),
            dir,
        };
        let missing = |path: &&PathBuf| !path.is_file();
        if let Some(path) = [&found.plugin, &found.sluice].into_iter().find(missing) {
            bail!(
                "{} is not there: `cargo build -p plugin -p node-agent`, or set SLUICE_BIN_DIR",
                path.display()
            );
        }
        if let Some(path) = [&found.stand_in, &found.packet].into_iter().find(missing) {
            bail!("{} is not there: `cargo build -p e2e-node`", path.display());
        }
        Ok(found)
    }
}

/// Directory of the suite's own programs.
///
/// # Errors
/// When the running executable has no path.
pub fn own_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("the executable is in no directory")?;
    let dir = match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().unwrap_or(dir),
        _ => dir,
    };
    Ok(dir.to_owned())
}

/// Root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// A variable of the suite's environment; empty counts as absent.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place of the end-to-end suite that reads its environment"
    )]
    let value = std::env::var(name).ok();
    value.filter(|value| !value.is_empty())
}

/// Whether a variable such as REQUIRE_ENVOY is 1.
#[must_use]
pub fn required(name: &str) -> bool {
    variable(name).as_deref() == Some("1")
}
