//! The XML bodies of the service: listings, block lists, errors.
//!
//! Text is taken byte for byte: names may begin with spaces, hold carriage returns or (as character
//! references) control characters, and none of that may be trimmed or folded on the way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::error::{Error, Result};
use crate::protection::Protection;
use crate::stored::StoredHeaders;
use crate::types::{
    BlobType, Block, BlockId, BlockList, BlockRef, ETag, ListItem, ListPage, Metadata, Properties,
};

/// An element with its text and children. The service's answers are flat and bounded by the transport.
#[derive(Debug, Default)]
struct Element {
    name: String,
    /// The `Encoded` attribute: the text is percent-encoded, because XML cannot hold it (REST: List Blobs,
    /// 2021-02-12).
    encoded: bool,
    text: String,
    children: Vec<Element>,
}

/// Deeper than any answer of the service; stops a hostile one before the stack does.
const MAX_DEPTH: usize = 16;

impl Element {
    fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }

    fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|c| c.text.as_str())
    }
}

fn malformed(what: &str, position: u64, why: impl std::fmt::Display) -> Error {
    Error::Malformed {
        message: format!("{what}, byte {position}: {why}"),
    }
}

/// Whether a document with this root is there to its end: one that breaks off is an answer that was lost on
/// its way, whatever its length says.
pub(crate) fn check_end(body: &[u8], root: &str) -> Result<(), String> {
    let body = body.trim_ascii_end();
    let last = body
        .iter()
        .rposition(|byte| *byte == b'<')
        .and_then(|at| body.get(at + 1..));
    let ends = last.and_then(|tag| tag.strip_suffix(b">")).is_some_and(|tag| {
        let tag = match tag.strip_prefix(b"/") {
            Some(name) => Some(name),
            // An empty one.
            None => tag.strip_suffix(b"/"),
        };
        tag.and_then(|tag| tag.strip_prefix(root.as_bytes()))
            .is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
    });
    if ends {
        Ok(())
    } else {
        Err(format!(
            "the answer's XML breaks off after {} bytes, before the end of {root}",
            body.len()
        ))
    }
}

/// Parses a document into its root element. `each` is given the elements at the third level, with the name of
/// their parent, as soon as they are complete, and keeps those that it gives back: the entries of a listing
/// need not be there all at once.
fn document(
    what: &str,
    body: &[u8],
    mut each: impl FnMut(&str, Element) -> Result<Option<Element>>,
) -> Result<Element> {
    let text = std::str::from_utf8(body).map_err(|e| malformed(what, e.valid_up_to() as u64, "not UTF-8"))?;
    // Azurite and the service may begin with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    loop {
        let position = reader.buffer_position();
        let event = reader
            .read_event()
            .map_err(|e| malformed(what, reader.error_position(), e))?;
        match event {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(malformed(what, position, "nested too deeply"));
                }
                open.push(element(&start).map_err(|e| malformed(what, position, e))?);
            }
            Event::Empty(start) => {
                let done = element(&start).map_err(|e| malformed(what, position, e))?;
                match &mut open[..] {
                    [] => return Ok(done),
                    [_, parent] => parent.children.extend(each(&parent.name, done)?),
                    [.., parent] => parent.children.push(done),
                }
            }
            Event::End(_) => {
                // The reader has checked that it closes the element that is open.
                let Some(done) = open.pop() else {
                    return Err(malformed(what, position, "an end without a start"));
                };
                match &mut open[..] {
                    [] => return Ok(done),
                    [_, parent] => parent.children.extend(each(&parent.name, done)?),
                    [.., parent] => parent.children.push(done),
                }
            }
            Event::Text(t) => {
                if let Some(current) = open.last_mut() {
                    current.text.push_str(&t);
                }
            }
            Event::CData(t) => {
                if let Some(current) = open.last_mut() {
                    current.text.push_str(&t);
                }
            }
            Event::GeneralRef(r) => {
                if let Some(current) = open.last_mut() {
                    current
                        .text
                        .push(character(&r).map_err(|e| malformed(what, position, e))?);
                }
            }
            Event::Eof => return Err(malformed(what, position, "the document ends early")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// Of documents that are short.
fn keep(_: &str, element: Element) -> Result<Option<Element>> {
    Ok(Some(element))
}

fn element(start: &BytesStart<'_>) -> Result<Element, String> {
    let encoded = start
        .try_get_attribute("Encoded")
        .map_err(|e| e.to_string())?
        .is_some_and(|a| a.value.eq_ignore_ascii_case("true"));
    Ok(Element {
        name: start.local_name().as_ref().to_owned(),
        encoded,
        ..Element::default()
    })
}

fn character(reference: &BytesRef<'_>) -> Result<char, String> {
    let name: &str = reference;
    if let Some(number) = name.strip_prefix('#') {
        // Not the reader's own resolution: it refuses characters that XML 1.0 forbids, and blob names may
        // hold those.
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => number.parse(),
        };
        return code
            .ok()
            .and_then(char::from_u32)
            .ok_or_else(|| format!("&{name}; is no character"));
    }
    match name {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        other => Err(format!("&{other}; is not known")),
    }
}

/// Text of a `Name`, decoded when the service had to encode it.
fn name_text(element: &Element) -> Result<String, String> {
    if !element.encoded {
        return Ok(element.text.clone());
    }
    percent_encoding::percent_decode_str(&element.text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("name {:?} does not decode to UTF-8", element.text))
}

/// One page of List Blobs.
pub(crate) fn list_page(body: &[u8]) -> Result<ListPage> {
    let mut items = Vec::new();
    let mut number = 0;
    let root = document("listing", body, |parent, entry| {
        if parent != "Blobs" {
            return Ok(Some(entry));
        }
        number += 1;
        items.extend(list_entry(&entry).map_err(|why| Error::Malformed {
            message: format!(
                "listing, entry {number} ({:?}): {why}",
                entry.text_of("Name").unwrap_or("no name")
            ),
        })?);
        Ok(None)
    })?;
    if root.name != "EnumerationResults" {
        return Err(malformed(
            "listing",
            0,
            format!("root element is {:?}", root.name),
        ));
    }
    Ok(ListPage {
        items,
        next_marker: root
            .text_of("NextMarker")
            .filter(|m| !m.is_empty())
            .map(str::to_owned),
    })
}

fn list_entry(entry: &Element) -> Result<Option<ListItem>, String> {
    match entry.name.as_str() {
        "Blob" => blob_entry(entry),
        "BlobPrefix" => {
            let name = name_text(entry.child("Name").ok_or("has no Name")?)?;
            Ok(Some(ListItem::Prefix { name }))
        }
        // Something a later version of the service may add.
        _ => Ok(None),
    }
}

fn blob_entry(entry: &Element) -> Result<Option<ListItem>, String> {
    let name = name_text(entry.child("Name").ok_or("has no Name")?)?;
    let properties = entry.child("Properties").ok_or("has no Properties")?;
    let required = |field: &str| {
        properties
            .text_of(field)
            .filter(|t| !t.is_empty())
            .ok_or_else(|| format!("has no {field}"))
    };
    let is_directory = properties
        .text_of("ResourceType")
        .is_some_and(|t| t.eq_ignore_ascii_case("directory"));
    let modified = required("Last-Modified")?;
    let content_length = match properties.text_of("Content-Length") {
        Some(t) if !t.is_empty() => t
            .parse()
            .map_err(|_| format!("Content-Length {t:?} is no number"))?,
        // Directories of hierarchical accounts have no length.
        _ if is_directory => 0,
        _ => return Err("has no Content-Length".to_owned()),
    };
    let mut metadata = Metadata::new();
    for field in entry.child("Metadata").map_or(&[][..], |m| &m.children) {
        metadata.insert(field.name.to_ascii_lowercase(), field.text.clone());
    }
    Ok(Some(ListItem::Blob {
        name,
        properties: Properties {
            etag: etag(required("Etag")?),
            last_modified: httpdate::parse_http_date(modified)
                .map_err(|_| format!("Last-Modified {modified:?} is no date"))?,
            content_length,
            blob_type: properties.text_of("BlobType").map_or(BlobType::Block, blob_type),
            metadata,
            stored: StoredHeaders::of_listing(|name| properties.text_of(name)),
            content_md5: properties
                .text_of("Content-MD5")
                .filter(|t| !t.is_empty())
                .map(str::to_owned),
            created: properties
                .text_of("Creation-Time")
                .and_then(|t| httpdate::parse_http_date(t).ok()),
            copied_from: None,
            is_directory,
            protection: Protection::of_listing(|name| properties.text_of(name)),
        },
    }))
}

/// Listings give the ETag without the quotes that headers have; one spelling is kept everywhere.
fn etag(text: &str) -> ETag {
    if text.starts_with('"') || text.starts_with("W/") {
        ETag(text.to_owned())
    } else {
        ETag(format!("\"{text}\""))
    }
}

pub(crate) fn blob_type(text: &str) -> BlobType {
    match text {
        "PageBlob" => BlobType::Page,
        "AppendBlob" => BlobType::Append,
        _ => BlobType::Block,
    }
}

/// Answer of Get Block List; ETag and length come from its headers.
pub(crate) fn block_list(body: &[u8]) -> Result<BlockList> {
    let mut list = BlockList::default();
    let root = document("block list", body, |kind, block| {
        let blocks = match kind {
            "CommittedBlocks" => &mut list.committed,
            "UncommittedBlocks" => &mut list.uncommitted,
            _ => return Ok(None),
        };
        let number = blocks.len() + 1;
        blocks.push(one_block(&block).map_err(|why| Error::Malformed {
            message: format!("block list, {kind} {number}: {why}"),
        })?);
        Ok(None)
    })?;
    if root.name != "BlockList" {
        return Err(malformed(
            "block list",
            0,
            format!("root element is {:?}", root.name),
        ));
    }
    Ok(list)
}

fn one_block(block: &Element) -> Result<Block, String> {
    let id = block.text_of("Name").ok_or("has no Name")?;
    let size = block.text_of("Size").ok_or("has no Size")?;
    Ok(Block {
        id: BlockId(
            STANDARD
                .decode(id)
                .map_err(|_| format!("block id {id:?} is not base64"))?,
        ),
        size: size.parse().map_err(|_| format!("size {size:?} is no number"))?,
    })
}

/// Answer of Get Blob Tags: keys and values.
pub(crate) fn tags(body: &[u8]) -> Result<Vec<(String, String)>> {
    let root = document("tags", body, keep)?;
    let set = root.child("TagSet").filter(|_| root.name == "Tags");
    let set = set.ok_or_else(|| malformed("tags", 0, format!("root element is {:?}", root.name)))?;
    set.children
        .iter()
        .map(|tag| match (tag.text_of("Key"), tag.text_of("Value")) {
            (Some(key), value) => Ok((key.to_owned(), value.unwrap_or_default().to_owned())),
            (None, _) => Err(malformed("tags", 0, "a tag has no Key")),
        })
        .collect()
}

/// Body of Put Block List.
pub(crate) fn block_list_body(blocks: &[BlockRef]) -> String {
    let mut out = String::with_capacity(64 + blocks.len() * 96);
    out.push_str("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
    for block in blocks {
        let (kind, id) = match block {
            BlockRef::Committed(id) => ("Committed", id),
            BlockRef::Uncommitted(id) => ("Uncommitted", id),
            BlockRef::Latest(id) => ("Latest", id),
        };
        // Base64 needs no escaping in XML.
        out.push_str(&format!("<{kind}>{}</{kind}>", STANDARD.encode(&id.0)));
    }
    out.push_str("</BlockList>");
    out
}

/// Code and first line of the message of an error body; `None` when it is none.
pub(crate) fn error_body(body: &[u8]) -> Option<(String, String)> {
    let root = document("error", body, keep).ok()?;
    if root.name != "Error" {
        return None;
    }
    let message = root.text_of("Message").unwrap_or_default();
    Some((
        root.text_of("Code").unwrap_or_default().trim().to_owned(),
        message.lines().next().unwrap_or_default().trim().to_owned(),
    ))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
