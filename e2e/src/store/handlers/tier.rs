//! The access tier that a request asks for.

use super::call::Call;
use crate::store::error::ServiceError;
use crate::store::headers;

/// `x-ms-access-tier`: the name is kept, nothing else.
pub(super) fn tier(call: &Call<'_>) -> Result<Option<String>, ServiceError> {
    let name = "x-ms-access-tier";
    match headers::text(call.headers, name) {
        None => Ok(None),
        Some(tier @ ("Hot" | "Cool" | "Cold" | "Archive")) => Ok(Some(tier.to_owned())),
        Some(other) => Err(ServiceError::invalid_header(name, other)),
    }
}
