//! The channel of the driver over the mock VSP: the real ioctl through a real mount, every fault, both ABIs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

mod faults;
mod fixture;
mod payload;
mod program;
mod raw;
mod store;
mod transfer;
