//! The embedded blob store on a port, for trying things out and for tools of others (SDKs, blobfuse2, rclone).

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, StoreConfig};
use tracing_subscriber::EnvFilter;

/// Runs the embedded blob store: the Blob REST interface of one storage account on a local port.
///
/// It speaks plain HTTP, checks SharedKey and SAS signatures as the service does, and keeps everything in memory unless
/// --folder is given. It stands for Azure Blob Storage in tests and benchmarks; never put data you care about into it.
#[derive(Debug, Parser)]
#[command(
    name = "store",
    version,
    after_help = "Examples:
  store --container data
        the emulator's account on 127.0.0.1:10000 with a container `data`
  store --listen 127.0.0.1:0 --print-env
        any free port; prints lines a shell can evaluate
  AZURE_STORAGE_KEY=... store --account mine --folder /var/tmp/blobs
        an account of your own, kept in a folder

Ctrl-C stops it. RUST_LOG=debug shows refused requests."
)]
struct Options {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:10000", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,

    /// Make this container at start, unless it is there; repeat for several
    #[arg(long = "container", value_name = "NAME")]
    containers: Vec<String>,

    /// Keep committed blobs in this folder too, and serve what it holds
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Account name. The key of any other than the emulator's account is read from the environment variable
    /// AZURE_STORAGE_KEY, never from the command line
    #[arg(long, default_value = DEV_ACCOUNT, value_name = "NAME")]
    account: String,

    /// Print `export NAME=value` lines for clients and SDKs, the key among them
    #[arg(long)]
    print_env: bool,
}

/// Key of the account: the environment's, or the well-known one of the emulator's account.
fn key(account: &str) -> Result<String> {
    match std::env::var("AZURE_STORAGE_KEY") {
        Ok(key) if !key.is_empty() => Ok(key),
        _ if account == DEV_ACCOUNT => Ok(DEV_KEY.to_owned()),
        _ => anyhow::bail!(
            "--account {account}: set AZURE_STORAGE_KEY to the key this account shall have (base64)"
        ),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .init();
    let key = key(&options.account)?;
    let store = BlobStore::new(StoreConfig {
        account: options.account.clone(),
        key: key.clone(),
        folder: options.folder.clone(),
    })
    .with_context(|| match &options.folder {
        Some(folder) => format!("cannot open the store (--folder {})", folder.display()),
        None => "cannot open the store (AZURE_STORAGE_KEY)".to_owned(),
    })?;
    for name in &options.containers {
        store.create_container(name).context("--container")?;
    }
    let server = store
        .serve(options.listen)
        .await
        .with_context(|| format!("--listen {}: cannot listen there", options.listen))?;
    let endpoint = server.endpoint();

    let mut out = std::io::stdout().lock();
    if options.print_env {
        writeln!(out, "export AZURE_STORAGE_ACCOUNT='{}'", options.account)?;
        writeln!(out, "export AZURE_STORAGE_KEY='{key}'")?;
        writeln!(out, "export AZURE_STORAGE_BLOB_ENDPOINT='{endpoint}'")?;
        writeln!(
            out,
            "export AZURE_STORAGE_CONNECTION_STRING='DefaultEndpointsProtocol=http;AccountName={};AccountKey={key};BlobEndpoint={endpoint};'",
            options.account
        )?;
    } else {
        writeln!(out, "{endpoint}")?;
    }
    out.flush()?;
    drop(out);

    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    let totals = store.totals();
    tracing::info!(requests = totals.requests, errors = totals.errors, "stopped");
    drop(server);
    Ok(())
}
