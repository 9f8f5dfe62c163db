//! The account's keys, and what is signed with them.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
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

/// One of the two keys that every account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichKey {
    /// The one that the account was made with.
    Key1,
    /// The other one, which nobody knows at first.
    Key2,
}

/// The account's secrets and name.
#[derive(Debug)]
pub(in crate::store) struct Account {
    pub(in crate::store) name: String,
    keys: RwLock<[hmac::Key; 2]>,
}

impl Account {
    /// An account; the key is base64.
    pub(in crate::store) fn new(name: &str, key: &str) -> std::io::Result<Self> {
        let unknown: [u8; 32] = rand::random();
        let unknown = hmac::Key::new(hmac::HMAC_SHA256, &unknown);
        Ok(Self {
            name: name.to_owned(),
            keys: RwLock::new([key_of(key)?, unknown]),
        })
    }

    /// From now on this is the key; what was signed with the former one is not accepted any more.
    pub(in crate::store) fn renew_key(&self, which: WhichKey, key: &str) -> std::io::Result<()> {
        let key = key_of(key)?;
        self.keys.write().unwrap_or_else(PoisonError::into_inner)[which as usize] = key;
        Ok(())
    }

    /// True when `signature` (base64) is the HMAC-SHA256 of the text; constant time.
    pub(super) fn verifies(&self, text: &str, signature: &str) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        unbase64(signature).is_some_and(|tag| {
            let verifies = |key| hmac::verify(key, text.as_bytes(), &tag).is_ok();
            keys.iter().any(verifies)
        })
    }

    /// Base64 HMAC-SHA256 of a text, by the first key.
    pub(in crate::store) fn sign(&self, text: &str) -> String {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        base64(hmac::sign(&keys[0], text.as_bytes()).as_ref())
    }
}

fn key_of(text: &str) -> std::io::Result<hmac::Key> {
    let bytes = unbase64(text.trim()).ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "the account key is not valid base64",
        )
    })?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}
