//! New entries that are stored at once: directories, links, FIFOs, sockets, mknod'ed files. And reading
//! links.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::{Body, Condition, Error, PutOptions, StoredHeaders};
use bytes::Bytes;

use super::attrs::{self, Attrs, ContentOf, Kind};
use super::core::Tree;
use super::lookup::Entry;
use super::names;
use super::node::{Marker, NodeId, State};
use crate::content::binding::Digest;
use crate::errno::{Errno, NAME_GONE, NOT_MADE, Result, because, fail, fail_because};

/// Longest target of a symbolic link (`PATH_MAX`, with the NUL that is not stored).
const MAX_TARGET: usize = 4095;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Tree {
    /// Attributes of something new in a directory. With set-group-id there, the group is the directory's,
    /// unless the mount says whose everything is.
    pub(super) fn new_attrs(&self, parent: NodeId, kind: Kind, mode: u32, owner: Owner) -> Result<Attrs> {
        let directory = self.node(parent)?;
        let state = directory.state();
        let directory_mode = state.attrs.mode.unwrap_or(self.defaults.dir_mode);
        let inherits = directory_mode & libc::S_ISGID != 0;
        let group = if inherits {
            state.attrs.gid.unwrap_or(self.defaults.gid)
        } else {
            owner.gid
        };
        let ownership = &self.config.ownership;
        let inherited = if inherits && kind == Kind::Directory {
            libc::S_ISGID
        } else {
            0
        };
        let mode = if kind == Kind::Symlink {
            0o777
        } else {
            ownership.mode(kind == Kind::Directory, mode & 0o7777) | inherited
        };
        Ok(Attrs {
            mode: Some(mode),
            uid: Some(ownership.uid.unwrap_or(owner.uid)),
            gid: Some(ownership.gid.unwrap_or(group)),
            ..Attrs::default()
        })
    }

    /// mkdir(2): writes the marker.
    pub(crate) async fn mkdir(&self, parent: NodeId, name: &OsStr, mode: u32, owner: Owner) -> Result<Entry> {
        self.put_entry(parent, name, Kind::Directory, mode, owner, Bytes::new())
            .await
    }

    /// mknod(2) of a regular file, FIFO or socket. Devices: `EPERM`, as for every file system that has none.
    pub(crate) async fn mknod(&self, parent: NodeId, name: &OsStr, mode: u32, owner: Owner) -> Result<Entry> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return fail(libc::EPERM),
        };
        self.put_entry(parent, name, kind, mode, owner, Bytes::new())
            .await
    }

    /// symlink(2): a blob whose content is the target.
    pub(crate) async fn symlink(
        &self,
        parent: NodeId,
        name: &OsStr,
        target: &[u8],
        owner: Owner,
    ) -> Result<Entry> {
        if target.len() > MAX_TARGET {
            return fail(libc::ENAMETOOLONG);
        }
        self.put_entry(
            parent,
            name,
            Kind::Symlink,
            0o777,
            owner,
            Bytes::copy_from_slice(target),
        )
        .await
    }

    async fn put_entry(
        &self,
        parent: NodeId,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        owner: Owner,
        content: Bytes,
    ) -> Result<Entry> {
        self.writable()?;
        let name = self.name_in(parent, name)?;
        let _gates = self.gates(parent).await?;
        let blob = {
            let table = self.table.lock();
            if table.child(parent, name).is_some() {
                return fail(libc::EEXIST);
            }
            names::join(&table.blob(parent).ok_or(Errno(libc::ENOENT))?, name)
        };
        names::check_blob(&blob)?;
        let mut attrs = self.new_attrs(parent, kind, mode, owner)?;
        let now = SystemTime::now();
        attrs.mtime = Some(now);
        let target: Option<Arc<[u8]>> = (kind == Kind::Symlink).then(|| content.as_ref().into());
        let size = content.len() as u64;
        let content = Body::from(content);
        let of = ContentOf {
            size,
            digest: Digest::of_whole(&content, size),
        };
        let to_store = Attrs {
            ctime: Some(now),
            ..attrs.clone()
        };
        let metadata = attrs::encode(&to_store, kind, &self.defaults)?;
        let metadata = of.bound(metadata, self.env.store.now());
        let options = PutOptions {
            metadata,
            condition: Condition::absent(),
            // Only files have a content that is of a type.
            stored: (kind != Kind::File).then(StoredHeaders::default),
            content_md5: of.digest.said(),
        };
        let written = match self.env.store.put(&blob, content, &options).await {
            Ok(written) => written,
            Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => {
                self.find(parent, name).await?;
                return fail(libc::EEXIST);
            }
            Err(error) => return Err(error.into()),
        };
        let id = {
            let mut table = self.table.lock();
            if let Some(appeared) = table.child(parent, name) {
                // A listing may have been quicker than the answer to our request.
                let stamp = table.tick();
                let mut state = appeared.state();
                if appeared.kind != kind || state.etag.as_ref() != Some(&written.etag) {
                    return fail(libc::EEXIST);
                }
                state.written(&written, stamp);
                state.target = target;
                drop(state);
                drop(table);
                self.touch(parent);
                return self
                    .entry(appeared.id)
                    .ok_or_else(|| because(libc::EIO, NOT_MADE));
            }
            let mut state = State::fresh(attrs, now);
            state.size = size;
            state.digest = of.digest;
            state.target = target;
            state.marker = if kind == Kind::Directory {
                Marker::Blob
            } else {
                Marker::Implicit
            };
            state.written(&written, 0);
            table.create(parent, name, kind, state).id
        };
        self.touch(parent);
        self.entry(id).ok_or_else(|| because(libc::EIO, NOT_MADE))
    }

    /// Target of a symbolic link, if it is known.
    pub(crate) fn readlink_now(&self, id: NodeId) -> Option<Result<Arc<[u8]>>> {
        let node = match self.node(id) {
            Ok(node) if node.kind == Kind::Symlink => node,
            Ok(_) => return Some(fail(libc::EINVAL)),
            Err(errno) => return Some(Err(errno)),
        };
        let state = node.state();
        let fresh = state.nameless() || state.validated.elapsed() < self.timeouts.attr;
        state.target.clone().filter(|_| fresh).map(Ok)
    }

    /// Target of a symbolic link.
    pub(crate) async fn readlink(&self, id: NodeId) -> Result<Arc<[u8]>> {
        if let Some(known) = self.readlink_now(id) {
            return known;
        }
        let node = self.node(id)?;
        let _gates = self.gates(id).await?;
        let (blob, parent, name, asked) = {
            let table = self.table.lock();
            let link = table.link(id).ok_or_else(|| because(libc::ESTALE, NAME_GONE))?;
            let blob = table.blob(id).ok_or(Errno(libc::ENOENT))?;
            (blob, link.parent, Arc::clone(&link.name), table.ask())
        };
        let buffer = self
            .env
            .arena
            .alloc(MAX_TARGET + 1)
            .map_err(|_| Errno(libc::ENOMEM))?;
        let got = self
            .env
            .store
            .get(&blob, 0..MAX_TARGET as u64 + 1, &Condition::none(), buffer)
            .await?;
        if attrs::kind_of(&got.properties) != Kind::Symlink {
            // Somebody else made something else of it: the name leads to that from now on.
            self.learn_blob(parent, &name, &got.properties, asked);
            // Makes the kernel look again.
            return fail_because(
                libc::ESTALE,
                "the name leads to something that is no link any more",
            );
        }
        if got.properties.content_length > MAX_TARGET as u64 {
            return fail(libc::ENAMETOOLONG);
        }
        // Padding of some tools' links is no part of the path.
        let end = got
            .buffer
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(got.buffer.len());
        let target: Arc<[u8]> = got.buffer[..end].into();
        let mut state = node.state();
        if state.stamp <= asked.stamp {
            state.adopt(&got.properties, asked.at);
        }
        state.target = Some(Arc::clone(&target));
        drop(state);
        self.table.lock().weigh(id);
        Ok(target)
    }
}
