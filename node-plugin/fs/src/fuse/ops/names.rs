//! Requests on names: lookup, and what makes, takes away or moves them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use fuser::{RenameFlags, ReplyData, ReplyEmpty, ReplyEntry, Request};

use crate::errno::Result;
use crate::fuse::call::Call;
use crate::fuse::dispatch::{Adapter, not_taken};
use crate::fuse::replies::{empty, errno, owner, reply_entry};
use crate::observer::Operation;
use crate::tree::{NodeId, Replace};

impl Adapter {
    pub(in crate::fuse) fn on_lookup(&self, parent: NodeId, name: &OsStr, reply: ReplyEntry) {
        let call = Call::at(Operation::Lookup, parent, name);
        self.guard(call, |this, call| {
            match this.now(&call, |tree| tree.lookup_now(parent, name)) {
                Some(known) => reply_entry(reply, known),
                None => {
                    let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
                    this.spawn_or_undo(
                        call,
                        async move { tree.lookup(parent, &name).await },
                        |outcome| reply_entry(reply, outcome),
                        not_taken(&this.tree),
                    );
                }
            }
        });
    }

    pub(in crate::fuse) fn on_readlink(&self, node: NodeId, reply: ReplyData) {
        let answer = |reply: ReplyData, outcome: Result<Arc<[u8]>>| match outcome {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        };
        self.guard(Call::on(Operation::Readlink, node), |this, call| {
            match this.now(&call, |tree| tree.readlink_now(node)) {
                Some(known) => answer(reply, known),
                None => {
                    let tree = Arc::clone(&this.tree);
                    this.spawn(call, async move { tree.readlink(node).await }, move |outcome| {
                        answer(reply, outcome)
                    });
                }
            }
        });
    }

    pub(in crate::fuse) fn on_mknod(
        &self,
        req: &Request,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let owner = owner(req);
        self.guard(Call::at(Operation::Mknod, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let operation = async move { tree.mknod(parent, &name, mode, owner).await };
            this.make(call, req.unique().0, operation, reply);
        });
    }

    pub(in crate::fuse) fn on_mkdir(
        &self,
        req: &Request,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let owner = owner(req);
        self.guard(Call::at(Operation::Mkdir, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let operation = async move { tree.mkdir(parent, &name, mode, owner).await };
            this.make(call, req.unique().0, operation, reply);
        });
    }

    pub(in crate::fuse) fn on_symlink(
        &self,
        req: &Request,
        parent: NodeId,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let owner = owner(req);
        self.guard(Call::at(Operation::Symlink, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let target = target.as_os_str().as_bytes().to_vec();
            let operation = async move { tree.symlink(parent, &name, &target, owner).await };
            this.make(call, req.unique().0, operation, reply);
        });
    }

    pub(in crate::fuse) fn on_unlink(&self, req: &Request, parent: NodeId, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Call::at(Operation::Unlink, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let operation = async move { tree.unlink(parent, &name).await };
            this.once(call, req.unique().0, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_rmdir(&self, req: &Request, parent: NodeId, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Call::at(Operation::Rmdir, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let operation = async move { tree.rmdir(parent, &name).await };
            this.once(call, req.unique().0, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_rename(
        &self,
        req: &Request,
        (parent, name): (NodeId, &OsStr),
        (new_parent, new_name): (NodeId, &OsStr),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = if flags.is_empty() {
            Replace::Yes
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Replace::No
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Replace::Exchange
        } else {
            let call = Call::at(Operation::Rename, parent, name).to(new_parent, new_name);
            return self.refuse(&call, libc::EINVAL, |errno| reply.error(errno));
        };
        let call = Call::at(Operation::Rename, parent, name).to(new_parent, new_name);
        self.guard(call, |this, call| {
            let tree = Arc::clone(&this.tree);
            let (name, new_name) = (name.to_owned(), new_name.to_owned());
            let operation = async move { tree.rename(parent, &name, new_parent, &new_name, replace).await };
            this.once(call, req.unique().0, operation, empty(reply));
        });
    }
}
