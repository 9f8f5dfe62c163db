//! The cluster under test: client, names, and the ways to wait for something with a limit and a reason.

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use http::Request;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, ListParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

/// Name of the driver under test.
pub(crate) const DRIVER: &str = vsc_blob_csi::DRIVER_NAME;
/// Namespace of the store, the mock VSP and the pods that look at nodes (e2e/kind/lab.yaml).
pub(crate) const LAB: &str = "vsc-blob-e2e";
/// The store as pods and the driver reach it, account included.
pub(crate) const STORE: &str = "http://store.vsc-blob-e2e.svc:10000/devstoreaccount1";
/// The same over TLS.
pub(crate) const STORE_TLS: &str = "https://store.vsc-blob-e2e.svc/devstoreaccount1";
/// `https://devstoreaccount1.blob.SUFFIX` is the same once more.
pub(crate) const SUFFIX: &str = "vsc-blob-e2e.svc";
/// What stands for Entra ID and the metadata service: tokens for the identities of e2e/kind/lab.yaml.
pub(crate) const TOKENS: &str = "https://store.vsc-blob-e2e.svc:10001";
/// Where [`STORE`]'s Secret is, under this name in [`LAB`] and in each case's namespace.
pub(crate) const SECRET: &str = "account";
/// Marks what a case makes outside of its namespace; e2e/kind/run removes what is left by it.
pub(crate) const MARK: &str = "vsc-blob-e2e";

/// How long something may take in a cluster on a loaded machine. A limit, not a promise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at something that cannot be watched.
const PAUSE: Duration = Duration::from_millis(100);

/// What e2e/kind/run tells the suite.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Image with a shell and the usual small programs (busybox).
    pub(crate) app_image: String,
    /// Name and namespace of the driver's helm release.
    pub(crate) release: String,
    /// See above.
    pub(crate) driver_namespace: String,
    /// The chart's folder, and the values it was installed with.
    pub(crate) chart: PathBuf,
    /// See above.
    pub(crate) values: PathBuf,
    /// The folder deploy/examples.
    pub(crate) examples: PathBuf,
}

impl Settings {
    /// From VSC_BLOB_E2E_CLUSTER_* variables; the error is the reason why the suite does not run.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let variable = |name: &str| {
            std::env::var(format!("VSC_BLOB_E2E_CLUSTER_{name}"))
                .ok()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| {
                    format!(
                        "VSC_BLOB_E2E_CLUSTER_{name} is not set; e2e/kind/run makes a cluster and runs \
                             the suite in it"
                    )
                })
        };
        Ok(Self {
            app_image: variable("APP_IMAGE")?,
            release: variable("RELEASE")?,
            driver_namespace: variable("NAMESPACE")?,
            chart: variable("CHART")?.into(),
            values: variable("VALUES")?.into(),
            examples: variable("EXAMPLES")?.into(),
        })
    }
}

/// The cluster.
pub(crate) struct Lab {
    pub(crate) settings: Settings,
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
}

impl Lab {
    /// Reads KUBECONFIG and asks the API server for its version.
    pub(crate) fn connect(settings: Settings) -> Result<Self> {
        let runtime = Runtime::new()?;
        let client = runtime.block_on(async {
            let client = Client::try_default().await.context("KUBECONFIG")?;
            let version = client.apiserver_version().await.context("API server")?;
            println!("cluster suite: Kubernetes {}", version.git_version);
            anyhow::Ok(client)
        })?;
        Ok(Self {
            settings,
            client,
            runtime,
        })
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// A GET through the API server, for instance of a pod's HTTP port.
    pub(crate) async fn get(&self, path: &str) -> kube::Result<String> {
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await
    }

    /// Runs a shell script in a pod; an error has its output.
    pub(crate) async fn exec(&self, namespace: &str, pod: &str, script: &str) -> Result<String> {
        let pods: Api<Pod> = self.api(namespace);
        let parameters = AttachParams::default().stdin(false).stdout(true).stderr(true);
        let run = async {
            let mut process = pods.exec(pod, ["sh", "-c", script], &parameters).await?;
            let status = process.take_status().ok_or_else(|| anyhow!("no status"))?;
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (mut stdout, mut stderr) = (
                process.stdout().ok_or_else(|| anyhow!("no stdout"))?,
                process.stderr().ok_or_else(|| anyhow!("no stderr"))?,
            );
            tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
            let status = status
                .await
                .ok_or_else(|| anyhow!("the connection ended without a status"))?;
            let out = String::from_utf8_lossy(&out).into_owned();
            if status.status.as_deref() != Some("Success") {
                let err = String::from_utf8_lossy(&err);
                bail!("{}: {out}{err}", status.message.unwrap_or_default());
            }
            Ok(out)
        };
        tokio::time::timeout(PATIENCE, run)
            .await
            .unwrap_or_else(|_| Err(anyhow!("no end after {PATIENCE:?}")))
            .with_context(|| format!("in {namespace}/{pod}: {script}"))
    }

    /// The driver's DaemonSet of node plugins.
    pub(crate) async fn daemon_set(&self) -> Result<DaemonSet> {
        let sets: Api<DaemonSet> = self.api(&self.settings.driver_namespace);
        the_one(
            sets.list(&self.of_release()).await?.items,
            "DaemonSet of the driver",
        )
    }

    /// The driver's Deployment of controllers.
    pub(crate) async fn controller(&self) -> Result<Deployment> {
        let deployments: Api<Deployment> = self.api(&self.settings.driver_namespace);
        the_one(
            deployments.list(&self.of_release()).await?.items,
            "Deployment of the driver",
        )
    }

    /// The node plugin's pod; the suite wants exactly one node.
    pub(crate) async fn node_pod(&self) -> Result<Pod> {
        let set = self.daemon_set().await?;
        let labels = set.spec.selector.match_labels.unwrap_or_default();
        let pods: Api<Pod> = self.api(&self.settings.driver_namespace);
        let selector = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(",");
        let pods = pods.list(&ListParams::default().labels(&selector)).await?;
        let alive = pods
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect();
        the_one(alive, "pod of the driver on the node")
    }

    /// The node plugin's pod, when it is ready.
    pub(crate) async fn ready_node_pod(&self) -> Result<Pod> {
        poll("the node plugin is ready", PATIENCE, async || {
            Ok(self.node_pod().await.ok().filter(is_ready))
        })
        .await
    }

    pub(crate) fn of_release(&self) -> ListParams {
        ListParams::default().labels(&format!("app.kubernetes.io/instance={}", self.settings.release))
    }
}

/// Whether the pod's condition Ready is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn the_one<T>(mut items: Vec<T>, what: &str) -> Result<T> {
    match (items.pop(), items.len()) {
        (Some(item), 0) => Ok(item),
        (None, _) => bail!("no {what}"),
        (Some(_), more) => bail!("{} of: {what}; one is expected", more + 1),
    }
}

/// Asks until there is an answer. An error ends it at once.
pub(crate) async fn poll<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await.with_context(|| format!("waiting until {what}"))? {
            return Ok(answer);
        }
        if begin.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Watches one object until it fits, also until it is gone (`None`).
pub(crate) async fn watch<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    fits: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: kube::Resource + Clone + Debug + Send + DeserializeOwned + serde::Serialize + 'static,
{
    let found = tokio::time::timeout(
        PATIENCE,
        kube::runtime::wait::await_condition(api.clone(), name, fits),
    );
    match found.await {
        Ok(object) => object.with_context(|| format!("watching {name} until {what}")),
        Err(_) => {
            let last = api.get_opt(name).await.ok().flatten();
            let last = last.and_then(|object| serde_json::to_value(object).ok());
            let status = last.as_ref().map_or(&Value::Null, |object| &object["status"]);
            bail!("{name}: not within {PATIENCE:?}: {what}; its status is {status}")
        }
    }
}

/// Fails when the future takes longer than [`PATIENCE`].
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result.with_context(|| what.to_owned()),
        Err(_) => bail!("not within {PATIENCE:?}: {what}"),
    }
}
