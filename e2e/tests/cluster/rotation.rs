//! Keys and SAS are replaced while a pod writes and reads.

use std::time::Duration;

use anyhow::Result;
use e2e::store::{DEV_ACCOUNT, DEV_KEY};
use k8s_openapi::api::core::v1::{Event, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::lab::{LAB, MARK, poll};
use crate::objects::PodPlan;
use crate::space::{Space, create, shown};
use crate::store::container_sas_for;

/// The store's second key, as e2e/kind/lab.yaml says it.
const SECOND_KEY: &str =
    "dGhlIHNlY29uZCBrZXkgb2YgdGhlIGVtYmVkZGVkIHN0b3JlOiBhIHNlY3JldCBvZiBub2JvZHksIGFsd2F5cw==";
/// Kubelet publishes again about every minute; a pod that starts is slower.
const REPUBLISHED: Duration = Duration::from_secs(300);

/// Writes, renames and reads until something fails, which ends the pod.
const ROUNDS: &str = "i=0\n\
    while :; do\n\
      i=$((i+1))\n\
      echo $i > /data/new && mv /data/new /data/file && [ \"$(cat /data/file)\" = $i ] || exit 1\n\
      echo $i > /tmp/rounds\n\
    done";

/// Waits until the pod has done some more rounds.
async fn goes_on(space: &Space) -> Result<()> {
    let rounds = async || -> Result<u64> {
        let text = space.sh("app", "cat /tmp/rounds 2>/dev/null || echo 0").await?;
        Ok(text.trim().parse().unwrap_or(0))
    };
    let before = rounds().await?;
    poll("the pod goes on", REPUBLISHED, async || {
        Ok((rounds().await? > before + 3).then_some(()))
    })
    .await
}

async fn told(space: &Space, reason: &str) -> Result<()> {
    let events: Api<Event> = space.api();
    let about = ListParams::default().fields("involvedObject.name=data");
    let found = poll(
        &format!("an Event of the claim says {reason}"),
        REPUBLISHED,
        async || {
            let all = events.list(&about).await?;
            let mut events = all.items.into_iter();
            Ok(events.find(|event| event.reason.as_deref() == Some(reason)))
        },
    )
    .await?;
    println!("{}/data: {}", space.name, shown(&found));
    Ok(())
}

async fn replace(secrets: &Api<Secret>, name: &str, data: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"stringData": data}));
    secrets.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// A SAS that ends: the driver reads the Secret again when the service does not take it any more.
pub(crate) async fn sas_of_a_secret_by_name(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let secrets = space.lab.api::<Secret>(LAB);
    let lifetime = Duration::from_secs(120);
    let data = json!({
        "azurestorageaccountname": DEV_ACCOUNT,
        "azurestorageaccountsastoken": container_sas_for(&container, lifetime)?,
    });
    let secret = json!({"metadata": {"name": container, "labels": {MARK: container}}, "stringData": data});
    create(&secrets, secret).await?;
    let result = sas_ends(space, &secrets, &container).await;
    secrets.delete(&container, &DeleteParams::default()).await?;
    result
}

async fn sas_ends(space: &Space, secrets: &Api<Secret>, container: &str) -> Result<()> {
    space
        .static_volume(
            container,
            "ReadWriteMany",
            json!({"csi": {
                "nodeStageSecretRef": null,
                "volumeAttributes": {"secretName": container, "secretNamespace": LAB},
            }}),
        )
        .await?;
    space
        .pod(&PodPlan::new("app").claim("data").script(ROUNDS))
        .await?;
    goes_on(space).await?;
    let newer = container_sas_for(container, Duration::from_secs(3600))?;
    replace(secrets, container, json!({"azurestorageaccountsastoken": newer})).await?;
    told(space, "CredentialReplaced").await?;
    goes_on(space).await
}

/// The other key of the account, and a wrong one: kubelet brings what the Secret holds.
pub(crate) async fn key_of_a_publish_secret(space: &Space) -> Result<()> {
    let container = space.name.clone();
    space.lab.make_container(&container).await?;
    let key = |key: &str| json!({"azurestorageaccountkey": key});
    space
        .secret("rotated", &[("azurestorageaccountkey", DEV_KEY)])
        .await?;
    let named = json!({"name": "rotated", "namespace": space.name});
    space
        .static_volume(
            &container,
            "ReadWriteMany",
            json!({"csi": {"nodeStageSecretRef": named, "nodePublishSecretRef": named}}),
        )
        .await?;
    space
        .pod(&PodPlan::new("app").claim("data").script(ROUNDS))
        .await?;
    goes_on(space).await?;
    let secrets: Api<Secret> = space.api();
    replace(&secrets, "rotated", key("d3Jvbmc=")).await?;
    told(space, "CredentialRefused").await?;
    goes_on(space).await?;
    replace(&secrets, "rotated", key(SECOND_KEY)).await?;
    told(space, "CredentialReplaced").await?;
    goes_on(space).await
}
