//! Files that are open for reading while somebody else changes their blob: as long as the content is the
//! same, or begins with what it was, the node goes along, with its number and its handles.

use std::borrow::Cow;

use blob_client::Properties;
use futures::stream::StreamExt;

use super::core::Tree;
use super::node::NodeId;

/// Blobs of one answer that are looked at at once.
const PARALLEL: usize = 8;

impl Tree {
    /// Before an answer about a name is taken over: lets the content that handles have open follow the blob.
    /// What does not follow gets a node of its own when the answer is taken over.
    pub(super) async fn follow(&self, parent: NodeId, name: &str, properties: &Properties) {
        self.follow_all(parent, [(Cow::Borrowed(name), properties)]).await;
    }

    /// The same for many names.
    pub(super) async fn follow_all<'a>(
        &self,
        parent: NodeId,
        answers: impl IntoIterator<Item = (Cow<'a, str>, &'a Properties)>,
    ) {
        let changed: Vec<_> = {
            let table = self.table.lock();
            let open = answers.into_iter().filter_map(|(name, properties)| {
                let node = table.child(parent, &name)?;
                let state = node.state();
                let behind = !state.local() && state.superseded_by(&properties.etag);
                Some((state.content.clone().filter(|_| behind)?, properties))
            });
            open.collect()
        };
        futures::stream::iter(changed)
            .for_each_concurrent(PARALLEL, |(content, properties)| async move {
                if let Err(error) = content.follow(properties.clone()).await {
                    tracing::debug!(%error, "whether an open file is still the same is not known");
                }
            })
            .await;
    }
}
