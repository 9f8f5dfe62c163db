//! What the suites stand on: an embedded blob store and a mock VSP in front of it (or of any endpoint).

pub mod store;
pub mod vsp;
