//! SharedKey: an HMAC-SHA256 with the account key over the request as it goes on the wire.
//!
//! Rules: REST, "Authorize with Shared Key", version 2015-02-21 and later.

use std::cmp::Ordering;

use crate::crypto::hmac;
use crate::error::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, header};
use zeroize::Zeroizing;

/// An account and its key, ready to sign.
#[derive(Clone)]
pub(crate) struct SharedKey {
    account: String,
    key: hmac::Key,
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedKey")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// What is signed of a request.
#[derive(Debug)]
pub(crate) struct ToSign<'a> {
    pub(crate) method: &'a http::Method,
    /// Percent-encoded, as sent.
    pub(crate) path: &'a str,
    /// Decoded names and values, in any order.
    pub(crate) query: &'a [(String, String)],
    pub(crate) headers: &'a HeaderMap,
}

impl SharedKey {
    pub(crate) fn new(account: &str, key: &str) -> Result<Self> {
        if account.is_empty() {
            return Err(Error::Argument {
                field: "storageAccount",
                message: "is empty; an account key needs the account's name".into(),
            });
        }
        let key = STANDARD.decode(key.trim()).map_err(|_| Error::Argument {
            field: "azurestorageaccountkey",
            message: "is not base64; copy one of the account's two keys unchanged".into(),
        })?;
        let key = Zeroizing::new(key);
        if key.is_empty() {
            return Err(Error::Argument {
                field: "azurestorageaccountkey",
                message: "is empty; copy one of the account's two keys".into(),
            });
        }
        Ok(Self {
            account: account.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    /// Base64 HMAC of any text (requests and SAS are signed alike).
    pub(crate) fn sign_text(&self, text: &str) -> String {
        STANDARD.encode(hmac::sign(&self.key, text.as_bytes()))
    }

    /// Value of the `Authorization` header.
    pub(crate) fn authorization(&self, request: &ToSign<'_>) -> String {
        let signature = self.sign_text(&self.string_to_sign(request));
        format!("SharedKey {}:{signature}", self.account)
    }

    pub(super) fn string_to_sign(&self, r: &ToSign<'_>) -> String {
        let mut out = String::with_capacity(512);
        out.push_str(r.method.as_str());
        out.push('\n');
        let plain = |name: HeaderName| text(r.headers, &name);
        for name in [header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
            push_line(&mut out, &plain(name));
        }
        let length = plain(header::CONTENT_LENGTH);
        // Since 2015-02-21 a length of zero is signed as empty.
        push_line(&mut out, if length == "0" { "" } else { &length });
        for name in [
            HeaderName::from_static("content-md5"),
            header::CONTENT_TYPE,
            // Date: always empty, x-ms-date is sent and signed below.
        ] {
            push_line(&mut out, &plain(name));
        }
        push_line(&mut out, "");
        for name in [
            header::IF_MODIFIED_SINCE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_UNMODIFIED_SINCE,
            header::RANGE,
        ] {
            push_line(&mut out, &plain(name));
        }
        canonical_headers(&mut out, r.headers);
        out.push('/');
        out.push_str(&self.account);
        out.push_str(r.path);
        canonical_query(&mut out, r.query);
        out
    }
}

fn push_line(out: &mut String, value: &str) {
    out.push_str(value);
    out.push('\n');
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers
        .get(name)
        // The service reads each byte of a header as one character, and signs those.
        .map(|v| v.as_bytes().iter().map(|byte| char::from(*byte)).collect())
        .unwrap_or_default()
}

fn canonical_headers(out: &mut String, headers: &HeaderMap) {
    let mut names: Vec<&HeaderName> = headers
        .keys()
        .filter(|n| n.as_str().starts_with("x-ms-"))
        .collect();
    names.sort_by(|a, b| header_order(a.as_str(), b.as_str()));
    for name in names {
        out.push_str(name.as_str());
        out.push(':');
        push_line(out, text(headers, name).trim());
    }
}

/// The service sorts headers as a culture-aware collation does: hyphens count only between names that are
/// otherwise equal, and an underscore comes before digits and letters. Plain byte order differs for metadata
/// like `a_b` and `a1`.
fn header_order(a: &str, b: &str) -> Ordering {
    let weights = |s: &str| -> Vec<u8> {
        s.bytes()
            .filter(|b| *b != b'-')
            .map(|b| if b == b'_' { 1 } else { b })
            .collect()
    };
    weights(a).cmp(&weights(b)).then_with(|| a.cmp(b))
}

fn canonical_query(out: &mut String, query: &[(String, String)]) {
    let mut pairs: Vec<(String, &str)> = query
        .iter()
        .map(|(k, v)| (k.to_ascii_lowercase(), v.as_str()))
        .collect();
    pairs.sort();
    let mut last: Option<String> = None;
    for (name, value) in pairs {
        if last.as_deref() == Some(name.as_str()) {
            out.push(',');
            out.push_str(value);
        } else {
            out.push('\n');
            out.push_str(&name);
            out.push(':');
            out.push_str(value);
            last = Some(name);
        }
    }
}
