//! The state that outlives the process: node ids, handles, dirty blocks, replies.
//!
//! Everything a replacement process needs to go on serving a mount is in one append-only [`log`] inside a
//! memfd, written as it happens.

mod codec;
mod dirty;
#[cfg(test)]
mod fuzz;
pub mod log;
pub mod record;
pub mod state;

pub(crate) use dirty::NodeLog;
