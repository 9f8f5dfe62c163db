//! How a record is written: length, checksum, a tag and its fields.

use std::collections::BTreeMap;

use crc::{CRC_32_ISCSI, Crc};

use super::record::Record;

pub(super) const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Longest record: a name of 255 bytes and a reply of a few hundred fit many times over.
pub(super) const MAX_RECORD: usize = 64 * 1024;
pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    let head = out.len();
    out.extend_from_slice(&[0; 8]);
    match record {
        Record::Node { id, parent, name } => {
            out.push(1);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&parent.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        Record::Forget { id } => {
            out.push(2);
            out.extend_from_slice(&id.to_le_bytes());
        }
        Record::Handle {
            fh,
            node,
            flags,
            generation,
        } => {
            out.push(3);
            out.extend_from_slice(&fh.to_le_bytes());
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&flags.to_le_bytes());
            out.extend_from_slice(generation.as_bytes());
        }
        Record::Release { fh } => {
            out.push(4);
            out.extend_from_slice(&fh.to_le_bytes());
        }
        Record::Reply {
            unique,
            errno,
            node,
            fh,
        } => {
            out.push(5);
            out.extend_from_slice(&unique.to_le_bytes());
            out.extend_from_slice(&errno.to_le_bytes());
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&fh.to_le_bytes());
        }
        Record::Dirty {
            node,
            offset,
            len,
            arena,
        } => numbers(out, 6, &[*node, *offset, *len, *arena]),
        Record::Hole { node, offset, len } => numbers(out, 7, &[*node, *offset, *len]),
        Record::Size { node, size } => numbers(out, 8, &[*node, *size]),
        Record::Block {
            node,
            offset,
            len,
            id,
        } => {
            numbers(out, 9, &[*node, *offset, *len]);
            out.extend_from_slice(id);
        }
        Record::BeginCommit { node } => numbers(out, 10, &[*node]),
        Record::Sent { node, id } => {
            numbers(out, 13, &[*node]);
            out.extend_from_slice(id);
        }
        Record::Unstaged { node, id } => {
            numbers(out, 14, &[*node]);
            out.extend_from_slice(id);
        }
        Record::Metadata { node, metadata } => {
            numbers(out, 15, &[*node]);
            for text in metadata.iter().flat_map(|(name, value)| [name, value]) {
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        Record::Discard { node } => numbers(out, 12, &[*node]),
        Record::Committed { node, etag } => {
            numbers(out, 11, &[*node]);
            out.extend_from_slice(etag.as_bytes());
        }
    }
    let body = &out[head + 8..];
    let (len, crc) = (body.len() as u32, CRC.checksum(body));
    out[head..head + 4].copy_from_slice(&len.to_le_bytes());
    out[head + 4..head + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Takes one record off the front; `None` where there is no valid one.
pub(super) fn decode(rest: &mut Fields<'_>) -> Option<Record> {
    let len = rest.u32()? as usize;
    let crc = rest.u32()?;
    if len == 0 || len > MAX_RECORD {
        return None;
    }
    let body = rest.take(len)?;
    if CRC.checksum(body) != crc {
        return None;
    }
    let (tag, body) = body.split_first()?;
    let mut fields = Fields(body);
    Some(match tag {
        1 => Record::Node {
            id: fields.u64()?,
            parent: fields.u64()?,
            name: fields.text()?,
        },
        2 => Record::Forget { id: fields.u64()? },
        3 => Record::Handle {
            fh: fields.u64()?,
            node: fields.u64()?,
            flags: fields.i32()?,
            generation: fields.text()?,
        },
        4 => Record::Release { fh: fields.u64()? },
        5 => Record::Reply {
            unique: fields.u64()?,
            errno: fields.i32()?,
            node: fields.u64()?,
            fh: fields.u64()?,
        },
        6 => Record::Dirty {
            node: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u64()?,
            arena: fields.u64()?,
        },
        7 => Record::Hole {
            node: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u64()?,
        },
        8 => Record::Size {
            node: fields.u64()?,
            size: fields.u64()?,
        },
        9 => {
            let (node, offset, len) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Record::Block {
                node,
                offset,
                len,
                id: fields.0.to_vec(),
            }
        }
        10 => Record::BeginCommit { node: fields.u64()? },
        13 => Record::Sent {
            node: fields.u64()?,
            id: fields.0.to_vec(),
        },
        14 => Record::Unstaged {
            node: fields.u64()?,
            id: fields.0.to_vec(),
        },
        15 => {
            let (node, mut metadata) = (fields.u64()?, BTreeMap::new());
            while !fields.0.is_empty() {
                let name = fields.counted()?;
                metadata.insert(name, fields.counted()?);
            }
            Record::Metadata { node, metadata }
        }
        12 => Record::Discard { node: fields.u64()? },
        11 => Record::Committed {
            node: fields.u64()?,
            etag: fields.text()?,
        },
        _ => return None,
    })
}

/// A tag and numbers behind it.
fn numbers(out: &mut Vec<u8>, tag: u8, fields: &[u64]) {
    out.push(tag);
    fields
        .iter()
        .for_each(|f| out.extend_from_slice(&f.to_le_bytes()));
}

/// Reads fields off the front of a slice.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u32::from_le_bytes(*head))
    }
    fn i32(&mut self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u64::from_le_bytes(*head))
    }
    /// A text behind its length.
    fn counted(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }
    fn text(&mut self) -> Option<String> {
        String::from_utf8(std::mem::take(&mut self.0).to_vec()).ok()
    }
}
