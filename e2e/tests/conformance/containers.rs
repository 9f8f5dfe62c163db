//! Containers.

use anyhow::{Result, ensure};
use blob_client::{Condition, ListOptions, Metadata, PutOptions};

use crate::context::{Context, bytes_body};
use crate::same;

pub(crate) async fn life(c: &Context) -> Result<()> {
    let other = c.other(&c.fresh_name())?;
    let metadata = Metadata::from([("owner".into(), "me".into())]);
    let created = other.create(&metadata).await?;
    same!(
        c.ended("create again", &other.create(&metadata).await),
        "AlreadyExists"
    );
    let (written, got) = other.properties().await?;
    same!((written.etag, got), (created.etag, metadata));
    other.put("b", bytes_body(b"x"), &PutOptions::default()).await?;
    other.delete_container().await?;
    same!(
        c.ended("properties", &other.properties().await),
        "ContainerNotFound"
    );
    same!(
        c.ended("delete", &other.delete_container().await),
        "ContainerNotFound"
    );
    Ok(())
}

pub(crate) async fn metadata_is_replaced(c: &Context) -> Result<()> {
    let container = c.container()?;
    let (before, _) = container.properties().await?;
    let metadata = Metadata::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
    let set = container.set_container_metadata(&metadata, None).await?;
    ensure!(set.etag != before.etag, "a new version");
    let (after, got) = container.properties().await?;
    same!((after.etag.clone(), got), (set.etag, metadata));
    // Blobs do not touch the container's version.
    c.put("b", b"x").await?;
    same!(container.properties().await?.0.etag, after.etag);
    container.set_container_metadata(&Metadata::new(), None).await?;
    same!(container.properties().await?.1, Metadata::new());
    Ok(())
}

pub(crate) async fn missing(c: &Context) -> Result<()> {
    let none = c.other(&c.fresh_name())?;
    let any = Condition::none();
    same!(c.ended("head", &none.head("b", &any).await), "ContainerNotFound");
    let get = none.get("b", 0..1, &any, c.buffer(1)?).await;
    same!(c.ended("get", &get), "ContainerNotFound");
    let put = none.put("b", bytes_body(b"x"), &PutOptions::default()).await;
    same!(c.ended("put", &put), "ContainerNotFound");
    same!(
        c.ended("delete", &none.delete("b", &any).await),
        "ContainerNotFound"
    );
    same!(
        c.ended("list", &none.list(&ListOptions::default()).await),
        "ContainerNotFound"
    );
    let set = none.set_container_metadata(&Metadata::new(), None).await;
    same!(c.ended("set metadata", &set), "ContainerNotFound");
    Ok(())
}
