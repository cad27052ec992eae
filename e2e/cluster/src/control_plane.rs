//! etcd, API server, controllers and scheduler, in a network namespace whose bridge
//! joins the nodes.

use crate::client::Client;
use crate::daemon::{Daemon, Logs};
use crate::packages::Packages;
use crate::pki::Pki;
use crate::wait::{PATIENCE, until, until_ok};
use anyhow::{Context, Result};
use e2e_node::lab::{Namespace, Scratch};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Its address on the bridge.
pub const ADDRESS: &str = "172.31.77.1";
/// The addresses of all pods.
pub const PODS: &str = "10.244.0.0/16";

/// The control plane; dropped in this order.
#[derive(Debug)]
pub struct ControlPlane {
    apiserver: Option<Daemon>,
    /// What tokens of service accounts are signed with: names of files.
    token_keys: [&'static str; 2],
    controllers: Vec<Daemon>,
    _etcd: Daemon,
    packages: Packages,
    pki: Pki,
    logs: Logs,
    audit: PathBuf,
    policy: PathBuf,
    /// Where it runs.
    pub network: Arc<Namespace>,
}

impl ControlPlane {
    /// Starts all of it, and waits until pods can be created.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(
        scratch: &Arc<Scratch>,
        packages: &Packages,
        pki: &Pki,
        logs: &Logs,
    ) -> Result<Self> {
        let network = Arc::new(Namespace::create(scratch, "control-plane")?);
        network.ip(&format!(
            "link add br0 type bridge\nlink set br0 up\naddr add {ADDRESS}/24 dev br0"
        ))?;
        network.sysctl("ipv4/ip_forward", "1")?;
        let start = |name: &str, arguments: &str| {
            start(&network, packages, logs, name, arguments.split_whitespace().map(str::to_owned))
        };
        let data = scratch.dir("etcd")?;
        let etcd = start(
            "etcd",
            &format!(
                "--data-dir {} --listen-client-urls http://127.0.0.1:12379 \
                 --advertise-client-urls http://127.0.0.1:12379 \
                 --listen-peer-urls http://127.0.0.1:12380 \
                 --initial-advertise-peer-urls http://127.0.0.1:12380 \
                 --initial-cluster default=http://127.0.0.1:12380 --unsafe-no-fsync --log-level error",
                data.display()
            ),
        )?;
        let policy = scratch.file("audit-policy.json", &audit_policy().to_string())?;
        let mut plane = Self {
            apiserver: None,
            token_keys: ["tokens", "tokens-2"],
            controllers: Vec::new(),
            _etcd: etcd,
            packages: packages.clone(),
            pki: pki.clone(),
            logs: logs.clone(),
            audit: scratch.path().join("audit.jsonl"),
            policy,
            network,
        };
        plane.start_api()?;
        // Not before: they give up when it takes it long.
        plane.start_controllers(scratch)?;
        let client = plane.client();
        until("a service account", PATIENCE, || {
            client.run(&["get", "serviceaccount", "default"]).map(Some)
        })?;
        Ok(plane)
    }

    fn start_controllers(&mut self, scratch: &Arc<Scratch>) -> Result<()> {
        let pki = &self.pki;
        let common = |user: &str| {
            let config = pki.kubeconfig(user);
            let config = config.display();
            format!(
                "--kubeconfig={config} --authentication-kubeconfig={config} \
                 --authorization-kubeconfig={config} --leader-elect=false \
                 --bind-address=127.0.0.1 --port=0 --v=1"
            )
        };
        let controllers = format!(
            "{} --secure-port=10357 --root-ca-file={} --service-account-private-key-file={} \
             --cluster-signing-cert-file={} --cluster-signing-key-file={} \
             --feature-gates=BoundServiceAccountTokenVolume=true \
             --flex-volume-plugin-dir={} --concurrent-gc-syncs=5",
            common("controllers"),
            pki.file("ca.crt"),
            pki.file("tokens.key"),
            pki.file("ca.crt"),
            pki.file("ca.key"),
            scratch.dir("volume-plugins")?.display(),
        );
        let scheduler = common("scheduler") + " --secure-port=10359";
        for (name, arguments) in
            [("kube-controller-manager", controllers), ("kube-scheduler", scheduler)]
        {
            let arguments = arguments.split_whitespace().map(str::to_owned);
            let daemon = start(&self.network, &self.packages, &self.logs, name, arguments)?;
            self.controllers.push(daemon);
        }
        Ok(())
    }

    /// Starts the API server, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_api(&mut self) -> Result<()> {
        let keys = self.token_keys[0];
        let file = |name: &str| self.pki.file(name);
        let arguments = [
            "--etcd-servers=http://127.0.0.1:12379".to_owned(),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={ADDRESS}"),
            "--secure-port=16443".to_owned(),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            format!("--service-account-key-file={}", file(&format!("{keys}.pub"))),
            format!("--service-account-signing-key-file={}", file(&format!("{keys}.key"))),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--api-audiences=https://kubernetes.default.svc".to_owned(),
            // Tokens of pods as from Kubernetes 1.21 on: bound to the pod, and short.
            "--feature-gates=BoundServiceAccountTokenVolume=true".to_owned(),
            "--service-account-extend-token-expiration=false".to_owned(),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.audit.display()),
            "--v=1".to_owned(),
        ];
        let daemon = start(&self.network, &self.packages, &self.logs, "kube-apiserver", arguments)?;
        self.apiserver = Some(daemon);
        let client = self.client();
        until_ok("the API server", PATIENCE, || {
            client.run(&["get", "--raw=/readyz"]).map(drop).context("not ready")
        })
    }

    /// Makes the API server, from its next start on, take no token that was given out.
    pub fn change_token_keys(&mut self) {
        self.token_keys.swap(0, 1);
    }

    /// Kills the API server.
    pub fn stop_api(&mut self) {
        self.apiserver = None;
    }

    /// What asks it, as an administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.network, &self.packages.program("kubectl"), &self.pki.kubeconfig("admin"))
    }

    /// All that the agents' service account asked so far, and the answers.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = match std::fs::read_to_string(&self.audit) {
            // It is made with the first entry.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("read the audit log")?,
        };
        // The last line may be half written.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

fn start(
    network: &Namespace,
    packages: &Packages,
    logs: &Logs,
    name: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Result<Daemon> {
    let argv = std::iter::once(packages.program(name)).chain(arguments).collect();
    Daemon::start(network.program("unshare"), argv, &logs.path(name))
        .with_context(|| format!("start {name}"))
}

/// What our own accounts do, without bodies, and nothing else.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "userGroups": ["system:serviceaccounts:istio-system"]},
            {"level": "None"},
        ],
    })
}
