//! Numbers of nodes, which are shown as inode numbers: the same for the same blob of the same volume, mount
//! after mount and node after node, so that backups and git, which tell a file by its number, do not read
//! everything again.
//!
//! A number is a keyed hash of the blob's name. It is nobody else's while anybody uses it: of two nodes with
//! the same hash (of other names, or of a name whose file was replaced or renamed while it is in use) the
//! second one gets the next hash of its name.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::{Arc, Weak};

use siphasher::sip::SipHasher24;

use crate::tree::node::{Node, NodeId, ROOT};

/// Numbers have so many bits: programs written in JavaScript, and what goes through JSON, keep no more.
const BITS: u32 = 53;

/// Ghosts at which those that are gone are dropped.
const MANY: usize = 256;

/// What numbers are made of, and those that are not free although no link has them.
#[derive(Debug)]
pub(super) struct Numbers {
    key: (u64, u64),
    /// Nodes that the table has freed and somebody still works with: to these their number is the way to the
    /// table's other facts, and would lead to another node's.
    ghosts: HashMap<NodeId, Weak<Node>>,
}

impl Numbers {
    /// `volume` is what the mount shows as its source: account, container and prefix.
    pub(super) fn new(volume: &str) -> Self {
        let half = |salt: u64| {
            let mut hasher = SipHasher24::new_with_keys(salt, u64::from(BITS));
            hasher.write(volume.as_bytes());
            hasher.finish()
        };
        Self {
            key: (half(0), half(1)),
            ghosts: HashMap::new(),
        }
    }

    /// The first number of this blob that is free.
    pub(super) fn number(&mut self, blob: &str, taken: impl Fn(NodeId) -> bool) -> NodeId {
        let mut attempt = 0;
        loop {
            let id = self.hash(blob, attempt);
            let ghost = self.ghosts.get(&id).is_some_and(|ghost| ghost.strong_count() > 0);
            if id > ROOT && !ghost && !taken(id) {
                self.ghosts.remove(&id);
                return id;
            }
            attempt += 1;
        }
    }

    /// The table has freed the node.
    pub(super) fn freed(&mut self, node: &Arc<Node>) {
        if Arc::strong_count(node) == 1 {
            return;
        }
        if self.ghosts.len() >= MANY && self.ghosts.len().is_power_of_two() {
            self.ghosts.retain(|_, ghost| ghost.strong_count() > 0);
        }
        self.ghosts.insert(node.id, Arc::downgrade(node));
    }

    fn hash(&self, blob: &str, attempt: u64) -> NodeId {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        hasher.write(blob.as_bytes());
        // No name ends like this.
        hasher.write_u8(0xff);
        hasher.write(&attempt.to_le_bytes());
        hasher.finish() >> (u64::BITS - BITS)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::tree::attrs::{Attrs, Kind};
    use crate::tree::node::State;

    /// They are written down by programs: another release must give the same.
    #[test]
    fn numbers_are_for_ever() {
        let mut numbers = Numbers::new("acct/photos");
        assert_eq!(numbers.number("a/b", |_| false), 5_589_871_549_191_364);
        assert_eq!(numbers.number("", |_| false), 5_817_789_596_954_694);
        assert_eq!(
            Numbers::new("acct/other").number("a/b", |_| false),
            1_728_674_160_032_087
        );
    }

    #[test]
    fn a_number_is_given_to_one_node_at_a_time() {
        let mut numbers = Numbers::new("v");
        let first = numbers.number("f", |_| false);
        let second = numbers.number("f", |id| id == first);
        assert_ne!(first, second);
        assert!(first < 1 << BITS && second < 1 << BITS);
        // Freed while somebody works with it.
        let state = State::fresh(Attrs::default(), SystemTime::now());
        let node = Node::new(first, Kind::File, state);
        let used = Arc::clone(&node);
        numbers.freed(&node);
        drop(node);
        assert_eq!(numbers.number("f", |_| false), second);
        drop(used);
        assert_eq!(numbers.number("f", |_| false), first);
    }
}
