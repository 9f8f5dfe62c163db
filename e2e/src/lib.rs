//! What the suites stand on: an embedded blob store, a mock VSP in front of it (or of any endpoint), and the
//! harness that runs the real program against both.

pub mod fuse;
pub mod harness;
pub mod identity;
pub mod listener;
pub mod store;
pub mod vsp;
