//! Conditional requests: what guards a writer against another.

use anyhow::Result;
use blob_client::{BlockId, BlockRef, Condition, ETag, Metadata, PutOptions, StageOptions};

use crate::context::{Context, bytes_body, kind};
use crate::same;

fn with(condition: Condition) -> PutOptions {
    PutOptions {
        condition,
        ..PutOptions::default()
    }
}

fn none_match(etag: &ETag) -> Condition {
    Condition {
        if_none_match: Some(etag.clone()),
        ..Condition::default()
    }
}

pub(crate) async fn put(c: &Context) -> Result<()> {
    let container = c.container()?;
    let absent = with(Condition::absent());
    let first = container.put("b", bytes_body(b"1"), &absent).await?;
    let again = container.put("b", bytes_body(b"2"), &absent).await;
    same!(c.ended("absent, but there", &again), "AlreadyExists");
    let second = container
        .put("b", bytes_body(b"3"), &with(Condition::matches(&first.etag)))
        .await?;
    let stale = container
        .put("b", bytes_body(b"4"), &with(Condition::matches(&first.etag)))
        .await;
    same!(c.ended("stale", &stale), "ConditionNotMet");
    let unchanged = container
        .put("b", bytes_body(b"5"), &with(none_match(&second.etag)))
        .await;
    same!(c.ended("unchanged", &unchanged), "ConditionNotMet");
    let gone = container
        .put("none", bytes_body(b"6"), &with(Condition::matches(&first.etag)))
        .await;
    same!(c.ended("nothing there", &gone), "ConditionNotMet");
    same!(c.read("b").await?, b"3");
    Ok(())
}

pub(crate) async fn commit(c: &Context) -> Result<()> {
    let container = c.container()?;
    let id = BlockId(b"a".to_vec());
    let list = [BlockRef::Latest(id.clone())];
    container
        .stage("b", &id, bytes_body(b"1"), &StageOptions::default())
        .await?;
    let first = container.commit("b", &list, &with(Condition::absent())).await?;
    container
        .stage("b", &id, bytes_body(b"2"), &StageOptions::default())
        .await?;
    let again = container.commit("b", &list, &with(Condition::absent())).await;
    same!(c.ended("absent, but there", &again), "AlreadyExists");
    let second = container
        .commit("b", &list, &with(Condition::matches(&first.etag)))
        .await?;
    container
        .stage("b", &id, bytes_body(b"3"), &StageOptions::default())
        .await?;
    let stale = container
        .commit("b", &list, &with(Condition::matches(&first.etag)))
        .await;
    same!(c.ended("stale", &stale), "ConditionNotMet");
    // The refused commit left both the version and the staged block alone.
    same!(c.read("b").await?, b"2");
    container
        .commit("b", &list, &with(Condition::matches(&second.etag)))
        .await?;
    same!(c.read("b").await?, b"3");
    container.delete("b", &Condition::none()).await?;
    container
        .stage("b", &id, bytes_body(b"4"), &StageOptions::default())
        .await?;
    let gone = container
        .commit("b", &list, &with(Condition::matches(&second.etag)))
        .await;
    same!(c.ended("deleted meanwhile", &gone), "ConditionNotMet");
    Ok(())
}

pub(crate) async fn get_and_head(c: &Context) -> Result<()> {
    let container = c.container()?;
    let old = c.put("b", b"old").await?;
    let new = c.put("b", b"new").await?;
    for (what, condition, wanted) in [
        ("match", Condition::matches(&new.etag), "ok"),
        ("stale", Condition::matches(&old.etag), "ConditionNotMet"),
        ("changed", none_match(&old.etag), "ok"),
        ("unchanged", none_match(&new.etag), "NotModified"),
    ] {
        let get = container.get("b", 0..3, &condition, c.buffer(3)?).await;
        same!(c.ended(what, &get), wanted);
        same!(c.ended(what, &container.head("b", &condition).await), wanted);
    }
    Ok(())
}

pub(crate) async fn set_metadata_and_delete(c: &Context) -> Result<()> {
    let container = c.container()?;
    let old = c.put("b", b"x").await?;
    let metadata = Metadata::from([("k".into(), "v".into())]);
    let new = container
        .set_metadata("b", &metadata, &Condition::matches(&old.etag))
        .await?;
    let stale = container
        .set_metadata("b", &Metadata::new(), &Condition::matches(&old.etag))
        .await;
    same!(c.ended("set metadata", &stale), "ConditionNotMet");
    let stale = container.delete("b", &Condition::matches(&old.etag)).await;
    same!(c.ended("delete", &stale), "ConditionNotMet");
    container.delete("b", &Condition::matches(&new.etag)).await?;
    let gone = container.delete("b", &Condition::matches(&new.etag)).await;
    c.wants_but(
        "delete again",
        kind(&gone),
        "BlobNotFound",
        "ConditionNotMet",
        "Azurite looks at If-Match before it looks whether the blob is there",
    )?;
    Ok(())
}
