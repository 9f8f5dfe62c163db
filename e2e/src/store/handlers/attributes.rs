//! What a write says of a blob beside content, headers and metadata.

use std::time::SystemTime;

use http::HeaderMap;

use super::call::Call;
use crate::store::attributes::{Attributes, Encryption, Protection};
use crate::store::encoding::unbase64;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::tags;

/// Tags, tier, encryption and protection of a blob that is written.
pub(super) fn attributes(call: &Call<'_>) -> Result<Attributes, ServiceError> {
    let tags = match headers::text(call.headers, "x-ms-tags") {
        None => tags::Tags::new(),
        Some(_) if !call.grant.may_tag() => return Err(ServiceError::permission_mismatch()),
        Some(text) => tags::parse_header(text)?,
    };
    Ok(Attributes {
        tags,
        tier: tier(call)?,
        rehydration: None,
        encryption: encryption(call.headers)?,
        protection: protection(call.headers)?,
    })
}

/// `x-ms-encryption-scope`, or a key of the customer's (REST: "Provide an encryption key on a request to Blob
/// Storage"). Nothing is encrypted; which key it was is kept.
fn encryption(headers: &HeaderMap) -> Result<Encryption, ServiceError> {
    let name = "x-ms-encryption-key-sha256";
    let key_sha256 = headers::text(headers, name).map(str::to_owned);
    if let Some(text) = &key_sha256
        && unbase64(text).is_none_or(|digest| digest.len() != 32)
    {
        return Err(ServiceError::invalid_header(name, text));
    }
    Ok(Encryption {
        scope: headers::text(headers, "x-ms-encryption-scope").map(str::to_owned),
        key_sha256,
    })
}

/// `x-ms-immutability-policy-until-date`, `-mode` and `x-ms-legal-hold` (REST: "Put Blob").
pub(super) fn protection(headers: &HeaderMap) -> Result<Protection, ServiceError> {
    let name = "x-ms-immutability-policy-until-date";
    let until = match headers::text(headers, name) {
        None => None,
        Some(text) => {
            let date: SystemTime =
                httpdate::parse_http_date(text).map_err(|_| ServiceError::invalid_header(name, text))?;
            Some(date)
        }
    };
    let mode = headers::text(headers, "x-ms-immutability-policy-mode").unwrap_or_default();
    Ok(Protection {
        until,
        locked: mode.eq_ignore_ascii_case("locked"),
        legal_hold: headers::flag(headers, "x-ms-legal-hold"),
    })
}

/// `x-ms-access-tier`.
pub(super) fn tier(call: &Call<'_>) -> Result<Option<String>, ServiceError> {
    let name = "x-ms-access-tier";
    match headers::text(call.headers, name) {
        None => Ok(None),
        Some(tier @ ("Hot" | "Cool" | "Cold" | "Archive")) => Ok(Some(tier.to_owned())),
        Some(other) => Err(ServiceError::invalid_header(name, other)),
    }
}
