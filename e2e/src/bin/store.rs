//! The embedded blob store on a port, for trying things out and for tools of others (SDKs, blobfuse2,
//! rclone).

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use e2e::identity::{Identity, TokenServer};
use e2e::listener::Tls;
use e2e::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, StoreConfig, WhichKey};
use tracing_subscriber::EnvFilter;

/// Runs the embedded blob store: the Blob REST interface of one storage account on a local port.
///
/// It speaks plain HTTP, checks SharedKey and SAS signatures as the service does, and keeps everything in
/// memory unless --folder is given. It stands for Azure Blob Storage in tests and benchmarks; never put data
/// you care about into it.
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
  store --tls 0.0.0.0:443 --tls-certificate store.crt --tls-key store.key
        over TLS as well
  store --identities identities.json --tokens 127.0.0.1:10001
        tokens for managed identities, service principals and workload identities too; the file:
        [{\"tenant\": \"T\", \"clientId\": \"A\", \"secret\": \"S\"},
         {\"tenant\": \"T\", \"clientId\": \"B\", \"managed\": true, \"resourceId\": \"/subscriptions/...\"},
         {\"tenant\": \"T\", \"clientId\": \"C\", \"subject\": \"system:serviceaccount:NAMESPACE:NAME\"}]

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
    /// AZURE_STORAGE_KEY, never from the command line; AZURE_STORAGE_KEY_2 is its second key
    #[arg(long, default_value = DEV_ACCOUNT, value_name = "NAME")]
    account: String,

    /// Listen there too, with TLS
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tls_certificate")]
    tls: Option<SocketAddr>,

    /// Certificate (PEM, with those between it and its root)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,

    /// Give access tokens to the identities in this file (JSON, see below), at --tokens or --tokens-tls
    #[arg(long, value_name = "FILE", requires = "token_place")]
    identities: Option<PathBuf>,

    /// Address and port for token requests
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        group = "token_place",
        requires = "identities"
    )]
    tokens: Option<SocketAddr>,

    /// The same with TLS
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        group = "token_place",
        requires_all = ["identities", "tls_certificate"]
    )]
    tokens_tls: Option<SocketAddr>,

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

/// The identities of a file.
fn identities(path: &Path) -> Result<Vec<Identity>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--identities {shown}"))?;
    serde_json::from_str(&text).with_context(|| format!("--identities {shown}"))
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
    if let Ok(second) = std::env::var("AZURE_STORAGE_KEY_2") {
        let renewed = store.renew_key(WhichKey::Key2, &second);
        renewed.context("AZURE_STORAGE_KEY_2")?;
    }
    for name in &options.containers {
        store.create_container(name).context("--container")?;
    }
    let server = store
        .serve(options.listen)
        .await
        .with_context(|| format!("--listen {}: cannot listen there", options.listen))?;
    let endpoint = server.endpoint();
    let tls = match (&options.tls_certificate, &options.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::from_files(certificate, key).context("--tls-certificate, --tls-key")?)
        }
        _ => None,
    };
    let over_tls = match (options.tls, &tls) {
        (Some(addr), Some(tls)) => Some(
            store
                .serve_tls(addr, tls.clone())
                .await
                .with_context(|| format!("--tls {addr}: cannot listen there"))?,
        ),
        _ => None,
    };
    let tokens = match (&options.identities, options.tokens_tls.or(options.tokens)) {
        (Some(path), Some(addr)) => {
            let tls = options.tokens_tls.and(tls);
            let server = TokenServer::start(store.clone(), identities(path)?, addr, tls);
            Some(server.with_context(|| format!("token requests at {addr}: cannot listen there"))?)
        }
        _ => None,
    };

    let mut out = std::io::stdout().lock();
    if options.print_env {
        writeln!(out, "export AZURE_STORAGE_ACCOUNT='{}'", options.account)?;
        writeln!(out, "export AZURE_STORAGE_KEY='{key}'")?;
        writeln!(out, "export AZURE_STORAGE_BLOB_ENDPOINT='{endpoint}'")?;
        writeln!(
            out,
            "export AZURE_STORAGE_CONNECTION_STRING='DefaultEndpointsProtocol=http;AccountName={};\
             AccountKey={key};BlobEndpoint={endpoint};'",
            options.account
        )?;
        if let Some(tokens) = &tokens {
            writeln!(out, "export AZURE_AUTHORITY_HOST='{}'", tokens.authority())?;
            writeln!(out, "export MSI_ENDPOINT='{}'", tokens.metadata())?;
        }
    } else {
        writeln!(out, "{endpoint}")?;
        if let Some(server) = &over_tls {
            writeln!(out, "{}", server.endpoint())?;
        }
        if let Some(tokens) = &tokens {
            writeln!(out, "{}", tokens.authority())?;
        }
    }
    out.flush()?;
    drop(out);

    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    let totals = store.totals();
    tracing::info!(requests = totals.requests, errors = totals.errors, "stopped");
    drop((server, over_tls, tokens));
    Ok(())
}
