//! Copy Blob inside a container.

use anyhow::{Result, ensure};
use blob_client::{BlockId, BlockRef, Condition, Metadata, PutOptions, StageOptions, StoredHeaders};

use crate::context::{Context, bytes_body};
use crate::same;

pub(crate) async fn keeps_or_replaces_metadata(c: &Context) -> Result<()> {
    let container = c.container()?;
    let options = PutOptions {
        metadata: Metadata::from([("a".into(), "1".into())]),
        stored: Some(StoredHeaders::of_type("x/y")?),
        ..PutOptions::default()
    };
    container
        .put("source ü", bytes_body(b"content"), &options)
        .await?;
    let copied = container
        .copy("source ü", None, None, "dir/target %", None, &Condition::none())
        .await?;
    let head = container.head("dir/target %", &Condition::none()).await?;
    same!(head.etag, copied.etag);
    same!(head.metadata, options.metadata);
    same!(head.stored.content_type(), "x/y");
    same!(c.read("dir/target %").await?, b"content");
    let other = Metadata::from([("b".into(), "2".into())]);
    container
        .copy(
            "source ü",
            None,
            None,
            "dir/target %",
            Some(&other),
            &Condition::none(),
        )
        .await?;
    same!(
        container.head("dir/target %", &Condition::none()).await?.metadata,
        other
    );
    Ok(())
}

pub(crate) async fn onto_itself(c: &Context) -> Result<()> {
    let container = c.container()?;
    let put = c.put("b", b"content").await?;
    let copied = container
        .copy("b", None, None, "b", None, &Condition::none())
        .await?;
    ensure!(copied.etag != put.etag, "a copy is a new version");
    same!(c.read("b").await?, b"content");
    Ok(())
}

pub(crate) async fn conditions(c: &Context) -> Result<()> {
    let container = c.container()?;
    let old = c.put("source", b"1").await?;
    let new = c.put("source", b"2").await?;
    let stale = container
        .copy(
            "source",
            Some(&old.etag),
            None,
            "target",
            None,
            &Condition::none(),
        )
        .await;
    same!(c.ended("stale source", &stale), "ConditionNotMet");
    container
        .copy(
            "source",
            Some(&new.etag),
            None,
            "target",
            None,
            &Condition::absent(),
        )
        .await?;
    let there = container
        .copy("source", None, None, "target", None, &Condition::absent())
        .await;
    same!(c.ended("target there", &there), "AlreadyExists");
    let wrong = container
        .copy(
            "source",
            None,
            None,
            "target",
            None,
            &Condition::matches(&old.etag),
        )
        .await;
    same!(c.ended("stale target", &wrong), "ConditionNotMet");
    same!(c.read("target").await?, b"2");
    Ok(())
}

pub(crate) async fn missing_source(c: &Context) -> Result<()> {
    let container = c.container()?;
    let copy = container
        .copy("none", None, None, "target", None, &Condition::none())
        .await;
    same!(c.ended("copy", &copy), "BlobNotFound");
    let head = container.head("target", &Condition::none()).await;
    same!(c.ended("target", &head), "BlobNotFound");
    Ok(())
}

pub(crate) async fn block_ids_survive(c: &Context) -> Result<()> {
    let container = c.container()?;
    let ids: Vec<BlockId> = (0..3u8).map(|i| BlockId(vec![b'a' + i])).collect();
    for id in &ids {
        container
            .stage("source", id, bytes_body(&id.0), &StageOptions::default())
            .await?;
    }
    let blocks: Vec<BlockRef> = ids.iter().cloned().map(BlockRef::Latest).collect();
    container
        .commit("source", &blocks, &PutOptions::default())
        .await?;
    container
        .copy("source", None, None, "target", None, &Condition::none())
        .await?;
    let list = container.block_list("target").await?;
    same!(list.content_length, 3);
    same!(list.committed, container.block_list("source").await?.committed);
    // So a copy can be edited block by block.
    container
        .stage("target", &ids[1], bytes_body(b"B"), &StageOptions::default())
        .await?;
    container
        .commit("target", &blocks, &PutOptions::default())
        .await?;
    same!(c.read("target").await?, b"aBc");
    same!(c.read("source").await?, b"abc");
    Ok(())
}
