//! Whole blobs: put, get, head, delete, metadata, names.

use anyhow::{Result, ensure};
use blob_client::{BlobType, Condition, ListItem, ListOptions, Metadata, PutOptions, StoredHeaders};

use crate::context::{Context, bytes_body};
use crate::same;

pub(crate) async fn put_get_head(c: &Context) -> Result<()> {
    let container = c.container()?;
    for len in [1usize, 511, 4096, 65_537, 3 << 20] {
        let name = format!("blob {len}");
        let body: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let written = c.put(&name, &body).await?;
        let head = container.head(&name, &Condition::none()).await?;
        same!(head.etag, written.etag);
        same!(head.last_modified, written.last_modified);
        same!(head.content_length, len as u64);
        same!(head.blob_type, BlobType::Block);
        same!(head.metadata, Metadata::new());
        ensure!(c.read(&name).await? == body, "{len} bytes read back differ");
    }
    Ok(())
}

pub(crate) async fn ranges(c: &Context) -> Result<()> {
    let body: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    let written = c.put("b", &body).await?;
    let container = c.container()?;
    for (start, end) in [
        (0u64, 1u64),
        (0, 1000),
        (1, 999),
        (999, 1000),
        (990, 2000),
        (1000, 1001),
        (5000, 6000),
    ] {
        let len = (end - start) as usize;
        let got = container
            .get("b", start..end, &Condition::none(), c.buffer(len)?)
            .await?;
        let from = start.min(1000) as usize;
        let to = end.min(1000) as usize;
        ensure!(
            got.buffer[..] == body[from..to],
            "{start}..{end}: {} bytes",
            got.buffer.len()
        );
        same!(got.properties.content_length, 1000);
        same!(got.properties.etag, written.etag);
    }
    Ok(())
}

pub(crate) async fn empty_blob(c: &Context) -> Result<()> {
    c.put("empty", b"").await?;
    let container = c.container()?;
    same!(
        container.head("empty", &Condition::none()).await?.content_length,
        0
    );
    let got = container
        .get("empty", 0..10, &Condition::none(), c.buffer(10)?)
        .await?;
    same!(got.buffer.len(), 0);
    let list = container.block_list("empty").await?;
    same!(
        (list.committed.len(), list.uncommitted.len(), list.content_length),
        (0, 0, 0)
    );
    Ok(())
}

pub(crate) async fn overwrite(c: &Context) -> Result<()> {
    let first = c.put("b", b"first").await?;
    let second = c.put("b", b"second, longer").await?;
    ensure!(first.etag != second.etag, "a new version has a new ETag");
    same!(c.read("b").await?, b"second, longer");
    Ok(())
}

pub(crate) async fn metadata(c: &Context) -> Result<()> {
    let container = c.container()?;
    let metadata = Metadata::from([
        ("mode".into(), "0644".into()),
        ("user_x".into(), "a b=c; d".into()),
        // Signed in the order of a collation, not of bytes: another rule than the service's makes another
        // signature.
        ("a_b".into(), "1".into()),
        ("a1".into(), "2".into()),
        ("ab".into(), "3".into()),
    ]);
    let options = PutOptions {
        metadata: metadata.clone(),
        ..PutOptions::default()
    };
    let put = container.put("b", bytes_body(b"x"), &options).await?;
    same!(container.head("b", &Condition::none()).await?.metadata, metadata);
    let other = Metadata::from([("only".into(), "this".into())]);
    let set = container.set_metadata("b", &other, &Condition::none()).await?;
    ensure!(set.etag != put.etag, "Set Blob Metadata makes a version");
    let head = container.head("b", &Condition::none()).await?;
    same!(
        (head.metadata, head.etag, head.content_length),
        (other, set.etag, 1)
    );
    // A plain write replaces metadata too.
    c.put("b", b"y").await?;
    same!(
        container.head("b", &Condition::none()).await?.metadata,
        Metadata::new()
    );
    Ok(())
}

pub(crate) async fn missing(c: &Context) -> Result<()> {
    let container = c.container()?;
    let none = Condition::none();
    same!(c.ended("head", &container.head("b", &none).await), "BlobNotFound");
    let get = container.get("b", 0..1, &none, c.buffer(1)?).await;
    same!(c.ended("get", &get), "BlobNotFound");
    same!(
        c.ended("delete", &container.delete("b", &none).await),
        "BlobNotFound"
    );
    let set = container.set_metadata("b", &Metadata::new(), &none).await;
    same!(c.ended("set metadata", &set), "BlobNotFound");
    same!(
        c.ended("block list", &container.block_list("b").await),
        "BlobNotFound"
    );
    Ok(())
}

pub(crate) async fn delete(c: &Context) -> Result<()> {
    let container = c.container()?;
    c.put("b", b"x").await?;
    container.delete("b", &Condition::none()).await?;
    same!(
        c.ended("head", &container.head("b", &Condition::none()).await),
        "BlobNotFound"
    );
    c.put("b", b"y").await?;
    same!(c.read("b").await?, b"y");
    Ok(())
}

pub(crate) async fn names(c: &Context) -> Result<()> {
    let container = c.container()?;
    let mut names = vec![
        "plain",
        "with space",
        "per%cent",
        "per%20cent",
        "plus+plus",
        "quote'quote\"",
        "amp&lt<gt>",
        "question?mark#hash",
        "semi;colon:at@eq=",
        "ümlaut/日本語/🙂",
        "a/b/c.txt",
        "tilde~dash-under_score.",
        "brackets[1]{2}(3)!$*,",
        "caret^pipe|grave`",
    ];
    for name in &names {
        container
            .put(name, bytes_body(name.as_bytes()), &PutOptions::default())
            .await?;
    }
    for name in &names {
        ensure!(
            c.read(name).await? == name.as_bytes(),
            "{name:?} read back differs"
        );
    }
    let page = container.list(&ListOptions::default()).await?;
    let listed: Vec<&str> = page
        .items
        .iter()
        .map(|item| match item {
            ListItem::Blob { name, .. } | ListItem::Prefix { name } => name.as_str(),
        })
        .collect();
    names.sort_unstable();
    if c.differs(
        "Azurite orders by UTF-16 code units and case-insensitively in places; order is checked on \
                  the store only",
    ) {
        let mut listed = listed;
        listed.sort_unstable();
        same!(listed, names);
    } else {
        same!(listed, names);
    }
    Ok(())
}

pub(crate) async fn content_type(c: &Context) -> Result<()> {
    let container = c.container()?;
    c.put("default", b"x").await?;
    let head = container.head("default", &Condition::none()).await?;
    same!(head.stored.content_type(), "application/octet-stream");
    let options = PutOptions {
        stored: Some(StoredHeaders::of_type("text/x-test; charset=utf-8")?),
        ..PutOptions::default()
    };
    container.put("given", bytes_body(b"x"), &options).await?;
    let head = container.head("given", &Condition::none()).await?;
    same!(head.stored.content_type(), "text/x-test; charset=utf-8");
    Ok(())
}
