//! How long the service asks us to wait.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use super::headers::text;

/// No call waits longer, so a larger number says no more; it keeps sums of times in range.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// `Retry-After` in any of its spellings, at most [`LONGEST_RETRY_AFTER`]. A date is measured against the
/// clock of the one who wrote it, `now`.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = || {
        for name in ["retry-after-ms", "x-ms-retry-after-ms"] {
            if let Some(millis) = text(headers, name).and_then(|t| t.trim().parse().ok()) {
                return Some(Duration::from_millis(millis));
            }
        }
        let value = text(headers, header::RETRY_AFTER.as_str())?;
        if let Ok(seconds) = value.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        let until = httpdate::parse_http_date(value.trim()).ok()?;
        Some(until.duration_since(now).unwrap_or_default())
    };
    asked().map(|asked| asked.min(LONGEST_RETRY_AFTER))
}
