//! Samples, what they come to, and how that is printed.

use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Duration;

/// Values of one thing that was measured, in its unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// One value that does not vary, such as the size of a file.
    pub(crate) fn single(value: f64) -> Self {
        Self(vec![value])
    }

    /// Adds a time, in milliseconds.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// Adds many.
    pub(crate) fn extend(&mut self, times: impl IntoIterator<Item = Duration>) {
        times.into_iter().for_each(|time| self.add(time));
    }

    /// The smallest value that at least `percent` of all are not above (nearest
    /// rank: it is one that was measured). With fewer than 100 samples the 99th
    /// is the largest.
    fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

/// What others do the same work with, measured in the same rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Baseline<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its samples.
    pub(crate) samples: &'a Samples,
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    n: usize,
    p50: f64,
    p99: f64,
    baseline: Option<String>,
    baseline_p50: Option<f64>,
    ratio: Option<f64>,
}

impl Figure {
    /// Sums samples up, against a baseline where there is one.
    ///
    /// # Errors
    /// When there are no samples.
    pub(crate) fn new(
        name: &str,
        unit: &'static str,
        samples: &Samples,
        baseline: Option<Baseline<'_>>,
    ) -> Result<Self> {
        let of = |name: &str, samples: &Samples, percent| {
            let value = samples.percentile(percent);
            value.with_context(|| format!("no samples of {name}"))
        };
        let p50 = of(name, samples, 50)?;
        let baseline_p50 = baseline.map(|b| of(b.name, b.samples, 50)).transpose()?;
        Ok(Self {
            name: name.to_owned(),
            unit,
            n: samples.0.len(),
            p50: round(p50),
            p99: round(of(name, samples, 99)?),
            baseline: baseline.map(|b| b.name.to_owned()),
            baseline_p50: baseline_p50.map(round),
            ratio: baseline_p50.map(|base| round(p50 / base)),
        })
    }

    /// One JSON object.
    ///
    /// # Errors
    /// Never in practice: all members have plain types.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// One row under [`HEADER`]. Nothing is judged: a limit is printed beside its
    /// value for the reader, as the machine may be shared.
    pub(crate) fn row(&self) -> String {
        let show = |value: f64| match self.unit {
            "ms" => format!("{value:.3}"),
            _ => format!("{value:.0}"),
        };
        let limit = limit(&self.name).unwrap_or_default();
        let baseline = match (&self.baseline, self.baseline_p50, self.ratio) {
            (Some(name), Some(p50), Some(ratio)) => {
                format!("{ratio:>6.2} x  {} {name}", show(p50))
            }
            _ => String::new(),
        };
        let row = format!(
            "{:<34} {:>5} {:>10} {:>10} {:<5} {limit:<14} {baseline}",
            self.name,
            self.n,
            show(self.p50),
            show(self.p99),
            self.unit,
        );
        row.trim_end().to_owned()
    }
}

/// Heading of the table.
pub(crate) const HEADER: &str = "what                                   n        \
                                 p50        p99 unit  limit          ratio   baseline's p50 and name";

/// The numbers to hold (shared/design/architecture.md), in the figure's unit.
fn limit(name: &str) -> Option<&'static str> {
    Some(match name {
        "plugin/size" => "1300000",
        "add/outside-mesh" => "p50 1",
        "add/sidecar/nftables" | "add/sidecar-defaults/nftables" => "p50 2.5 p99 10",
        "add/sidecar/nftables/32-at-once" => "p99 60",
        "rules/nftables" => "1",
        "ambient/audit/250-pods/cpu" | "ambient/audit/250-pods+1000-processes/cpu" => "50",
        "ambient/restart/250-pods/until-snapshot" => "1000",
        "agent/size" => "10000000",
        "agent/memory/110-pods"
        | "agent/memory/110+1000-streamed"
        | "agent/memory/110+1000-listed" => "15360",
        "agent/memory/500+5000-streamed" | "agent/memory/500+5000-listed" => "25600",
        "agent/requests-for-20-adds/110+1000-streamed"
        | "agent/requests-for-20-adds/110+1000-listed"
        | "agent/requests-for-20-adds/500+5000-streamed"
        | "agent/requests-for-20-adds/500+5000-listed" => "0",
        _ => return None,
    })
}

/// Three decimals: a microsecond, where the unit is a millisecond.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::default();
        samples.extend(values.into_iter().map(Duration::from_millis));
        samples
    }

    #[test]
    fn percentiles_are_measured_values() {
        let hundred = samples((1..=100).rev());
        assert_eq!(hundred.percentile(50), Some(50.0));
        assert_eq!(hundred.percentile(99), Some(99.0));
        let three = samples([3, 1, 2]);
        assert_eq!(three.percentile(50), Some(2.0));
        assert_eq!(three.percentile(99), Some(3.0));
        assert_eq!(Samples::default().percentile(50), None);
    }

    #[test]
    fn a_figure_is_one_json_object() {
        let (ours, theirs) = (samples([1, 2, 3]), samples([4, 8, 9]));
        let baseline = Baseline { name: "nft -f", samples: &theirs };
        let figure = Figure::new("rules/nftables", "ms", &ours, Some(baseline)).unwrap();
        assert_eq!(
            figure.json().unwrap(),
            r#"{"name":"rules/nftables","unit":"ms","n":3,"p50":2.0,"p99":3.0,"baseline":"nft -f","baseline_p50":8.0,"ratio":0.25}"#
        );
        let alone = Figure::new("plugin/size", "bytes", &Samples::single(9.0), None).unwrap();
        assert_eq!(
            alone.json().unwrap(),
            r#"{"name":"plugin/size","unit":"bytes","n":1,"p50":9.0,"p99":9.0,"baseline":null,"baseline_p50":null,"ratio":null}"#
        );
        assert!(Figure::new("nothing", "ms", &Samples::default(), None).is_err());
    }
}
