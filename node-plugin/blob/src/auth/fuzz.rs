//! Fuzz targets: a shared access signature in whatever form it is pasted.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::sas::{check_reach, expired, field, key_expired, not_yet, parse};
use crate::error::Error;
use crate::names::encode_query;

/// What a SAS has beside its signature.
const FIELDS: &[(&str, &str)] = &[
    ("sv", "2024-11-04"),
    ("ss", "b"),
    ("srt", "sco"),
    ("sr", "c"),
    ("sp", "rwdlacupx"),
    ("st", "2024-01-01T00%3A00%3A00Z"),
    ("se", "2099-01-01T00:00:00Z"),
    ("spr", "https"),
    ("sip", "168.1.5.60-168.1.5.70"),
    ("skoid", "11111111-2222-3333-4444-555555555555"),
    ("ske", "2099-01-01T00%3A00%3A00Z"),
    ("si", "a%20policy"),
];

/// Whatever is accepted can be sent, and looked at.
fn looked_at(text: &str) {
    match parse(text) {
        Ok(query) => {
            assert!(
                query.bytes().all(|b| b.is_ascii_graphic() && b != b'#'),
                "{query:?}"
            );
            assert!(field(&query, "sig").is_some(), "{query:?}");
            let uri: Result<http::Uri, _> = format!("https://h/c?{query}").parse();
            assert_eq!(uri.unwrap().query(), Some(query.as_str()));
            let _ = check_reach(&query);
            let now = SystemTime::now();
            let _ = (
                expired(&query, now),
                key_expired(&query, now),
                not_yet(&query, now),
            );
        }
        Err(Error::Argument { field, message }) => {
            assert_eq!(field, "azurestorageaccountsastoken");
            // What it was is a secret.
            assert!(message.len() < 200, "{message}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn anything_pasted() {
    let words: Vec<String> = FIELDS
        .iter()
        .map(|(name, value)| format!("&{name}={value}"))
        .collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend([
        "&sig=",
        "%25",
        "&amp;",
        "SharedAccessSignature=",
        "?",
        "\n  ",
        "\\u0026",
        "ä",
    ]);
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/sas"),
        &words,
        |bytes| {
            looked_at(&String::from_utf8_lossy(bytes));
        },
    );
}

/// Where the pieces of a SAS come from, and how it was pasted.
type Pasted = (Vec<u8>, [u8; 32], (u8, u8, u8), u16);

/// The SAS, with its signature as given.
fn query(fields: &[u8], signature: &str) -> String {
    let mut pairs = vec![("sv", "2024-11-04")];
    for index in fields.iter().take(FIELDS.len()) {
        let pair = FIELDS[usize::from(*index) % FIELDS.len()];
        if pairs.iter().all(|(name, _)| *name != pair.0) {
            pairs.push(pair);
        }
    }
    // Somewhere behind the first.
    let at = 1 + fields
        .first()
        .map_or(0, |index| usize::from(*index) % pairs.len());
    let mut pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.insert(at, format!("sig={signature}"));
    pairs.join("&")
}

#[test]
fn each_way_of_pasting_means_the_same() {
    fuzzing::each(|(fields, signature, (spelling, holder, ends), at): &Pasted| {
        let plain = STANDARD.encode(signature);
        let wire = encode_query(&plain);
        let meant = query(fields, &wire);
        assert_eq!(parse(&meant).unwrap(), meant);
        // How a tool has spelled it.
        let spelled = match spelling % 6 {
            0 => meant.clone(),
            1 => query(fields, &plain),
            2 => query(fields, &encode_query(&wire)),
            3 => meant.replace('&', "&amp;"),
            4 => meant.replace('&', "\\u0026"),
            _ => encode_query(&meant),
        };
        // What it was part of.
        let held = match holder % 5 {
            0 => spelled,
            1 => format!("?{spelled}"),
            2 => format!("https://account.blob.core.windows.net/container?{spelled}"),
            3 => format!("BlobEndpoint=https://a.blob.core.windows.net/;SharedAccessSignature={spelled}"),
            _ => format!("SharedAccessSignature={spelled};TableEndpoint=https://a.table.x.net/;"),
        };
        // How it was copied.
        let pasted = match ends % 5 {
            0 => held,
            1 => format!("  {held}\n"),
            2 => format!("\"{held}\""),
            3 => format!("'{held}'\r\n"),
            _ => {
                let (left, right) = held.split_at(usize::from(*at) % held.len());
                format!("{left}\n    {right}")
            }
        };
        assert_eq!(parse(&pasted).unwrap(), meant, "{pasted:?}");
    });
}
