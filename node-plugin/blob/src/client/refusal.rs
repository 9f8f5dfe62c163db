//! Answers that are no success: the service's codes, and our errors for them.

use std::time::SystemTime;

use http::StatusCode;

use super::headers::text;
use crate::auth::Signer;
use crate::error::Error;
use crate::response::Response;
use crate::xml;

/// The service's code and the first line of its message, from headers and body.
pub(super) fn code_and_message(response: &Response) -> (String, String) {
    let (body_code, message) = xml::error_body(&response.body).unwrap_or_default();
    let code = text(&response.headers, "x-ms-error-code").unwrap_or(body_code);
    (code, message)
}

/// Conflicts (409) with something that goes on at the same moment and is over soon: asking again helps.
const TRANSIENT: [&str; 4] = [
    "BlobModifiedWhileReading",
    "PendingCopyOperation",
    "SnapshotOperationRateExceeded",
    "SystemInUse",
];

/// Whether a conflict of this code passes by itself.
pub(super) fn is_transient(code: &str) -> bool {
    TRANSIENT.contains(&code)
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    pub(super) status: StatusCode,
    pub(super) code: &'a str,
    pub(super) message: String,
    pub(super) request_id: String,
    pub(super) server_time: Option<SystemTime>,
    pub(super) now: SystemTime,
    /// What the call was signed with.
    pub(super) by: &'a Signer,
}

/// The client's error for a refusal. Codes: REST, "Blob service error codes" and "Common error codes".
pub(super) fn error(refusal: Refusal<'_>, container: &str, blob: Option<&str>) -> Error {
    let name = || blob.unwrap_or(container).to_owned();
    let code = refusal.code;
    match (refusal.status.as_u16(), code) {
        (_, "ContainerNotFound" | "ContainerBeingDeleted") => Error::ContainerNotFound {
            name: container.to_owned(),
        },
        (404, "BlobNotFound" | "ResourceNotFound" | "PathNotFound" | "FilesystemNotFound" | "") => match blob
        {
            Some(blob) if code != "FilesystemNotFound" => Error::BlobNotFound {
                name: blob.to_owned(),
            },
            _ => Error::ContainerNotFound {
                name: container.to_owned(),
            },
        },
        (409, "ContainerAlreadyExists" | "BlobAlreadyExists" | "ResourceAlreadyExists") => {
            Error::AlreadyExists { name: name() }
        }
        (409, "BlobArchived" | "BlobBeingRehydrated") => Error::Archived {
            name: name(),
            rehydrating: code == "BlobBeingRehydrated",
        },
        (409, "SnapshotsPresent") => Error::SnapshotsPresent { name: name() },
        (409, "BlobUsesCustomerSpecifiedEncryption") => Error::CustomerKey { name: name() },
        (409 | 412, lease) if lease.starts_with("Lease") => Error::LeaseConflict {
            name: name(),
            code: lease.to_owned(),
        },
        (412, "ConditionNotMet" | "TargetConditionNotMet" | "SourceConditionNotMet" | "") => {
            Error::ConditionNotMet { name: name() }
        }
        (304, _) => Error::NotModified { name: name() },
        // What a private container says to strangers.
        (401 | 403, _) | (409, "PublicAccessNotPermitted") => Error::Denied {
            code: if code.is_empty() {
                refusal.status.as_u16().to_string()
            } else {
                code.to_owned()
            },
            hint: refusal.by.hint(code, refusal.server_time, refusal.now),
        },
        (status, code) => Error::Service {
            status,
            code: code.to_owned(),
            message: refusal.message,
            request_id: refusal.request_id,
        },
    }
}
