//! SharedKey signatures (REST: "Authorize with Shared Key", version 2015-02-21 and later).

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderMap;

use super::account::{Account, Presented};
use crate::store::error::ServiceError;

/// How far the client's clock may be off.
const SKEW: Duration = Duration::from_secs(15 * 60);

/// Checks `account:signature`.
pub(super) fn verify(account: &Account, request: &Presented<'_>, value: &str) -> Result<(), ServiceError> {
    let Some((name, signature)) = value.trim().split_once(':') else {
        return Err(ServiceError::authentication_failed(
            "The Authorization header is not of the form 'SharedKey account:signature'.",
        ));
    };
    if name != account.name {
        return Err(ServiceError::authentication_failed(format!(
            "The account {name:?} is not the account of this endpoint."
        )));
    }
    let date = text(request.headers, "x-ms-date");
    let date = if date.is_empty() {
        text(request.headers, "date")
    } else {
        date
    };
    let sent = httpdate::parse_http_date(&date).map_err(|_| {
        ServiceError::authentication_failed(format!(
            "Neither x-ms-date nor Date holds an HTTP date: {date:?}."
        ))
    })?;
    let off = request
        .now
        .duration_since(sent)
        .unwrap_or_else(|early| early.duration());
    if off > SKEW {
        return Err(ServiceError::authentication_failed(format!(
            "Request date header too old: '{date}'"
        )));
    }
    let to_sign = string_to_sign(&account.name, request);
    // Bytes that are not ASCII may be signed as the characters of these numbers, too: Azurite reads them so,
    // and how the service does is not known.
    let by_bytes = || string_of(&account.name, request, latin);
    if account.verifies(&to_sign, signature) || account.verifies(&by_bytes(), signature) {
        Ok(())
    } else {
        Err(ServiceError::authentication_failed(format!(
            "The MAC signature found in the HTTP request '{signature}' is not the same as any computed \
             signature. Server used following string to sign: '{to_sign}'."
        )))
    }
}

/// The string a SharedKey signature covers.
pub(in crate::store) fn string_to_sign(account: &str, request: &Presented<'_>) -> String {
    string_of(account, request, text)
}

/// The same with another idea of what a header's bytes say.
fn string_of(
    account: &str,
    request: &Presented<'_>,
    text: for<'h> fn(&'h HeaderMap, &str) -> Cow<'h, str>,
) -> String {
    let headers = request.headers;
    let length = match &*text(headers, "content-length") {
        "" if request.body_len > 0 => request.body_len.to_string(),
        "0" => String::new(),
        other => other.to_owned(),
    };
    let date = if headers.contains_key("x-ms-date") {
        Cow::Borrowed("")
    } else {
        text(headers, "date")
    };
    let mut out = String::with_capacity(512);
    for part in [
        Cow::Borrowed(request.method.as_str()),
        text(headers, "content-encoding"),
        text(headers, "content-language"),
        Cow::Borrowed(&*length),
        text(headers, "content-md5"),
        text(headers, "content-type"),
        date,
        text(headers, "if-modified-since"),
        text(headers, "if-match"),
        text(headers, "if-none-match"),
        text(headers, "if-unmodified-since"),
        text(headers, "range"),
    ] {
        out.push_str(&part);
        out.push('\n');
    }
    let mut names: Vec<&str> = headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| name.starts_with("x-ms-"))
        .collect();
    names.sort_unstable_by_key(|name| collation_key(name));
    for name in names {
        out.push_str(name);
        out.push(':');
        out.push_str(&text(headers, name));
        out.push('\n');
    }
    out.push('/');
    out.push_str(account);
    out.push_str(&request.target.raw_path);
    let mut parameters: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, value) in request.target.query.pairs() {
        match parameters.iter_mut().find(|(n, _)| n == name) {
            Some((_, values)) => values.push(value),
            None => parameters.push((name, vec![value])),
        }
    }
    parameters.sort_unstable();
    for (name, mut values) in parameters {
        values.sort_unstable();
        out.push('\n');
        out.push_str(name);
        out.push(':');
        out.push_str(&values.join(","));
    }
    out
}

/// The service orders headers as a culture-aware collation does: hyphens do not count, and an underscore
/// comes before digits and letters (metadata `a_b` before `a1`).
fn collation_key(name: &str) -> (Vec<u8>, &str) {
    let weights = name
        .bytes()
        .filter(|b| *b != b'-')
        .map(|b| if b == b'_' { 0 } else { b })
        .collect();
    (weights, name)
}

/// A header's text, trimmed; empty when absent or not text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Cow<'a, str> {
    let text = headers
        .get(name)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    Cow::Borrowed(text.map(str::trim).unwrap_or_default())
}

/// A header's bytes as the characters of these numbers (ISO 8859-1).
fn latin<'a>(headers: &'a HeaderMap, name: &str) -> Cow<'a, str> {
    let bytes = headers
        .get(name)
        .map(|value| value.as_bytes())
        .unwrap_or_default();
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    Cow::Owned(text.trim().to_owned())
}
