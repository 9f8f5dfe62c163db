//! What both listings share: page sizes, markers, the endpoint they name.

use super::call::Call;
use crate::store::address::Query;
use crate::store::blob_store::BlobStore;
use crate::store::encoding::{base64, unbase64};
use crate::store::error::ServiceError;
use crate::store::headers;

/// The service's page size.
const MAX_RESULTS: usize = 5000;

/// `maxresults`: at most 5,000; zero is an error.
pub(super) fn max_results(query: &Query) -> Result<usize, ServiceError> {
    match query.get("maxresults") {
        None | Some("") => Ok(MAX_RESULTS),
        Some(text) => match text.parse::<usize>() {
            Ok(0) => Err(ServiceError::new(
                400,
                "OutOfRangeQueryParameterValue",
                "One of the query parameters specified in the request URI is outside the permissible range.",
            )
            .detail("QueryParameterName", "maxresults")
            .detail("QueryParameterValue", text)),
            Ok(n) => Ok(n.min(MAX_RESULTS)),
            Err(_) => Err(ServiceError::invalid_query("maxresults", text)),
        },
    }
}

/// A marker is opaque to clients; here it holds the first name of the next page.
pub(super) fn encode_marker(name: &str) -> String {
    format!("2!{}!{}", name.len(), base64(name.as_bytes()))
}

/// Reads a marker back.
pub(super) fn decode_marker(marker: &str) -> Result<String, ServiceError> {
    marker
        .strip_prefix("2!")
        .and_then(|rest| rest.split_once('!'))
        .and_then(|(_, name)| unbase64(name))
        .and_then(|name| String::from_utf8(name).ok())
        .ok_or_else(ServiceError::out_of_range_input)
}

/// `ServiceEndpoint` of listings: as the client wrote it.
pub(super) fn endpoint(store: &BlobStore, call: &Call<'_>) -> String {
    let host = headers::text(call.headers, "host").unwrap_or("127.0.0.1");
    if call.target.raw_path.starts_with(&format!("/{}", store.account())) {
        format!("http://{host}/{}/", store.account())
    } else {
        format!("http://{host}/")
    }
}
