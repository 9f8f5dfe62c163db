//! Mending what [`inspect`](crate::tree::inspect) has found, by the operations of the file system itself.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use crate::config::VolumeConfig;
use crate::content::Env;
use crate::errno::{Errno, Result, fail};
use crate::journal::log::Log;
use crate::tree::inspect::{Finding, clear};
use crate::tree::node::{NodeId, ROOT};
use crate::tree::{Replace, Tree, names};
use crate::volume::Resources;

/// What became of a finding.
#[derive(Debug)]
pub enum Mended {
    /// It is mended.
    Done,
    /// It is left as it is: there is nothing a program may decide, or somebody uses it.
    Left,
    /// It could not be mended.
    Failed(io::Error),
}

/// Mends findings of a volume, one after the other: finishes renames of folders, takes notes off that mean
/// nothing any more, deletes what deleted files held and nobody holds. Files that are not shown stay.
///
/// # Errors
/// None of a finding; only when nothing can be begun with.
pub async fn mend(
    config: VolumeConfig,
    resources: &Resources,
    findings: &[Finding],
) -> io::Result<Vec<Mended>> {
    let (store, prefix) = (Arc::clone(&config.store), config.prefix.clone());
    let env = Env::new(
        Arc::clone(&store),
        Arc::clone(&resources.budget),
        Arc::clone(&resources.arena),
        resources.runtime.clone(),
    );
    let tree = Tree::new(config, env, Arc::new(Log::create()?.charged(&resources.budget)));
    let mut outcomes = Vec::with_capacity(findings.len());
    for finding in findings {
        let outcome = match finding {
            Finding::HalfMoved { from, to } => match finish(&tree, &prefix, from, to).await {
                Ok(()) => Mended::Done,
                Err(errno) => Mended::Failed(errno.into()),
            },
            other => match clear(&*store, &prefix, other).await {
                Ok(true) => Mended::Done,
                Ok(false) => Mended::Left,
                Err(error) => Mended::Failed(io::Error::other(error)),
            },
        };
        outcomes.push(outcome);
    }
    tree.finish().await?;
    Ok(outcomes)
}

/// The rename that was cut off, once more.
async fn finish(tree: &Tree, prefix: &str, from: &str, to: &str) -> Result<()> {
    let (parent, name) = place(tree, prefix, from).await?;
    let (new_parent, new_name) = place(tree, prefix, to).await?;
    tree.rename(
        parent,
        OsStr::new(&name),
        new_parent,
        OsStr::new(&new_name),
        Replace::Yes,
    )
    .await
}

/// Where a folder is: the folder it is in, and its name there.
async fn place(tree: &Tree, prefix: &str, blob: &str) -> Result<(NodeId, String)> {
    let own = blob.strip_prefix(&names::below(prefix)).unwrap_or(blob);
    let own = own.strip_suffix('/').unwrap_or(own);
    let mut parent = ROOT;
    let mut components = own.split('/').peekable();
    while let Some(component) = components.next() {
        let name = names::shown(component, parent == ROOT).ok_or(Errno(libc::ENOENT))?;
        if components.peek().is_none() {
            return Ok((parent, name.into_owned()));
        }
        let entry = tree.lookup(parent, OsStr::new(&*name)).await?;
        parent = entry.stat.ok_or(Errno(libc::ENOENT))?.id;
    }
    fail(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use blob_client::Metadata;
    use vsc_driver::buffer::Arena;

    use super::*;
    use crate::Budget;
    use crate::store::fake::FakeStore;
    use crate::tree::inspect::inspect;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rename_that_was_cut_off_is_finished() {
        let resources = Resources {
            budget: Budget::new(32 << 20),
            arena: Arena::new(64 << 20).unwrap(),
            runtime: tokio::runtime::Handle::current(),
        };
        for prefix in ["", "volumes/one"] {
            let at = |name: &str| names::below(prefix) + name;
            let store = FakeStore::new();
            let folder = metadata(&[("hdi_isfolder", "true"), ("vsc_mode", "700")]);
            let old = store.foreign_put(&at("a/old"), "", folder.clone());
            let mut noted = folder.clone();
            noted.insert("vsc_moved_from".to_owned(), old.etag.0.clone());
            store.foreign_put(&at("b/new"), "", noted);
            // One was copied and its original not deleted yet, one was not copied.
            for blob in ["a/old/1", "b/new/1", "a/old/2"] {
                store.foreign_put(&at(blob), "x", Metadata::new());
            }
            store.foreign_put(&at("c//d"), "x", Metadata::new());
            let findings = inspect(&store, prefix).await.unwrap();
            assert_eq!(findings.len(), 2, "{findings:?}");
            let store = Arc::new(store);
            let mut config = VolumeConfig::new("acct/c", store.clone() as Arc<dyn crate::Store>);
            config.prefix = prefix.to_owned();
            let outcomes = mend(config, &resources, &findings).await.unwrap();
            assert!(
                matches!(
                    (&findings[0], &outcomes[0], &outcomes[1]),
                    (Finding::Unshown { .. }, Mended::Left, Mended::Done)
                ),
                "{outcomes:?}"
            );
            let names = store.names();
            assert_eq!(names, [at("b/new"), at("b/new/1"), at("b/new/2"), at("c//d")]);
            assert_eq!(store.properties(&at("b/new")).unwrap().metadata, folder);
        }
    }
}
