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

/// A SAS as a query string: without `?`, checked for what every SAS has, otherwise as the user gave it.
pub(crate) fn parse(sas: &str) -> Result<String> {
    let wrong = |message: &str| Error::Argument {
        field: "azurestorageaccountsastoken",
        message: message.to_owned(),
    };
    let query = sas.trim().trim_start_matches('?');
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
    if field(query, "sig").is_none() {
        return Err(wrong("has no sig= part; copy the whole SAS, signature included"));
    }
    Ok(query.to_owned())
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
    let parsed = OffsetDateTime::parse(&end, &time::format_description::well_known::Rfc3339)
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
    (SystemTime::from(parsed) <= now).then_some(end)
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
