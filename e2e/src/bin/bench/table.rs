//! Samples of one workload, and the table made of them.

use std::time::Duration;

use crate::mounts::System;
use crate::workloads::{Metric, Workload};

/// What one run gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Time of the measured part.
    pub(crate) elapsed: Duration,
    /// From starting the program to a mount that answers.
    pub(crate) mounted: Duration,
    /// Operations done.
    pub(crate) operations: u64,
    /// Bytes that the workload asked for.
    pub(crate) bytes: u64,
    /// Body bytes that the store received and sent meanwhile.
    pub(crate) wire_bytes: u64,
    /// Requests that the store answered meanwhile.
    pub(crate) requests: u64,
    /// CPU time of the serving process.
    pub(crate) cpu: Duration,
    /// Peak resident memory of the serving process, bytes.
    pub(crate) peak_rss: u64,
}

impl Sample {
    fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::MibPerSecond => self.bytes as f64 / (1 << 20) as f64 / self.elapsed.as_secs_f64(),
            Metric::PerSecond => self.operations as f64 / self.elapsed.as_secs_f64(),
            Metric::Milliseconds => self.elapsed.as_secs_f64() * 1e3,
            Metric::MountMilliseconds => self.mounted.as_secs_f64() * 1e3,
        }
    }
}

/// One workload's rows.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    workload: &'a Workload,
    rows: Vec<(System, Vec<Sample>, Option<String>)>,
}

impl<'a> Table<'a> {
    /// An empty table with a row for each system; the first is the base of the ratios.
    pub(crate) fn new(workload: &'a Workload, systems: &[System]) -> Self {
        Self {
            workload,
            rows: systems.iter().map(|system| (*system, Vec::new(), None)).collect(),
        }
    }

    /// Adds a sample to a system's row.
    pub(crate) fn add(&mut self, system: System, sample: Sample) {
        for row in self.rows.iter_mut().filter(|row| row.0 == system) {
            row.1.push(sample);
        }
    }

    /// Notes why a system has no sample.
    pub(crate) fn fail(&mut self, system: System, why: String) {
        for row in self.rows.iter_mut().filter(|row| row.0 == system) {
            row.2 = Some(why.clone());
        }
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        let metric = self.workload.metric;
        println!("{}: {}", self.workload.name, self.workload.about);
        println!(
            "  {:<10} {:>12} {:>21} {:>7} {:>10} {:>9} {:>9} {:>9}",
            "",
            metric.unit(),
            "least .. most",
            "ratio",
            "wire/asked",
            "requests",
            "CPU s/GiB",
            "peak MiB"
        );
        let base = self
            .rows
            .first()
            .and_then(|row| median(row.1.iter().map(|sample| sample.value(metric))));
        for (system, samples, failure) in &self.rows {
            let of = |pick: &dyn Fn(&Sample) -> f64| median(samples.iter().map(pick));
            let Some(value) = of(&|sample| sample.value(metric)) else {
                println!(
                    "  {:<10} failed: {}",
                    system.name(),
                    failure.as_deref().unwrap_or("no sample")
                );
                continue;
            };
            let values = || samples.iter().map(|sample| sample.value(metric));
            let (least, most) = (
                values().fold(f64::INFINITY, f64::min),
                values().fold(0.0, f64::max),
            );
            // Above 1 is always better than the base.
            let ratio = base.map(|base| {
                if metric.more_is_better() {
                    value / base
                } else {
                    base / value
                }
            });
            println!(
                "  {:<10} {:>12.1} {:>21} {:>7} {:>10} {:>9} {:>9} {:>9.0}",
                system.name(),
                value,
                format!("{least:.1} .. {most:.1}"),
                ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
                per(
                    of(&|sample| sample.wire_bytes as f64),
                    of(&|sample| sample.bytes as f64)
                ),
                of(&|sample| sample.requests as f64)
                    .map_or_else(|| "-".into(), |requests| format!("{requests:.0}")),
                per(
                    of(&|sample| sample.cpu.as_secs_f64()),
                    of(&|sample| sample.bytes as f64 / (1 << 30) as f64)
                ),
                of(&|sample| sample.peak_rss as f64 / (1 << 20) as f64).unwrap_or_default(),
            );
            if let Some(failure) = failure {
                println!("  {:<10} and failed at least once: {failure}", "");
            }
        }
        println!();
    }
}

fn per(amount: Option<f64>, of: Option<f64>) -> String {
    match (amount, of) {
        (Some(amount), Some(of)) if of > 0.0 => format!("{:.2}", amount / of),
        _ => "-".into(),
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    match values.len() % 2 {
        0 => values.get(middle - 1).map(|lower| (lower + upper) / 2.0),
        _ => Some(upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0].into_iter()), Some(3.0));
        assert_eq!(median([9.0, 1.0, 4.0].into_iter()), Some(4.0));
        assert_eq!(median([1.0, 2.0, 4.0, 9.0].into_iter()), Some(3.0));
    }
}
