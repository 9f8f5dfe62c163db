//! Base64, as headers, block ids and signatures have it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Base64 of a checksum.
pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Decodes base64.
pub(super) fn unbase64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}
