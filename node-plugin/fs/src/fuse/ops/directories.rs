//! Requests on open directories.

use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen};

use crate::fuse::call::Call;
use crate::fuse::dispatch::Adapter;
use crate::fuse::replies::{errno, fill, fill_plus};
use crate::observer::Operation;
use crate::tree::NodeId;

impl Adapter {
    pub(in crate::fuse) fn on_opendir(&self, node: NodeId, reply: ReplyOpen) {
        self.guard(Call::on(Operation::Opendir, node), |this, call| {
            match this.now(&call, |tree| Some(tree.opendir(node))) {
                Some(Ok(fh)) => reply.opened(FileHandle(fh), FopenFlags::empty()),
                Some(Err(e)) => reply.error(errno(e)),
                None => reply.error(fuser::Errno::EIO),
            }
        });
    }

    pub(in crate::fuse) fn on_readdir(&self, node: NodeId, fh: u64, offset: u64, mut reply: ReplyDirectory) {
        self.guard(Call::on(Operation::Readdir, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.readdir(fh, offset).await };
            this.spawn(call, operation, |outcome| match outcome {
                Ok(listed) => {
                    fill(&listed, &mut reply);
                    reply.ok();
                }
                Err(e) => reply.error(errno(e)),
            });
        });
    }

    pub(in crate::fuse) fn on_readdirplus(
        &self,
        node: NodeId,
        fh: u64,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard(Call::on(Operation::Readdirplus, node), |this, call| {
            let (tree, table) = (Arc::clone(&this.tree), Arc::clone(&this.tree));
            let operation = async move { tree.readdir(fh, offset).await };
            this.spawn(call, operation, move |outcome| match outcome {
                Ok(listed) => {
                    fill_plus(&table, node, &listed, &mut reply);
                    reply.ok();
                }
                Err(e) => reply.error(errno(e)),
            });
        });
    }
}
