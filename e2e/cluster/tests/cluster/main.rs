//! Our chart on a real Kubernetes: API server, kubelets, containerd, Helm and Envoy are
//! the real ones. One cluster serves all scenarios; each installs what it needs.
//! `scripts/fetch-kubernetes` builds it; without, all of this is left out, or fails with
//! REQUIRE_CLUSTER=1.

mod ambient;
mod churn;
mod life;
mod outage;
mod removal;
mod rights;
mod serve;

use e2e_cluster::suite;
use std::process::ExitCode;

fn main() -> ExitCode {
    suite::run(&[
        ("cluster_helm_installs_on_every_node", serve::installs),
        ("cluster_traffic_goes_through_envoy", serve::captures),
        ("cluster_a_wrong_annotation_is_an_event", serve::says_what_is_wrong),
        ("cluster_agents_restart_while_pods_start", life::restarts),
        ("cluster_upgrade_while_pods_start", life::upgrades),
        ("cluster_ambient_pods_are_spoken_of", ambient::spoken_of),
        ("cluster_rights_are_lost_and_given_back", life::rights_are_lost),
        ("cluster_tokens_end_and_are_renewed", life::tokens_end),
        ("cluster_api_server_is_away", outage::api_is_away),
        ("cluster_node_restarts", outage::node_restarts),
        ("cluster_uninstall_by_helm", removal::by_helm),
        ("cluster_uninstall_and_install_at_once", removal::install_again),
        ("cluster_uninstall_without_hooks", removal::by_helm_without_hooks),
        ("cluster_uninstall_namespace_first", removal::by_namespace),
        ("cluster_uninstall_daemonset_first", removal::by_daemonset),
        ("cluster_rights_are_those_that_are_used", rights::fit),
        ("cluster_plain_yaml_without_helm", removal::without_helm),
    ])
}
