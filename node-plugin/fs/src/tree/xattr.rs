//! Extended attributes: the `user.` namespace, kept in blob metadata.
//!
//! Other namespaces say `ENOTSUP`: `security.` and `trusted.` are claims that a blob, which anybody with the
//! key can write, cannot make, and POSIX ACLs are not kept.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use super::attrs::Attrs;
use super::core::Tree;
use super::node::NodeId;
use crate::content::binding::MAX_METADATA;
use crate::errno::{Errno, Result, fail};

const USER: &[u8] = b"user.";

fn user_name(name: &OsStr) -> Result<&[u8]> {
    match name.as_bytes().strip_prefix(USER) {
        Some([]) => fail(libc::EINVAL),
        Some(name) => Ok(name),
        None => fail(libc::EOPNOTSUPP),
    }
}

impl Tree {
    /// setxattr(2).
    pub(crate) async fn setxattr(&self, id: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.writable()?;
        let name = user_name(name)?.to_vec();
        if value.len() > MAX_METADATA {
            return fail(libc::E2BIG);
        }
        let node = self.node(id)?;
        let value = value.to_vec();
        let change = move |attrs: &mut Attrs| {
            let exists = attrs.xattrs.contains_key(&name);
            if exists && flags & libc::XATTR_CREATE != 0 {
                return fail(libc::EEXIST);
            }
            if !exists && flags & libc::XATTR_REPLACE != 0 {
                return fail(libc::ENODATA);
            }
            attrs.xattrs.insert(name.clone(), value.clone());
            Ok(())
        };
        if self.changes_nothing(&node, false, &change).await? {
            node.state().ctime = SystemTime::now();
            return Ok(());
        }
        self.fresh(id).await?;
        self.change_attrs(&node, &change).await?;
        self.table.lock().weigh(id);
        Ok(())
    }

    /// removexattr(2).
    pub(crate) async fn removexattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let name = user_name(name)?.to_vec();
        let node = self.node(id)?;
        self.fresh(id).await?;
        self.change_attrs(&node, &move |attrs: &mut Attrs| {
            attrs.xattrs.remove(&name).map(|_| ()).ok_or(Errno(libc::ENODATA))
        })
        .await
    }

    /// getxattr(2), if nothing has to be asked.
    pub(crate) fn getxattr_now(&self, id: NodeId, name: &OsStr) -> Option<Result<Vec<u8>>> {
        let name = match user_name(name) {
            Ok(name) => name,
            Err(errno) => return Some(Err(errno)),
        };
        self.getattr_now(id)?
            .err()
            .map(Err)
            .or_else(|| Some(self.xattr(id, name)))
    }

    /// getxattr(2).
    pub(crate) async fn getxattr(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let name = user_name(name)?;
        self.fresh(id).await?;
        self.xattr(id, name)
    }

    /// listxattr(2): names, each with its NUL.
    pub(crate) async fn listxattr(&self, id: NodeId) -> Result<Vec<u8>> {
        self.fresh(id).await?;
        let node = self.node(id)?;
        let state = node.state();
        Ok(state
            .attrs
            .xattrs
            .keys()
            .flat_map(|name| [USER, name, b"\0"].concat())
            .collect())
    }

    fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        let state = node.state();
        state.attrs.xattrs.get(name).cloned().ok_or(Errno(libc::ENODATA))
    }

    async fn fresh(&self, id: NodeId) -> Result<()> {
        self.getattr(id).await.map(|_| ())
    }
}
