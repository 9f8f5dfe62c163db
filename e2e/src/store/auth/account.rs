//! The account's key, and what is signed with it.

use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, Method};
use ring::hmac;

use crate::store::address::Target;
use crate::store::encoding::{base64, unbase64};

/// What a request needs to be authenticated.
pub(in crate::store) struct Presented<'a> {
    /// Method.
    pub(in crate::store) method: &'a Method,
    /// URL.
    pub(in crate::store) target: &'a Target,
    /// Headers.
    pub(in crate::store) headers: &'a HeaderMap,
    /// Body length, for requests whose transport carries no Content-Length header.
    pub(in crate::store) body_len: u64,
    /// Sender, when known (`sip`).
    pub(in crate::store) peer: Option<IpAddr>,
    /// Now.
    pub(in crate::store) now: SystemTime,
}

/// The account's secret and name.
#[derive(Debug)]
pub(in crate::store) struct Account {
    pub(in crate::store) name: String,
    key: hmac::Key,
}

impl Account {
    /// An account; the key is base64.
    pub(in crate::store) fn new(name: &str, key: &str) -> std::io::Result<Self> {
        let bytes = unbase64(key.trim()).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the account key is not valid base64",
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        })
    }

    /// True when `signature` (base64) is the HMAC-SHA256 of the text; constant time.
    pub(super) fn verifies(&self, text: &str, signature: &str) -> bool {
        unbase64(signature).is_some_and(|tag| hmac::verify(&self.key, text.as_bytes(), &tag).is_ok())
    }

    /// Base64 HMAC-SHA256 of a text.
    pub(in crate::store) fn sign(&self, text: &str) -> String {
        base64(hmac::sign(&self.key, text.as_bytes()).as_ref())
    }
}
