//! Inodes, attributes, listings, negative knowledge, names <-> blob names.
//!
//! A `Tree` carries out file system operations on nodes. It owns names and attributes; bytes belong to
//! [`crate::content::File`].
//!
//! # Locks, in the order in which they are taken
//!
//! 1. *Gates*, one per directory, from the root downwards (`gates.rs`). Whoever works on something by its
//!    blob name holds the gates of the directories above it for reading; a directory that moves is held for
//!    writing. Nobody asks for a gate while holding one.
//! 2. A directory's `listing` lock: one listing on behalf of lookups at a time.
//! 3. A node's `change` lock, two at once only in the order of their ids: commits, metadata updates, moves
//!    and deletions of its blob.
//! 4. The table (`table.rs`), never across an await.
//! 5. A node's state (`node.rs`), never two at once, never across an await.
//! 6. The journal's own lock.
//!
//! The kernel serializes changes of one directory by itself; gates and `change` locks are about commits of
//! files that were closed, the other mount options of the same table, and directories that move.
//!
//! # What is believed for how long
//!
//! What the service said is used for the mount's timeouts, counted from when it was asked. What this mount
//! changed is known at once, and an answer to a question asked before the change does not undo it
//! (`Table::tick`, `Table::ask`). Nodes with data or attributes that the service does not have yet are this
//! mount's to answer for.
//!
//! # Words
//!
//! - *Marker*: the blob that makes a directory one and carries its attributes: `d` with `hdi_isfolder`, or
//!   `d/`.
//! - *Implicit* directory: one without a marker; blobs below it make it a directory.
//! - *Version*: what one ETag names. A node has the version that was last seen or written, a handle the one
//!   it opened.
//! - *Superseded*: a node whose name somebody else took away, or that leads to a newer version now.
//! - *Unlinked*: a node whose name this mount removed or replaced; open handles may still lead to it.
//! - *Debt*: what the service lacks of a node. *Pinned*: something is owed, or a request of ours is under
//!   way.
//! - *Local*: attributes are this mount's to answer for: pinned, open for writing, or nameless.
//! - *Flushed* handle: closed by its program, or about to be; the kernel's RELEASE comes later.
//! - *Detached* content: kept for open handles when its blob is deleted or replaced, in memory or in a
//!   *hidden blob*.
//! - *Rebind*: content and version of a node go on under the blob name that it was moved to.
//! - *Stamp*: a moment of the table's clock; answers to questions asked before a node's stamp say nothing
//!   about it.
//! - *Learn*: take over an answer of the service. *Distrust*: believe nothing that is cached.
//! - *Revalidate*: the kernel asks for a name that it could have used from its cache.
//! - *Given up*: data of a closed file that has no place any more. An *unanswered* attempt, or a *late*
//!   request, is the client's matter.
//! - *Aside*: where a blob is moved to when its name has to be free at once: under a hidden name.
//! - *At rest*: nothing is owed and nothing is under way.
//! - *Shed*: forget nodes for want of memory; *sweep*: because nobody refers to them; *reap*: because they
//!   have no name.

#[cfg(test)]
mod at_rest;
mod attrs;
mod busy;
mod children;
mod core;
mod cursor;
#[cfg(test)]
mod fuzz;
mod gates;
mod grown;
mod handles;
mod held;
mod hidden;
pub mod inspect;
mod io;
mod listing;
mod lookup;
pub(crate) mod names;
pub(crate) mod node;
mod open;
mod owed;
mod refusal;
mod release;
mod rename;
mod rights;
mod setattr;
mod table;
#[cfg(test)]
mod tests;
mod unlink;
mod unstored;
mod xattr;

pub(crate) use self::attrs::{Kind, from_seconds};
pub(crate) use self::children::Owner;
pub(crate) use self::core::Tree;
pub(crate) use self::cursor::Listed;
pub(crate) use self::handles::Handle;
pub use self::held::Held;
pub(crate) use self::lookup::Entry;
pub(crate) use self::node::{NodeId, Stat};
pub(crate) use self::open::Opened;
pub(crate) use self::rename::Replace;
pub(crate) use self::setattr::{SetAttr, SetTime};
pub use self::unstored::Owing;
