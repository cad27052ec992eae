//! What the runtime asked the chain, as seen by a last plugin that writes it down:
//! `recorder`, which gets what ours gets and passes on what ours printed.

use crate::runtime::{Conflist, Entry};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The capability by which a runtime gives plugins the pod's annotations.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// One call of the recorder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Call {
    /// CNI_COMMAND.
    pub command: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS.
    pub netns: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_ARGS.
    pub args: String,
    /// CNI_PATH.
    pub path: String,
    /// Standard input.
    pub config: Value,
}

impl Call {
    /// The result of the plugins before it, if the runtime gave one.
    #[must_use]
    pub fn previous(&self) -> Option<&Value> {
        self.config.get("prevResult").filter(|value| !value.is_null())
    }

    /// The annotations, if the runtime gave them.
    #[must_use]
    pub fn annotations(&self) -> Option<&Value> {
        self.config.get("runtimeConfig")?.get(ANNOTATIONS).filter(|value| !value.is_null())
    }

    /// Appends it to a file, as one line.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn append(&self, file: &Path) -> Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file)?;
        Ok(file.write_all(&line)?)
    }
}

/// The recorder at the end of a list, and its file.
#[derive(Debug)]
pub struct Record {
    file: PathBuf,
}

impl Record {
    /// Appends the recorder to a list.
    #[must_use]
    pub fn of(list: &mut Conflist, file: PathBuf) -> Self {
        let config = json!({
            "type": "recorder",
            "file": file,
            "capabilities": {ANNOTATIONS: true, "cgroupPath": true},
        });
        let config = config.as_object().cloned().unwrap_or_default();
        list.plugins.push(Entry { kind: "recorder".to_owned(), config });
        Self { file }
    }

    /// The calls for a sandbox so far.
    ///
    /// # Errors
    /// When the file makes no sense.
    pub fn calls(&self, sandbox: &str) -> Result<Vec<Call>> {
        let all = self.all()?.into_iter();
        Ok(all.filter(|call| call.container == sandbox).collect())
    }

    /// All calls so far.
    ///
    /// # Errors
    /// When the file makes no sense.
    pub fn all(&self) -> Result<Vec<Call>> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let call = |line: &str| serde_json::from_str(line).with_context(|| line.to_owned());
        text.lines().map(call).collect()
    }
}
