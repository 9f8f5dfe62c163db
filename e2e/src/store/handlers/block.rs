//! Blocks and block lists.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::attributes::attributes;
use super::call::{Access, Call};
use super::source::Source;
use crate::store::blob_store::{BlobStore, folder_failed};
use crate::store::condition::Conditions;
use crate::store::content::{Block, BlockRun, Content};
use crate::store::encoding::{base64, unbase64};
use crate::store::error::ServiceError;
use crate::store::headers::{self, Checked, ContentHeaders};
use crate::store::reply::Reply;
use crate::store::state::{Blob, BlobKind, SlotState};
use crate::store::xml::{Lookup, Xml, parse_block_list};

/// Put Block's limit.
const MAX_BLOCK: u64 = 4_000 << 20;
/// Staged blocks of one blob.
const MAX_UNCOMMITTED: usize = 100_000;

/// `blockid`, decoded: base64 of at most 64 bytes.
fn block_id(call: &Call<'_>) -> Result<Vec<u8>, ServiceError> {
    let text = call.target.query.get("blockid").unwrap_or_default();
    if text.is_empty() {
        return Err(ServiceError::new(
            400,
            "MissingRequiredQueryParameter",
            "A query parameter that's mandatory for this request is not specified.",
        )
        .detail("QueryParameterName", "blockid"));
    }
    let id = unbase64(text).ok_or_else(|| ServiceError::invalid_query("blockid", text))?;
    if id.len() > 64 {
        return Err(ServiceError::out_of_range_input().detail("QueryParameterName", "blockid"));
    }
    Ok(id)
}

/// Stages a block.
fn stage(store: &BlobStore, call: &Call<'_>, content: Content) -> Result<(), ServiceError> {
    let id = block_id(call)?;
    if content.len() > MAX_BLOCK {
        return Err(ServiceError::request_body_too_large());
    }
    let container = call.container(store)?;
    let content = store.keep(content)?;
    container.with_slot(call.blob()?, |state| {
        state.expire(call.now);
        call.check_lease(state, true)?;
        call.guard(&container, state, Access::Overwrite)?;
        if state
            .blob
            .as_ref()
            .is_some_and(|blob| blob.kind != BlobKind::Block)
        {
            return Err(ServiceError::invalid_blob_type());
        }
        if let Some(other) = state.uncommitted.keys().next()
            && other.len() != id.len()
        {
            return Err(ServiceError::invalid_blob_or_block());
        }
        if state.uncommitted.len() >= MAX_UNCOMMITTED && !state.uncommitted.contains_key(&id) {
            return Err(ServiceError::block_count_exceeds_limit());
        }
        let block = Arc::new(Block {
            id: id.clone(),
            content,
        });
        state.uncommitted.insert(id, block);
        state.staged = Some(call.now);
        Ok(())
    })
}

/// Put Block.
pub(super) fn put(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    if call.body.len() == 0 {
        return Err(ServiceError::invalid_header("Content-Length", "0"));
    }
    let checked = headers::check_body(call.headers, "content-md5", "x-ms-content-crc64", &call.body)?;
    stage(store, call, call.body.clone())?;
    Ok(Reply::new(201).written(&checked))
}

/// Put Block From URL: the block shares the memory of the source.
pub(super) fn put_from_url(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    if call.body.len() > 0 {
        return Err(ServiceError::invalid_header(
            "Content-Length",
            call.body.len().to_string(),
        ));
    }
    let source = Source::fetch(store, call)?;
    let len = source.blob.content.len();
    let range = match headers::text(call.headers, "x-ms-source-range") {
        None => 0..len,
        Some(text) => headers::AskedRange::parse(text)
            .ok_or_else(|| ServiceError::invalid_header("x-ms-source-range", text))?
            .within(len)?,
    };
    let content = source.blob.content.slice(range);
    let checked = headers::check_body(
        call.headers,
        "x-ms-source-content-md5",
        "x-ms-source-content-crc64",
        &content,
    )?;
    stage(store, call, content)?;
    Ok(Reply::new(201).written(&checked))
}

/// The blocks a block list names.
fn resolve(state: &SlotState, wanted: Vec<(Lookup, Vec<u8>)>) -> Result<Vec<Arc<Block>>, ServiceError> {
    let committed: HashMap<&[u8], &Arc<Block>> = state
        .blob
        .iter()
        .flat_map(|blob| blob.content.blocks())
        .filter(|block| !block.id.is_empty())
        .map(|block| (block.id.as_slice(), block))
        .collect();
    let staged = &state.uncommitted;
    wanted
        .into_iter()
        .map(|(lookup, id)| {
            let from_committed = || committed.get(id.as_slice()).copied();
            let found = match lookup {
                Lookup::Committed => from_committed(),
                Lookup::Uncommitted => staged.get(&id),
                Lookup::Latest => staged.get(&id).or_else(from_committed),
            };
            found.cloned().ok_or_else(ServiceError::invalid_block_list)
        })
        .collect()
}

/// Put Block List.
pub(super) fn put_list(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let checked = headers::check_body(call.headers, "content-md5", "x-ms-content-crc64", &call.body)?;
    let wanted = parse_block_list(&call.body.joined().map_err(folder_failed)?)?;
    let stored = ContentHeaders::of(call.headers)?;
    let metadata = Arc::new(headers::metadata(call.headers)?);
    let attributes = attributes(call)?;
    let conditions = Conditions::of(call.headers)?;
    let container = call.container(store)?;
    let name = call.blob()?;
    let version = container.with_slot(name, |state| {
        call.check_create(&container, &conditions, state)?;
        if state
            .blob
            .as_ref()
            .is_some_and(|blob| blob.kind != BlobKind::Block)
        {
            return Err(ServiceError::invalid_blob_type());
        }
        let blocks = resolve(state, wanted)?;
        let version = store.clock.next();
        let blob = Blob {
            version,
            created: state.blob.as_ref().map_or(version, |blob| blob.created),
            kind: BlobKind::Block,
            content: BlockRun::new(blocks),
            headers: stored,
            metadata,
            copy: None,
            attributes,
        };
        store.replace(&container, name, state, blob)?;
        // Staged blocks the list did not take are gone.
        state.uncommitted = BTreeMap::new();
        Ok(version)
    })?;
    Ok(Reply::new(201).version(version).written(&Checked {
        md5: checked.md5,
        crc64: checked.crc64,
    }))
}

/// Get Block List.
pub(super) fn get_list(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let which = call.target.query.get("blocklisttype").unwrap_or("committed");
    let (committed, uncommitted) = match which.to_ascii_lowercase().as_str() {
        "committed" => (true, false),
        "uncommitted" => (false, true),
        "all" => (true, true),
        _ => return Err(ServiceError::invalid_query("blocklisttype", which)),
    };
    let conditions = Conditions::of(call.headers)?;
    let (blob, staged) = call.container(store)?.with_existing(call.blob()?, |state| {
        let state = state.ok_or_else(ServiceError::blob_not_found)?;
        state.expire(call.now);
        if state.blob.is_none() && state.uncommitted.is_empty() {
            return Err(ServiceError::blob_not_found());
        }
        if let Some(blob) = &state.blob {
            conditions.check(Some(blob.version), crate::store::condition::Kind::Read)?;
            if blob.kind != BlobKind::Block {
                return Err(ServiceError::invalid_blob_type());
            }
        }
        call.check_lease(state, false)?;
        Ok((state.blob.clone(), state.uncommitted.clone()))
    })?;
    let mut xml = Xml::new();
    xml.open("BlockList");
    if committed {
        let blocks = blob.iter().flat_map(|blob| blob.content.blocks());
        section(
            &mut xml,
            "CommittedBlocks",
            blocks.filter(|block| !block.id.is_empty()),
        );
    }
    if uncommitted {
        section(&mut xml, "UncommittedBlocks", staged.values());
    }
    xml.close("BlockList");
    let mut reply = Reply::xml(200, xml.finish());
    if let Some(blob) = &blob {
        reply = reply.version(blob.version);
    }
    let len = blob.map_or(0, |blob| blob.content.len());
    Ok(reply.header("x-ms-blob-content-length", len.to_string()))
}

fn section<'b>(xml: &mut Xml, name: &str, blocks: impl Iterator<Item = &'b Arc<Block>>) {
    xml.open(name);
    for block in blocks {
        xml.open("Block");
        xml.text("Name", &base64(&block.id));
        xml.text("Size", &block.content.len().to_string());
        xml.close("Block");
    }
    xml.close(name);
}
