//! Streams (sequential detection), extents (cache), prefetch.
