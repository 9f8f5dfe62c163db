//! Append Block and Put Page: enough to make blobs of foreign types.

use std::sync::Arc;

use super::call::{Access, Call};
use crate::store::blob_store::BlobStore;
use crate::store::content::{Block, BlockRun, Content, Piece};
use crate::store::error::ServiceError;
use crate::store::headers::{self, AskedRange};
use crate::store::reply::Reply;
use crate::store::state::BlobKind;

/// Append Block.
pub(super) fn append_block(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    if call.body.len() == 0 {
        return Err(ServiceError::invalid_header("Content-Length", "0"));
    }
    let checked = headers::check_body(call.headers, "content-md5", "x-ms-content-crc64", &call.body)?;
    let position = headers::number(call.headers, "x-ms-blob-condition-appendpos")?;
    let content = store.keep(call.body.clone())?;
    let name = call.blob()?;
    let (version, at, count) = call.change(store, Access::Append, |container, state, blob| {
        if blob.kind != BlobKind::Append {
            return Err(ServiceError::invalid_blob_type());
        }
        let at = blob.content.len();
        if position.is_some_and(|position| position != at) {
            return Err(ServiceError::append_position_not_met());
        }
        let mut next = (*blob).clone();
        let mut blocks = blob.content.blocks().to_vec();
        blocks.push(Arc::new(Block {
            id: Vec::new(),
            content,
        }));
        let count = blocks.len();
        next.content = BlockRun::new(blocks);
        next.version = store.clock.next();
        next.headers.md5 = None;
        let version = next.version;
        store.commit(container, name, state, next)?;
        Ok((version, at, count))
    })?;
    Ok(Reply::new(201)
        .version(version)
        .written(&checked)
        .header("x-ms-blob-append-offset", at.to_string())
        .header("x-ms-blob-committed-block-count", count.to_string()))
}

/// Put Page: `update` or `clear`.
pub(super) fn put_page(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let range = AskedRange::of(call.headers).ok_or_else(|| ServiceError::missing_header("x-ms-range"))?;
    let action = headers::text(call.headers, "x-ms-page-write").unwrap_or_default();
    let checked = headers::check_body(call.headers, "content-md5", "x-ms-content-crc64", &call.body)?;
    let body = store.keep(call.body.clone())?;
    let name = call.blob()?;
    let version = call.change(store, Access::Modify, |container, state, blob| {
        if blob.kind != BlobKind::Page {
            return Err(ServiceError::invalid_blob_type());
        }
        let len = blob.content.len();
        let range = range
            .within(len)
            .map_err(|_| ServiceError::invalid_page_range())?;
        if range.start % 512 != 0 || range.end % 512 != 0 {
            return Err(ServiceError::invalid_page_range());
        }
        let size = range.end - range.start;
        let middle = match action {
            "update" if body.len() == size => body,
            "update" => {
                return Err(ServiceError::invalid_header(
                    "Content-Length",
                    body.len().to_string(),
                ));
            }
            "clear" => {
                let mut zeros = Content::default();
                zeros.push(Piece::Zeros(size));
                zeros
            }
            other => return Err(ServiceError::invalid_header("x-ms-page-write", other)),
        };
        let mut content = blob.content.slice(0..range.start);
        content.append(middle);
        content.append(blob.content.slice(range.end..len));
        let mut next = (*blob).clone();
        next.content = BlockRun::new(vec![Arc::new(Block {
            id: Vec::new(),
            content,
        })]);
        next.version = store.clock.next();
        next.headers.md5 = None;
        let version = next.version;
        store.commit(container, name, state, next)?;
        Ok(version)
    })?;
    Ok(Reply::new(201)
        .version(version)
        .written(&checked)
        .header("x-ms-blob-sequence-number", "0"))
}
