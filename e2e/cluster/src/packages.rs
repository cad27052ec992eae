//! Where the programs are: `scripts/fetch-kubernetes` builds them,
//! `scripts/fetch-containerd` and `scripts/manifests` the rest.

use anyhow::{Context, Result, bail};
use e2e_node::containerd::packages::Packages as Runtimes;
use e2e_node::process::Program;
use e2e_node::programs::{required, workspace};
use std::path::PathBuf;
use std::time::Duration;

/// Building Helm, where that was not done yet.
const BUILD: Duration = Duration::from_secs(900);

/// All programs that are not ours.
#[derive(Debug, Clone)]
pub struct Packages {
    /// containerd, runc and busybox.
    pub runtimes: Runtimes,
    /// The proxy.
    pub envoy: PathBuf,
    /// Kubernetes and etcd.
    pub kubernetes: PathBuf,
}

impl Packages {
    /// All of them; else what is missing and how to get it.
    ///
    /// # Errors
    /// When something is missing with REQUIRE_CLUSTER=1, or cannot be looked for.
    pub fn find() -> Result<Result<Self, String>> {
        match Self::look()? {
            Err(missing) if required("REQUIRE_CLUSTER") => bail!("{missing} (REQUIRE_CLUSTER=1)"),
            found => Ok(found),
        }
    }

    fn look() -> Result<Result<Self, String>> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Err("a cluster needs root".to_owned()));
        }
        if !memory_hierarchy() {
            let why = "kubelet 1.20 needs cgroup v1 (or hybrid), which is not mounted here";
            return Ok(Err(why.to_owned()));
        }
        let cached = Program::new(workspace().join("scripts/fetch-kubernetes")).arg("--cached");
        if !cached.run()?.status.success() {
            let how = "no Kubernetes here: run scripts/fetch-kubernetes (some three minutes, once)";
            return Ok(Err(how.to_owned()));
        }
        let Some(runtimes) = Runtimes::find()? else {
            return Ok(Err("no containerd here: run scripts/fetch-containerd".to_owned()));
        };
        let Some(envoy) = e2e_node::envoy::find()? else {
            return Ok(Err("Envoy could not be installed".to_owned()));
        };
        let kubernetes = workspace().join("target/e2e-cache/kubernetes/bin");
        Ok(Ok(Self { runtimes, envoy, kubernetes }))
    }

    /// A program of Kubernetes, or etcd.
    #[must_use]
    pub fn program(&self, name: &str) -> String {
        self.kubernetes.join(name).display().to_string()
    }
}

/// What runs the pinned Helm, which is built now if need be: that wants a network.
///
/// # Errors
/// When it cannot be built.
pub fn helm() -> Result<PathBuf> {
    let script = workspace().join("scripts/manifests");
    let build = Program::new(&script).args(["helm", "version", "--short"]).timeout(BUILD);
    let version = build.check().context("build Helm")?;
    if !version.starts_with("v4.") {
        bail!("Helm is {}, want v4", version.trim());
    }
    Ok(script)
}

fn memory_hierarchy() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.any(|fields| {
        fields.get(2) == Some(&"cgroup")
            && fields.get(3).is_some_and(|options| options.split(',').any(|one| one == "memory"))
    })
}
