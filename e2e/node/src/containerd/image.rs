//! The one image of the suite, made here: busybox, which does nothing for long. It
//! is the pause of sandboxes and the container of `ctr` and `podman`.

use crate::process::Program;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What it is called.
pub const NAME: &str = "localhost/e2e/pause:1";

/// Writes the image as an OCI layout in a tarball, which `ctr` and `podman` load.
///
/// # Errors
/// When a file cannot be written or `tar` fails.
pub fn build(dir: &Path, busybox: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    for sub in ["bin", "proc", "sys", "dev", "etc", "run", "tmp"] {
        std::fs::create_dir_all(root.join(sub))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox"))
        .with_context(|| format!("copy {}", busybox.display()))?;
    let config = json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/busybox", "sleep", "1000000"]});
    pack(dir, NAME, &config)
}

/// The image of the files in `root` of a directory, with this configuration.
///
/// # Errors
/// When a file cannot be written or `tar` fails.
pub fn pack(dir: &Path, name: &str, config: &Value) -> Result<PathBuf> {
    let root = dir.join("root");
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;

    let layer = dir.join("layer.tar");
    tar(&root, &layer)?;
    let layer = Blob::of(&blobs, &std::fs::read(&layer)?)?;
    let config = Blob::of_json(
        &blobs,
        &json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        }),
    )?;
    let manifest = Blob::of_json(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        }),
    )?;
    let mut descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    // The first is what containerd calls it, the second what podman does.
    descriptor["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    });
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let image = dir.join("image.tar");
    tar(&layout, &image)?;
    Ok(image)
}

fn tar(dir: &Path, into: &Path) -> Result<()> {
    let program = Program::new("tar").args(["--sort=name", "--mtime=@0", "--numeric-owner", "-C"]);
    program.arg(dir).arg("-cf").arg(into).arg(".").check()?;
    Ok(())
}

/// A file named by its content.
struct Blob {
    digest: String,
    size: usize,
}

impl Blob {
    fn of_json(blobs: &Path, value: &Value) -> Result<Self> {
        Self::of(blobs, value.to_string().as_bytes())
    }

    fn of(blobs: &Path, content: &[u8]) -> Result<Self> {
        let sum = Program::new("sha256sum").input(content).check()?;
        let sum = sum.split(' ').next().context("sha256sum said nothing")?;
        std::fs::write(blobs.join(sum), content)?;
        Ok(Self { digest: format!("sha256:{sum}"), size: content.len() })
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({"mediaType": kind, "digest": self.digest, "size": self.size})
    }
}
