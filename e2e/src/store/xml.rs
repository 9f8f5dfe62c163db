//! XML bodies: a small writer for answers, a reader for Put Block List.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::Reader;
use quick_xml::events::Event;

use super::encoding::unbase64;
use super::error::ServiceError;

/// Writes one document.
#[derive(Debug)]
pub(super) struct Xml(String);

impl Xml {
    /// With the declaration the service sends, byte order mark included.
    pub(super) fn new() -> Self {
        Self("\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>".to_owned())
    }
    /// `<name>`.
    pub(super) fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }
    /// `<name attribute="value" ...>`.
    pub(super) fn open_with(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.0.push('<');
        self.0.push_str(name);
        for (attribute, value) in attributes {
            self.0.push(' ');
            self.0.push_str(attribute);
            self.0.push_str("=\"");
            self.escaped(value);
            self.0.push('"');
        }
        self.0.push('>');
    }
    /// `</name>`.
    pub(super) fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }
    /// `<name>text</name>`, or `<name />` for nothing.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            self.0.push('<');
            self.0.push_str(name);
            self.0.push_str(" />");
            return;
        }
        self.open(name);
        self.escaped(text);
        self.close(name);
    }
    /// A name of a blob or prefix. Characters XML 1.0 cannot carry: the name is percent-encoded and says so
    /// (REST: "List Blobs", since 2021-02-12).
    pub(super) fn name(&mut self, element: &str, name: &str) {
        if name.chars().all(is_xml_char) {
            self.text(element, name);
            return;
        }
        self.open_with(element, &[("Encoded", "true")]);
        self.0.extend(utf8_percent_encode(name, ENCODED));
        self.close(element);
    }
    /// The document.
    pub(super) fn finish(self) -> String {
        self.0
    }
    fn escaped(&mut self, text: &str) {
        let text: Cow<'_, str> = if text.chars().all(is_xml_char) {
            text.into()
        } else {
            text.chars()
                .map(|c| if is_xml_char(c) { c } else { '\u{fffd}' })
                .collect::<String>()
                .into()
        };
        // Carriage returns become references too: literal ones would be read back as line feeds.
        self.0.push_str(&quick_xml::escape::escape(text));
    }
}

/// Unreserved characters of RFC 3986 and the slash stay as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// `Char` of XML 1.0.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Where Put Block List looks for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    Committed,
    Uncommitted,
    Latest,
}

/// Reads the body of Put Block List.
pub(super) fn parse_block_list(body: &[u8]) -> Result<Vec<(Lookup, Vec<u8>)>, ServiceError> {
    let text = std::str::from_utf8(body).map_err(|_| ServiceError::invalid_xml())?;
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = Reader::from_str(text);
    let mut out = Vec::new();
    let mut depth = 0;
    let mut current: Option<(Lookup, String)> = None;
    let mut seen_root = false;
    loop {
        match reader.read_event().map_err(|_| ServiceError::invalid_xml())? {
            Event::Start(start) => {
                let name: &[u8] = start.name().into_inner().as_ref();
                match depth {
                    0 if name == b"BlockList" && !seen_root => seen_root = true,
                    1 => current = Some((lookup(name)?, String::new())),
                    _ => return Err(ServiceError::invalid_xml()),
                }
                depth += 1;
            }
            Event::Empty(empty) => {
                let name: &[u8] = empty.name().into_inner().as_ref();
                match depth {
                    0 if name == b"BlockList" && !seen_root => seen_root = true,
                    _ => return Err(ServiceError::invalid_xml()),
                }
            }
            Event::End(_) => {
                depth -= 1;
                if let Some((lookup, id)) = current.take() {
                    let id = unbase64(id.trim())
                        .filter(|id| !id.is_empty() && id.len() <= 64)
                        .ok_or_else(ServiceError::invalid_block_list)?;
                    out.push((lookup, id));
                    if out.len() > 50_000 {
                        return Err(ServiceError::block_list_too_long());
                    }
                }
            }
            Event::Text(text) => {
                let text: &str = text.as_ref();
                match &mut current {
                    Some((_, id)) => id.push_str(text),
                    None if text.trim().is_empty() => {}
                    None => return Err(ServiceError::invalid_xml()),
                }
            }
            // Base64 needs no entities, but a writer may escape what it likes.
            Event::GeneralRef(reference) => {
                let entity: &str = reference.as_ref();
                let text = quick_xml::escape::unescape(&format!("&{entity};"))
                    .map_err(|_| ServiceError::invalid_xml())?
                    .into_owned();
                match &mut current {
                    Some((_, id)) => id.push_str(&text),
                    None => return Err(ServiceError::invalid_xml()),
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if depth != 0 || !seen_root {
        return Err(ServiceError::invalid_xml());
    }
    Ok(out)
}

fn lookup(name: &[u8]) -> Result<Lookup, ServiceError> {
    match name {
        b"Committed" => Ok(Lookup::Committed),
        b"Uncommitted" => Ok(Lookup::Uncommitted),
        b"Latest" => Ok(Lookup::Latest),
        _ => Err(ServiceError::invalid_xml()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists() {
        let parse = |body: &str| parse_block_list(body.as_bytes()).map_err(|e| e.code.into_owned());
        assert_eq!(
            parse(
                "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<BlockList>\n \
                 <Latest>QQ==</Latest><Committed>Qg==</Committed> \
                 <Uncommitted>Qw&#61;&#61;</Uncommitted>\n</BlockList>\n"
            ),
            Ok(vec![
                (Lookup::Latest, b"A".to_vec()),
                (Lookup::Committed, b"B".to_vec()),
                (Lookup::Uncommitted, b"C".to_vec()),
            ])
        );
        assert_eq!(parse("<BlockList/>"), Ok(vec![]));
        assert_eq!(parse("<BlockList></BlockList>"), Ok(vec![]));
        for wrong in [
            "",
            "<BlockList>",
            "<Other/>",
            "<BlockList><X>QQ==</X></BlockList>",
            "<BlockList>text</BlockList>",
            "\u{1}",
        ] {
            assert_eq!(parse(wrong), Err("InvalidXmlDocument".into()), "{wrong:?}");
        }
        assert_eq!(
            parse("<BlockList><Latest>!</Latest></BlockList>"),
            Err("InvalidBlockList".into())
        );
        let many = format!(
            "<BlockList>{}</BlockList>",
            "<Latest>QQ==</Latest>".repeat(50_001)
        );
        assert_eq!(parse(&many), Err("BlockListTooLong".into()));
    }

    #[test]
    fn names_no_xml_can_carry_are_encoded() {
        let show = |name: &str| {
            let mut xml = Xml(String::new());
            xml.name("Name", name);
            xml.finish()
        };
        assert_eq!(show("a <&> b"), "<Name>a &lt;&amp;&gt; b</Name>");
        assert_eq!(show("a/\u{1} %"), "<Name Encoded=\"true\">a/%01%20%25</Name>");
        assert_eq!(show("\u{fffe}"), "<Name Encoded=\"true\">%EF%BF%BE</Name>");
        assert_eq!(show("a\rb"), "<Name>a&#13;b</Name>");
    }
}
