//! Which API server, as whom, for which node.

use super::client::Api;
use super::token::Token;
use clap::Args;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::PathBuf;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Options of an agent in a cluster. Without the last two it asks the API server of
/// the cluster that it runs in, as its ServiceAccount.
#[derive(Debug, Clone, Args)]
pub(crate) struct KubernetesArgs {
    /// Name of this node in the cluster; its pods are watched.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", default_value = "")]
    pub(crate) node_name: String,
    /// Ask the API server of this kubeconfig's current context instead of the cluster's own.
    #[arg(long, value_name = "FILE", env = "SLUICE_KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Ask this API server without credentials (for tests).
    #[arg(
        long,
        value_name = "URL",
        env = "SLUICE_API_URL",
        conflicts_with = "kubeconfig",
        hide = true
    )]
    pub(crate) api_url: Option<String>,
}

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubernetesError {
    /// Nobody said which node this is.
    #[error(
        "--node-name (NODE_NAME) is not set: want this node's name, spec.nodeName of the agent's own pod; or --pods DIR on a machine without Kubernetes"
    )]
    NodeName,
    /// No node can have such a name.
    #[error("--node-name: {0:?} is not a node's name: want letters, digits, '-' and '.'")]
    BadNodeName(String),
    /// Not in a cluster.
    #[error(
        "no API server: this is not a pod with a ServiceAccount token; use --pods DIR on a machine without Kubernetes, or --kubeconfig FILE"
    )]
    NotInCluster(#[source] kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("--kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The URL is none.
    #[error("--api-url: {url:?} is not a URL: want http://HOST:PORT")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        source: http::uri::InvalidUri,
    },
    /// The token cannot be read.
    #[error("read the token {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// TLS or credentials cannot be set up.
    #[error("set up the connection to the API server")]
    Client(#[source] Box<kube::Error>),
}

impl KubernetesArgs {
    /// The node, once it is known to be one.
    pub(super) fn node(&self) -> Result<&str, KubernetesError> {
        let name = self.node_name.as_str();
        if name.is_empty() {
            return Err(KubernetesError::NodeName);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if name.len() > 253 || !name.bytes().all(allowed) {
            return Err(KubernetesError::BadNodeName(name.to_owned()));
        }
        Ok(name)
    }

    /// The server. Makes no connection yet: an API server that is down is no reason not
    /// to start.
    pub(super) async fn api(&self) -> Result<Api, KubernetesError> {
        let mut config = self.config().await?;
        let file = match &config.auth_info.token {
            // It comes first in kube too.
            Some(_) => None,
            None => config.auth_info.token_file.take().map(PathBuf::from),
        };
        let token = file.map(|path| {
            Token::open(&path).map_err(|source| KubernetesError::Token { path, source })
        });
        config.connect_timeout = Some(CONNECT);
        // Limits are set by request: a watch is silent for minutes.
        config.read_timeout = None;
        // Retried by those who know how long they have.
        config.default_retry = false;
        let client = kube::Client::try_from(config)
            .map_err(|error| KubernetesError::Client(Box::new(error)))?;
        Ok(Api::new(client, token.transpose()?))
    }

    async fn config(&self) -> Result<Config, KubernetesError> {
        if let Some(url) = &self.api_url {
            let parsed: http::Uri =
                url.parse().map_err(|source| KubernetesError::Url { url: url.clone(), source })?;
            let mut config = Config::new(parsed);
            // No TLS is wanted here, and an image from scratch has no roots to load.
            config.root_cert = Some(Vec::new());
            return Ok(config);
        }
        if let Some(path) = &self.kubeconfig {
            let wrong = |source| KubernetesError::Kubeconfig {
                path: path.clone(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            let options = KubeConfigOptions::default();
            return Config::from_custom_kubeconfig(file, &options).await.map_err(wrong);
        }
        Config::incluster_env().map_err(KubernetesError::NotInCluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_must_be_named() {
        let args = |name: &str| KubernetesArgs {
            node_name: name.to_owned(),
            kubeconfig: None,
            api_url: None,
        };
        assert!(args("").node().unwrap_err().to_string().contains("NODE_NAME"));
        assert!(args("a&watch=x").node().is_err());
        assert_eq!(args("ip-10-0-0-1.ec2.internal").node().unwrap(), "ip-10-0-0-1.ec2.internal");
    }
}
