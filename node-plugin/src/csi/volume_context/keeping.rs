//! What a volume wants of the headers and index tags that owners store with their blobs.

use blob_client::{ContentTypes, StoredHeaders, UnreadableTags};

use super::keys::{Keys, nearest};
use crate::error::{Error, Reason, Result};

/// `contentType` and `indexTags`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// What the content type of a new file is taken from.
    pub content_types: ContentTypes,
    /// What becomes of index tags that may not be read.
    pub unreadable_tags: UnreadableTags,
}

pub(super) const INDEX_TAGS: &[(&str, UnreadableTags)] =
    &[("keep", UnreadableTags::Refuse), ("drop", UnreadableTags::Drop)];

impl Keeping {
    pub(super) fn parse(keys: &Keys) -> Result<Self> {
        Ok(Self {
            content_types: match keys.get("contentType") {
                Some(text) => content_types(text)?,
                None => ContentTypes::default(),
            },
            unreadable_tags: keys.choice("indexTags", INDEX_TAGS)?.unwrap_or_default(),
        })
    }
}

/// `auto`, `none`, or one type for all new files.
pub fn content_types(text: &str) -> Result<ContentTypes> {
    match text.trim() {
        "auto" => Ok(ContentTypes::ByExtension),
        "none" => Ok(ContentTypes::Unsaid),
        fixed => {
            let parts = fixed
                .split_once('/')
                .filter(|(kind, sub)| !kind.is_empty() && !sub.is_empty());
            let stored = parts.and_then(|_| StoredHeaders::of_type(fixed).ok());
            stored.map(ContentTypes::Fixed).ok_or_else(|| {
                let near = nearest(fixed, ["auto", "none"].into_iter())
                    .map(|near| format!("; did you mean {near:?}?"))
                    .unwrap_or_default();
                Error::new(
                    Reason::InvalidValue,
                    format!("contentType: {text:?}; use auto, none or a type as text/plain{near}"),
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_a_way_or_one_type() {
        assert_eq!(content_types("auto").unwrap(), ContentTypes::ByExtension);
        assert_eq!(content_types(" none ").unwrap(), ContentTypes::Unsaid);
        let fixed = content_types("text/plain; charset=utf-8").unwrap();
        assert_eq!(fixed.of("a.html").content_type(), "text/plain; charset=utf-8");
        for wrong in ["", "text", "/plain", "text/", "a/b\nc"] {
            let error = content_types(wrong).unwrap_err();
            assert!(
                error.message.starts_with("contentType:"),
                "{wrong:?}: {}",
                error.message
            );
        }
    }
}
