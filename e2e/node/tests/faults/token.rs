//! The agent's credential is renewed under a clock that was set back by years.

use crate::clock::Clock;
use e2e_node::agent::{Agent, NODE_NAME, namespace, sidecar_pod};
use e2e_node::api::Server;
use e2e_node::cluster::{Cluster, NAMESPACE, Network};
use serde_json::json;
use std::time::{Duration, Instant};

const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "it",
    "clusters": [{"name": "it", "cluster": {"server": "URL"}}],
    "users": [{"name": "it", "user": {"tokenFile": "TOKEN"}}],
    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]}"#;

#[test]
fn a_token_is_followed_whatever_the_date_is() {
    let network = Network { ipv6: false, ..Network::default() };
    let mut cluster = Cluster::without_agent("token", &network).unwrap();
    let scratch = std::sync::Arc::clone(cluster.node.host.scratch());
    let server = Server::start_in(cluster.node.host.netns()).unwrap();
    server.put(namespace(NAMESPACE)).unwrap();
    let must_bear = |token: &str| {
        let file = scratch.file("token", token).unwrap();
        server.set(|options| options.token = Some(token.to_owned()));
        server.drop_watches();
        file
    };
    let token = must_bear("s3cret-first");
    let config = KUBECONFIG.replace("URL", &server.url());
    let config = config.replace("TOKEN", token.to_str().unwrap());
    let config = scratch.file("kubeconfig", &config).unwrap();
    let clock = Clock::make(&scratch);
    let args = ["agent", "--backend=nftables", "--node-name", NODE_NAME, "--repair-enabled=false"];
    let kubeconfig = format!("--kubeconfig={}", config.display());
    let ports = ["--health-address=", "--monitoring-port=0"];
    let args = [&args[..], &ports, &[kubeconfig.as_str()]].concat();
    let Cluster { programs, node, directories, .. } = &cluster;
    let agent = Agent::begin(programs, &node.host, directories, &args, &clock.variables()).unwrap();
    agent.await_serving().unwrap();
    clock.assert_works_in(agent.pid());
    cluster.agent = Some(agent);

    let starts = |name: &str| {
        let mut manifest = sidecar_pod(NAMESPACE, name, &json!({}), &[]);
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        server.put(manifest.clone()).unwrap();
        let mut pod = cluster.sandbox(&manifest).unwrap();
        let end = Instant::now() + Duration::from_secs(90);
        while let Err(error) = cluster.attach(&mut pod) {
            assert!(Instant::now() < end, "{name}: {error:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    starts("before");
    // Back, with a new token; then forward, with another.
    for (number, years) in [-5, 20].into_iter().enumerate() {
        clock.set(years * 365 * 24 * 3600);
        must_bear(&format!("s3cret-{number}"));
        starts(&format!("after-{number}"));
    }
    let log = cluster.agent_log();
    assert!(!log.contains("s3cret"), "no token is logged: {log}");
}
