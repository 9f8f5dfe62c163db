//! Who may do what: keys, shared access signatures, nobody.

use std::time::Duration;

use anyhow::Result;
use blob_client::auth::Credentials;
use blob_client::secret::Secret;
use blob_client::{Condition, ListOptions, PutOptions};
use e2e::store::SasOptions;

use crate::context::{Context, bytes_body, kind};
use crate::same;

/// Every failed proof of identity: a wrong key, a signature that does not fit, a SAS whose time is over.
const DENIED: &str = "Denied AuthenticationFailed";
const AZURITE_DENIED: &str = "Denied AuthorizationFailure";
const REASON: &str = "Azurite answers AuthorizationFailure where the service answers AuthenticationFailed";
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn shared_key_with_the_wrong_key(c: &Context) -> Result<()> {
    let wrong = c.client(Credentials::SharedKey {
        account: c.account().to_owned(),
        key: Secret::new("d3Jvbmc=".into()),
    })?;
    let container = wrong.container(c.box_name())?;
    // A HEAD answer has no body, its code comes in a header.
    let head = container.head("b", &Condition::none()).await;
    let list = container.list(&ListOptions::default()).await;
    for (what, got) in [("head", kind(&head)), ("list", kind(&list))] {
        c.wants_but(what, got, DENIED, AZURITE_DENIED, REASON)?;
    }
    Ok(())
}

pub(crate) async fn sas_reads_and_lists(c: &Context) -> Result<()> {
    c.put("dir/ö b", b"body").await?;
    for sas in [
        c.container_sas(&SasOptions::new("rl", HOUR)),
        c.account_sas("co", &SasOptions::new("rl", HOUR)),
    ] {
        let container = c.with_sas(sas)?;
        let got = container
            .get("dir/ö b", 0..4, &Condition::none(), c.buffer(4)?)
            .await?;
        same!(&got.buffer[..], b"body");
        same!(container.list(&ListOptions::default()).await?.items.len(), 1);
    }
    let one = c.with_sas(c.blob_sas("dir/ö b", &SasOptions::new("r", HOUR)))?;
    same!(one.head("dir/ö b", &Condition::none()).await?.content_length, 4);
    let write = c.with_sas(c.container_sas(&SasOptions::new("rcwd", HOUR)))?;
    write.put("new", bytes_body(b"x"), &PutOptions::default()).await?;
    write.delete("new", &Condition::none()).await?;
    Ok(())
}

pub(crate) async fn sas_refusals(c: &Context) -> Result<()> {
    c.put("b", b"body").await?;
    let read = SasOptions::new("r", HOUR);
    let head = |sas: String| async move {
        let container = c.with_sas(sas).expect("a client");
        container.head("b", &Condition::none()).await
    };
    let mut expired = read.clone();
    expired.expires -= 2 * HOUR;
    let sas = c.container_sas(&expired);
    let answer = c.unsigned("GET", &format!("/{{box}}/b?{sas}"), &[], b"").await?;
    c.wants_but(
        "expired",
        answer.outcome(),
        "403 AuthenticationFailed",
        "403 AuthorizationFailure",
        REASON,
    )?;
    let mut early = read.clone();
    early.starts = Some(std::time::SystemTime::now() + HOUR);
    early.expires += HOUR;
    c.wants_but(
        "early",
        kind(&head(c.container_sas(&early)).await),
        DENIED,
        AZURITE_DENIED,
        REASON,
    )?;
    let tampered = c.container_sas(&read).replace("sp=r", "sp=rw");
    c.wants_but(
        "tampered",
        kind(&head(tampered).await),
        DENIED,
        AZURITE_DENIED,
        REASON,
    )?;
    let other_blob = c.blob_sas("other", &read);
    c.wants_but(
        "other blob",
        kind(&head(other_blob).await),
        DENIED,
        AZURITE_DENIED,
        REASON,
    )?;
    let read_only = c.with_sas(c.container_sas(&read))?;
    let put = read_only
        .put("new", bytes_body(b"x"), &PutOptions::default())
        .await;
    same!(c.ended("put", &put), "Denied AuthorizationPermissionMismatch");
    let list = read_only.list(&ListOptions::default()).await;
    same!(c.ended("list", &list), "Denied AuthorizationPermissionMismatch");
    let types = c.with_sas(c.account_sas("c", &read))?;
    let head = types.head("b", &Condition::none()).await;
    c.wants(
        "resource type",
        kind(&head),
        "Denied AuthorizationResourceTypeMismatch",
    )?;
    Ok(())
}

pub(crate) async fn anonymous(c: &Context) -> Result<()> {
    c.put("b", b"body").await?;
    let nobody = c.client(Credentials::Anonymous)?.container(c.box_name())?;
    assert!(nobody.head("b", &Condition::none()).await.is_err());
    let acl = |level: &'static str| async move {
        c.raw(
            "PUT",
            "/{box}?restype=container&comp=acl",
            &[("x-ms-blob-public-access", level)],
            b"",
        )
        .await
    };
    same!(acl("blob").await?.outcome(), "200");
    same!(nobody.head("b", &Condition::none()).await?.content_length, 4);
    assert!(nobody.list(&ListOptions::default()).await.is_err());
    same!(acl("container").await?.outcome(), "200");
    same!(nobody.list(&ListOptions::default()).await?.items.len(), 1);
    let put = nobody.put("c", bytes_body(b"x"), &PutOptions::default()).await;
    assert!(put.is_err());
    Ok(())
}
