//! The manifests of deploy/examples as a user applies them: only account, key, namespace and image are filled
//! in.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::TypeMeta;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::lab::{LAB, MARK, PATIENCE, STORE_TLS, SUFFIX, TOKENS, is_ready, poll};
use crate::objects::PodPlan;
use crate::space::Space;

/// Applies one of the examples after the example of the Secret, and waits until its pods are ready.
async fn applied(space: &Space, example: &str) -> Result<()> {
    space.lab.make_container(&space.name).await?;
    applied_to_a_container(space, example).await
}

/// The same when the container is there.
async fn applied_to_a_container(space: &Space, example: &str) -> Result<()> {
    space
        .lab
        .put_blob(&space.name, "reports/first", "a report")
        .await?;
    for name in ["secret", example] {
        apply_file(space, name).await?;
    }
    pods_are_ready(space, example).await
}

/// Applies one file.
async fn apply_file(space: &Space, name: &str) -> Result<()> {
    let path = space.lab.settings.examples.join(format!("{name}.yaml"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for object in filled_in(space, &text)? {
        apply(space, object)
            .await
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

async fn pods_are_ready(space: &Space, example: &str) -> Result<()> {
    poll(
        &format!("the pods of {example} are ready"),
        PATIENCE,
        async || {
            let pods = space.api::<Pod>().list(&ListParams::default()).await?.items;
            Ok((!pods.is_empty() && pods.iter().all(is_ready)).then_some(()))
        },
    )
    .await
}

/// The objects of a file, with the store of the suite in place of an account.
fn filled_in(space: &Space, text: &str) -> Result<Vec<DynamicObject>> {
    // With a suffix the account's name is in the host, as in Azure; tokens go over TLS only.
    let account_in_host = format!("https://{}.blob.{SUFFIX}", e2e::store::DEV_ACCOUNT);
    let text = if text.contains("storageEndpointSuffix") {
        text.replace("core.chinacloudapi.cn", SUFFIX)
    } else {
        text.replace("storageAccount: ACCOUNT", &format!("server: {STORE_TLS}"))
    };
    let text = text
        .replace("https://ACCOUNT.blob.core.windows.net", &account_in_host)
        .replace("containerName: open", &format!("containerName: {}", space.name))
        .replace("ACCOUNT", e2e::store::DEV_ACCOUNT)
        .replace(": KEY", &format!(": {}", e2e::store::DEV_KEY))
        .replace(
            "containerName: existing",
            &format!("containerName: {}", space.name),
        )
        .replace(
            "containerName: volumes",
            &format!("containerName: {}", space.name),
        )
        // Token requests go to the suite's server; nothing on the node listens at the metadata service's
        // address.
        .replace("http://127.0.0.1:40342", TOKENS)
        .replace(
            "AzureStorageAuthType: MSI\n  #",
            &format!(
                "AzureStorageAuthType: MSI\n  MSIEndpoint: {TOKENS}/metadata/identity/oauth2/token\n  #"
            ),
        )
        .replace("https://login.partner.microsoftonline.cn", TOKENS)
        .replace(
            "AzureStorageAuthType: WorkloadIdentity",
            &format!("AzureStorageAuthType: WorkloadIdentity\n      AzureStorageAADEndpoint: {TOKENS}"),
        )
        // What the driver or the provisioner reads by itself is in a namespace that the chart's values name.
        .replace("secret-namespace: default", &format!("secret-namespace: {LAB}"))
        .replace("secretNamespace: default", &format!("secretNamespace: {LAB}"))
        .replace("namespace: default", &format!("namespace: {}", space.name))
        .replace(
            "image: busybox:1.37",
            &format!("image: {}", space.lab.settings.app_image),
        );
    let mut objects = Vec::new();
    for document in text.split("\n---\n") {
        let mut value: serde_json::Value = serde_saphyr::from_str(document).context("YAML")?;
        value["metadata"]["labels"][MARK] = json!(space.name);
        for pointer in ["/spec", "/spec/template/spec"] {
            if let Some(spec) = value
                .pointer_mut(pointer)
                .filter(|spec| spec["containers"].is_array())
            {
                // `sleep` does not listen to SIGTERM.
                spec["terminationGracePeriodSeconds"] = json!(1);
            }
        }
        objects.push(serde_json::from_value(value).context("an object")?);
    }
    Ok(objects)
}

async fn apply(space: &Space, object: DynamicObject) -> Result<()> {
    let TypeMeta { api_version, kind } = object.types.clone().context("apiVersion and kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let gvk = kube::core::GroupVersionKind::gvk(group, version, &kind);
    let resource = ApiResource::from_gvk(&gvk);
    let client = space.lab.client.clone();
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("{kind} {}", object.name_any()))?;
    Ok(())
}

/// A container that is open to everybody: neither the key of the account nor any other.
pub(crate) async fn anonymous(space: &Space) -> Result<()> {
    space.lab.make_public_container(&space.name).await?;
    applied_to_a_container(space, "anonymous").await?;
    let seen = space.sh("anonymous", "cat /data/reports/first").await?;
    ensure!(seen == "a report", "the pod reads {seen:?}");
    Ok(())
}

/// A container that is named after the volume, and the options of the kernel's memory.
pub(crate) async fn volume_name(space: &Space) -> Result<()> {
    applied(space, "volume-name").await?;
    let volume = space.volume_of("volume-name").await?;
    let container = format!("by-{}", volume.name_any());
    let found = poll("the pod has written", PATIENCE, async || {
        space.lab.blob(&container, "log").await
    })
    .await?;
    ensure!(!found.is_empty(), "{container}/log is empty");
    finish(space, "volume-name").await
}

/// A container for each claim, deleted with it.
pub(crate) async fn container_per_claim(space: &Space) -> Result<()> {
    applied(space, "container-per-claim").await?;
    let log = space.sh("container-per-claim", "cat /data/log").await?;
    ensure!(!log.is_empty(), "the log is empty");
    let volume = space.volume_of("container-per-claim").await?;
    let id = volume.spec.and_then(|spec| spec.csi).map(|csi| csi.volume_handle);
    ensure!(
        id.as_deref().is_some_and(|id| id.contains("#team")),
        "the volume's id is {id:?}"
    );
    finish(space, "container-per-claim").await
}

/// A directory of one container for each claim; a pod that is not root, with fsGroup and subPath.
pub(crate) async fn directory_per_claim(space: &Space) -> Result<()> {
    applied(space, "directory-per-claim").await?;
    let blob = format!("{}/directory-per-claim/app/who", space.name);
    let found = poll("the pod has written", PATIENCE, async || {
        space.lab.blob(&space.name, &blob).await
    })
    .await?;
    ensure!(
        found.contains("uid=1000") && found.contains("2000"),
        "{blob} is {found:?}"
    );
    finish(space, "directory-per-claim").await
}

/// A volume that stands in the pod.
pub(crate) async fn inline(space: &Space) -> Result<()> {
    applied(space, "inline").await?;
    poll("the pod has written", PATIENCE, async || {
        space.lab.blob(&space.name, "inline/inline").await
    })
    .await?;
    Ok(())
}

/// One container, read by several pods.
pub(crate) async fn read_only(space: &Space) -> Result<()> {
    applied(space, "read-only").await?;
    for pod in space.api::<Pod>().list(&ListParams::default()).await? {
        let name = pod.name_any();
        let seen = space.sh(&name, "cat /data/reports/first").await?;
        ensure!(seen == "a report", "{name} reads {seen:?}");
    }
    Ok(())
}

/// A Secret that the driver reads by its name.
pub(crate) async fn secret_by_name(space: &Space) -> Result<()> {
    applied(space, "secret-by-name").await?;
    poll("the pod has written", PATIENCE, async || {
        space.lab.blob(&space.name, "one").await
    })
    .await?;
    Ok(())
}

/// A container that exists, with mount options.
pub(crate) async fn static_volume(space: &Space) -> Result<()> {
    applied(space, "static").await?;
    let seen = space.sh("static", "stat -c '%u %g %a' /data /data/first").await?;
    ensure!(seen == "1000 1000 750\n1000 1000 640\n", "the pod sees {seen:?}");
    Ok(())
}

/// The nodes' identity, by client id and by resource id: the controller makes and deletes the directory with
/// it, the node mounts with it, and there is no Secret.
pub(crate) async fn managed_identity(space: &Space) -> Result<()> {
    space.lab.make_container(&space.name).await?;
    apply_file(space, "managed-identity").await?;
    space
        .claim(
            "by-resource",
            "blob-managed-identity-by-resource",
            "ReadWriteMany",
        )
        .await?;
    for claim in ["managed-identity", "by-resource"] {
        space.pod(&PodPlan::new(claim).claim(claim)).await?;
        space.sh(claim, &format!("echo of {claim} > /data/who")).await?;
        let blob = format!("{}/{claim}/who", space.name);
        let found = space.lab.blob(&space.name, &blob).await?;
        ensure!(found == Some(format!("of {claim}\n")), "{blob} is {found:?}");
        finish(space, claim).await?;
        let found = space.lab.blob(&space.name, &blob).await?;
        ensure!(found.is_none(), "{blob} is still there: {found:?}");
    }
    Ok(())
}

/// A service principal; with another secret the Event names what to look at.
pub(crate) async fn service_principal(space: &Space) -> Result<()> {
    space.lab.make_container(&space.name).await?;
    space.lab.put_blob(&space.name, "first", "by its owner").await?;
    apply_file(space, "service-principal").await?;
    let plan = PodPlan::new("app").claim("service-principal");
    space.pod(&plan).await?;
    let seen = space
        .sh("app", "cat /data/first && echo x > /data/second")
        .await?;
    ensure!(seen == "by its owner", "the pod reads {seen:?}");
    let found = space.lab.blob(&space.name, "second").await?;
    ensure!(found.as_deref() == Some("x\n"), "the store has {found:?}");
    space.delete_pod("app").await?;
    // Expired, as secrets of applications do.
    let secrets = space.api::<Secret>();
    let other = json!({"stringData": {"azurestoragespnclientsecret": "another"}});
    secrets
        .patch(
            "blob-service-principal",
            &PatchParams::default(),
            &Patch::Merge(other),
        )
        .await?;
    space.create_pod(&plan).await?;
    told(space, "app", "AADSTS7000215").await
}

/// The token of the pod's own service account, which kubelet hands over; that of another account is not
/// exchanged.
pub(crate) async fn workload_identity(space: &Space) -> Result<()> {
    space.lab.make_container(&space.name).await?;
    space.lab.put_blob(&space.name, "first", "by its owner").await?;
    apply_file(space, "workload-identity").await?;
    pods_are_ready(space, "workload-identity").await?;
    let seen = space.sh("workload-identity", "cat /data/first && echo x > /data/second");
    let seen = seen.await?;
    ensure!(seen == "by its owner", "the pod reads {seen:?}");
    let found = space.lab.blob(&space.name, "second").await?;
    ensure!(found.as_deref() == Some("x\n"), "the store has {found:?}");
    // The same volume, under the account `default`.
    space
        .create_pod(&PodPlan::new("stranger").claim("workload-identity"))
        .await?;
    told(space, "stranger", "AADSTS700213").await
}

/// An Event of the pod has the words of the service, and no secret.
async fn told(space: &Space, pod: &str, words: &str) -> Result<()> {
    let event = space
        .event(pod, words, |event| {
            event.message.as_ref().is_some_and(|text| text.contains(words))
        })
        .await?;
    let text = event.message.unwrap_or_default();
    ensure!(
        !text.contains("another") && !text.contains("eyJ"),
        "an Event has a secret: {text}"
    );
    Ok(())
}

/// Claims out of a class go before their class and Secret do.
async fn finish(space: &Space, name: &str) -> Result<()> {
    space.api::<Pod>().delete(name, &DeleteParams::default()).await?;
    space.delete_claim(name).await
}
