//! Keys and certificates of a cluster, and what logs in with them.

use anyhow::{Context, Result};
use e2e_node::process::Program;
use std::path::{Path, PathBuf};

/// The API server, from everywhere but the nodes' pods.
pub const SERVER: &str = "https://172.31.77.1:16443";

/// A directory of keys.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes an authority and all certificates of a cluster with these nodes.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn create(dir: PathBuf, nodes: &[(String, String)]) -> Result<Self> {
        let pki = Self { dir };
        pki.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -subj /CN=e2e -keyout ca.key -out ca.crt \
             -addext basicConstraints=critical,CA:TRUE \
             -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
        )?;
        let names = "IP:127.0.0.1,IP:10.96.0.1,IP:172.31.77.1,DNS:localhost,DNS:kubernetes,\
             DNS:kubernetes.default,DNS:kubernetes.default.svc";
        pki.certify("apiserver", "/CN=kube-apiserver", names)?;
        // The controllers act as this one, so that they do without tokens: a test takes
        // the keys of all tokens away.
        pki.certify("controllers", "/O=system:masters/CN=controllers", "DNS:localhost")?;
        for (name, subject) in [
            ("admin", "/O=system:masters/CN=admin"),
            ("scheduler", "/CN=system:kube-scheduler"),
            ("proxy", "/CN=system:kube-proxy"),
            ("kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client"),
        ] {
            pki.certify(name, subject, "DNS:localhost")?;
        }
        for (node, address) in nodes {
            let subject = format!("/O=system:nodes/CN=system:node:{node}");
            pki.certify(node, &subject, &format!("IP:{address},DNS:{node}"))?;
        }
        let nodes = nodes.iter().map(|(node, _)| node.as_str());
        for user in ["admin", "controllers", "scheduler", "proxy"].into_iter().chain(nodes) {
            pki.write_kubeconfig(user)?;
        }
        for generation in ["tokens", "tokens-2"] {
            pki.openssl(&format!(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {generation}.key"
            ))?;
            pki.openssl(&format!("rsa -in {generation}.key -pubout -out {generation}.pub"))?;
        }
        Ok(pki)
    }

    fn certify(&self, name: &str, subject: &str, names: &str) -> Result<()> {
        self.openssl(&format!(
            "req -x509 -CA ca.crt -CAkey ca.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 \
             -nodes -days 30 -subj {subject} -keyout {name}.key -out {name}.crt \
             -addext basicConstraints=critical,CA:FALSE -addext keyUsage=digitalSignature \
             -addext extendedKeyUsage=clientAuth,serverAuth -addext subjectAltName={names}"
        ))
    }

    fn openssl(&self, words: &str) -> Result<()> {
        let program = Program::new("sh").args(["-c", "cd \"$0\" && exec openssl \"$@\""]);
        program.arg(&self.dir).args(words.split_whitespace()).check()?;
        Ok(())
    }

    fn write_kubeconfig(&self, user: &str) -> Result<()> {
        let path = |file: String| self.dir.join(file).display().to_string();
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
            "clusters": [{"name": "e2e", "cluster": {
                "server": SERVER, "certificate-authority": path("ca.crt".to_owned()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate": path(format!("{user}.crt")),
                "client-key": path(format!("{user}.key")),
            }}],
        });
        let to = self.kubeconfig(user);
        std::fs::write(&to, config.to_string()).with_context(|| format!("write {}", to.display()))
    }

    /// A file of it, as an argument.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// What a user logs in with.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        Path::new(&self.dir).join(format!("{user}.kubeconfig"))
    }
}
