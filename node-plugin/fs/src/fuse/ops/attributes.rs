//! Requests on attributes, plain and extended.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use fuser::{ReplyAttr, ReplyEmpty, ReplyXattr};

use crate::fuse::call::Call;
use crate::fuse::dispatch::Adapter;
use crate::fuse::replies::{empty, reply_attr, reply_xattr};
use crate::observer::Operation;
use crate::tree::{NodeId, SetAttr};

impl Adapter {
    pub(in crate::fuse) fn on_getattr(&self, node: NodeId, fh: Option<u64>, reply: ReplyAttr) {
        self.guard(Call::on(Operation::Getattr, node), |this, call| {
            // The kernel names the handle when it reads and wants to know where the file ends.
            let handle = fh.and_then(|fh| this.tree.handle(fh).ok());
            let known = this.now(&call, |tree| match &handle {
                Some(handle) => Some(Ok(tree.getattr_open(handle))),
                None => tree.getattr_now(node),
            });
            match known {
                Some(known) => reply_attr(reply, known),
                None => {
                    let tree = Arc::clone(&this.tree);
                    this.spawn(call, async move { tree.getattr(node).await }, |outcome| {
                        reply_attr(reply, outcome)
                    });
                }
            }
        });
    }

    pub(in crate::fuse) fn on_setattr(&self, node: NodeId, set: SetAttr, reply: ReplyAttr) {
        self.guard(Call::on(Operation::Setattr, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            this.spawn(call, async move { tree.setattr(node, set).await }, |outcome| {
                reply_attr(reply, outcome)
            });
        });
    }

    pub(in crate::fuse) fn on_setxattr(
        &self,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let call = Call::on(Operation::Setxattr, node).with_bytes(value.len());
        self.guard(call, |this, call| {
            let (tree, name, value) = (Arc::clone(&this.tree), name.to_owned(), value.to_vec());
            let operation = async move { tree.setxattr(node, &name, &value, flags).await };
            this.spawn(call, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_getxattr(&self, node: NodeId, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guard(Call::on(Operation::Getxattr, node), |this, call| {
            match this.now(&call, |tree| tree.getxattr_now(node, name)) {
                Some(known) => reply_xattr(reply, size, known),
                None => {
                    let (tree, name): (_, OsString) = (Arc::clone(&this.tree), name.to_owned());
                    let operation = async move { tree.getxattr(node, &name).await };
                    this.spawn(call, operation, move |outcome| reply_xattr(reply, size, outcome));
                }
            }
        });
    }

    pub(in crate::fuse) fn on_listxattr(&self, node: NodeId, size: u32, reply: ReplyXattr) {
        self.guard(Call::on(Operation::Listxattr, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.listxattr(node).await };
            this.spawn(call, operation, move |outcome| reply_xattr(reply, size, outcome));
        });
    }

    pub(in crate::fuse) fn on_removexattr(&self, node: NodeId, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Call::on(Operation::Removexattr, node), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let operation = async move { tree.removexattr(node, &name).await };
            this.spawn(call, operation, empty(reply));
        });
    }
}
