//! Traces by OpenTelemetry: from a CSI call or a file system operation to the service's request ids.

use anyhow::Context as _;
use blob_client::TRACE;
use clap::Args;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Tracer};
use tokio::runtime::Runtime;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

/// Where traces go.
#[derive(Debug, Clone, Default, Args)]
pub struct TracesArgs {
    /// Send traces to this OpenTelemetry collector (OTLP over gRPC), for instance http://collector:4317: a
    /// span for each CSI call, each file system operation that memory does not answer, and each request with
    /// the service's request id. Names of blobs are in them, credentials are not. Off when not given.
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    pub otlp_endpoint: Option<Url>,
    /// The part of calls and operations that is traced, from 0 to 1; requests are traced with theirs.
    #[arg(long, value_name = "RATIO", default_value = "0.01", value_parser = ratio)]
    pub otlp_ratio: f64,
}

fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" if url.host().is_some() => Ok(url),
        "https" => {
            Err("TLS to the collector is not supported; use http:// to one on this node or in a mesh".into())
        }
        _ => Err("not of the form http://HOST:PORT".into()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("not a number from 0 to 1".into()),
    }
}

/// Sends spans until it is dropped; then what it has left, for a few seconds at most.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
    /// Its connections live on it, because the program's own runtime is not there yet.
    _runtime: Runtime,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last traces are lost");
        }
    }
}

impl TracesArgs {
    /// An exporter and what feeds it; `None` when no endpoint is given. Threads are started here.
    pub(super) fn exporter(&self, command: &str) -> anyhow::Result<Option<(Exporter, Tracer)>> {
        let Some(endpoint) = &self.otlp_endpoint else {
            return Ok(None);
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .context("starting the runtime of the traces")?;
        let inside = runtime.enter();
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.as_str())
            .with_protocol(Protocol::Grpc)
            .build()
            .with_context(|| format!("--otlp-endpoint {endpoint}"))?;
        drop(inside);
        let resource = Resource::builder()
            .with_service_name("vsc-blob-csi")
            .with_attributes([
                KeyValue::new("service.version", crate::VERSION),
                KeyValue::new("service.instance.id", command.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                self.otlp_ratio,
            ))))
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("vsc-blob-csi");
        let _runtime = runtime;
        Ok(Some((Exporter { provider, _runtime }, tracer)))
    }
}

/// Gives a tracer the spans that are meant for it.
pub(super) fn layer<S>(tracer: Tracer) -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TRACE;
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(ours).with_max_level_hint(LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_say_what_is_accepted() {
        assert!(endpoint("https://collector:4317").unwrap_err().contains("TLS"));
        assert!(
            endpoint("collector:4317")
                .unwrap_err()
                .contains("http://HOST:PORT")
        );
        assert!(endpoint("http://collector:4317").is_ok());
        for wrong in ["-0.1", "1.1", "NaN", "half"] {
            assert!(ratio(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ratio("0.5"), Ok(0.5));
    }
}
