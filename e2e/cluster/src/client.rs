//! kubectl and Helm, as an administrator uses them.

use crate::wait::until;
use anyhow::{Context, Result, bail};
use e2e_node::lab::Namespace;
use e2e_node::process::{Output, Program};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What no command takes longer for.
const COMMAND: Duration = Duration::from_secs(300);

/// An administrator at the control plane.
#[derive(Debug, Clone)]
pub struct Client {
    network: Arc<Namespace>,
    kubectl: String,
    kubeconfig: PathBuf,
}

impl Client {
    /// One that logs in with this file.
    #[must_use]
    pub fn new(network: &Arc<Namespace>, kubectl: &str, kubeconfig: &Path) -> Self {
        let (kubectl, kubeconfig) = (kubectl.to_owned(), kubeconfig.to_owned());
        Self { network: Arc::clone(network), kubectl, kubeconfig }
    }

    /// A program that finds the cluster.
    pub fn program(&self, program: impl Into<std::ffi::OsString>) -> Program<'_> {
        let home = self.network.scratch().path();
        self.network
            .program(program)
            .env("KUBECONFIG", &self.kubeconfig)
            // kubectl and Helm keep caches there.
            .env("HOME", home)
            .env("HELM_CACHE_HOME", home.join("helm"))
            .timeout(COMMAND)
    }

    fn kubectl(&self, arguments: &[&str]) -> Program<'_> {
        let limited = ["--request-timeout=30s"];
        self.program(&self.kubectl)
            .args(arguments.iter().copied().take(1))
            .args(limited)
            .args(arguments.iter().copied().skip(1))
    }

    /// Runs kubectl; its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl(arguments).check()
    }

    /// Runs kubectl, whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl(arguments).run()
    }

    /// `kubectl get` as JSON.
    ///
    /// # Errors
    /// When there is no such thing.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl said {text}"))
    }

    /// The items of a list.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(arguments)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// `kubectl apply` of an object.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"]).input(object.to_string()).check()?;
        Ok(())
    }

    /// `kubectl exec` in a container.
    ///
    /// # Errors
    /// When the command fails.
    pub fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        argv: &[&str],
    ) -> Result<String> {
        let to = ["exec", "-n", namespace, pod, "-c", container, "--"];
        self.run(&[&to[..], argv].concat())
    }

    /// Deletes what there is, without waiting for it to be gone.
    ///
    /// # Errors
    /// When that is refused.
    pub fn delete(&self, arguments: &[&str]) -> Result<()> {
        let delete = ["delete", "--ignore-not-found", "--wait=false"];
        self.run(&[&delete[..], arguments].concat())?;
        Ok(())
    }

    /// Waits until something is gone.
    ///
    /// # Errors
    /// When it is still there after `bound`.
    pub fn wait_gone(&self, arguments: &[&str], bound: Duration) -> Result<()> {
        until(&format!("{arguments:?} gone"), bound, || {
            let left =
                self.run(&[&["get", "-o", "name", "--ignore-not-found"], arguments].concat())?;
            if !left.trim().is_empty() {
                bail!("still there: {left}");
            }
            Ok(Some(()))
        })
    }

    /// Runs Helm.
    ///
    /// # Errors
    /// When it fails; the message has all it said.
    pub fn helm(&self, helm: &Path, arguments: &[&str]) -> Result<String> {
        let program = self.program(helm).arg("helm").args(arguments.iter().copied());
        program.timeout(Duration::from_secs(300)).check()
    }
}
