//! Where the runtimes are: `scripts/fetch-containerd` unpacks them there.

use crate::programs::{required, workspace};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Packages {
    cache: PathBuf,
}

impl Packages {
    /// The packages, with containerd 1.6 at least; None when they were not fetched
    /// and need not be.
    ///
    /// # Errors
    /// When they were not fetched with REQUIRE_CONTAINERD=1.
    pub fn find() -> Result<Option<Self>> {
        let found = Self { cache: workspace().join("target/e2e-cache/runtimes") };
        if found.has("containerd-1.6") {
            return Ok(Some(found));
        }
        if required("REQUIRE_CONTAINERD") {
            bail!(
                "no containerd in {}: run scripts/fetch-containerd (REQUIRE_CONTAINERD=1)",
                found.cache.display()
            );
        }
        Ok(None)
    }

    /// A file in one of the packages.
    #[must_use]
    pub fn file(&self, package: &str, path: &str) -> PathBuf {
        self.cache.join(package).join(path)
    }

    /// containerd 1.6: what Kubernetes 1.24 to 1.35 runs on.
    #[must_use]
    pub fn containerd_1(&self) -> Runtime {
        self.runtime("containerd-1.6")
    }

    /// containerd 2, which knows CNI 1.1.0 and asks for STATUS; None when it could
    /// not be fetched. Debian has it in its moving suite only, so it is not required.
    #[must_use]
    pub fn containerd_2(&self) -> Option<Runtime> {
        self.has("containerd-2").then(|| self.runtime("containerd-2"))
    }

    /// podman 4.3.1; None when it could not be fetched.
    #[must_use]
    pub fn podman(&self) -> Option<PathBuf> {
        self.has("podman").then(|| self.cache.join("podman"))
    }

    /// The program that the suite's images are made of.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.file("containerd-1.6", "bin/busybox")
    }

    fn runtime(&self, name: &'static str) -> Runtime {
        let own = self.cache.join(name);
        // runc is that of one suite for both: newer ones want a newer glibc.
        let runc = self.cache.join("containerd-1.6");
        let dirs = [own.join("usr/bin"), runc.join("usr/bin"), runc.join("usr/sbin")];
        let mut path: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        path.push("/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        Runtime { name, path: path.join(":") }
    }

    /// `pins` is written when all of a package is there.
    fn has(&self, package: &str) -> bool {
        Path::new(&self.cache).join(package).join("pins").is_file()
    }
}

/// One version of containerd.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Which.
    pub name: &'static str,
    /// PATH with its programs first, so that it finds its own shim.
    pub path: String,
}
