//! Streams (sequential detection), extents (cache), prefetch.

pub(crate) mod cache;
pub(crate) mod fetch;
pub(crate) mod streams;
