//! What the suites stand on: an embedded blob store, a mock VSP and a relay that fails in front of it (or of
//! any endpoint), and the harness that runs the real program against them.

pub mod fuse;
pub mod harness;
pub mod identity;
pub mod listener;
pub mod proxy;
pub mod store;
pub mod vsp;
