//! Inodes, attributes, listings, negative knowledge, names <-> blob names.
