//! RENAME_EXCHANGE.

use std::sync::Arc;
use std::time::SystemTime;

use super::load::Try;
use super::place::{Moved, Place};
use crate::caller::undoing;
use crate::errno::{Result, fail};
use crate::log_limit::limited;
use crate::tree::attrs::Kind;
use crate::tree::core::Tree;
use crate::tree::names;
use crate::tree::node::Node;

impl Tree {
    /// RENAME_EXCHANGE through a third name: at every moment each content is stored somewhere, and shown.
    pub(super) async fn exchange(
        &self,
        a: &Place<'_>,
        node: &Arc<Node>,
        b: &Place<'_>,
        target: &Arc<Node>,
    ) -> Result<()> {
        let (blob, new_blob) = self.blobs(node, b)?;
        for (node, blob) in [(node, &blob), (target, &new_blob)] {
            if node.kind == Kind::Directory {
                self.within_limit(blob).await?;
            }
        }
        let third = names::join(&self.config.prefix, &names::exchange());
        self.move_any(node, &blob, &third).await?;
        if let Err(errno) = self.move_any(target, &new_blob, &blob).await {
            let _ = undoing(self.step_back(node, &third, &blob)).await;
            return Err(errno);
        }
        if let Err(errno) = self.move_any(node, &third, &new_blob).await {
            undoing(async {
                if self.step_back(target, &blob, &new_blob).await.is_ok() {
                    let _ = self.step_back(node, &third, &blob).await;
                }
            })
            .await;
            return Err(errno);
        }
        self.table.lock().exchange(a.parent, a.name, b.parent, b.name);
        target.renamed(SystemTime::now());
        Ok(())
    }

    /// Undoes a step of an exchange, unless that would overwrite something: a step that failed may have been
    /// carried out all the same.
    async fn step_back(&self, node: &Arc<Node>, from: &str, to: &str) -> Result<()> {
        let undone = match self.ask(to).await {
            Ok((None, false)) => self.move_any(node, from, to).await,
            Ok(_) => fail(libc::EEXIST),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = undone {
            limited!(
                error, self.volume(), "an exchange failed half-way and could not be undone",
                %errno, stored = from, belongs = to
            );
        }
        undone
    }

    async fn move_any(&self, node: &Arc<Node>, from: &str, to: &str) -> Result<()> {
        if node.kind == Kind::Directory {
            return done(
                self.move_directory(node, from, to, Try::First, usize::MAX)
                    .await?,
            );
        }
        // Even a file that was never committed: the names of both blobs change, so both must be there.
        if node.state().uncommitted() {
            self.commit_changing(node).await?;
        }
        done(self.move_file(node, from, to, None).await?)
    }
}

/// The place was free a moment ago: whoever took it keeps it.
fn done(moved: Moved) -> Result<()> {
    match moved {
        Moved::Done => Ok(()),
        Moved::Again => fail(libc::EBUSY),
    }
}
