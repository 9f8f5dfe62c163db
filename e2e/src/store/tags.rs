//! Index tags of blobs (REST: "Set Blob Tags", "Specifying conditional headers": `x-ms-if-tags`).

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::error::ServiceError;
use super::xml::Xml;

/// Tags by their keys, in order.
pub(super) type Tags = BTreeMap<String, String>;

/// The service's limit for one blob.
const MAX_TAGS: usize = 10;

/// `x-ms-tags`: `key1=value1&key2=value2`, percent-encoded as in a query.
pub(super) fn parse_header(text: &str) -> Result<Tags, ServiceError> {
    let decode = |raw: &str| {
        percent_decode_str(&raw.replace('+', " "))
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| invalid())
    };
    let mut tags = Tags::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(invalid)?;
        if tags.insert(decode(key)?, decode(value)?).is_some() {
            return Err(invalid());
        }
    }
    checked(tags)
}

/// The body of Set Blob Tags: `<Tags><TagSet><Tag><Key/><Value/></Tag>...`.
pub(super) fn parse_body(body: &[u8]) -> Result<Tags, ServiceError> {
    let text = std::str::from_utf8(body).map_err(|_| ServiceError::invalid_xml())?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut tags = Tags::new();
    let (mut key, mut value, mut path) = (String::new(), String::new(), Vec::new());
    loop {
        match reader.read_event().map_err(|_| ServiceError::invalid_xml())? {
            Event::Start(start) => {
                let name: &[u8] = start.name().into_inner().as_ref();
                path.push(name.to_vec());
                if name == b"Tag" {
                    (key, value) = (String::new(), String::new());
                }
            }
            Event::Text(text) => {
                let text: &str = text.as_ref();
                append(&path, &mut key, &mut value, text);
            }
            Event::GeneralRef(reference) => {
                let entity: &str = reference.as_ref();
                let text = quick_xml::escape::unescape(&format!("&{entity};"))
                    .map_err(|_| ServiceError::invalid_xml())?
                    .into_owned();
                append(&path, &mut key, &mut value, &text);
            }
            Event::End(_) => {
                let closed = path.pop();
                if closed.as_deref() == Some(b"Tag") && tags.insert(key.clone(), value.clone()).is_some() {
                    return Err(invalid());
                }
            }
            Event::Eof if path.is_empty() => return checked(tags),
            Event::Eof => return Err(ServiceError::invalid_xml()),
            _ => {}
        }
    }
}

/// Text belongs to the element it stands in.
fn append(path: &[Vec<u8>], key: &mut String, value: &mut String, text: &str) {
    match path.last().map(Vec::as_slice) {
        Some(b"Key") => key.push_str(text),
        Some(b"Value") => value.push_str(text),
        _ => {}
    }
}

/// `<Tags>` as Get Blob Tags and List Blobs write it.
pub(super) fn write(xml: &mut Xml, tags: &Tags) {
    xml.open("Tags");
    xml.open("TagSet");
    for (key, value) in tags {
        xml.open("Tag");
        xml.text("Key", key);
        xml.text("Value", value);
        xml.close("Tag");
    }
    xml.close("TagSet");
    xml.close("Tags");
}

/// At most ten; keys of 1 to 128 characters, values of up to 256; letters, digits, space and `+-./:=_`.
fn checked(tags: Tags) -> Result<Tags, ServiceError> {
    let allowed = |text: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || " +-./:=_".contains(c))
    };
    let valid = tags.len() <= MAX_TAGS
        && tags.iter().all(|(key, value)| {
            (1..=128).contains(&key.len()) && value.len() <= 256 && allowed(key) && allowed(value)
        });
    if valid { Ok(tags) } else { Err(invalid()) }
}

fn invalid() -> ServiceError {
    ServiceError::invalid_tags()
}

/// Whether `x-ms-if-tags` holds: comparisons joined by AND and OR, AND binding closer, no parentheses.
pub(super) fn holds(condition: &str, tags: &Tags) -> Result<bool, ServiceError> {
    let mut any = false;
    let words = words(condition)?;
    for alternative in words.split(|word| matches!(word, Word::Or)) {
        let mut all = true;
        for comparison in alternative.split(|word| matches!(word, Word::And)) {
            let [Word::Key(key), Word::Operator(operator), Word::Value(value)] = comparison else {
                return Err(ServiceError::invalid_header("x-ms-if-tags", condition));
            };
            let there = tags.get(key);
            all &= match operator.as_str() {
                "=" => there == Some(value),
                "<>" => there != Some(value),
                "<" => there.is_some_and(|there| there < value),
                "<=" => there.is_some_and(|there| there <= value),
                ">" => there.is_some_and(|there| there > value),
                _ => there.is_some_and(|there| there >= value),
            };
        }
        any |= all;
    }
    Ok(any)
}

#[derive(Debug)]
enum Word {
    Key(String),
    Operator(String),
    Value(String),
    And,
    Or,
}

fn words(condition: &str) -> Result<Vec<Word>, ServiceError> {
    let wrong = || ServiceError::invalid_header("x-ms-if-tags", condition);
    let mut words = Vec::new();
    let mut rest = condition.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '"' | '\'' => {
                let (text, after) = rest[1..].split_once(first).ok_or_else(wrong)?;
                let text = text.to_owned();
                (
                    if first == '"' {
                        Word::Key(text)
                    } else {
                        Word::Value(text)
                    },
                    after,
                )
            }
            '=' | '<' | '>' => {
                let end = rest.find(|c| !"=<>".contains(c)).unwrap_or(rest.len());
                let (operator, after) = rest.split_at(end);
                if !["=", "<>", "<", "<=", ">", ">="].contains(&operator) {
                    return Err(wrong());
                }
                (Word::Operator(operator.to_owned()), after)
            }
            _ => {
                let end = rest.find(|c: char| " =<>".contains(c)).unwrap_or(rest.len());
                let (text, after) = rest.split_at(end);
                let word = match text.to_ascii_uppercase().as_str() {
                    "AND" => Word::And,
                    "OR" => Word::Or,
                    _ => Word::Key(text.to_owned()),
                };
                (word, after)
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_body_give_the_same_tags() {
        let tags = parse_header("a=1&b%3Ac=x+y").unwrap();
        assert_eq!(
            tags,
            Tags::from([("a".into(), "1".into()), ("b:c".into(), "x y".into())])
        );
        let mut xml = Xml::new();
        write(&mut xml, &tags);
        assert_eq!(parse_body(xml.finish().as_bytes()).unwrap(), tags);
        let escaped = "<Tags><TagSet><Tag><Key>a</Key><Value>1&#43;2</Value></Tag></TagSet></Tags>";
        assert_eq!(parse_body(escaped.as_bytes()).unwrap()["a"], "1+2");
        for wrong in ["a", "a=1&a=2", "=1", "a=%C3%BC", &"k=v&".repeat(2)] {
            assert!(parse_header(wrong).is_err(), "{wrong}");
        }
        let eleven: Vec<_> = (0..11).map(|i| format!("k{i}=v")).collect();
        assert!(parse_header(&eleven.join("&")).is_err());
        for wrong in [
            "",
            "<Tags>",
            "<Tags><TagSet><Tag><Key></Key><Value>x</Value></Tag></TagSet></Tags>",
        ] {
            let parsed = parse_body(wrong.as_bytes());
            assert!(parsed.is_err() || wrong.is_empty(), "{wrong}: {parsed:?}");
        }
    }

    #[test]
    fn conditions_on_tags() {
        let tags = Tags::from([("a".into(), "2".into()), ("b".into(), "x".into())]);
        for (condition, wanted) in [
            ("\"a\" = '2'", true),
            ("a='1'", false),
            ("\"a\" >= '2' AND \"b\" = 'x'", true),
            ("\"a\" < '2' or \"b\" <> 'y'", true),
            ("\"c\" <> 'y'", true),
            ("\"c\" = 'y'", false),
        ] {
            assert_eq!(holds(condition, &tags).unwrap(), wanted, "{condition}");
        }
        for wrong in ["a", "a =", "'a' = 'b'", "a = 'b' AND", "a = 'b", "a == 'b'"] {
            assert!(holds(wrong, &tags).is_err(), "{wrong}");
        }
    }
}
