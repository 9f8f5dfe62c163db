//! A POSIX file system over a blob container. [`Volume`] is what a mount is; [`fuse`] is the only module that
//! knows fuser.

pub mod budget;
pub mod config;
pub mod content;
pub mod errno;
pub mod fuse;
pub mod journal;
pub mod store;
pub mod tree;
pub mod volume;

pub use budget::Budget;
pub use config::{Profile, VolumeConfig};
pub use store::Store;
pub use volume::{Resources, Volume};
