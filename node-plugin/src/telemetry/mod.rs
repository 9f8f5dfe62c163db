//! What the process says about itself: the log, metrics, and health over HTTP.

mod family;
pub mod health;
pub mod log;
pub mod metrics;
pub mod operations;
pub mod traces;
pub mod volumes;

pub use log::{LogFormat, start};
