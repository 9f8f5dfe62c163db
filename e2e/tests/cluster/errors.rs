//! What a user reads in `kubectl describe` when something is wrong: the field and the fix.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use crate::lab::DRIVER;
use crate::objects::PodPlan;
use crate::space::Space;

/// Whether the Event is the driver's own (kubelet tells the pod, and the provisioner the claim, in theirs).
pub(crate) fn is_ours(event: &Event) -> bool {
    event.reporting_component.as_deref() == Some(DRIVER)
        || event
            .source
            .as_ref()
            .and_then(|source| source.component.as_deref())
            == Some(DRIVER)
}

/// Makes a pod whose volume cannot be had, and looks for the Events that say why: the driver's own about the
/// claim, with this reason, and the kubelet's about the pod, both with these words.
async fn told(space: &Space, reason: &str, words: &[&str]) -> Result<()> {
    space.create_pod(&PodPlan::new("app").claim("data")).await?;
    let all = |event: &Event| {
        let text = event.message.as_deref().unwrap_or_default();
        words.iter().all(|word| text.contains(word))
    };
    space
        .event("app", &format!("{words:?} (FailedMount)"), |event| {
            event.reason.as_deref() == Some("FailedMount") && all(event)
        })
        .await?;
    let of_claim = space
        .event("data", &format!("{words:?} ({reason})"), |event| {
            is_ours(event) && event.reason.as_deref() == Some(reason) && all(event)
        })
        .await?;
    ensure!(
        of_claim.type_.as_deref() == Some("Warning"),
        "its type is {:?}",
        of_claim.type_
    );
    ensure!(
        of_claim.involved_object.kind.as_deref() == Some("PersistentVolumeClaim"),
        "an Event of {:?}",
        of_claim.involved_object
    );
    // Nothing of a Secret in any of them.
    for event in space
        .api::<Event>()
        .list(&kube::api::ListParams::default())
        .await?
    {
        let text = serde_json::to_string(&event)?;
        ensure!(
            !text.contains(e2e::store::DEV_KEY),
            "an Event has the key: {text}"
        );
        ensure!(
            !text.contains("d3Jvbmcga2V5"),
            "an Event has the wrong key: {text}"
        );
    }
    Ok(())
}

async fn bad_volume(space: &Space, make_container: bool, more: Value) -> Result<()> {
    if make_container {
        space.lab.make_container(&space.name).await?;
    }
    space.static_volume(&space.name, "ReadWriteMany", more).await
}

/// The account's key was rotated, or is somebody else's.
pub(crate) async fn wrong_key(space: &Space) -> Result<()> {
    // "wrong key" thirty-two bytes long, in base64.
    let key = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkgISE=";
    space.secret("wrong", &[("azurestorageaccountkey", key)]).await?;
    let secret = json!({"csi": {"nodeStageSecretRef": {"name": "wrong"}}});
    bad_volume(space, true, secret).await?;
    told(
        space,
        "AuthenticationFailed",
        &["azurestorageaccountkey", "Secret"],
    )
    .await
}

/// The container of a static volume does not exist; once it does, the pod starts by itself.
pub(crate) async fn missing_container(space: &Space) -> Result<()> {
    bad_volume(space, false, json!({})).await?;
    told(
        space,
        "ContainerNotFound",
        &[
            space.name.as_str(),
            "Create the container, or correct containerName",
        ],
    )
    .await?;
    space.lab.make_container(&space.name).await?;
    space.ready("app").await?;
    Ok(())
}

/// A misspelled attribute: the Event names it and the known one.
pub(crate) async fn unknown_attribute(space: &Space) -> Result<()> {
    let attributes = json!({"csi": {"volumeAttributes": {"tranport": "https"}}});
    bad_volume(space, true, attributes).await?;
    told(
        space,
        "UnknownKey",
        &["tranport", "transport", "PersistentVolume"],
    )
    .await
}

/// A mount option that the file system does not have.
pub(crate) async fn unknown_mount_option(space: &Space) -> Result<()> {
    bad_volume(space, true, json!({"mountOptions": ["big_writes=yes"]})).await?;
    told(space, "UnknownMountOption", &["big_writes", "mountOptions"]).await
}

/// No Secret at all.
pub(crate) async fn missing_secret(space: &Space) -> Result<()> {
    bad_volume(space, true, json!({"csi": {"nodeStageSecretRef": null}})).await?;
    told(space, "MissingCredentials", &["nodeStageSecretRef"]).await
}

/// A class with a parameter of no known meaning: the claim's Events tell.
pub(crate) async fn wrong_class_parameter(space: &Space) -> Result<()> {
    let class = space.class(json!({"containerNam": "x"}), json!({})).await?;
    space.claim("data", &class, "ReadWriteOnce").await?;
    space
        .event("data", "containerNam and the parameter that is meant", |event| {
            let text = event.message.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("ProvisioningFailed")
                && ["containerNam", "containerName", "[UnknownKey]"]
                    .iter()
                    .all(|word| text.contains(word))
        })
        .await?;
    Ok(())
}
