//! A POSIX file system over a blob container. [`Volume`] is what a mount is; [`fuse`] is the only module that
//! knows fuser.

pub mod budget;
mod caller;
mod cause;
pub mod config;
pub mod content;
pub mod errno;
pub mod fuse;
pub mod journal;
mod log_limit;
pub mod mend;
pub mod observer;
#[cfg(test)]
mod schedules;
#[cfg(test)]
mod several_mounts;
pub mod store;
mod sync;
pub mod tree;
pub mod volume;

pub use budget::Budget;
pub use config::{Profile, Rights, VolumeConfig};
pub use store::Store;
pub use tree::{Held, Owing};
pub use volume::{Resources, Volume};
