//! Leases of blobs.

use anyhow::Result;
use blob_client::{BlockId, BlockRef, Condition, Metadata, PutOptions, StageOptions};

use crate::context::{Context, bytes_body};
use crate::same;

fn with(lease: &str) -> Condition {
    Condition {
        lease: Some(lease.to_owned()),
        ..Condition::default()
    }
}

pub(crate) async fn guard_writes(c: &Context) -> Result<()> {
    let container = c.container()?;
    c.put("b", b"1").await?;
    let id = BlockId(b"a".to_vec());
    container
        .stage("b", &id, bytes_body(b"2"), &StageOptions::default())
        .await?;
    let lease = container.acquire_lease("b", Some(60)).await?;
    let none = Condition::none();
    let put = container.put("b", bytes_body(b"3"), &PutOptions::default()).await;
    same!(c.ended("put", &put), "LeaseConflict LeaseIdMissing");
    let commit = container
        .commit("b", &[BlockRef::Latest(id.clone())], &PutOptions::default())
        .await;
    same!(c.ended("commit", &commit), "LeaseConflict LeaseIdMissing");
    let set = container.set_metadata("b", &Metadata::new(), &none).await;
    same!(c.ended("set metadata", &set), "LeaseConflict LeaseIdMissing");
    same!(
        c.ended("delete", &container.delete("b", &none).await),
        "LeaseConflict LeaseIdMissing"
    );
    let other = with("11111111-2222-3333-4444-555555555555");
    let wrong = container.set_metadata("b", &Metadata::new(), &other).await;
    same!(
        c.ended("another id", &wrong),
        "LeaseConflict LeaseIdMismatchWithBlobOperation"
    );
    // Readers are not kept out.
    same!(c.read("b").await?, b"1");
    let options = PutOptions {
        condition: with(&lease),
        ..PutOptions::default()
    };
    container.commit("b", &[BlockRef::Latest(id)], &options).await?;
    same!(c.read("b").await?, b"2");
    container
        .set_metadata("b", &Metadata::new(), &with(&lease))
        .await?;
    container.delete("b", &with(&lease)).await?;
    Ok(())
}

pub(crate) async fn renew_release_break(c: &Context) -> Result<()> {
    let container = c.container()?;
    let put = c.put("b", b"1").await?;
    let lease = container.acquire_lease("b", None).await?;
    container.renew_lease("b", &lease).await?;
    let wrong = container
        .renew_lease("b", "11111111-2222-3333-4444-555555555555")
        .await;
    same!(
        c.ended("renew with another id", &wrong),
        "LeaseConflict LeaseIdMismatchWithLeaseOperation"
    );
    // A lease is no new version.
    same!(container.head("b", &Condition::none()).await?.etag, put.etag);
    container.release_lease("b", &lease).await?;
    let again = container.release_lease("b", &lease).await;
    let ended = c.ended("release again", &again);
    same!(ended, "LeaseConflict LeaseIdMismatchWithLeaseOperation");
    container.acquire_lease("b", Some(15)).await?;
    container.break_lease("b").await?;
    c.put("b", b"2").await?;
    let given = container.set_metadata("b", &Metadata::new(), &with(&lease)).await;
    same!(
        c.ended("an id without a lease", &given),
        "LeaseConflict LeaseNotPresentWithBlobOperation"
    );
    Ok(())
}

pub(crate) async fn only_one(c: &Context) -> Result<()> {
    let container = c.container()?;
    c.put("b", b"1").await?;
    container.acquire_lease("b", Some(60)).await?;
    let second = container.acquire_lease("b", Some(60)).await;
    same!(c.ended("second", &second), "LeaseConflict LeaseAlreadyPresent");
    let none = container.acquire_lease("none", Some(60)).await;
    same!(c.ended("no blob", &none), "BlobNotFound");
    Ok(())
}
