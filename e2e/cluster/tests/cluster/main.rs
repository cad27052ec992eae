//! Our chart on a real Kubernetes: API server, kubelets, containerd, Helm and Envoy are
//! the real ones. One cluster serves all scenarios; each installs what it needs.
//! `scripts/fetch-kubernetes` builds it; without, all of this is left out, or fails with
//! REQUIRE_CLUSTER=1.

mod churn;
mod life;
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
        ("cluster_rights_are_lost_and_given_back", life::rights_are_lost),
        ("cluster_tokens_end_and_are_renewed", life::tokens_end),
    ])
}
