//! [`Figures`] as a scrape sees them.

use super::figures::{Figures, Told, Why};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt::{Error, Result};
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(crate) struct Samples(pub(crate) Arc<Figures>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result {
        self.node(&mut encoder)?;
        self.capture(&mut encoder)?;
        self.audit(&mut encoder)?;
        let help = "How long the stages of an ambient pod's enrolment took";
        let mut metric = encoder.encode_descriptor(
            "sluice_ambient_stage_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for (stage, times) in self.0.times() {
            times.encode(metric.encode_family(&[("stage", stage.code())])?)?;
        }
        Ok(())
    }
}

impl Samples {
    /// Istio's own.
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result {
        let connected = i64::try_from(self.0.connected()).unwrap_or(i64::MAX);
        let help = "Connections of ztunnels that said hello";
        let metric = gauge(encoder, "ztunnel_connected", help)?;
        ConstGauge::new(connected).encode(metric)?;
        let help = "Pods that were told of by what happened to them";
        let mut metric = counter(encoder, "nodeagent_reconcile_events", help)?;
        for told in [Told::Add, Told::Update, Told::Delete] {
            let count = ConstCounter::new(self.0.count(told));
            count.encode(metric.encode_family(&[("type", told.code())])?)?;
        }
        Ok(())
    }

    fn capture(&self, encoder: &mut DescriptorEncoder<'_>) -> Result {
        let help = "Pods of the mesh that are not known to be captured by why not";
        let mut metric = gauge(encoder, "sluice_unverified_pods", help)?;
        for (cause, count) in self.0.unverified() {
            ConstGauge::new(count).encode(metric.encode_family(&[("reason", cause.code())])?)?;
        }
        let help = "Time for which a pod's traffic could pass the mesh by, by why";
        let mut metric = counter(encoder, "sluice_bypass_seconds", help)?;
        for (cause, time) in self.0.exposed() {
            ConstCounter::new(time).encode(metric.encode_family(&[("reason", cause.code())])?)?;
        }
        Ok(())
    }

    fn audit(&self, encoder: &mut DescriptorEncoder<'_>) -> Result {
        let help = "Times that a pod's rules, or the host's, were found changed, or a pod in a namespace that nobody captured, and that was put right";
        let mut metric = counter(encoder, "sluice_drift_repaired", help)?;
        for (reason, count) in self.0.repairs() {
            ConstCounter::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
        }
        let help = "Times that a captured pod's namespace was looked at by why";
        let mut metric = counter(encoder, "sluice_audit_looks", help)?;
        for why in [Why::Heard, Why::Period] {
            let count = ConstCounter::new(self.0.looks(why));
            count.encode(metric.encode_family(&[("reason", why.code())])?)?;
        }
        Ok(())
    }
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
) -> std::result::Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// `_total` is added by the encoder.
fn counter<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
) -> std::result::Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambient::action::{Cause, Stage, Standing};
    use ambient::id::PodUid;
    use prometheus_client::registry::Registry;
    use std::time::Duration;

    #[test]
    fn each_figure_has_its_line() {
        let figures = Arc::new(Figures::default());
        figures.stands(&PodUid::new("b"), Standing::Unverified(Cause::NotAccepted));
        figures.told(Told::Update);
        figures.repaired("rules");
        figures.looked(Why::Heard);
        figures.looked(Why::Heard);
        figures.ztunnels(2);
        figures.took(Stage::Rules, Duration::from_millis(3));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Samples(Arc::clone(&figures))));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "ztunnel_connected 2",
            "nodeagent_reconcile_events_total{type=\"update\"} 1",
            "nodeagent_reconcile_events_total{type=\"add\"} 0",
            "sluice_unverified_pods{reason=\"not-accepted\"} 1",
            "sluice_unverified_pods{reason=\"drifted\"} 0",
            "sluice_drift_repaired_total{reason=\"rules\"} 1",
            "sluice_drift_repaired_total{reason=\"host-rules\"} 0",
            "sluice_drift_repaired_total{reason=\"namespace\"} 0",
            "sluice_audit_looks_total{reason=\"heard\"} 2",
            "sluice_audit_looks_total{reason=\"period\"} 0",
            "sluice_ambient_stage_seconds_count{stage=\"rules\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
