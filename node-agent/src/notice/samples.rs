//! What is stuck, and what was said of it, for Prometheus.

use super::Notices;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::sync::Arc;

/// The figures as samples.
#[derive(Debug)]
pub(crate) struct Samples(pub(crate) Arc<Notices>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "sluice_stuck_pods",
            "Pods of the mesh whose capture keeps failing by what fails",
            None,
            MetricType::Gauge,
        )?;
        for (trouble, count) in self.0.stuck() {
            ConstGauge::new(count).encode(metric.encode_family(&[("reason", trouble.code())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "sluice_pod_notices",
            "Events and conditions that were written about pods by result",
            None,
            MetricType::Counter,
        )?;
        let said = self.0.said();
        for what in ["event", "condition"] {
            for (done, result) in [(true, "success"), (false, "fail")] {
                let count = said.get(&(what, done)).copied().unwrap_or_default();
                let labels = [("type", what), ("result", result)];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
