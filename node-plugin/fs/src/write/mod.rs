//! Dirty ranges, block layout, staging, commit with If-Match.
