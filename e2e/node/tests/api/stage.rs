//! A node whose agent follows a stand-in.

use e2e_node::agent::{Agent, NODE_NAME, namespace, plain_pod, sidecar_pod};
use e2e_node::api::Server;
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod};
use e2e_node::runtime::cni_error;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A cluster's node and its API server.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) server: Server,
}

/// How an ADD ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The pod starts; whether its traffic is captured.
    Started { captured: bool },
    /// It does not, with the plugin's code and words.
    Refused { code: u32, text: String },
}

impl Ended {
    pub(crate) fn is_captured(&self) -> bool {
        matches!(self, Self::Started { captured: true })
    }

    pub(crate) fn is_left_alone(&self) -> bool {
        matches!(self, Self::Started { captured: false })
    }
}

impl Stage {
    /// A node without an agent, and a server that knows [`NAMESPACE`].
    pub(crate) fn bare(name: &str) -> Self {
        let network = Network { ipv6: false, ..Network::default() };
        let cluster = Cluster::without_agent(name, &network).unwrap();
        let server = Server::start_in(cluster.node.host.netns()).unwrap();
        server.put(namespace(NAMESPACE)).unwrap();
        Self { cluster, server }
    }

    /// With an agent that has listed everything.
    pub(crate) fn synced(name: &str, args: &[&str]) -> Self {
        let mut stage = Self::bare(name);
        stage.start(args);
        stage.await_sync();
        stage
    }

    pub(crate) fn start(&mut self, args: &[&str]) {
        let Cluster { programs, node, directories, .. } = &self.cluster;
        let args = [&["--backend", "nftables"], args].concat();
        let url = self.server.url();
        let agent = Agent::follow(programs, &node.host, directories, &url, &args).unwrap();
        self.cluster.agent = Some(agent);
    }

    pub(crate) fn log(&self) -> String {
        self.cluster.agent.as_ref().map(Agent::log).unwrap_or_default()
    }

    /// Waits until both resources have been listed.
    pub(crate) fn await_sync(&self) {
        self.eventually("both lists", || {
            let log = self.log();
            let listed = |resource: &str| {
                log.lines().any(|line| line.contains("list") && line.contains(resource))
            };
            listed("streamed resource=\"pods\"") && listed("streamed resource=\"namespaces\"")
                || listed("listed resource=\"pods\"") && listed("listed resource=\"namespaces\"")
        });
    }

    pub(crate) fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(90);
        while !holds() {
            assert!(Instant::now() < end, "never: {what}; {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Adds a pod to the API.
    pub(crate) fn publish(&self, mut manifest: Value) -> Value {
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        self.server.put(manifest.clone()).unwrap();
        manifest
    }

    /// Runs ADD in a new sandbox.
    pub(crate) fn add(&self, manifest: &Value) -> (Pod, Ended) {
        let mut pod = self.cluster.sandbox(manifest).unwrap();
        let ended = self.attach(&mut pod);
        (pod, ended)
    }

    pub(crate) fn attach(&self, pod: &mut Pod) -> Ended {
        match self.cluster.attach(pod) {
            Ok(()) => Ended::Started { captured: is_captured(pod) },
            Err(error) => match cni_error(&error) {
                Some(own) => Ended::Refused { code: own.code, text: own.to_string() },
                None => panic!("{error:#}"),
            },
        }
    }

    /// Waits until the agent knows a pod without asking: an ADD costs no request.
    pub(crate) fn await_known(&self, manifest: &Value) {
        self.eventually("the pod is known without a question", || {
            self.server.forget();
            let ended = self.add(manifest).1;
            matches!(ended, Ended::Started { .. }) && self.server.count("get", "pods") == 0
        });
    }
}

fn is_captured(pod: &Pod) -> bool {
    let tables = pod.sandbox.load(&["nft", "list", "ruleset"], "").unwrap();
    tables.contains("redirect to :15001")
}

pub(crate) fn mesh(name: &str) -> Value {
    sidecar_pod(NAMESPACE, name, &json!({}), &[("SECRET", "top-secret-value")])
}

pub(crate) fn plain(name: &str) -> Value {
    plain_pod(NAMESPACE, name)
}
