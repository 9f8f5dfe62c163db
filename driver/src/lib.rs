//! The accelerated channel: page-aligned buffers, the ioctl of `/dev/azure_blob`, payload framing and
//! submission.
//!
//! The kernel part is a pipe; this crate knows how to push a request through it and nothing about blobs.

pub mod buffer;
pub mod channel;
pub mod framing;
pub mod loader;
pub mod seldom;
pub mod uapi;
