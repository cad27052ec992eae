//! What the agent counts: Istio's names and labels where Istio has them (reference
//! 1.7), and `sluice_*` beside them.

pub(crate) mod figures;
mod process;
mod samples;
mod state;

pub(crate) use samples::Samples;

use crate::agent::Escaped as EscapedPods;
use crate::failure::causes;
use crate::health::Health;
use crate::install::InstallEvent;
use crate::repair;
use crate::responder::Page;
use crate::server::{Observer, Outcome};
use crate::source::Pods;
use prometheus_client::collector::Collector;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use state::{Escaped, State};
use std::sync::Arc;
use wire::request::Endpoint;

/// Names and values of a sample's labels.
type Labels = Vec<(&'static str, String)>;

/// Buckets of a request's time, in seconds.
const TIMES: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    installs: Family<Labels, Counter>,
    install_ready: Gauge,
    plugin_requests: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    times: Family<Labels, Histogram, fn() -> Histogram>,
    under_way: Gauge,
    conflist_repairs: Counter,
    contested: Counter,
    plugin_lines: Family<Labels, Counter>,
    repairs: Family<Labels, Counter>,
    early: Family<Labels, Counter>,
}

fn times() -> Histogram {
    Histogram::new(TIMES)
}

impl Metrics {
    /// With everything at zero.
    ///
    /// `escaped` says which pods passed that were to be captured.
    pub(crate) fn new(
        health: Arc<Health>,
        pods: Pods,
        backend: String,
        escaped: impl Fn() -> EscapedPods + Send + Sync + 'static,
    ) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            installs: Family::default(),
            install_ready: Gauge::default(),
            plugin_requests: Family::default(),
            requests: Family::default(),
            times: Family::new_with_constructor(times),
            under_way: Gauge::default(),
            conflist_repairs: Counter::default(),
            contested: Counter::default(),
            plugin_lines: Family::default(),
            repairs: Family::default(),
            early: Family::default(),
        };
        metrics.register_istios();
        metrics.register_ours(backend);
        metrics.registry.register_collector(Box::new(State {
            health,
            pods,
            escaped: Escaped(Box::new(escaped)),
        }));
        metrics.registry.register_collector(Box::new(process::Process));
        metrics
    }

    /// Samples of another part of the agent.
    pub(crate) fn also(&mut self, samples: Box<dyn Collector>) {
        self.registry.register_collector(samples);
    }

    /// `_total` and the help's full stop are added by the encoder.
    fn register_istios(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "istio_cni_installs",
            "Installations of the CNI plugin by result",
            self.installs.clone(),
        );
        registry.register(
            "istio_cni_install_ready",
            "Whether the CNI plugin is installed",
            self.install_ready.clone(),
        );
        registry.register(
            "istio_cni_plugin_requests",
            "ADD requests of the CNI plugin by response code",
            self.plugin_requests.clone(),
        );
        registry.register(
            "istio_cni_repair_pods_repaired",
            "Pods that started without rules by what was done and its result",
            self.repairs.clone(),
        );
        // For the alerts that rate them: present before anything happens.
        for result in ["SUCCESS", "COPY_BINARIES_FAILURE", "CREATE_CNI_CONFIG_FAILURE"] {
            drop(self.installs.get_or_create(&vec![("result", result.to_owned())]));
        }
        for code in ["200", "400", "500"] {
            drop(self.plugin_requests.get_or_create(&vec![("response_code", code.to_owned())]));
        }
    }

    fn register_ours(&mut self, backend: String) {
        let registry = &mut self.registry;
        let about = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("backend", backend)];
        registry.register("sluice_build", "Version and backend of the agent", Info::new(about));
        registry.register(
            "sluice_requests",
            "Requests of the plugin by path and CNI error code, 0 for success",
            self.requests.clone(),
        );
        registry.register(
            "sluice_request_seconds",
            "How long requests of the plugin took, by path",
            self.times.clone(),
        );
        registry.register(
            "sluice_requests_under_way",
            "Requests of the plugin that are not answered yet",
            self.under_way.clone(),
        );
        registry.register(
            "sluice_conflist_repairs",
            "Times that the CNI configuration was put right after another program changed it",
            self.conflist_repairs.clone(),
        );
        registry.register(
            "sluice_conflist_contested",
            "Times that another program was found to change the CNI configuration again and again",
            self.contested.clone(),
        );
        registry.register(
            "sluice_plugin_log_lines",
            "Log lines of a stock plugin by level",
            self.plugin_lines.clone(),
        );
        registry.register(
            "sluice_early_pods",
            "Pods from before the agent that ran uncaptured by whether they could be programmed",
            self.early.clone(),
        );
    }

    /// What the installer did.
    pub(crate) fn installed(&self, event: &InstallEvent) {
        if let Some(result) = event.result() {
            self.installs.get_or_create(&vec![("result", result.to_owned())]).inc();
        }
        match event {
            InstallEvent::Repaired { .. } => drop(self.conflist_repairs.inc()),
            InstallEvent::Contested { .. } => drop(self.contested.inc()),
            _ => {}
        }
    }

    /// Whether the plugin is installed.
    pub(crate) fn install_ready(&self, ready: bool) {
        self.install_ready.set(i64::from(ready));
    }

    /// A line of a stock plugin was written.
    pub(crate) fn plugin_line(&self, level: tracing::Level) {
        let level = level.as_str().to_ascii_lowercase();
        self.plugin_lines.get_or_create(&vec![("level", level)]).inc();
    }

    /// Pods are to be repaired in this way: its samples are there from now on.
    pub(crate) fn repairs_by(&self, mode: repair::Mode) {
        for outcome in [repair::Outcome::Success, repair::Outcome::Fail] {
            drop(self.repairs.get_or_create(&labels_of(mode, outcome)));
        }
    }

    /// Something was done about a broken pod.
    pub(crate) fn repaired(&self, mode: repair::Mode, outcome: repair::Outcome) {
        self.repairs.get_or_create(&labels_of(mode, outcome)).inc();
    }

    /// A pod from before the agent was programmed, or not.
    pub(crate) fn early(&self, outcome: repair::Outcome) {
        self.early.get_or_create(&vec![("result", outcome.as_str().to_owned())]).inc();
    }

    /// A request has come.
    pub(crate) fn begun(&self) {
        self.under_way.inc();
    }

    /// It has ended.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        self.under_way.dec();
        if outcome.status == 0 {
            return;
        }
        let path = outcome.endpoint.map_or("", Endpoint::path).to_owned();
        let code = outcome.code.to_string();
        self.requests.get_or_create(&vec![("path", path.clone()), ("code", code)]).inc();
        self.times.get_or_create(&vec![("path", path)]).observe(outcome.took.as_secs_f64());
        if outcome.endpoint == Some(Endpoint::Add) {
            // Istio knows three.
            let code = match outcome.status {
                200 => "200",
                400..500 => "400",
                _ => "500",
            };
            self.plugin_requests.get_or_create(&vec![("response_code", code.to_owned())]).inc();
        }
    }

    /// `/metrics`.
    pub(crate) fn page(&self, path: &str) -> Page {
        if path != "/metrics" {
            return Page::text(404, "no such page: want /metrics");
        }
        let mut body = String::new();
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => Page {
                status: 200,
                kind: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body,
            },
            Err(error) => Page::text(500, &causes(&error)),
        }
    }
}

fn labels_of(mode: repair::Mode, outcome: repair::Outcome) -> Labels {
    vec![("type", mode.as_str().to_owned()), ("result", outcome.as_str().to_owned())]
}

/// The plugin's server as metrics see it, with its sign of life.
#[derive(Debug)]
pub(crate) struct Served {
    /// Counts.
    pub(crate) metrics: Arc<Metrics>,
    /// Lives.
    pub(crate) beat: Arc<crate::health::Beat>,
}

impl Observer for Served {
    fn beat(&self) {
        self.beat.beat();
    }

    fn begun(&self) {
        self.metrics.begun();
    }

    fn ended(&self, outcome: &Outcome) {
        self.metrics.ended(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn names_and_labels_are_istios() {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::Directory(crate::source::Directory::open(dir.path()).unwrap());
        let health = Arc::new(Health::default());
        health.needs("installed", || Some("no".to_owned()));
        let metrics = Metrics::new(health, pods, "nftables".to_owned(), || EscapedPods {
            total: 7,
            uncaptured: 2,
        });
        metrics.installed(&InstallEvent::Succeeded);
        metrics.installed(&InstallEvent::Repaired { file: "a".to_owned() });
        metrics.install_ready(true);
        for (endpoint, status, code) in [
            (Some(Endpoint::Add), 200, 0),
            (Some(Endpoint::Add), 500, 103),
            (Some(Endpoint::Add), 408, 6),
            (Some(Endpoint::Del), 200, 0),
            (None, 0, 0),
        ] {
            metrics.begun();
            metrics.ended(&Outcome { endpoint, status, code, took: Duration::from_millis(3) });
        }
        metrics.plugin_line(tracing::Level::WARN);
        metrics.repaired(repair::Mode::Delete, repair::Outcome::Fail);
        metrics.early(repair::Outcome::Success);
        let page = metrics.page("/metrics");
        assert_eq!(page.status, 200);
        for line in [
            "istio_cni_installs_total{result=\"SUCCESS\"} 1",
            "istio_cni_installs_total{result=\"COPY_BINARIES_FAILURE\"} 0",
            "istio_cni_install_ready 1",
            "istio_cni_plugin_requests_total{response_code=\"200\"} 1",
            "istio_cni_plugin_requests_total{response_code=\"400\"} 1",
            "istio_cni_plugin_requests_total{response_code=\"500\"} 1",
            "sluice_requests_total{path=\"/cmdadd\",code=\"103\"} 1",
            "sluice_request_seconds_count{path=\"/cmdadd\"} 3",
            "sluice_requests_under_way 0",
            "sluice_conflist_repairs_total 1",
            "sluice_ready{condition=\"installed\"} 0",
            "sluice_ready{condition=\"running\"} 1",
            "sluice_plugin_log_lines_total{level=\"warn\"} 1",
            "istio_cni_repair_pods_repaired_total{type=\"delete\",result=\"fail\"} 1",
            "sluice_early_pods_total{result=\"success\"} 1",
            "sluice_pods 0",
            "sluice_escaped_pods_total 7",
            "sluice_escaped_pods_uncaptured 2",
            "# EOF",
        ] {
            assert!(page.body.lines().any(|l| l == line), "{line}\n{}", page.body);
        }
        assert!(page.body.contains("sluice_build_info{version="), "{}", page.body);
        assert!(page.body.contains("process_resident_memory_bytes "), "{}", page.body);
        assert_eq!(metrics.page("/").status, 404);
    }
}
