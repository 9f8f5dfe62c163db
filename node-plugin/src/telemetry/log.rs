//! Logging: to stderr, as text or JSON, quiet when all is well; `RUST_LOG` decides in detail.

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use super::traces::{self, Exporter, TracesArgs};

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What is logged when `RUST_LOG` does not say: our notices, and of libraries only trouble. kube's client
/// logs each failed request as an error; we log the change only.
const DEFAULT_FILTER: &str =
    "warn,vsc_blob_csi=info,blob_fs=info,blob_client=info,vsc_driver=info,kube_client=off";

/// Sets up logging for the whole process, and traces where a command named `command` is to send them; a
/// second call (in tests) changes nothing. Traces are sent as long as the answer is kept.
///
/// # Errors
/// The exporter of the traces cannot be set up.
pub fn start(
    format: LogFormat,
    command: &str,
    traces: Option<&TracesArgs>,
) -> anyhow::Result<Option<Exporter>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let layer = fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Text => layer
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    let exported = match traces {
        Some(traces) => traces.exporter(command)?,
        None => None,
    };
    let (exporter, tracer) = exported.unzip();
    // The only error is that a logger is there already.
    let _ = tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .with(tracer.map(traces::layer))
        .try_init();
    Ok(exporter)
}
