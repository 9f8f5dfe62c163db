//! The service's rules that the file system leans on: ETags, conditions, blocks and their ids, leases,
//! listings.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blob_client::{
    Availability, BlobType, Block, BlockId, BlockList, BlockRef, Condition, ContentTypes, ETag, Error,
    ListItem, ListOptions, ListPage, Metadata, Properties, Protection, PutOptions, Result, StoredHeaders,
    Written,
};
use bytes::Bytes;
use md5::{Digest as _, Md5};

#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) data: Bytes,
    pub(super) blocks: Vec<(BlockId, Bytes)>,
    pub(super) properties: Properties,
}

/// What a request does to a blob that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Change,
    Delete,
}

/// One container.
#[derive(Debug, Default)]
pub(super) struct Service {
    pub(super) blobs: BTreeMap<String, Blob>,
    pub(super) staged: BTreeMap<String, BTreeMap<BlockId, Bytes>>,
    pub(super) container_metadata: Metadata,
    pub(super) container_lease: Option<String>,
    pub(super) version: u64,
    /// Lease of a blob, by name.
    pub(super) leases: BTreeMap<String, String>,
    /// Encryption scopes of staged blocks.
    pub(super) scopes: BTreeMap<(String, BlockId), Option<String>>,
    pub(super) no_stage_from: bool,
    /// See [`super::FakeStore::keep_blobs`].
    pub(super) keeps_blobs: bool,
    /// See [`super::FakeStore::make_no_digests`].
    pub(super) makes_no_digests: bool,
    /// Bytes read by Get Blob.
    pub(super) bytes_out: u64,
    /// Bytes received by Put Blob and Put Block.
    pub(super) bytes_in: u64,
}

/// The error that the client makes of a status and a code.
pub(super) fn refusal(status: u16, code: &str) -> Error {
    // What the client has an error of its own for.
    match (status, code) {
        (404, "ContainerNotFound") => {
            return Error::ContainerNotFound { name: "fake".into() };
        }
        (409 | 412, _) if code.starts_with("Lease") => {
            return Error::LeaseConflict {
                name: "fake".into(),
                code: code.to_owned(),
            };
        }
        (409, "BlobArchived" | "BlobBeingRehydrated") => {
            return Error::Archived {
                name: "fake".into(),
                rehydrating: code == "BlobBeingRehydrated",
            };
        }
        (409, "SnapshotsPresent") => {
            return Error::SnapshotsPresent { name: "fake".into() };
        }
        (403, _) => {
            return Error::Denied {
                code: code.to_owned(),
                hint: "fault on command".into(),
            };
        }
        _ => {}
    }
    Error::Service {
        status,
        code: code.to_owned(),
        message: "fault on command".into(),
        request_id: "fake".into(),
    }
}

pub(super) fn join(blocks: &[(BlockId, Bytes)]) -> Bytes {
    let mut data = Vec::with_capacity(blocks.iter().map(|(_, d)| d.len()).sum());
    blocks.iter().for_each(|(_, d)| data.extend_from_slice(d));
    data.into()
}

/// Content-MD5.
fn digest(data: &Bytes) -> String {
    STANDARD.encode(Md5::digest(data))
}

/// `low..high` of `data`, clamped.
fn cut(data: &Bytes, range: &Range<u64>) -> Bytes {
    let end = range.end.min(data.len() as u64) as usize;
    let start = (range.start.min(end as u64)) as usize;
    data.slice(start..end)
}

impl Service {
    pub(super) fn find(&self, name: &str) -> Result<&Blob> {
        self.blobs
            .get(name)
            .ok_or_else(|| Error::BlobNotFound { name: name.into() })
    }

    fn check(&self, name: &str, condition: &Condition) -> Result<()> {
        let blob = self.blobs.get(name);
        let not_met = || Err(Error::ConditionNotMet { name: name.into() });
        if let Some(etag) = &condition.if_match
            && blob.is_none_or(|b| b.properties.etag != *etag)
        {
            return not_met();
        }
        if condition.if_absent && blob.is_some() {
            return Err(Error::AlreadyExists { name: name.into() });
        }
        if let (Some(etag), Some(blob)) = (&condition.if_none_match, blob)
            && blob.properties.etag == *etag
        {
            return Err(Error::NotModified { name: name.into() });
        }
        Ok(())
    }

    /// What a policy keeps is not changed.
    fn check_policy(&self, name: &str) -> Result<()> {
        match self.keeps_blobs && self.blobs.contains_key(name) {
            true => Err(refusal(409, "BlobImmutableDueToPolicy")),
            false => Ok(()),
        }
    }

    /// What policies and the archive leave to a request.
    fn check_protection(&self, name: &str, access: Access) -> Result<()> {
        let Some(protection) = self.blobs.get(name).map(|b| b.properties.protection) else {
            return Ok(());
        };
        match protection.availability {
            _ if access == Access::Delete => {}
            Availability::Online => {}
            Availability::Archived => return Err(refusal(409, "BlobArchived")),
            Availability::Rehydrating => return Err(refusal(409, "BlobBeingRehydrated")),
        }
        let kept = protection
            .immutable_until
            .is_some_and(|until| until > SystemTime::now());
        match access {
            Access::Read => Ok(()),
            _ if protection.legal_hold => Err(refusal(409, "BlobImmutableDueToLegalHold")),
            _ if kept => Err(refusal(409, "BlobImmutableDueToPolicy")),
            _ => Ok(()),
        }
    }

    /// Changes of a blob that is protected, or leased by somebody else, are refused.
    fn check_change(&self, name: &str, condition: &Condition) -> Result<()> {
        self.check_protection(name, Access::Change)?;
        self.check_lease(name, condition)
    }

    /// A leased blob is changed by its holder only.
    pub(super) fn check_lease(&self, name: &str, condition: &Condition) -> Result<()> {
        let conflict = |code: &str| {
            Err(Error::LeaseConflict {
                name: name.into(),
                code: code.into(),
            })
        };
        match (self.leases.get(name), &condition.lease) {
            (Some(lease), Some(given)) if lease == given => Ok(()),
            (Some(_), Some(_)) => conflict("LeaseIdMismatchWithBlobOperation"),
            (Some(_), None) => conflict("LeaseIdMissing"),
            (None, Some(_)) => conflict("LeaseNotPresentWithBlobOperation"),
            (None, None)
                if self
                    .blobs
                    .get(name)
                    .is_some_and(|b| b.properties.protection.leased) =>
            {
                conflict("LeaseIdMissing")
            }
            (None, None) => Ok(()),
        }
    }

    /// Properties as an answer tells them.
    fn shown(&self, name: &str, blob: &Blob) -> Properties {
        let mut properties = blob.properties.clone();
        properties.protection.leased |= self.leases.contains_key(name);
        properties
    }

    /// Its clock: each version is a second.
    pub(super) fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.version)
    }

    fn written(&mut self) -> Written {
        self.version += 1;
        Written {
            etag: ETag(format!("\"0x{:016X}\"", self.version)),
            last_modified: self.now(),
        }
    }

    pub(super) fn store(
        &mut self,
        name: &str,
        data: Bytes,
        blocks: Vec<(BlockId, Bytes)>,
        metadata: Metadata,
        stored: StoredHeaders,
    ) -> Written {
        let written = self.written();
        // The service computes one for what is put in one piece; here any digest does.
        let content_md5 = blocks.is_empty().then(|| digest(&data));
        let created = written.last_modified;
        let blob = Blob {
            properties: Properties {
                etag: written.etag.clone(),
                last_modified: written.last_modified,
                content_length: data.len() as u64,
                blob_type: BlobType::Block,
                metadata,
                stored,
                content_md5,
                created: Some(created),
                copied_from: None,
                is_directory: false,
                protection: Protection::default(),
            },
            data,
            blocks,
        };
        self.blobs.insert(name.to_owned(), blob);
        written
    }

    pub(super) fn get(
        &mut self,
        name: &str,
        range: &Range<u64>,
        condition: &Condition,
    ) -> Result<(Bytes, Properties)> {
        let found = self.find(name)?;
        self.check(name, condition)?;
        self.check_protection(name, Access::Read)?;
        let data = cut(&found.data, range);
        let properties = found.properties.clone();
        self.bytes_out += data.len() as u64;
        Ok((data, properties))
    }

    pub(super) fn head(&self, name: &str, condition: &Condition) -> Result<Properties> {
        let found = self.find(name)?;
        self.check(name, condition)?;
        Ok(self.shown(name, found))
    }

    pub(super) fn put(&mut self, name: &str, data: Bytes, options: &PutOptions) -> Result<Written> {
        self.bytes_in += data.len() as u64;
        self.check_change(name, &options.condition)?;
        self.check(name, &options.condition)?;
        self.check_policy(name)?;
        let said = options.content_md5.clone();
        if said.as_ref().is_some_and(|said| *said != digest(&data)) {
            return Err(refusal(400, "Md5Mismatch"));
        }
        self.staged.remove(name);
        let written = self.store(
            name,
            data,
            Vec::new(),
            options.metadata.clone(),
            given(name, options),
        );
        if self.makes_no_digests
            && let Some(blob) = self.blobs.get_mut(name)
        {
            blob.properties.content_md5 = said;
        }
        Ok(written)
    }

    /// Append Block.
    pub(super) fn append(&mut self, name: &str, data: &[u8]) -> bool {
        let written = self.written();
        let Some(found) = self.blobs.get_mut(name) else {
            return false;
        };
        found.data = [&found.data[..], data].concat().into();
        found.properties.content_length = found.data.len() as u64;
        found.properties.content_md5 = None;
        found.properties.etag = written.etag;
        found.properties.last_modified = written.last_modified;
        true
    }

    pub(super) fn set_metadata(
        &mut self,
        name: &str,
        metadata: &Metadata,
        condition: &Condition,
    ) -> Result<Written> {
        self.find(name)?;
        self.check_change(name, condition)?;
        self.check(name, condition)?;
        self.check_policy(name)?;
        let written = self.written();
        if let Some(found) = self.blobs.get_mut(name) {
            found.properties.metadata = metadata.clone();
            found.properties.etag = written.etag.clone();
            found.properties.last_modified = written.last_modified;
        }
        Ok(written)
    }

    pub(super) fn delete(&mut self, name: &str, condition: &Condition) -> Result<()> {
        self.find(name)?;
        self.check(name, condition)?;
        self.check_protection(name, Access::Delete)?;
        self.check_lease(name, condition)?;
        self.check_policy(name)?;
        self.leases.remove(name);
        self.blobs.remove(name);
        self.staged.remove(name);
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        (source, source_etag, stored): (&str, Option<&ETag>, Option<&StoredHeaders>),
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        let found = self.find(source)?.clone();
        if source_etag.is_some_and(|e| *e != found.properties.etag) {
            return Err(Error::ConditionNotMet { name: source.into() });
        }
        self.check_protection(source, Access::Read)?;
        self.check(target, condition)?;
        self.check_change(target, condition)?;
        self.check_policy(target)?;
        // REST, Copy Blob: a blob is copied over one of the same type only.
        let other_type = |b: &Blob| b.properties.blob_type != found.properties.blob_type;
        if self.blobs.get(target).is_some_and(other_type) {
            return Err(refusal(409, "InvalidBlobType"));
        }
        self.staged.remove(target);
        // Content headers come along; all the rest is forgotten unless it is said again.
        let kept = stored
            .cloned()
            .unwrap_or_default()
            .with_content_of(&found.properties.stored);
        let metadata = metadata.unwrap_or(&found.properties.metadata).clone();
        let kind = found.properties.blob_type;
        let written = self.store(target, found.data, found.blocks, metadata, kept);
        if let Some(copy) = self.blobs.get_mut(target) {
            copy.properties.blob_type = kind;
            // The client tells of block blobs only where they come from.
            copy.properties.copied_from = (kind == BlobType::Block).then(|| source.to_owned());
            copy.properties.content_md5 = found.properties.content_md5;
        }
        Ok(written)
    }

    pub(super) fn acquire_container_lease(&mut self) -> Result<String> {
        if self.container_lease.is_some() {
            return Err(refusal(409, "LeaseAlreadyPresent"));
        }
        let lease = format!("lease {}", self.written().etag.0);
        self.container_lease = Some(lease.clone());
        Ok(lease)
    }

    pub(super) fn acquire_lease(&mut self, name: &str) -> Result<String> {
        self.find(name)?;
        self.check_lease(name, &Condition::none())?;
        let lease = format!("lease {}", self.written().etag.0);
        self.leases.insert(name.to_owned(), lease.clone());
        Ok(lease)
    }

    /// What Put Block From URL takes out of its source.
    pub(super) fn source(
        &self,
        source: &str,
        range: &Range<u64>,
        source_etag: Option<&ETag>,
    ) -> Result<Bytes> {
        if self.no_stage_from {
            return Err(refusal(501, "NotImplemented"));
        }
        let found = self.find(source)?;
        if source_etag.is_some_and(|e| *e != found.properties.etag) {
            return Err(Error::ConditionNotMet { name: source.into() });
        }
        if range.end > found.data.len() as u64 {
            return Err(refusal(416, "InvalidRange"));
        }
        Ok(cut(&found.data, range))
    }

    pub(super) fn block_list(&self, name: &str) -> Result<BlockList> {
        let found = self.blobs.get(name);
        let staged = self.staged.get(name);
        if found.is_none() && staged.is_none_or(BTreeMap::is_empty) {
            return Err(Error::BlobNotFound { name: name.into() });
        }
        let block = |id: &BlockId, data: &Bytes| Block {
            id: id.clone(),
            size: data.len() as u64,
        };
        Ok(BlockList {
            committed: found
                .map(|b| b.blocks.iter().map(|(id, d)| block(id, d)).collect())
                .unwrap_or_default(),
            uncommitted: staged
                .map(|s| s.iter().map(|(id, d)| block(id, d)).collect())
                .unwrap_or_default(),
            etag: found.map(|b| b.properties.etag.clone()),
            content_length: found.map_or(0, |b| b.data.len() as u64),
        })
    }

    /// REST, Put Block: "For a given blob, all block IDs must be the same length."
    pub(super) fn stage(
        &mut self,
        name: &str,
        id: &BlockId,
        data: Bytes,
        lease: Option<&str>,
        scope: &Option<String>,
    ) -> Result<()> {
        let holder = Condition {
            lease: lease.map(str::to_owned),
            ..Condition::none()
        };
        self.check_change(name, &holder)?;
        let committed = self.blobs.get(name).and_then(|b| b.blocks.first());
        let staged = self.staged.entry(name.to_owned()).or_default();
        let known = staged.keys().next().or(committed.map(|(id, _)| id));
        if id.0.is_empty() || id.0.len() > 64 || known.is_some_and(|k| k.0.len() != id.0.len()) {
            return Err(refusal(400, "InvalidBlobOrBlock"));
        }
        if data.is_empty() {
            return Err(refusal(400, "InvalidHeaderValue"));
        }
        staged.insert(id.clone(), data);
        self.scopes.insert((name.to_owned(), id.clone()), scope.clone());
        Ok(())
    }

    pub(super) fn commit(&mut self, name: &str, list: &[BlockRef], options: &PutOptions) -> Result<Written> {
        self.check_change(name, &options.condition)?;
        self.check(name, &options.condition)?;
        self.check_policy(name)?;
        let empty = BTreeMap::new();
        let staged = self.staged.get(name).unwrap_or(&empty);
        let old = self.blobs.get(name).map_or(&[][..], |b| &b.blocks[..]);
        let committed = |id: &BlockId| old.iter().find(|(i, _)| i == id).map(|(_, d)| d.clone());
        // A blob is in one scope, all of it.
        let scope = given(name, options).scope().map(str::to_owned);
        let fits = |id: &BlockId| {
            let staged = self.scopes.get(&(name.to_owned(), id.clone()));
            staged.is_none_or(|staged| *staged == scope)
        };
        let mut blocks = Vec::with_capacity(list.len());
        for block in list {
            let (id, data) = match block {
                BlockRef::Committed(id) => (id, committed(id)),
                BlockRef::Uncommitted(id) => (id, staged.get(id).cloned()),
                BlockRef::Latest(id) => (id, staged.get(id).cloned().or_else(|| committed(id))),
            };
            if !matches!(block, BlockRef::Committed(_)) && !fits(id) {
                return Err(refusal(409, "BlobUsesCustomerSpecifiedEncryption"));
            }
            let data = data.ok_or_else(|| refusal(400, "InvalidBlockList"))?;
            blocks.push((id.clone(), data));
        }
        if blocks.len() > 50_000 {
            return Err(refusal(400, "BlockListTooLong"));
        }
        self.staged.remove(name);
        let data = join(&blocks);
        Ok(self.store(name, data, blocks, options.metadata.clone(), given(name, options)))
    }

    pub(super) fn list(&self, options: &ListOptions) -> ListPage {
        let limit = options.max_results.unwrap_or(5000).clamp(1, 5000) as usize;
        let mut items: Vec<(String, ListItem)> = Vec::new();
        for (name, blob) in &self.blobs {
            let Some(rest) = name.strip_prefix(&options.prefix) else {
                continue;
            };
            let folded = options
                .delimiter
                .as_deref()
                .and_then(|d| rest.find(d).map(|at| at + d.len()));
            let (key, item) = match folded {
                Some(at) => {
                    let prefix = format!("{}{}", options.prefix, &rest[..at]);
                    (prefix.clone(), ListItem::Prefix { name: prefix })
                }
                None => {
                    let mut properties = self.shown(name, blob);
                    properties.copied_from = None;
                    if !options.metadata {
                        properties.metadata.clear();
                    }
                    let name = name.clone();
                    (name.clone(), ListItem::Blob { name, properties })
                }
            };
            if items.last().is_some_and(|(last, _)| *last == key) {
                continue;
            }
            if options.marker.as_ref().is_some_and(|m| key < *m) {
                continue;
            }
            if items.len() == limit {
                return ListPage {
                    items: items.into_iter().map(|(_, item)| item).collect(),
                    next_marker: Some(key),
                };
            }
            items.push((key, item));
        }
        ListPage {
            items: items.into_iter().map(|(_, item)| item).collect(),
            next_marker: None,
        }
    }
}

/// What a blob that is written keeps: what is said, or a content type after its name.
fn given(name: &str, options: &PutOptions) -> StoredHeaders {
    options
        .stored
        .clone()
        .unwrap_or_else(|| ContentTypes::ByExtension.of(name))
}
