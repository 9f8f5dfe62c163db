//! What the Blob service speaks of: ETags, conditions, properties, block lists, listings.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use vsc_driver::buffer::Buffer;

use crate::protection::Protection;
use crate::stored::StoredHeaders;

/// Version of a blob as the service gives it, quotes included (REST: "ETag" response header).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(pub String);

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// User metadata: `x-ms-meta-*` without the prefix, names in lower case (they are case-insensitive), values
/// ASCII.
pub type Metadata = BTreeMap<String, String>;

/// When a request may be executed (REST: "Specifying conditional headers").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// `If-Match`.
    pub if_match: Option<ETag>,
    /// `If-None-Match: *`: only when nothing is there yet.
    pub if_absent: bool,
    /// `If-None-Match: <etag>`: only when it changed.
    pub if_none_match: Option<ETag>,
    /// `x-ms-lease-id`.
    pub lease: Option<String>,
}

impl Condition {
    /// No condition.
    pub fn none() -> Self {
        Self::default()
    }
    /// Only when the blob still has this version.
    pub fn matches(etag: &ETag) -> Self {
        Self {
            if_match: Some(etag.clone()),
            ..Self::default()
        }
    }
    /// Only when there is no such blob.
    pub fn absent() -> Self {
        Self {
            if_absent: true,
            ..Self::default()
        }
    }
}

/// Kind of blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlobType {
    /// Block blob: what this driver writes.
    #[default]
    Block,
    /// Page blob: readable, not writable here.
    Page,
    /// Append blob: readable, not writable here.
    Append,
}

/// Properties of a blob (Get Blob, Get Blob Properties, List Blobs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Version.
    pub etag: ETag,
    /// `Last-Modified`, whole seconds.
    pub last_modified: SystemTime,
    /// Whole length of the blob in bytes (of the blob, not of the range answered).
    pub content_length: u64,
    /// Kind of blob.
    pub blob_type: BlobType,
    /// User metadata.
    pub metadata: Metadata,
    /// What its owner stored with it besides.
    pub stored: StoredHeaders,
    /// `Content-MD5`, as stored: of the whole blob. The service computes it for Put Blob; for Put Block List
    /// it is whatever the writer said.
    pub content_md5: Option<String>,
    /// `x-ms-creation-time`, whole seconds.
    pub created: Option<SystemTime>,
    /// Blob of the same container that the content was copied from with Copy Blob, as long as nobody has
    /// written it since. Of [`Container::head`] only, and of block blobs.
    ///
    /// [`Container::head`]: crate::Container::head
    pub copied_from: Option<String>,
    /// True for a directory of a hierarchical account (`x-ms-resource-type` / listing `ResourceType`).
    pub is_directory: bool,
    /// What stands in the way of reading or changing it. Answers to reads of the content say less of it than
    /// [`Container::head`].
    ///
    /// [`Container::head`]: crate::Container::head
    pub protection: Protection,
}

/// Answer of a write: the new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// New version.
    pub etag: ETag,
    /// `Last-Modified`, whole seconds.
    pub last_modified: SystemTime,
}

/// Answer of a ranged read.
#[derive(Debug)]
pub struct Got {
    /// The destination handed in; its length is the number of bytes read (short at the end of the blob, 0
    /// past it).
    pub buffer: Buffer,
    /// Properties of the version read.
    pub properties: Properties,
}

/// Options of Put Blob, Put Block List and Copy Blob.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Metadata to store (replaces all).
    pub metadata: Metadata,
    /// What the owner of the blob stored with it, to be stored again: of the version that is replaced. `None`
    /// for a new blob, which gets a content type (see [`ContentTypes`](crate::ContentTypes)) and no more.
    pub stored: Option<StoredHeaders>,
    /// Base64 of the MD5 of a content that is put in one request: the service checks it and stores it with
    /// the blob. Ignored by [`commit`](crate::Container::commit): nobody checks what is said of blocks.
    pub content_md5: Option<String>,
    /// Condition on the blob written.
    pub condition: Condition,
}

/// What Put Block says besides the block: the same as the commit will.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageOptions<'a> {
    /// Where the blob is leased only the holder of the lease can.
    pub lease: Option<&'a str>,
    /// What the owner of the blob stored with it: a block is encrypted with the scope of its blob.
    pub stored: Option<&'a StoredHeaders>,
}

/// Name of a block inside one blob; all ids of a blob have the same length (REST: Put Block). Stored decoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub Vec<u8>);

/// One block of a block list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its id.
    pub id: BlockId,
    /// Bytes.
    pub size: u64,
}

/// Answer of Get Block List.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockList {
    /// Committed blocks in order (empty for a blob made by Put Blob).
    pub committed: Vec<Block>,
    /// Staged, not yet committed.
    pub uncommitted: Vec<Block>,
    /// Version the committed list belongs to (absent while the blob has no committed version).
    pub etag: Option<ETag>,
    /// `x-ms-blob-content-length`, bytes.
    pub content_length: u64,
}

/// Where Put Block List takes a block from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockRef {
    /// Must be committed already.
    Committed(BlockId),
    /// Must be staged.
    Uncommitted(BlockId),
    /// Staged if there, else committed.
    Latest(BlockId),
}

/// What is said of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// Its metadata.
    pub metadata: Metadata,
    /// A policy or a legal hold keeps its blobs: they can be made, and neither overwritten nor deleted (as
    /// long as it lasts for each of them).
    pub keeps_blobs: bool,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListItem {
    /// A blob: full name inside the container, properties and (when asked for) metadata.
    Blob {
        /// Full name.
        name: String,
        /// Its properties.
        properties: Properties,
    },
    /// A common prefix, ending with the delimiter.
    Prefix {
        /// Full prefix.
        name: String,
    },
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only names that begin with this.
    pub prefix: String,
    /// Fold names at this delimiter (normally `/`).
    pub delimiter: Option<String>,
    /// Continue after this marker.
    pub marker: Option<String>,
    /// Entries per page, at most 5,000.
    pub max_results: Option<u32>,
    /// Ask for metadata with each blob.
    pub metadata: bool,
}

/// One page of a listing, in the service's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Entries.
    pub items: Vec<ListItem>,
    /// Where the next page starts; `None` on the last one.
    pub next_marker: Option<String>,
}
