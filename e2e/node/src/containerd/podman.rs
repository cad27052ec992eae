//! podman with its CNI backend, beside containerd on the same node. It is a runtime
//! of containers without pods, and asks plugins in its own way.

use super::Containerd;
use super::packages::Packages;
use crate::lab::Namespace;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// podman on the node of a containerd, with the same chain.
#[derive(Debug)]
pub struct Podman<'a> {
    containerd: &'a Containerd,
    host: &'a Namespace,
    dir: PathBuf,
}

impl<'a> Podman<'a> {
    /// Prepares its configuration; None when podman could not be fetched.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare(
        packages: &Packages,
        containerd: &'a Containerd,
        host: &'a Namespace,
    ) -> Result<Option<Self>> {
        let Some(dir) = packages.podman() else {
            return Ok(None);
        };
        let own = containerd.inside("/var/lib/podman");
        std::fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let package = dir.display().to_string();
        let config = CONTAINERS.replace("@PACKAGE@", &package);
        std::fs::write(own.join("containers.conf"), config)?;
        std::fs::write(own.join("storage.conf"), STORAGE)?;
        let policy = containerd.inside("/etc/containers");
        std::fs::create_dir_all(&policy)?;
        std::fs::copy(dir.join("etc/containers/policy.json"), policy.join("policy.json"))?;
        Ok(Some(Self { containerd, host, dir }))
    }

    /// Runs podman.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let file = |path: &str| self.dir.join(path).display().to_string();
        let podman = file("usr/bin/podman");
        self.containerd
            .program(self.host, &[&podman])
            .args(args.iter().copied())
            .env("CONTAINERS_CONF", "/var/lib/podman/containers.conf")
            .env("CONTAINERS_STORAGE_CONF", "/var/lib/podman/storage.conf")
            .env("HOME", "/var/lib/podman")
            .env("LD_LIBRARY_PATH", file(&format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)))
            .check()
    }

    /// The image of the suite, loaded.
    ///
    /// # Errors
    /// When podman does not take it.
    pub fn load(&self) -> Result<()> {
        let image = self.containerd.image().display().to_string();
        self.run(&["load", "--input", &image])?;
        Ok(())
    }
}

const CONTAINERS: &str = r#"
[containers]
default_ulimits = []
log_driver = "k8s-file"
apparmor_profile = ""
oom_score_adj = 0
seccomp_profile = "@PACKAGE@/usr/share/containers/seccomp.json"

[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "podman"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["@PACKAGE@/usr/bin/conmon"]
runtime = "runc"
tmp_dir = "/run/podman"
"#;

const STORAGE: &str = r#"
[storage]
driver = "overlay"
runroot = "/run/podman-storage"
graphroot = "/var/lib/podman/storage"
"#;
