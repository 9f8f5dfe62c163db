//! Mounts of this node: made, watched, bound to pods, taken down - each step bounded in time.
//!
//! A mount lives as long as this process: the process serves it. After a restart the old mounts are dead
//! (ENOTCONN) until they are made anew; [`record`] remembers them.

mod bind;
pub mod bounded;
pub mod calls;
mod drain;
#[cfg(test)]
pub(crate) mod fake;
pub mod heal;
pub mod holdings;
pub mod manager;
pub mod mount;
pub mod mounter;
pub mod mountinfo;
pub mod observers;
mod placing;
mod probe;
pub mod record;
mod setattr;
#[cfg(test)]
pub(crate) mod steps;

pub use manager::Mounts;
pub use mounter::{Kernel, Mounter};
pub use probe::Condition;
pub use setattr::check_kernel;
