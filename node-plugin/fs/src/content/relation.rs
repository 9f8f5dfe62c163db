//! How two versions of a blob are related: what of their content is the same, as far as that can be told
//! without reading it.

use blob_client::{BlobType, Block, Metadata, Properties};

use super::base::BaseVersion;
use super::ids::is_unique;

/// What the service's version is to the one that a file starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The same content; only metadata or headers have changed.
    Same,
    /// The old content, and more behind it.
    Extended,
    /// Another content, or nobody can tell.
    Replaced,
}

/// Metadata that makes a blob something else than a file: a folder, a link, a FIFO (see `tree::attrs`).
const KIND_KEYS: [&str; 3] = ["hdi_isfolder", "is_symlink", "vsc_kind"];

/// What the properties alone say; `None` when the content has to be looked at.
pub(crate) fn by_properties(base: &BaseVersion, now: &Properties) -> Option<Relation> {
    let same_kind = |key| base.metadata.get(key) == now.metadata.get(key);
    if now.is_directory || !KIND_KEYS.into_iter().all(same_kind) {
        return Some(Relation::Replaced);
    }
    let grown = match now.content_length.cmp(&base.size) {
        std::cmp::Ordering::Less => return Some(Relation::Replaced),
        std::cmp::Ordering::Equal => Relation::Same,
        std::cmp::Ordering::Greater => Relation::Extended,
    };
    if now.blob_type != base.kind {
        return Some(Relation::Replaced);
    }
    match base.kind {
        // What was appended stays as it is, as long as it is the same blob.
        BlobType::Append => match (base.created, now.created) {
            (Some(old), Some(new)) if old == new => Some(grown),
            _ => Some(Relation::Replaced),
        },
        _ if base.size == 0 => Some(grown),
        // Writing pages leaves the digest that is stored as it is: it says nothing.
        BlobType::Page => Some(Relation::Replaced),
        BlobType::Block => None,
    }
}

/// What is told of a version of a block blob, to compare it with another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) size: u64,
    pub(crate) content_md5: Option<&'a String>,
    /// None when it was put in one piece.
    pub(crate) blocks: &'a [Block],
}

/// So many bytes at the beginning of two block blobs are told to be the same. A digest tells it only of what
/// was put in one piece, of which the service makes it: that of a list of blocks is what its writer says, or
/// says again of another content; and that of pages nobody makes anew. Who does not know the blocks of one
/// does not know that it has none.
pub(crate) fn described_same(old: Described<'_>, new: Described<'_>) -> u64 {
    let one_piece = old.blocks.is_empty() && new.blocks.is_empty();
    let same_digest = old.content_md5.is_some() && old.content_md5 == new.content_md5;
    match one_piece && same_digest && old.size == new.size {
        true => old.size,
        false => common_prefix(old.blocks, new.blocks),
    }
}

/// So many bytes at the beginning are the same in both lists of blocks: those of common blocks whose ids no
/// other content can have. (Other writers number their blocks: their ids say nothing.)
fn common_prefix(old: &[Block], new: &[Block]) -> u64 {
    let common = old.iter().zip(new);
    common
        .take_while(|(old, new)| old == new && is_unique(&old.id))
        .map(|(block, _)| block.size)
        .sum()
}

/// Metadata of two writers that started from `old`: what is changed in `mine` is as there, the rest as in
/// `theirs`.
pub(crate) fn merge(old: &Metadata, mine: &Metadata, theirs: &Metadata) -> Metadata {
    let mut merged = theirs.clone();
    for name in old.keys().chain(mine.keys()) {
        let value = mine.get(name);
        if value == old.get(name) {
            continue;
        }
        match value {
            Some(value) => merged.insert(name.clone(), value.clone()),
            None => merged.remove(name),
        };
    }
    merged
}

#[cfg(test)]
mod tests {
    use blob_client::{BlockId, ETag};

    use super::*;
    use crate::content::ids::Ids;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_one_side_changed_stays() {
        let old = metadata(&[("mode", "1"), ("uid", "1"), ("gone", "1"), ("both", "1")]);
        let mine = metadata(&[("mode", "2"), ("uid", "1"), ("both", "2"), ("new", "2")]);
        let theirs = metadata(&[
            ("mode", "1"),
            ("uid", "3"),
            ("gone", "1"),
            ("both", "3"),
            ("other", "3"),
        ]);
        let merged = merge(&old, &mine, &theirs);
        let expected = metadata(&[
            ("mode", "2"),
            ("uid", "3"),
            ("both", "2"),
            ("new", "2"),
            ("other", "3"),
        ]);
        assert_eq!(merged, expected);
    }

    #[test]
    fn blocks_that_others_may_have_numbered_prove_nothing() {
        let mut ids = Ids::default();
        let ours: Vec<Block> = (0..4)
            .map(|_| Block {
                id: ids.fresh().unwrap(),
                size: 10,
            })
            .collect();
        let mut other = ours.clone();
        other[2].id = ids.fresh().unwrap();
        assert_eq!(common_prefix(&ours, &ours), 40);
        assert_eq!(common_prefix(&ours[..2], &ours), 20);
        assert_eq!(common_prefix(&ours, &other), 20);
        other = ours.clone();
        other[1].size = 11;
        assert_eq!(common_prefix(&ours, &other), 10);
        for id in [
            &b"0000000000000001"[..],
            &[0; 16],
            b"block-0000000001",
            &[0; 48],
            b"\x80short",
        ] {
            let numbered = [Block {
                id: BlockId(id.to_vec()),
                size: 10,
            }];
            assert_eq!(common_prefix(&numbered, &numbered), 0, "{id:?}");
        }
    }

    #[test]
    fn properties_say_what_they_can() {
        let base = |kind, size, digest: Option<&str>, created: Option<u64>| BaseVersion {
            kind,
            content_md5: digest.map(str::to_owned),
            created: created.map(at),
            ..BaseVersion::own(
                ETag("\"1\"".into()),
                size,
                Metadata::new(),
                None,
                Default::default(),
            )
        };
        fn at(seconds: u64) -> std::time::SystemTime {
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
        }
        let now = |kind, size, digest: Option<&str>, created: Option<u64>| Properties {
            etag: ETag("\"2\"".into()),
            last_modified: at(9),
            content_length: size,
            blob_type: kind,
            metadata: Metadata::new(),
            stored: Default::default(),
            content_md5: digest.map(str::to_owned),
            created: created.map(at),
            copied_from: None,
            is_directory: false,
            protection: blob_client::Protection::default(),
        };
        use BlobType::{Append, Block, Page};
        use Relation::{Extended, Replaced, Same};
        let cases = [
            (
                base(Block, 5, None, None),
                now(Block, 4, None, None),
                Some(Replaced),
            ),
            (base(Block, 5, None, None), now(Block, 5, None, None), None),
            (base(Block, 5, None, None), now(Block, 6, None, None), None),
            (
                base(Block, 5, Some("x"), None),
                now(Block, 5, Some("x"), None),
                None,
            ),
            (
                base(Block, 5, Some("x"), None),
                now(Block, 5, Some("y"), None),
                None,
            ),
            (
                base(Block, 5, Some("x"), None),
                now(Block, 6, Some("x"), None),
                None,
            ),
            (
                base(Block, 5, None, None),
                now(Append, 5, None, None),
                Some(Replaced),
            ),
            (base(Block, 0, None, None), now(Block, 0, None, None), Some(Same)),
            (
                base(Block, 0, None, None),
                now(Block, 9, None, None),
                Some(Extended),
            ),
            (
                base(Page, 5, None, None),
                now(Page, 5, None, None),
                Some(Replaced),
            ),
            (
                base(Page, 5, Some("x"), None),
                now(Page, 5, Some("x"), None),
                Some(Replaced),
            ),
            (
                base(Append, 5, None, Some(1)),
                now(Append, 7, None, Some(1)),
                Some(Extended),
            ),
            (
                base(Append, 5, None, Some(1)),
                now(Append, 5, None, Some(1)),
                Some(Same),
            ),
            (
                base(Append, 5, None, Some(1)),
                now(Append, 7, None, Some(2)),
                Some(Replaced),
            ),
            (
                base(Append, 5, None, None),
                now(Append, 7, None, None),
                Some(Replaced),
            ),
        ];
        for (n, (base, now, expected)) in cases.into_iter().enumerate() {
            assert_eq!(by_properties(&base, &now), expected, "case {n}");
        }
    }
}
