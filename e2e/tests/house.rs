//! Rules of the house that rustfmt and clippy do not know: imports run one way, each file says what it is, no
//! file is too long, no line is too wide; tests that the docs name are there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "house/graph.rs"]
mod graph;
#[path = "house/modules.rs"]
mod modules;
#[path = "house/resolution.rs"]
mod resolution;
#[path = "house/rules.rs"]
mod rules;
