//! Dirty ranges, block layout, staging, commit with If-Match.

pub(crate) mod commit;
pub(crate) mod copy;
pub(crate) mod ids;
pub mod log;
pub(crate) mod overlay;
pub(crate) mod plan;
pub(crate) mod stage;
