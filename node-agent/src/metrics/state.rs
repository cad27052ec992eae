//! Gauges of what is so at the moment that somebody asks.

use super::Labels;
use crate::agent::Escaped as EscapedPods;
use crate::health::Health;
use crate::source::Pods;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::sync::Arc;

/// What is looked up when it is asked for.
#[derive(Debug)]
pub(super) struct State {
    pub(super) health: Arc<Health>,
    pub(super) pods: Pods,
    pub(super) escaped: Escaped,
}

/// Asks which pods passed that were to be captured.
pub(super) struct Escaped(pub(super) Box<dyn Fn() -> EscapedPods + Send + Sync>);

impl std::fmt::Debug for Escaped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Escaped")
    }
}

/// Writes the samples of one gauge.
fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels, i64)>,
) -> std::fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: usize,
) -> std::fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let label = |key, name: &str| vec![(key, name.to_owned())];
        let conditions = self.health.conditions();
        let ready = conditions
            .iter()
            .map(|(name, wrong)| (label("condition", name), i64::from(wrong.is_none())));
        gauges(&mut encoder, "sluice_ready", "Whether a condition of being ready holds", ready)?;
        let loops = self.health.loops();
        let alive =
            loops.iter().map(|(name, wrong)| (label("loop", name), i64::from(wrong.is_none())));
        gauges(&mut encoder, "sluice_alive", "Whether a loop of the agent goes round", alive)?;
        let (pods, namespaces) = self.pods.count();
        gauge(&mut encoder, "sluice_pods", "Pods of this node that are known", pods)?;
        gauge(&mut encoder, "sluice_namespaces", "Namespaces that are known", namespaces)?;
        let EscapedPods { total, uncaptured } = (self.escaped.0)();
        let escaped = ConstCounter::new(total);
        escaped.encode(encoder.encode_descriptor(
            "sluice_escaped_pods",
            "Pods that passed without the agent although they were to be captured",
            None,
            escaped.metric_type(),
        )?)?;
        gauge(
            &mut encoder,
            "sluice_escaped_pods_uncaptured",
            "Pods that passed so and still run uncaptured, since that failed so far",
            uncaptured,
        )?;
        let Pods::Kubernetes(kubernetes) = &self.pods else { return Ok(()) };
        let behind = usize::from(kubernetes.behind().is_some());
        gauge(
            &mut encoder,
            "sluice_watch_behind",
            "Whether pods may be out of date, since the API server is not followed",
            behind,
        )?;
        let kind = prometheus_client::metrics::MetricType::Counter;
        let mut metric = encoder.encode_descriptor(
            "sluice_api_requests",
            "Requests to the API server by verb, resource and status, 0 without an answer",
            None,
            kind,
        )?;
        for (asked, count) in kubernetes.api().requests() {
            let labels: Labels = vec![
                ("verb", asked.verb.as_str().to_owned()),
                ("resource", asked.resource.to_owned()),
                ("status", asked.status.to_string()),
            ];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
