//! What a directory's move is about: its blobs, its marker, and what an earlier try has left.

use std::collections::HashMap;
use std::time::SystemTime;

use blob_client::{
    BlobType, Body, Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, PutOptions,
    StoredHeaders,
};

use crate::budget::Permit;
use crate::errno::{Result, fail};
use crate::log_limit::limited;
use crate::tree::attrs::{self, ContentOf, Kind, kind_of};
use crate::tree::core::Tree;
use crate::tree::names;
use crate::tree::node::{Marker, Node};

/// What is at the new name of a directory.
#[derive(Debug, Clone)]
pub(super) enum Try {
    /// Nothing.
    First,
    /// An empty directory, with these markers.
    Over {
        marker: Option<Box<Properties>>,
        /// Version of the marker that ends with `/`.
        slash: Option<ETag>,
    },
    /// What an earlier try left.
    Again,
}

/// A blob that is moved along with a directory.
pub(super) struct Moving {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) etag: ETag,
    pub(super) size: u64,
    pub(super) kind: BlobType,
    pub(super) content_md5: Option<String>,
    pub(super) modified: SystemTime,
    pub(super) metadata: Metadata,
    pub(super) stored: StoredHeaders,
}

/// The blobs of a directory.
pub(super) struct Load {
    /// The directory's own marker; none where a file has its name, which the directory hides.
    pub(super) marker: Option<Moving>,
    /// The marker was made for the move.
    pub(super) made: bool,
    pub(super) others: Vec<Moving>,
    /// For all of this.
    pub(super) _charge: Permit,
}

impl Tree {
    /// True when `new_blob` holds what an earlier try to move the directory `blob` there has left. `ENOENT`
    /// when nothing is left to move: all that was lost of the earlier try is its answer.
    pub(super) async fn was_moving(&self, blob: &str, new_blob: &str) -> Result<bool> {
        let any = Condition::none();
        let (old, new) = futures::join!(
            self.env.store.head(blob, &any),
            self.env.store.head(new_blob, &any)
        );
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(Error::BlobNotFound { .. }), _) => {
                return if self.has_below(blob).await? {
                    Ok(false)
                } else {
                    fail(libc::ENOENT)
                };
            }
            (_, Err(Error::BlobNotFound { .. })) => return Ok(false),
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        Ok(kind_of(&old) == Kind::Directory && new.metadata.get(attrs::MOVED_FROM) == Some(&old.etag.0))
    }

    /// `EXDEV` when a directory is too large to be moved.
    pub(super) async fn within_limit(&self, blob: &str) -> Result<()> {
        let (mut blobs, most) = (0, self.config.rename_limit);
        let mut options = ListOptions {
            prefix: names::below(blob),
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            blobs += page.items.len();
            if blobs > most {
                return self.too_large(blob, most);
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                return Ok(());
            }
        }
    }

    fn too_large<T>(&self, blob: &str, most: usize) -> Result<T> {
        limited!(
            info,
            self.volume(),
            "a folder is too large to be renamed in one go (option rename_limit)",
            folder = blob,
            limit = most
        );
        fail(libc::EXDEV)
    }

    /// All blobs of a directory, with a marker. `EXDEV` when there are more than `most`; nothing is changed
    /// then.
    pub(super) async fn load(&self, node: &Node, blob: &str, new_blob: &str, most: usize) -> Result<Load> {
        let had_marker = node.state().marker == Marker::Blob;
        let (marker, made) = self.marker_of(node, blob, new_blob).await?;
        let mut others = Vec::new();
        let mut charge = self.env.budget.charge_metadata(0);
        let mut bytes = 0;
        let mut options = ListOptions {
            prefix: names::below(blob),
            metadata: true,
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                let ListItem::Blob { name, properties } = item else {
                    continue;
                };
                let Some(tail) = name.strip_prefix(blob) else {
                    continue;
                };
                let to = format!("{new_blob}{tail}");
                let metadata = self.moved_metadata(&properties);
                let texts = metadata.iter().map(|(k, v)| k.len() + v.len() + 64);
                bytes += size_of::<Moving>() + name.len() + to.len() + texts.sum::<usize>();
                others.push(Moving {
                    from: name,
                    to,
                    etag: properties.etag,
                    size: properties.content_length,
                    kind: properties.blob_type,
                    content_md5: properties.content_md5,
                    modified: properties.last_modified,
                    metadata,
                    stored: properties.stored,
                });
            }
            if others.len() > most {
                if let Some(marker) = marker.filter(|_| made) {
                    self.drop_marker(blob, &marker.etag).await;
                    node.state().marker = Marker::Implicit;
                }
                return self.too_large(blob, most);
            }
            charge.resize(bytes);
            options.marker = page.next_marker;
            if options.marker.is_none() {
                break;
            }
        }
        let gone = marker.as_ref().filter(|_| made && had_marker);
        if others.is_empty() && (marker.is_none() || gone.is_some()) {
            // Somebody else has taken it away: it does not come back by being moved.
            if let Some(anew) = gone {
                self.drop_marker(blob, &anew.etag).await;
                node.state().marker = Marker::Implicit;
            }
            return fail(libc::ENOENT);
        }
        Ok(Load {
            marker,
            made,
            others,
            _charge: charge,
        })
    }

    /// The marker of a directory, made if there is none. `None` where a file has its name.
    pub(super) async fn marker_of(
        &self,
        node: &Node,
        blob: &str,
        new_blob: &str,
    ) -> Result<(Option<Moving>, bool)> {
        let moving = |etag: ETag, modified: SystemTime, mut metadata: Metadata, stored: StoredHeaders| {
            metadata.insert(attrs::MOVED_FROM.to_owned(), etag.0.clone());
            attrs::claim(&mut metadata);
            Some(Moving {
                from: blob.to_owned(),
                to: new_blob.to_owned(),
                etag,
                size: 0,
                kind: BlobType::Block,
                content_md5: None,
                modified,
                metadata,
                stored,
            })
        };
        let mut known = node.state().marker == Marker::Blob;
        // Twice: what is known may be out of date.
        for _ in 0..2 {
            if known {
                match self.env.store.head(blob, &Condition::none()).await {
                    Ok(p) if kind_of(&p) == Kind::Directory => {
                        return Ok((moving(p.etag, p.last_modified, p.metadata, p.stored), false));
                    }
                    Ok(_) => return Ok((None, false)),
                    Err(Error::BlobNotFound { .. }) => known = false,
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
            let attrs = node.state().attrs.clone();
            let metadata = attrs::encode(&attrs, Kind::Directory, &self.defaults)?;
            let metadata = ContentOf::EMPTY.bound(metadata, self.env.store.now());
            let options = PutOptions {
                metadata: metadata.clone(),
                condition: Condition::absent(),
                stored: Some(StoredHeaders::default()),
                ..PutOptions::default()
            };
            match self.env.store.put(blob, Body::default(), &options).await {
                Ok(written) => {
                    let stamp = self.table.lock().tick();
                    let mut state = node.state();
                    state.marker = Marker::Blob;
                    state.written(&written, stamp);
                    return Ok((
                        moving(
                            written.etag,
                            written.last_modified,
                            metadata,
                            StoredHeaders::default(),
                        ),
                        true,
                    ));
                }
                Err(Error::AlreadyExists { .. } | Error::ConditionNotMet { .. }) => known = true,
                Err(error) => return Err(error.into()),
            }
        }
        // It comes and goes.
        fail(libc::EBUSY)
    }

    /// What is below a directory's blob name, and its marker.
    pub(super) async fn already_there(&self, blob: &str) -> Result<HashMap<String, Properties>> {
        let mut there = HashMap::new();
        match self.env.store.head(blob, &Condition::none()).await {
            Ok(properties) => {
                there.insert(blob.to_owned(), properties);
            }
            Err(Error::BlobNotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut options = ListOptions {
            prefix: names::below(blob),
            metadata: true,
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            for item in page.items {
                if let ListItem::Blob { name, properties } = item {
                    there.insert(name, properties);
                }
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                return Ok(there);
            }
        }
    }
}
