//! Metrics whose values are read when somebody asks for them.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

/// A metric whose values are read when it is asked for.
pub(super) struct Family<'a> {
    pub(super) name: &'a str,
    pub(super) help: &'a str,
    pub(super) unit: Option<Unit>,
    pub(super) kind: MetricType,
}

impl<'a> Family<'a> {
    /// One that only grows.
    pub(super) fn counter(name: &'a str, help: &'a str) -> Self {
        let (unit, kind) = (None, MetricType::Counter);
        Self {
            name,
            help,
            unit,
            kind,
        }
    }

    /// Each value with its labels.
    pub(super) fn encode<L: EncodeLabelSet>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.describe(encoder)?;
        for (labels, value) in values {
            self.value(&mut metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// Without a label.
    pub(super) fn encode_one(&self, encoder: &mut DescriptorEncoder<'_>, value: u64) -> fmt::Result {
        self.value(&mut self.describe(encoder)?, value)
    }

    /// Name, help, unit and kind, for values that are neither whole numbers nor counted.
    pub(super) fn describe<'e>(
        &'e self,
        encoder: &'e mut DescriptorEncoder<'_>,
    ) -> Result<MetricEncoder<'e>, fmt::Error> {
        encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)
    }

    fn value(&self, metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
        match self.kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        }
    }
}

/// Histograms of times under one name, each with its labels.
pub(super) fn encode_times<'h, L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    histograms: impl IntoIterator<Item = (L, &'h Histogram)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, histogram) in histograms {
        histogram.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
