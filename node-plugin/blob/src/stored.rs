//! What the owner of a blob stored with it besides content and metadata: headers, tier, tags, encryption
//! scope.
//!
//! The service forgets all of it when a blob is written without it. So it travels, as one thing that nobody
//! on the way looks into, out of every answer that tells of a blob into every request that writes it again.
//! What becomes of each header of the service is listed in its tests, and in
//! docs/semantics.md.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Error, Result};

/// Content type of blobs that were given none: what the service itself would store.
pub(crate) const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// A header that owners set, by its place in [`Fields::content`].
struct Content {
    /// In answers, and in listings but for the case.
    read: HeaderName,
    /// In requests.
    written: HeaderName,
}

const CONTENT: [Content; 5] = [
    Content {
        read: http::header::CONTENT_TYPE,
        written: HeaderName::from_static("x-ms-blob-content-type"),
    },
    Content {
        read: http::header::CONTENT_ENCODING,
        written: HeaderName::from_static("x-ms-blob-content-encoding"),
    },
    Content {
        read: http::header::CONTENT_LANGUAGE,
        written: HeaderName::from_static("x-ms-blob-content-language"),
    },
    Content {
        read: http::header::CONTENT_DISPOSITION,
        written: HeaderName::from_static("x-ms-blob-content-disposition"),
    },
    Content {
        read: http::header::CACHE_CONTROL,
        written: HeaderName::from_static("x-ms-blob-cache-control"),
    },
];
const TYPE: usize = 0;
const ENCODING: usize = 1;

/// Tiers that a block blob can be given; others are the service's own (premium page blobs, smart tiers).
const TIERS: [&str; 4] = ["Hot", "Cool", "Cold", "Archive"];

/// See the module. Cheap to clone; the default is a blob of which its owner has said nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoredHeaders {
    fields: Option<Arc<Fields>>,
    /// `Content-MD5` as read: of the content it was read with.
    md5: Option<[u8; 16]>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fields {
    /// In the order of [`CONTENT`].
    content: [Option<HeaderValue>; 5],
    /// Only one that was set: an inferred tier is the account's, which may change its mind.
    tier: Option<HeaderValue>,
    encryption_scope: Option<HeaderValue>,
    /// The content is encrypted with a key that the owner sends with each request.
    customer_key: bool,
    tags: u32,
}

impl StoredHeaders {
    /// A blob whose content is of this type, and no more is said.
    pub fn of_type(content_type: &str) -> Result<Self> {
        let value = HeaderValue::from_str(content_type).map_err(|_| Error::Argument {
            field: "content type",
            message: format!("{content_type:?} holds characters that no HTTP header carries"),
        })?;
        let mut fields = Fields::default();
        fields.content[TYPE] = Some(value);
        Ok(Self::new(fields))
    }

    /// Out of the headers of Get Blob or Get Blob Properties.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Self {
        Self::read(|name| headers.get(name).cloned())
    }

    /// Out of the properties of a listing's entry; `text` gives an element's text.
    pub(crate) fn of_listing<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self::read(|name| {
            let element = match name.as_str() {
                "content-type" => "Content-Type",
                "content-encoding" => "Content-Encoding",
                "content-language" => "Content-Language",
                "content-disposition" => "Content-Disposition",
                "cache-control" => "Cache-Control",
                "content-md5" => "Content-MD5",
                "x-ms-access-tier" => "AccessTier",
                "x-ms-access-tier-inferred" => "AccessTierInferred",
                "x-ms-encryption-scope" => "EncryptionScope",
                "x-ms-encryption-key-sha256" => "CustomerProvidedKeySha256",
                "x-ms-tag-count" => "TagCount",
                _ => return None,
            };
            HeaderValue::from_bytes(text(element)?.as_bytes()).ok()
        })
    }

    fn read(get: impl Fn(&HeaderName) -> Option<HeaderValue>) -> Self {
        let get = |name: &HeaderName| get(name).filter(|value| !value.is_empty());
        let mut fields = Fields::default();
        for (place, content) in fields.content.iter_mut().zip(&CONTENT) {
            *place = get(&content.read);
        }
        if fields.content[TYPE]
            .as_ref()
            .is_some_and(|v| v == DEFAULT_CONTENT_TYPE)
        {
            fields.content[TYPE] = None;
        }
        let inferred = get(&ACCESS_TIER_INFERRED).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
        fields.tier = get(&ACCESS_TIER)
            .filter(|tier| !inferred && TIERS.iter().any(|known| tier == known))
            // Kept out of the archive by an edit: what can be read is not there.
            .filter(|tier| tier != "Archive");
        fields.encryption_scope = get(&ENCRYPTION_SCOPE);
        fields.customer_key = get(&ENCRYPTION_KEY_SHA256).is_some();
        fields.tags = get(&TAG_COUNT)
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .unwrap_or_default();
        let md5 = get(&BLOB_CONTENT_MD5).or_else(|| get(&CONTENT_MD5));
        Self {
            md5: md5.and_then(|text| STANDARD.decode(text.as_bytes()).ok()?.try_into().ok()),
            ..Self::new(fields)
        }
    }

    fn new(fields: Fields) -> Self {
        Self {
            fields: (fields != Fields::default()).then(|| Arc::new(fields)),
            md5: None,
        }
    }

    /// The content type, as stored.
    pub fn content_type(&self) -> &str {
        self.content(TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or(DEFAULT_CONTENT_TYPE)
    }

    /// The content encoding, if the content is encoded.
    pub fn content_encoding(&self) -> Option<&str> {
        self.content(ENCODING).and_then(|value| value.to_str().ok())
    }

    /// Whether nobody has said of what type the content is.
    pub fn is_untyped(&self) -> bool {
        self.content(TYPE).is_none()
    }

    /// The same with another content type.
    pub fn with_type_of(&self, other: &Self) -> Self {
        let mut fields = self.fields().cloned().unwrap_or_default();
        fields.content[TYPE] = other.content(TYPE).cloned();
        Self {
            md5: self.md5,
            ..Self::new(fields)
        }
    }

    /// The same with the content's headers of another: what Copy Blob makes of a source.
    pub fn with_content_of(&self, other: &Self) -> Self {
        let mut fields = self.fields().cloned().unwrap_or_default();
        fields.content = other
            .fields()
            .map(|other| other.content.clone())
            .unwrap_or_default();
        Self::new(fields)
    }

    /// The header that keeps the content's MD5 where the content stays: none that is written gets the old
    /// one's.
    pub(crate) fn content_md5(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = HeaderValue::from_str(&STANDARD.encode(self.md5?)).ok()?;
        Some((BLOB_CONTENT_MD5, value))
    }

    /// Whether the content's headers, its digest among them, are those that `other` says.
    pub(crate) fn says_what(&self, other: &Self) -> bool {
        let content = |stored: &Self| {
            stored
                .fields()
                .map(|fields| fields.content.clone())
                .unwrap_or_default()
        };
        content(self) == content(other) && self.md5 == other.md5
    }

    /// Number of index tags.
    pub fn tags(&self) -> u32 {
        self.fields().map_or(0, |fields| fields.tags)
    }

    /// Whether the content is encrypted with a key that only its owner has.
    pub fn has_customer_key(&self) -> bool {
        self.fields().is_some_and(|fields| fields.customer_key)
    }

    /// The content's headers, as a request that writes the blob says them; the type always.
    pub(crate) fn content_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let unsaid = HeaderValue::from_static(DEFAULT_CONTENT_TYPE);
        CONTENT
            .iter()
            .enumerate()
            .filter_map(|(at, content)| {
                let value = self.content(at).cloned();
                let value = if at == TYPE {
                    value.or_else(|| Some(unsaid.clone()))
                } else {
                    value
                };
                Some((content.written.clone(), value?))
            })
            .collect()
    }

    /// `x-ms-access-tier` of a request.
    pub(crate) fn tier(&self) -> Option<(HeaderName, HeaderValue)> {
        let tier = self.fields()?.tier.clone()?;
        Some((ACCESS_TIER, tier))
    }

    /// The encryption scope, if the content is in one.
    pub fn scope(&self) -> Option<&str> {
        self.fields()?.encryption_scope.as_ref()?.to_str().ok()
    }

    /// The same in a scope.
    pub fn in_scope(&self, scope: &str) -> Result<Self> {
        let value = HeaderValue::from_str(scope).map_err(|_| Error::Argument {
            field: "encryption scope",
            message: format!("{scope:?} holds characters that no HTTP header carries"),
        })?;
        let mut fields = self.fields().cloned().unwrap_or_default();
        fields.encryption_scope = Some(value);
        Ok(Self {
            md5: self.md5,
            ..Self::new(fields)
        })
    }

    /// `x-ms-encryption-scope` of a request.
    pub(crate) fn encryption_scope(&self) -> Option<(HeaderName, HeaderValue)> {
        let scope = self.fields()?.encryption_scope.clone()?;
        Some((ENCRYPTION_SCOPE, scope))
    }

    fn fields(&self) -> Option<&Fields> {
        self.fields.as_deref()
    }

    fn content(&self, at: usize) -> Option<&HeaderValue> {
        self.fields()?.content.get(at)?.as_ref()
    }
}

impl fmt::Debug for StoredHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fields() {
            Some(fields) => fields.fmt(f),
            None => f.write_str("Unsaid"),
        }
    }
}

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
/// In requests; in answers to ranged reads, where `Content-MD5` would be the range's.
const BLOB_CONTENT_MD5: HeaderName = HeaderName::from_static("x-ms-blob-content-md5");
const ACCESS_TIER: HeaderName = HeaderName::from_static("x-ms-access-tier");
const ACCESS_TIER_INFERRED: HeaderName = HeaderName::from_static("x-ms-access-tier-inferred");
const ENCRYPTION_SCOPE: HeaderName = HeaderName::from_static("x-ms-encryption-scope");
const ENCRYPTION_KEY_SHA256: HeaderName = HeaderName::from_static("x-ms-encryption-key-sha256");
const TAG_COUNT: HeaderName = HeaderName::from_static("x-ms-tag-count");

/// What a new blob's content type is taken from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContentTypes {
    /// The extension of its name.
    #[default]
    ByExtension,
    /// All are of this one.
    Fixed(StoredHeaders),
    /// None is said: the service takes `application/octet-stream`.
    Unsaid,
}

impl ContentTypes {
    /// For a new blob of this name.
    pub fn of(&self, name: &str) -> StoredHeaders {
        match self {
            Self::ByExtension => {
                let guess = mime_guess::from_path(name).first_raw();
                guess
                    .and_then(|guess| StoredHeaders::of_type(guess).ok())
                    .unwrap_or_default()
            }
            Self::Fixed(stored) => stored.clone(),
            Self::Unsaid => StoredHeaders::default(),
        }
    }
}

#[cfg(test)]
mod tests;
