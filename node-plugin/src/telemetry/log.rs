//! Logging: to stderr, as text or JSON, quiet when all is well; `RUST_LOG` decides in detail.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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

/// Sets up logging for the whole process; a second call (in tests) changes nothing.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // The only error is that a logger is there already.
    let _ = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
