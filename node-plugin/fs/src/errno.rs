//! The single table from error to errno.
