//! Fuzz targets: whatever comes as an answer in XML.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{block_list, check_end, error_body, list_page, tags};
use crate::error::{Error, Result};
use crate::types::{ListItem, Metadata};

/// What makes another document out of one.
const WORDS: &[&str] = &[
    "<Blob>",
    "</Blob>",
    "<BlobPrefix>",
    "<Name Encoded=\"true\">",
    "<Name Encoded=\"",
    "</Name>",
    "<Blobs/>",
    "<NextMarker>",
    "<Metadata>",
    "<Size>18446744073709551616</Size>",
    "<Content-Length>-1</Content-Length>",
    "<Last-Modified>Mon, 31 Feb 10000 25:61:61 GMT</Last-Modified>",
    "<![CDATA[",
    "]]>",
    "&#x0;",
    "&#55296;",
    "&#99999999999;",
    "&amp;",
    "&unknown;",
    "%ff",
    "%",
    "<!-- ",
    "<!DOCTYPE a [<!ENTITY b \"c\">]>",
    "<?xml version=\"1.0\"?>",
    "\u{feff}",
    "\r\n",
];

/// The error says of which answer it is.
fn told<T>(what: &str, parsed: Result<T>) -> Option<T> {
    match parsed {
        Ok(value) => Some(value),
        Err(Error::Malformed { message }) => {
            assert!(message.starts_with(what), "{message}");
            None
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

/// What is read of an answer is not larger than the answer.
fn read(body: &[u8]) {
    let most = body.len();
    let held = |metadata: &Metadata| -> usize { metadata.iter().map(|(k, v)| k.len() + v.len()).sum() };
    if let Some(page) = told("listing", list_page(body)) {
        let size = |item: &ListItem| match item {
            ListItem::Blob { name, properties } => name.len() + held(&properties.metadata),
            ListItem::Prefix { name } => name.len(),
        };
        assert!(page.items.iter().map(size).sum::<usize>() <= most);
        assert!(page.items.len() * "<Blob/>".len() <= most);
    }
    if let Some(list) = told("block list", block_list(body)) {
        let blocks = list.committed.iter().chain(&list.uncommitted);
        assert!(blocks.map(|block| block.id.0.len()).sum::<usize>() <= most);
    }
    if let Some(tags) = told("tags", tags(body)) {
        assert!(tags.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() <= most);
    }
    for root in ["EnumerationResults", "BlockList", "Tags"] {
        assert_eq!(
            check_end(body, root).is_ok(),
            check_end(&[body, b"\n"].concat(), root).is_ok()
        );
    }
    if let Some((code, message)) = error_body(body) {
        assert!(code.len() + message.len() <= most && !message.contains('\n'));
    }
}

#[test]
fn answers() {
    fuzzing::bytes(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/xml"), WORDS, read);
}

/// Text as the service writes it.
fn written(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn element_of_name(name: &str) -> String {
    let not_in_xml = |c: char| matches!(c, '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
    if name.contains(not_in_xml) {
        let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC);
        return format!("<Name Encoded=\"true\">{encoded}</Name>");
    }
    format!("<Name>{}</Name>", written(name))
}

#[test]
fn names_in_a_listing_are_those_that_the_service_wrote() {
    fuzzing::each(|entries: &Vec<(Vec<char>, bool)>| {
        let name = |characters: &[char]| characters.iter().collect::<String>();
        let wanted: Vec<_> = entries
            .iter()
            .map(|(characters, is_blob)| (name(characters), *is_blob))
            .collect();
        let mut body = "<?xml version=\"1.0\"?><EnumerationResults><Blobs>".to_owned();
        for (name, is_blob) in &wanted {
            let name = element_of_name(name);
            body += &match is_blob {
                false => format!("<BlobPrefix>{name}</BlobPrefix>"),
                true => format!(
                    "<Blob>{name}<Properties><Etag>0x1</Etag><Content-Length>1</Content-Length>\
                     <Last-Modified>Mon, 01 Jan 2024 00:00:00 GMT</Last-Modified></Properties></Blob>"
                ),
            };
        }
        body += "</Blobs><NextMarker/></EnumerationResults>";
        let page = list_page(body.as_bytes()).unwrap();
        let entry = |item| match item {
            ListItem::Blob { name, .. } => (name, true),
            ListItem::Prefix { name } => (name, false),
        };
        assert_eq!(page.items.into_iter().map(entry).collect::<Vec<_>>(), wanted);
    });
}
