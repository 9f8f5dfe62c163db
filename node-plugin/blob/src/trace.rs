//! Spans that are exported as traces: the only ones that are, and nothing of them is in the log by default.

/// Target of the spans of calls, operations and requests. Who collects traces takes spans of this target and
/// no others; they may name blobs, and never hold a secret.
pub const TRACE: &str = "vsc_blob_trace";
