//! Attribute changes: with the next commit where there is going to be one, at once otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use blob_client::{Condition, Error, Properties};

use super::attrs::{self, Attrs, ContentOf, Kind};
use super::busy::Busy;
use super::core::Tree;
use super::node::{Debt, Life, Marker, Node, NodeId, ROOT, Stat, State};
use super::table::Found;
use crate::caller::still_waits;
use crate::errno::{Errno, Result, fail, fail_because, no_answer};
use crate::log_limit::limited;

/// How often a change is repeated on top of somebody else's before giving up.
const ATTEMPTS: usize = 5;

/// The shortest lease there is, in seconds: it is given back at once, unless this process dies.
const ROOT_LEASE: u32 = 15;
/// Between two tries to get it.
const ROOT_LEASE_AGAIN: Duration = Duration::from_millis(100);

/// A time to set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetTime {
    Now,
    To(SystemTime),
}

impl SetTime {
    fn resolve(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Now => now,
            Self::To(time) => time,
        }
    }
}

/// What setattr is asked to change.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SetAttr {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<SetTime>,
    pub(crate) mtime: Option<SetTime>,
    /// Handle it was asked through.
    pub(crate) fh: Option<u64>,
    /// The caller is not root: changes of content drop set-user-id.
    pub(crate) kill: bool,
}

impl Tree {
    /// Changes attributes and answers the new ones.
    pub(crate) async fn setattr(&self, id: NodeId, set: SetAttr) -> Result<(Stat, Duration)> {
        self.writable()?;
        let node = self.node(id)?;
        if let Some(size) = set.size {
            match set.fh {
                Some(fh) if self.handle(fh).is_ok_and(|h| h.writes) => {
                    self.truncate_handle(fh, size, set.kill).await?
                }
                _ => self.truncate(id, size, set.kill).await?,
            }
        }
        let now = SystemTime::now();
        let owner = set.uid.is_some() || set.gid.is_some();
        if set.mode.is_some() || owner || set.atime.is_some() || set.mtime.is_some() {
            let (kind, defaults) = (node.kind, self.defaults);
            let change = move |attrs: &mut Attrs| {
                if owner && kind != Kind::Directory {
                    // As Linux does for every caller: whoever gets a file does not get the rights of who had
                    // it.
                    let mode = attrs.mode.unwrap_or(defaults.mode(kind));
                    let group = if mode & libc::S_IXGRP != 0 {
                        libc::S_ISGID
                    } else {
                        0
                    };
                    if mode & (libc::S_ISUID | group) != 0 {
                        attrs.mode = Some(mode & !(libc::S_ISUID | group));
                    }
                }
                if let Some(mode) = set.mode {
                    attrs.mode = Some(mode & 0o7777);
                }
                attrs.uid = set.uid.or(attrs.uid);
                attrs.gid = set.gid.or(attrs.gid);
                attrs.atime = set.atime.map(|t| t.resolve(now)).or(attrs.atime);
                attrs.mtime = set.mtime.map(|t| t.resolve(now)).or(attrs.mtime);
                Ok(())
            };
            if self.changes_nothing(&node, set.mtime.is_some(), &change).await? {
                node.state().ctime = now;
                return Ok(self.stat(&node));
            }
            self.change_attrs(&node, &change).await?;
            if set.mtime.is_some() {
                node.state().entries_changed = None;
            }
        } else if set.size.is_none() {
            // chown(-1, -1) and the like: only the change time.
            node.state().ctime = now;
        }
        Ok(self.stat(&node))
    }

    /// True when attributes are already what they are to become. Where this mount does not answer for them,
    /// the service is asked first. Of a change that cannot be made it says false.
    pub(super) async fn changes_nothing(
        &self,
        node: &Arc<Node>,
        sets_mtime: bool,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<bool> {
        let same = |state: &State| {
            let mut attrs = state.attrs.clone();
            if change(&mut attrs).is_err() {
                return false;
            }
            let shown = |attrs: &Attrs| {
                let mtime = attrs.mtime.unwrap_or(state.modified);
                (
                    attrs.mode.unwrap_or(self.defaults.mode(node.kind)),
                    attrs.uid.unwrap_or(self.defaults.uid),
                    attrs.gid.unwrap_or(self.defaults.gid),
                    attrs.atime.unwrap_or(mtime),
                    mtime,
                )
            };
            // What is shown of a folder whose entries changed is not what is stored.
            let moved = sets_mtime && state.entries_changed.is_some();
            !moved && shown(&attrs) == shown(&state.attrs) && attrs.xattrs == state.attrs.xattrs
        };
        {
            let state = node.state();
            let unchanged = same(&state);
            if !unchanged || state.local() {
                return Ok(unchanged);
            }
        }
        let gates = self.gates(node.id).await?;
        self.refresh(node).await?;
        drop(gates);
        let state = node.state();
        Ok(same(&state))
    }

    /// Applies a change of attributes. The change may be applied more than once, on top of what the service
    /// has then.
    pub(super) async fn change_attrs(
        &self,
        node: &Arc<Node>,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        if node.state().life == Life::Superseded {
            // The name may lead to another node, which the kernel then finds.
            return fail_because(libc::ESTALE, "somebody else has replaced or removed it");
        }
        if self.change_locally(node, change)? {
            return Ok(());
        }
        let _gates = self.gates(node.id).await?;
        let _change = node.change.lock().await;
        still_waits()?;
        if self.change_locally(node, change)? {
            return Ok(());
        }
        self.store_attrs(node, change).await
    }

    /// Marks the change where a commit will carry it, or nothing ever will.
    fn change_locally(
        &self,
        node: &Node,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<bool> {
        let mut state = node.state();
        let travels = state.uncommitted()
            || (state.writers > 0 && state.debt() == Debt::Attributes)
            || (state.handles > 0 && state.content.as_ref().is_some_and(|c| c.is_dirty()));
        if !travels && !state.nameless() {
            return Ok(false);
        }
        let mut attrs = state.attrs.clone();
        change(&mut attrs)?;
        attrs::encode(&attrs, node.kind, &self.defaults)?;
        state.attrs = attrs;
        state.changed(SystemTime::now());
        state.owe_attributes();
        if let Some(content) = &state.content {
            content.set_metadata(state.metadata(node.kind, &self.defaults)?);
        }
        Ok(true)
    }

    /// Stores changed attributes with the blob at once. Gates and `change` are held.
    pub(super) async fn store_attrs(
        &self,
        node: &Arc<Node>,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        if node.id == ROOT && self.config.prefix.is_empty() {
            return self.store_root(node, change).await;
        }
        let blob = self.table.lock().blob(node.id).ok_or(Errno(libc::ENOENT))?;
        for _ in 0..ATTEMPTS {
            // Own commits of the content wait; reads that meet the new version know that it is ours.
            let content = node.state().content.clone();
            let hold = match &content {
                Some(content) => Some(content.hold().await?),
                None => None,
            };
            let now = SystemTime::now();
            let (attrs, asked, etag, changes, file, of, ctime) = {
                let mut state = node.state();
                state.catch_up();
                let mut attrs = state.attrs.clone();
                change(&mut attrs)?;
                let asked = attrs != state.attrs;
                if state.etag.is_some() {
                    // Storing attributes moves `Last-Modified`, and must not move the modification time.
                    attrs.mtime.get_or_insert(state.modified);
                }
                let ctime = if asked { now } else { state.ctime };
                (
                    attrs,
                    asked,
                    state.etag.clone(),
                    state.changes,
                    content,
                    state.content_of(),
                    ctime,
                )
            };
            let to_store = Attrs {
                ctime: Some(ctime),
                ..attrs.clone()
            };
            let metadata = match asked {
                true => attrs::encode(&to_store, node.kind, &self.defaults)?,
                // Nobody asked for these: what does not fit is left out.
                false => attrs::encode_fitting(&to_store, node.kind, &self.defaults)?,
            };
            let metadata = of.bound(metadata, self.env.store.now());
            let Some(etag) = etag else {
                if node.kind != Kind::Directory {
                    // Lost its version (a failed commit): ask before writing anything.
                    drop(hold);
                    self.refresh_version(node, &blob).await?;
                    continue;
                }
                if self.make_marker(node, &blob, attrs).await? {
                    return Ok(());
                }
                continue;
            };
            let busy = Busy::new(node);
            match self
                .env
                .store
                .set_metadata(&blob, &metadata, &Condition::matches(&etag))
                .await
            {
                Ok(written) => {
                    if let Some(file) = &file {
                        file.rebase(&written, &metadata);
                    }
                    drop(hold);
                    let stamp = self.table.lock().tick();
                    let mut state = node.state();
                    state.written(&written, stamp);
                    if state.changes == changes {
                        state.attrs = attrs;
                        state.set_debt(Debt::Nothing);
                    } else {
                        // Changed again meanwhile (a write): what this call changed is kept on top.
                        change(&mut state.attrs)?;
                        state.set_debt(Debt::Attributes);
                    }
                    let ctime = ctime.max(state.ctime);
                    state.changed(ctime);
                    return Ok(());
                }
                Err(Error::ConditionNotMet { .. }) => {
                    drop(busy);
                    drop(hold);
                    self.refresh_version(node, &blob).await?;
                }
                Err(Error::BlobNotFound { .. }) => {
                    drop(busy);
                    drop(hold);
                    self.refresh_version(node, &blob).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        fail_because(
            libc::ESTALE,
            "somebody else changed the blob each time between a look at it and the change",
        )
    }

    /// A file that is open here has a new version: true when its content is the same, and its attributes were
    /// taken over (but for what this mount changed and has not stored yet).
    async fn follow_open(&self, node: &Node, now: &Properties, at: Instant) -> Result<bool> {
        let (content, mine, owed) = {
            let state = node.state();
            let mine = state.metadata(node.kind, &self.defaults)?;
            (state.content.clone(), mine, state.debt())
        };
        let Some(content) = content.filter(|_| attrs::kind_of(now) == Kind::File) else {
            return Ok(false);
        };
        let before = content.stored_metadata();
        if !content.follow(now.clone()).await? {
            return Ok(false);
        }
        let mut state = node.state();
        let still = state.content.as_ref().is_some_and(|c| Arc::ptr_eq(c, &content));
        if state.nameless() || !still || content.etag().as_ref() != Some(&now.etag) {
            return Ok(false);
        }
        state.adopt(now, at);
        if let (Some(before), true) = (before, owed != Debt::Nothing) {
            state.attrs = attrs::merged(&before, &mine, &now.metadata);
        }
        Ok(true)
    }

    /// Somebody else changed the blob: takes over its attributes, unless a handle holds an older version
    /// whose content was another one.
    async fn refresh_version(&self, node: &Arc<Node>, blob: &str) -> Result<()> {
        let (asked, parent, name) = {
            let table = self.table.lock();
            let link = table.link(node.id).ok_or(Errno(libc::ENOENT))?;
            (table.ask(), link.parent, Arc::clone(&link.name))
        };
        let found = match self.env.store.head(blob, &Condition::none()).await {
            Ok(properties) => Some(properties),
            Err(Error::BlobNotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let open = node.state().handles > 0;
        if open && node.kind == Kind::File {
            if let Some(properties) = &found
                && self.follow_open(node, properties, asked.at).await?
            {
                return Ok(());
            }
            let found = Found {
                blob: found.as_ref(),
                prefix: false,
            };
            // The new version becomes another node, unless somebody writes to this one.
            self.table.lock().learn(parent, &name, found, asked);
            return fail_because(libc::ESTALE, "somebody else has put another content in its place");
        }
        let mut state = node.state();
        if state.handles > 0 && node.kind == Kind::File {
            // Opened meanwhile: looked at again.
            return Ok(());
        }
        state.set_debt(Debt::Nothing);
        match &found {
            Some(properties) if attrs::kind_of(properties) == node.kind => {
                state.adopt(properties, asked.at);
                if state
                    .content
                    .as_ref()
                    .is_some_and(|c| c.etag().as_ref() != Some(&properties.etag))
                {
                    state.content = None;
                }
                return Ok(());
            }
            // The marker is gone, or is no marker any more; the directory may live on by what is below it.
            _ if node.kind == Kind::Directory => {
                state.marker = Marker::Implicit;
                state.etag = None;
                return Ok(());
            }
            _ => {}
        }
        drop(state);
        if parent != 0 {
            let found = Found {
                blob: found.as_ref(),
                prefix: false,
            };
            self.table.lock().learn(parent, &name, found, asked);
        }
        fail(libc::ENOENT)
    }

    /// Writes the marker of a directory that has none. False: there is one already, and its attributes were
    /// taken over.
    pub(super) async fn make_marker(&self, node: &Arc<Node>, blob: &str, attrs: Attrs) -> Result<bool> {
        let now = SystemTime::now();
        let to_store = Attrs {
            ctime: Some(now),
            ..attrs.clone()
        };
        let metadata = attrs::encode(&to_store, Kind::Directory, &self.defaults)?;
        let metadata = ContentOf::EMPTY.bound(metadata, self.env.store.now());
        let options = blob_client::PutOptions {
            metadata,
            condition: Condition::absent(),
            stored: Some(blob_client::StoredHeaders::default()),
            ..blob_client::PutOptions::default()
        };
        let busy = Busy::new(node);
        match self
            .env
            .store
            .put(blob, blob_client::Body::default(), &options)
            .await
        {
            Ok(written) => {
                let stamp = self.table.lock().tick();
                let mut state = node.state();
                state.marker = Marker::Blob;
                state.attrs = attrs;
                state.written(&written, stamp);
                state.changed(now);
                Ok(true)
            }
            Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => {
                drop(busy);
                let at = std::time::Instant::now();
                let properties = self.env.store.head(blob, &Condition::none()).await?;
                if attrs::kind_of(&properties) != Kind::Directory {
                    // A file of somebody else has the marker's name: the directory's attributes have nowhere
                    // to be.
                    return fail(libc::EPERM);
                }
                let mut state = node.state();
                state.adopt(&properties, at);
                state.marker = Marker::Blob;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Attributes of the root of a whole container are the container's metadata, which takes no condition: a
    /// lease keeps mounts from changing it at once. Others may, without asking for it: what they changed
    /// between our reading and writing is lost, and what they overwrote of ours is written again.
    async fn store_root(
        &self,
        node: &Arc<Node>,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        let lease = self.lease_root().await?;
        still_waits()?;
        let mut stored = Ok(false);
        for _ in 0..ATTEMPTS {
            stored = self.store_root_once(node, change, lease.as_deref()).await;
            if stored != Ok(false) {
                break;
            }
        }
        if let Some(lease) = lease
            && let Err(error) = self.env.store.release_container_lease(&lease).await
        {
            tracing::debug!(%error, "the lease of the container ends by itself");
        }
        match stored? {
            true => Ok(()),
            false => fail_because(
                libc::ESTALE,
                "somebody else changed the container's metadata each time",
            ),
        }
    }

    /// `None`: it cannot be had, or is somebody's who keeps it longer than any of us would. A service that
    /// does not answer would not change anything either.
    async fn lease_root(&self) -> Result<Option<String>> {
        let began = Instant::now();
        loop {
            match self.env.store.acquire_container_lease(ROOT_LEASE).await {
                Ok(lease) => return Ok(Some(lease)),
                Err(Error::LeaseConflict { .. })
                    if began.elapsed() <= Duration::from_secs(u64::from(ROOT_LEASE)) => {}
                Err(error) if no_answer(&error) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "the container's metadata is changed without a lease");
                    return Ok(None);
                }
            }
            tokio::time::sleep(ROOT_LEASE_AGAIN).await;
        }
    }

    /// False when somebody else has written at the same time.
    async fn store_root_once(
        &self,
        node: &Arc<Node>,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
        lease: Option<&str>,
    ) -> Result<bool> {
        let stored = match self.env.store.container_state().await {
            Err(Error::Denied { .. }) => return self.keep_root(node, change).map(|()| true),
            other => other?.metadata,
        };
        let mut attrs = attrs::decode(&stored).1;
        change(&mut attrs)?;
        let mut metadata = attrs::encode(&attrs, Kind::Directory, &self.defaults)?;
        // A container is no marker; the key stays away unless somebody else has put it there.
        if !stored.contains_key(attrs::IS_FOLDER) {
            metadata.remove(attrs::IS_FOLDER);
        }
        match self.env.store.set_container_metadata(&metadata, lease).await {
            Err(Error::Denied { .. }) => return self.keep_root(node, change).map(|()| true),
            // The lease has ended: it took too long.
            Err(Error::LeaseConflict { .. }) => return Ok(false),
            other => other?,
        }
        let now = self.env.store.container_state().await?.metadata;
        let kept = metadata.iter().all(|(key, value)| now.get(key) == Some(value));
        if !kept {
            return Ok(false);
        }
        let stamp = self.table.lock().tick();
        let mut state = node.state();
        state.attrs = attrs;
        state.stamp = stamp;
        state.changed(SystemTime::now());
        Ok(true)
    }

    /// A credential for the blobs of a container (a SAS of it, say) has no right to its metadata: the root's
    /// attributes then are this mount's, as long as it lives.
    fn keep_root(
        &self,
        node: &Arc<Node>,
        change: &(dyn Fn(&mut Attrs) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        // No answer is younger.
        const KEPT: u64 = u64::MAX;
        // Told once: each program that sets them would be as many lines.
        if node.state().stamp != KEPT {
            limited!(
                warn,
                self.volume(),
                "owner and mode of the volume's root last as long as this mount: the credential has no right \
                 to the container's metadata"
            );
        }
        let mut state = node.state();
        change(&mut state.attrs)?;
        state.stamp = KEPT;
        state.changed(SystemTime::now());
        Ok(())
    }

    /// An entry of a directory goes away by this mount: one without a marker is shown here as long as it is
    /// in use, whether anything is left in it or not.
    pub(super) fn keep_directory(&self, parent: NodeId) {
        let table = self.table.lock();
        // And those above it, which may have nothing else in them.
        for node in table
            .path(parent)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|id| table.node(id))
        {
            let mut state = node.state();
            if state.marker == Marker::Implicit {
                state.marker = Marker::Kept;
            }
        }
    }
}
