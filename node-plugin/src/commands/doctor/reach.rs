//! `doctor volume`: the way of a mount from its objects in the cluster to the service, step by step, with the
//! time of each. Nothing is mounted or changed.

use std::collections::HashMap;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use blob_client::auth::Credentials;
use blob_client::request::Request;
use blob_client::transport::failover::Paths;
use blob_client::transport::path::Path;
use blob_client::{Body, Patience};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Method, header};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use kube::Api;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use url::Url;

use super::super::size::ByteSize;
use super::super::{BudgetArgs, DeviceArgs, LendingArgs, first_look};
use crate::cluster::Config;
use crate::csi::account::Account;
use crate::csi::connect::{self, Connector, CredentialKind};
use crate::csi::volume_context::{Attributes, MountOptions, Scope, Secrets};

/// Memory for a few requests.
const BUDGET: ByteSize = ByteSize(64 << 20);
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one address may take to answer.
const CONNECTION: Duration = Duration::from_secs(5);
/// Longest answer to the first question.
const ANSWER: usize = 1 << 20;
/// How far from the service's clock a signature may be (REST, "Authorize with Shared Key").
const CLOCK: Duration = Duration::from_secs(15 * 60);

/// Options of `doctor volume`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Run it where the node plugin runs, with its rights:
  kubectl exec -n kube-system POD -c vsc-blob-csi -- vsc-blob-csi doctor volume default/my-claim

What kubelet brings to a mount - tokens of pods, Secrets that the driver may not read - is not there: the \
steps that need it say so. The exit code is 0 when no step failed.")]
pub struct ReachArgs {
    /// A PersistentVolume, or NAMESPACE/CLAIM.
    #[arg(value_name = "PV|NAMESPACE/CLAIM")]
    pub volume: String,
    /// Print one JSON object instead of sentences.
    #[arg(long)]
    pub json: bool,
    /// See [`LendingArgs`].
    #[command(flatten)]
    pub lending: LendingArgs,
    /// See [`DeviceArgs`].
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// The steps that were taken.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ReachReport {
    /// As it was asked for.
    pub volume: String,
    /// In their order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Step {
    /// `objects`, `settings`, `Secret`, `DNS`, `TCP`, `TLS` (or `HTTP`), `clock`, `token`, `rights`.
    pub step: &'static str,
    /// Whether it succeeded.
    pub ok: bool,
    /// What was found, or what is wrong.
    pub text: String,
    /// How long it took.
    pub millis: u64,
}

impl ReachReport {
    /// Whether a mount would fail.
    pub fn failed(&self) -> bool {
        self.steps.iter().any(|step| !step.ok)
    }

    /// One line for each step.
    pub fn sentences(&self) -> String {
        let line = |step: &Step| {
            let outcome = if step.ok { "ok" } else { "FAILED" };
            format!(
                "{:<9}{outcome:<7}{:>6} ms  {}\n",
                step.step, step.millis, step.text
            )
        };
        self.steps.iter().map(line).collect()
    }

    /// Takes one step; nothing when it failed.
    async fn step<T, F>(&mut self, step: &'static str, work: F) -> Option<T>
    where
        F: Future<Output = Result<(T, String), String>>,
    {
        let begun = Instant::now();
        let done = tokio::time::timeout(PATIENCE, work).await;
        let done = done.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (found, ok, text) = match done {
            Ok((found, text)) => (Some(found), true, text),
            Err(text) => (None, false, text),
        };
        self.steps.push(Step {
            step,
            ok,
            text,
            millis,
        });
        found
    }
}

/// What the objects say of a volume.
struct Objects {
    attributes: HashMap<String, String>,
    flags: Vec<String>,
    /// Namespace and name of `nodeStageSecretRef`.
    secret: Option<(String, String)>,
    /// Namespace of the claim.
    namespace: Option<String>,
}

/// Takes the steps and tells them.
pub(super) async fn run(args: &ReachArgs) -> anyhow::Result<ExitCode> {
    let config = Config::incluster().context(
        "no cluster to ask; run it in a pod of the node plugin: kubectl exec -n NAMESPACE POD \
         -c vsc-blob-csi -- vsc-blob-csi doctor volume ...",
    )?;
    let report = follow(config, args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.sentences());
    }
    Ok(match report.failed() {
        false => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    })
}

/// Takes the steps. Call it inside the runtime.
///
/// # Errors
/// It cannot begin.
pub async fn follow(mut config: Config, args: &ReachArgs) -> anyhow::Result<ReachReport> {
    config.default_retry = false;
    config.proxy_url = None;
    blob_client::crypto::install();
    let cluster = kube::Client::try_from(config)?;
    let resources = BudgetArgs { budget: BUDGET }.resources()?;
    let paths = args.device.paths(&resources);
    first_look(&paths).await;
    let connector =
        Connector::new(Arc::clone(&paths), Arc::clone(&resources.arena)).with_lending(args.lending.lending());
    let mut report = ReachReport {
        volume: args.volume.clone(),
        steps: Vec::new(),
    };
    // Nothing to return but the steps, however far they went.
    let _ = walk(&mut report, &cluster, &paths, &connector).await;
    Ok(report)
}

async fn walk(
    report: &mut ReachReport,
    cluster: &kube::Client,
    paths: &Paths,
    connector: &Connector,
) -> Option<()> {
    let volume = report.volume.clone();
    let objects = report.step("objects", objects(cluster, &volume)).await?;
    let settings = async {
        let attributes = Attributes::parse(&objects.attributes, Scope::Attributes).map_err(said)?;
        let options = MountOptions::parse(&objects.flags).map_err(said)?;
        let container = attributes.container.clone();
        let container = container.ok_or("volumeAttributes do not name a container")?;
        let text = match &attributes.prefix {
            Some(prefix) => format!("container {container:?}, prefix {prefix:?}"),
            None => format!("container {container:?}"),
        };
        Ok(((attributes, options, container), text))
    };
    let (attributes, options, container) = report.step("settings", settings).await?;
    let secrets = match named_secret(&attributes, &objects) {
        Some((namespace, name)) => {
            // Without it the rest of the way can still be looked at.
            report.step("Secret", secret(cluster, &namespace, &name)).await
        }
        None => Some(Secrets::default()),
    };
    // The account's name may be in the Secret.
    let account = Account::resolve(&attributes, secrets.as_ref().unwrap_or(&Secrets::default()));
    let account = match account {
        Ok(account) => account,
        Err(error) => {
            let failed = async { Err::<((), String), _>(said(error)) };
            return report.step("settings", failed).await;
        }
    };
    network(report, &account.endpoint, paths).await;
    let secrets = secrets?;
    if attributes.identity.with_pod_token {
        let told = async { Ok(((), "kubelet brings a token of each pod; not looked at".to_owned())) };
        return report.step("token", told).await;
    }
    let credentials = report
        .step("token", token(connector, &account, &attributes, &secrets))
        .await?;
    let rights = async {
        let kind = CredentialKind::of(&credentials);
        let patience = options.timeout.unwrap_or_else(Patience::default);
        let (mode, keeping) = (attributes.transport, &attributes.keeping);
        let client = connector.client(&account, credentials.clone(), mode, keeping, patience);
        let container = connect::container(&client.map_err(said)?, &container).map_err(said)?;
        let prefix = attributes.prefix.as_deref().unwrap_or_default();
        let rights = connect::check_mount(&account, &container, prefix, options.read_only, kind);
        let rights = rights.await.map_err(said)?;
        let text = match (rights.write, rights.delete) {
            (true, true) => "list, read, write and delete",
            (true, false) => "list, read and write; the right to delete (d) is missing",
            (false, true) => "list, read and delete; the right to write (w) is missing",
            (false, false) => "list and read: enough for a read-only volume",
        };
        Ok(((), text.to_owned()))
    };
    report.step("rights", rights).await
}

/// Name, connection, TLS and clock. None of them ends the way: with a proxy only the last ones say something.
async fn network(report: &mut ReachReport, endpoint: &Url, paths: &Paths) {
    let host = endpoint.host_str().unwrap_or_default().to_owned();
    let port = endpoint.port_or_known_default().unwrap_or(443);
    let looked_up = async {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = lookup_host((bare, port))
            .await
            .map_err(|error| format!("{host}: {error}"))?;
        let addresses: Vec<_> = found.collect();
        let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
        match addresses.is_empty() {
            true => Err(format!("{host} has no address")),
            false => Ok((addresses, format!("{host}: {}", shown.join(", ")))),
        }
    };
    if let Some(addresses) = report.step("DNS", looked_up).await {
        let connected = async {
            let mut wrong = Vec::new();
            for address in addresses {
                match tokio::time::timeout(CONNECTION, TcpStream::connect(address)).await {
                    Ok(Ok(_)) => return Ok(((), address.to_string())),
                    Ok(Err(error)) => wrong.push(format!("{address}: {error}")),
                    Err(_) => wrong.push(format!("{address}: no answer within {CONNECTION:?}")),
                }
            }
            Err(wrong.join("; "))
        };
        report.step("TCP", connected).await;
    }
    let secure = if endpoint.scheme() == "https" {
        "TLS"
    } else {
        "HTTP"
    };
    let answered = async {
        let url = endpoint
            .as_str()
            .parse()
            .map_err(|_| "the endpoint is no URL".to_owned())?;
        let request = Request {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Body::from(Bytes::new()),
            dest: None,
            collect: ANSWER,
            idempotent: true,
            avoid: Some(Path::Channel),
            timeout: CONNECTION,
            moved: Arc::default(),
            ledger: None,
        };
        let answer = paths
            .https()
            .send(request)
            .await
            .map_err(|error| error.to_string())?;
        let date = answer
            .headers
            .get(header::DATE)
            .and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        // Without credentials it refuses; that it answers is what counts.
        Ok((date, format!("{endpoint} answers ({})", answer.status)))
    };
    let Some(date) = report.step(secure, answered).await else {
        return;
    };
    let clock = async {
        let date = date.ok_or("the answer has no date")?;
        let now = SystemTime::now();
        let apart = now
            .duration_since(date)
            .unwrap_or_else(|before| before.duration());
        let text = format!("{} s away from the service's", apart.as_secs());
        match apart > CLOCK {
            true => Err(format!("{text}: signatures are refused; set the time (NTP)")),
            false => Ok(((), text)),
        }
    };
    report.step("clock", clock).await;
}

async fn objects(cluster: &kube::Client, volume: &str) -> Result<(Objects, String), String> {
    let name = match volume.split_once('/') {
        None => volume.to_owned(),
        Some((namespace, claim)) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.clone(), namespace);
            let found = claims
                .get(claim)
                .await
                .map_err(|error| format!("claim {volume}: {error}"))?;
            let bound = found.spec.and_then(|spec| spec.volume_name);
            bound.ok_or_else(|| format!("claim {volume} is not bound to a volume yet"))?
        }
    };
    let found = Api::<PersistentVolume>::all(cluster.clone()).get(&name).await;
    let found = found.map_err(|error| format!("PersistentVolume {name}: {error}"))?;
    let spec = found.spec.unwrap_or_default();
    let csi = spec.csi.filter(|csi| csi.driver == crate::DRIVER_NAME);
    let csi = csi.ok_or_else(|| format!("PersistentVolume {name} is not of {}", crate::DRIVER_NAME))?;
    let secret = csi
        .node_stage_secret_ref
        .and_then(|secret| Some((secret.namespace?, secret.name?)));
    let objects = Objects {
        attributes: csi.volume_attributes.unwrap_or_default().into_iter().collect(),
        flags: spec.mount_options.unwrap_or_default(),
        secret,
        namespace: spec.claim_ref.and_then(|claim| claim.namespace),
    };
    Ok((objects, format!("PersistentVolume {name}")))
}

/// The Secret that a mount would take its credential from.
fn named_secret(attributes: &Attributes, objects: &Objects) -> Option<(String, String)> {
    let by_name = || {
        let namespace = attributes
            .secret_namespace
            .as_ref()
            .or(objects.namespace.as_ref())?;
        Some((namespace.clone(), attributes.secret_name.clone()?))
    };
    objects.secret.clone().or_else(by_name)
}

async fn secret(cluster: &kube::Client, namespace: &str, name: &str) -> Result<(Secrets, String), String> {
    let told = format!("{namespace}/{name}");
    let found = Api::<Secret>::namespaced(cluster.clone(), namespace)
        .get(name)
        .await;
    let found = found.map_err(|error| match &error {
        kube::Error::Api(answer) if answer.code == 403 => format!(
            "{told}: the driver may not read it (node.secretNamespaces of the chart); for a mount, kubelet \
             reads a nodeStageSecretRef"
        ),
        _ => format!("{told}: {error}"),
    })?;
    let data = found.data.unwrap_or_default().into_iter();
    let text = data.filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)));
    let secrets = Secrets::parse(&text.collect()).map_err(said)?;
    Ok((secrets, told))
}

async fn token(
    connector: &Connector,
    account: &Account,
    attributes: &Attributes,
    secrets: &Secrets,
) -> Result<(Credentials, String), String> {
    let credentials = connector
        .credentials(account, attributes, secrets, None)
        .map_err(said)?;
    let text = match &credentials {
        Credentials::SharedKey { account, .. } => format!("none is needed: the key of {account}"),
        Credentials::Sas(_) => "none is needed: a SAS".to_owned(),
        Credentials::Anonymous => "none is needed: anonymous".to_owned(),
        Credentials::Token(source) => {
            source.token().await.map_err(|error| error.to_string())?;
            "a token for storage".to_owned()
        }
    };
    Ok((credentials, text))
}

fn said(error: crate::error::Error) -> String {
    error.to_string()
}
