//! Names of new blocks: unique within the blob, of the one length all its blocks have.

use std::collections::HashSet;

use blob_client::{BlockId, BlockList};

use super::error::FileError;

/// Length of ids where the blob has none yet: eight random bytes of this writer, eight of a counter.
const OUR_LEN: usize = 16;

/// Set in the first byte of every id made here: names that count up are digits or begin with zeros.
const OURS: u8 = 0x80;

/// Whether no other content can have a block of this id: it was made here, out of eight random bytes.
pub(crate) fn is_unique(id: &BlockId) -> bool {
    let Some((random, rest)) = id.0.split_first_chunk::<8>() else {
        return false;
    };
    let Some((counter, padding)) = rest.split_first_chunk::<8>() else {
        return false;
    };
    random[0] & OURS != 0 && counter[..3] == [0; 3] && padding.iter().all(|b| *b == 0)
}

/// Ids of one blob.
#[derive(Debug)]
pub(crate) struct Ids {
    len: usize,
    nonce: u64,
    next: u64,
    /// Ids in use, as far as they matter: only short ones can collide.
    known: HashSet<BlockId>,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            len: OUR_LEN,
            nonce: rand::random::<u64>() | u64::from(OURS) << 56,
            next: 0,
            known: HashSet::new(),
        }
    }
}

impl Ids {
    /// Takes over the length of the ids that are there, and stays clear of them. True when the length
    /// changed.
    pub(crate) fn adopt(&mut self, list: &BlockList) -> bool {
        let mut all = list.committed.iter().chain(&list.uncommitted).map(|b| &b.id);
        let Some(first) = all.next() else {
            return false;
        };
        let changed = self.len != first.0.len();
        self.len = first.0.len();
        if self.len < OUR_LEN {
            self.known.insert(first.clone());
            self.known.extend(all.cloned());
        }
        changed
    }

    /// A blob of this name has no blocks any more (it was put in one piece).
    pub(crate) fn reset(&mut self) {
        let next = self.next;
        *self = Self {
            next,
            ..Self::default()
        };
    }

    /// A new id.
    pub(crate) fn fresh(&mut self) -> Result<BlockId, FileError> {
        if self.len >= OUR_LEN {
            self.next += 1;
            let mut id = self.nonce.to_be_bytes().to_vec();
            id.extend_from_slice(&self.next.to_be_bytes());
            id.resize(self.len, 0);
            return Ok(BlockId(id));
        }
        // Foreign ids this short leave few names; a random one is soon found unless nearly all are taken.
        for _ in 0..10_000 {
            let mut id = vec![0; self.len];
            rand::fill(&mut id[..]);
            let id = BlockId(id);
            if self.known.insert(id.clone()) {
                return Ok(id);
            }
        }
        Err(blob_client::Error::Argument {
            field: "block id",
            message: format!("no unused block id of {} bytes is left in this blob", self.len),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blob_client::Block;

    fn list(ids: &[&[u8]]) -> BlockList {
        BlockList {
            committed: ids
                .iter()
                .map(|id| Block {
                    id: BlockId(id.to_vec()),
                    size: 1,
                })
                .collect(),
            ..BlockList::default()
        }
    }

    #[test]
    fn ids_are_unique_and_of_one_length() {
        let mut ids = Ids::default();
        let all: HashSet<_> = (0..1000).map(|_| ids.fresh().unwrap()).collect();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().all(|id| id.0.len() == OUR_LEN));
        assert!(!ids.adopt(&list(&[])));
        assert!(ids.adopt(&list(&[&[7; 48]])));
        assert_eq!(ids.fresh().unwrap().0.len(), 48);
        assert!(is_unique(&ids.fresh().unwrap()));
    }

    #[test]
    fn short_foreign_ids_are_never_reused() {
        let mut ids = Ids::default();
        assert!(ids.adopt(&list(&[b"a", b"b"])));
        let all: HashSet<_> = (0..200).map(|_| ids.fresh().unwrap()).collect();
        assert_eq!(all.len(), 200);
        assert!(!all.contains(&BlockId(b"a".to_vec())));
        let rest = (0..200).filter(|_| ids.fresh().is_err()).count();
        assert!(rest >= 146, "{rest}");
    }
}
