//! The process itself, under the names that Prometheus' own clients use.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fs;

/// Looks in /proc when it is asked.
#[derive(Debug)]
pub(super) struct Process;

/// What /proc says of this process.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: i64,
    virtual_bytes: i64,
    descriptors: i64,
    threads: i64,
}

/// Ticks a second in /proc, the same on every architecture that Linux still has.
const TICKS: f64 = 100.0;

fn usage() -> Option<Usage> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may have spaces in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u32>().ok();
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_whitespace().map(|n| n.parse::<i64>().unwrap_or(0));
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(Usage {
        cpu_seconds: (f64::from(ticks(11)?) + f64::from(ticks(12)?)) / TICKS,
        virtual_bytes: pages.next()? * size,
        resident_bytes: pages.next()? * size,
        descriptors: i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?,
        threads: fields.get(17)?.parse().ok()?,
    })
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(usage) = usage() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let metric = encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time spent, in seconds",
            None,
            cpu.metric_type(),
        )?;
        cpu.encode(metric)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory, in bytes", usage.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory, in bytes", usage.virtual_bytes),
            ("process_open_fds", "Open descriptors", usage.descriptors),
            ("process_threads", "Threads", usage.threads),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_usage() {
        let usage = usage().unwrap();
        assert!(usage.resident_bytes > 100_000 && usage.virtual_bytes >= usage.resident_bytes);
        assert!(
            usage.descriptors >= 3 && usage.threads >= 1 && usage.cpu_seconds >= 0.0,
            "{usage:?}"
        );
    }
}
