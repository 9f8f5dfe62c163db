//! List Blobs.

use anyhow::{Result, ensure};
use blob_client::{Condition, ListItem, ListOptions, Metadata, PutOptions, StoredHeaders};

use crate::context::{Context, bytes_body};
use crate::same;

fn show(items: &[ListItem]) -> Vec<String> {
    items
        .iter()
        .map(|item| match item {
            ListItem::Blob { name, .. } => name.clone(),
            ListItem::Prefix { name } => format!("[{name}]"),
        })
        .collect()
}

/// All pages of a listing; every page but the last has `max` entries at most.
async fn all(c: &Context, prefix: &str, delimiter: Option<&str>, max: Option<u32>) -> Result<Vec<String>> {
    let container = c.container()?;
    let mut options = ListOptions {
        prefix: prefix.to_owned(),
        delimiter: delimiter.map(str::to_owned),
        max_results: max,
        ..ListOptions::default()
    };
    let mut out = Vec::new();
    loop {
        let page = container.list(&options).await?;
        ensure!(
            max.is_none_or(|max| page.items.len() <= max as usize),
            "a page is too long"
        );
        out.extend(show(&page.items));
        match page.next_marker {
            None => return Ok(out),
            marker => options.marker = marker,
        }
    }
}

async fn fill(c: &Context, names: &[&str]) -> Result<()> {
    for name in names {
        c.put(name, name.as_bytes()).await?;
    }
    Ok(())
}

const TREE: [&str; 9] = ["a", "a/1", "a/2", "a/b/1", "a0", "b/x", "b/y", "c-d", "c/d"];

/// Prefixes and blobs of one page may come in either order from a client's point of view; names decide.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_by(|a, b| a.trim_matches(['[', ']']).cmp(b.trim_matches(['[', ']'])));
    lines
}

pub(crate) async fn folded(c: &Context) -> Result<()> {
    fill(c, &TREE).await?;
    let top = all(c, "", Some("/"), None).await?;
    same!(sorted(top), ["a", "[a/]", "a0", "[b/]", "c-d", "[c/]"]);
    same!(
        sorted(all(c, "a/", Some("/"), None).await?),
        ["a/1", "a/2", "[a/b/]"]
    );
    same!(sorted(all(c, "a", Some("/"), None).await?), ["a", "[a/]", "a0"]);
    same!(all(c, "a/", None, None).await?, ["a/1", "a/2", "a/b/1"]);
    same!(all(c, "none/", Some("/"), None).await?, [""; 0]);
    Ok(())
}

pub(crate) async fn paged(c: &Context) -> Result<()> {
    fill(c, &TREE).await?;
    for max in [1, 2, 3, 5, 100] {
        same!(all(c, "", None, Some(max)).await?, TREE);
        let folded = all(c, "", Some("/"), Some(max)).await?;
        same!(sorted(folded), ["a", "[a/]", "a0", "[b/]", "c-d", "[c/]"]);
    }
    Ok(())
}

pub(crate) async fn with_metadata(c: &Context) -> Result<()> {
    let container = c.container()?;
    let options = PutOptions {
        metadata: Metadata::from([
            ("mode".into(), "0600".into()),
            ("note".into(), "a <b> & c".into()),
        ]),
        stored: Some(StoredHeaders::of_type("x/y")?),
        ..PutOptions::default()
    };
    container.put("b", bytes_body(b"12345"), &options).await?;
    let head = container.head("b", &Condition::none()).await?;
    for metadata in [true, false] {
        let page = container
            .list(&ListOptions {
                metadata,
                ..ListOptions::default()
            })
            .await?;
        let [ListItem::Blob { properties, .. }] = page.items.as_slice() else {
            anyhow::bail!("one blob expected: {page:?}");
        };
        same!(properties.etag, head.etag);
        same!(properties.last_modified, head.last_modified);
        same!(properties.content_length, 5);
        same!(properties.stored, head.stored);
        let wanted = if metadata {
            options.metadata.clone()
        } else {
            Metadata::new()
        };
        same!(properties.metadata, wanted);
    }
    Ok(())
}

pub(crate) async fn odd_names(c: &Context) -> Result<()> {
    let names = ["a//b", "a/b/", "sp ace/é", "x%2Fy", "x+y", "&<>'\"/z"];
    fill(c, &names).await?;
    let mut listed = all(c, "", None, None).await?;
    listed.sort_unstable();
    let mut wanted: Vec<&str> = names.to_vec();
    wanted.sort_unstable();
    same!(listed, wanted);
    same!(sorted(all(c, "a/", Some("/"), None).await?), ["[a//]", "[a/b/]"]);
    same!(all(c, "a/b/", Some("/"), None).await?, ["a/b/"]);
    same!(all(c, "&<>'\"/", Some("/"), None).await?, ["&<>'\"/z"]);
    same!(all(c, "x+", None, None).await?, ["x+y"]);
    same!(all(c, "x%", None, None).await?, ["x%2Fy"]);
    Ok(())
}

pub(crate) async fn empty(c: &Context) -> Result<()> {
    let page = c.container()?.list(&ListOptions::default()).await?;
    same!((page.items.len(), page.next_marker), (0, None));
    Ok(())
}

pub(crate) async fn prefix_is_no_folder(c: &Context) -> Result<()> {
    fill(c, &["dir", "dir.txt", "dir/a"]).await?;
    same!(all(c, "dir", None, None).await?, ["dir", "dir.txt", "dir/a"]);
    same!(all(c, "dir/", None, None).await?, ["dir/a"]);
    Ok(())
}
