//! Shared access signatures: attached as given, and short-lived ones of our own for copies between blobs.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::shared_key::SharedKey;
use crate::error::{Error, Result};
use crate::names::encode_query;

/// Version of the string-to-sign below (REST: "Create a service SAS", 2020-12-06 and later).
const SAS_VERSION: &str = "2021-12-02";
const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// Far longer than any; a request line with more is refused everywhere.
const LONGEST: usize = 8 * 1024;

/// A SAS as a query string: without `?`, checked for what every SAS has, otherwise as the user gave it.
pub(crate) fn parse(sas: &str) -> Result<String> {
    let wrong = |message: &str| Error::Argument {
        field: "azurestorageaccountsastoken",
        message: message.to_owned(),
    };
    let query = as_pasted(sas);
    let query = query.as_str();
    if query.is_empty() {
        return Err(wrong(
            "is empty; give the query string of a shared access signature",
        ));
    }
    let fits = query
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'"' | b'<' | b'>'));
    if !fits {
        return Err(wrong(
            "holds characters that no query string has; copy the SAS unchanged",
        ));
    }
    if query.len() > LONGEST {
        return Err(wrong("is longer than any SAS; copy it alone"));
    }
    if field(query, "sig").is_none() {
        return Err(wrong("has no sig= part; copy the whole SAS, signature included"));
    }
    Ok(query.to_owned())
}

/// The query string in what somebody has copied: a whole URL, one out of a connection string, JSON, XML or a
/// shell, with quotes, line breaks, or decoded on the way.
fn as_pasted(text: &str) -> String {
    // A SAS holds no blanks: those that are there came with a line break of a terminal or an editor.
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`');
    let text = text.trim_matches(ends);
    let broken = text.contains(['\n', '\r']);
    let mut text: String = if broken {
        text.chars().filter(|c| !c.is_whitespace()).collect()
    } else {
        text.to_owned()
    };
    for (pasted, meant) in [("&amp;", "&"), ("\\u0026", "&"), ("%26amp%3B", "&")] {
        text = text.replace(pasted, meant);
    }
    if let Some((_, rest)) = text.split_once("SharedAccessSignature=") {
        text = rest.split(';').next().unwrap_or_default().to_owned();
    }
    if let Some((_, query)) = text.split_once('?') {
        text = query.to_owned();
    }
    // Encoded as a whole: a query string has these characters.
    if !text.contains('&')
        && text.to_ascii_lowercase().contains("%26sig%3d")
        && let Ok(decoded) = percent_encoding::percent_decode_str(&text).decode_utf8()
    {
        text = decoded.into_owned();
    }
    let pairs = text.trim_matches('&').split('&').filter(|pair| !pair.is_empty());
    pairs.map(signature_encoded).collect::<Vec<_>>().join("&")
}

/// `sig=` as it goes on the wire. Base64 has `+`, `/` and `=`, never `%`.
fn signature_encoded(pair: &str) -> String {
    let Some((name, value)) = pair.split_once('=') else {
        return pair.to_owned();
    };
    if name != "sig" {
        return pair.to_owned();
    }
    let mut plain = value.to_owned();
    // Twice at most: a tool that encoded what was encoded.
    for _ in 0..2 {
        if let Ok(decoded) = percent_encoding::percent_decode_str(&plain).decode_utf8() {
            plain = decoded.into_owned();
        }
    }
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    if plain.chars().all(base64) {
        format!("sig={}", encode_query(&plain))
    } else {
        pair.to_owned()
    }
}

/// Refuses a SAS that can serve no volume, whatever the service says.
pub(crate) fn check_reach(query: &str) -> Result<()> {
    match too_narrow(query) {
        Some(message) => Err(Error::Argument {
            field: "azurestorageaccountsastoken",
            message,
        }),
        None => Ok(()),
    }
}

fn too_narrow(query: &str) -> Option<String> {
    let has = |name: &str, letter: char| field(query, name).is_none_or(|value| value.contains(letter));
    match field(query, "sr").as_deref() {
        Some("b" | "bs" | "bv") => {
            return Some("is for one blob (sr=b); make one for the container (sr=c)".to_owned());
        }
        Some("f" | "s") => {
            return Some("is for Azure Files (sr=f or s); make one for a blob container (sr=c)".to_owned());
        }
        Some("q" | "t") => {
            return Some("is for a queue or a table; make one for a blob container (sr=c)".to_owned());
        }
        _ => {}
    }
    if !has("ss", 'b') {
        return Some("is for other services (ss=); it needs blobs, ss=b".to_owned());
    }
    if !has("srt", 'o') || !has("srt", 'c') {
        return Some("is not for containers and objects (srt=); it needs both, srt=co".to_owned());
    }
    None
}

/// One decoded field of a SAS.
pub(crate) fn field(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.eq_ignore_ascii_case(name).then(|| {
            percent_encoding::percent_decode_str(value)
                .decode_utf8_lossy()
                .into_owned()
        })
    })
}

/// When the SAS ends, as written in it, if that moment has passed.
pub(crate) fn expired(query: &str, now: SystemTime) -> Option<String> {
    let end = field(query, "se")?;
    (time(&end)? <= now).then_some(end)
}

/// When the key that a user delegation SAS is signed with ends, if that moment has passed.
pub(crate) fn key_expired(query: &str, now: SystemTime) -> Option<String> {
    let end = field(query, "ske")?;
    (time(&end)? <= now).then_some(end)
}

/// When the SAS or the key it is signed with ends, whichever is first, as written in it.
pub(crate) fn ends(query: &str) -> Option<SystemTime> {
    let at = |name: &str| time(&field(query, name)?);
    [at("se"), at("ske")].into_iter().flatten().min()
}

/// When the SAS begins, as written in it, if that moment is still to come.
pub(crate) fn not_yet(query: &str, now: SystemTime) -> Option<String> {
    let start = field(query, "st")?;
    (time(&start)? > now).then_some(start)
}

/// A moment in any spelling of a SAS.
fn time(end: &str) -> Option<SystemTime> {
    let parsed = OffsetDateTime::parse(end, &time::format_description::well_known::Rfc3339)
        .ok()
        .or_else(|| {
            // The service also takes a date alone, and times without seconds.
            let padded = match end.len() {
                10 => format!("{end}T00:00:00Z"),
                17 => format!("{}:00Z", end.get(..16)?),
                _ => return None,
            };
            OffsetDateTime::parse(&padded, &time::format_description::well_known::Rfc3339).ok()
        })?;
    Some(SystemTime::from(parsed))
}

/// A service SAS that allows reading one blob for `lifetime`, as a query string.
pub(crate) fn read_one_blob(
    key: &SharedKey,
    container: &str,
    blob: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<String> {
    let format = |t: SystemTime| {
        OffsetDateTime::from(t)
            .format(TIME)
            .map_err(|e| Error::Malformed {
                message: format!("time of a SAS: {e}"),
            })
    };
    // Begins in the past, so that a service whose clock is behind ours accepts it.
    let start = format(now - Duration::from_secs(300))?;
    let expiry = format(now + lifetime)?;
    let resource = format!("/blob/{}/{container}/{blob}", key.account());
    // permissions, start, expiry, resource, identifier, IP, protocol, version, resource kind, snapshot,
    // encryption scope, then five response headers that are not overridden.
    let text = [
        "r",
        &start,
        &expiry,
        &resource,
        "",
        "",
        "",
        SAS_VERSION,
        "b",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
    ]
    .join("\n");
    let signature = key.sign_text(&text);
    Ok(format!(
        "sv={SAS_VERSION}&st={}&se={}&sr=b&sp=r&sig={}",
        encode_query(&start),
        encode_query(&expiry),
        encode_query(&signature)
    ))
}
