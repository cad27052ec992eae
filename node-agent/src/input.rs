//! Manifests and cases that a person names on the command line.

use crate::source::manifest;
use anyhow::{Context, Result, bail};
use redirect::pod::{Namespace, Pod};
use std::io::Read;
use std::path::Path;

/// Largest file; far beyond any pod.
const MAX_INPUT: u64 = 16 << 20;

/// The text of a file; `-` is standard input.
///
/// # Errors
///
/// Names the file.
pub(crate) fn text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_INPUT + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MAX_INPUT + 1).read_to_string(&mut text))
    };
    let length = read.with_context(|| format!("read {}", path.display()))?;
    if length as u64 > MAX_INPUT {
        bail!("{}: larger than {} MiB", path.display(), MAX_INPUT >> 20);
    }
    Ok(text)
}

/// The one pod of a manifest, and its namespace if that is there too.
///
/// # Errors
///
/// Names the file and what is wrong in it.
pub(crate) fn pod(path: &Path) -> Result<(Pod, Option<Namespace>)> {
    let objects = manifest::parse(&text(path)?).with_context(|| path.display().to_string())?;
    let mut pods = objects.pods.into_iter();
    let Some(pod) = pods.next() else {
        bail!("{}: no Pod in it", path.display());
    };
    if let Some(other) = pods.next() {
        bail!(
            "{}: more than one Pod in it ({} and {}): want one",
            path.display(),
            pod.name,
            other.name
        );
    }
    let namespace = objects.namespaces.into_iter().find(|n| n.name == pod.namespace);
    Ok((pod, namespace))
}
