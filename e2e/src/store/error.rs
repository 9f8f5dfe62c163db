//! Error answers of the service: status, code and message (REST: "Blob service error codes" and "Common REST
//! API error codes").

use std::borrow::Cow;

/// One error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceError {
    /// HTTP status.
    pub(super) status: u16,
    /// `x-ms-error-code`.
    pub(super) code: Cow<'static, str>,
    /// Human text.
    pub(super) message: Cow<'static, str>,
    /// Further elements of the XML body, such as `AuthenticationErrorDetail`.
    pub(super) details: Vec<(&'static str, String)>,
    /// Seconds for `Retry-After`.
    pub(super) retry_after: Option<u64>,
}

impl ServiceError {
    /// An answer with any code.
    pub(super) fn new(
        status: u16,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            details: Vec::new(),
            retry_after: None,
        }
    }

    /// Adds an element to the XML body.
    pub(super) fn detail(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// A header that does not parse or is out of its range.
    pub(super) fn invalid_header(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(
            400,
            "InvalidHeaderValue",
            "The value for one of the HTTP headers is not in the correct format.",
        )
        .detail("HeaderName", name)
        .detail("HeaderValue", value)
    }

    /// A header that must be there.
    pub(super) fn missing_header(name: &'static str) -> Self {
        Self::new(
            400,
            "MissingRequiredHeader",
            "An HTTP header that's mandatory for this request is not specified.",
        )
        .detail("HeaderName", name)
    }

    /// A query parameter that does not parse.
    pub(super) fn invalid_query(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(
            400,
            "InvalidQueryParameterValue",
            "Value for one of the query parameters specified in the request URI is invalid.",
        )
        .detail("QueryParameterName", name)
        .detail("QueryParameterValue", value)
    }

    /// 403: who you are could not be established.
    pub(super) fn authentication_failed(reason: impl Into<String>) -> Self {
        Self::new(
            403,
            "AuthenticationFailed",
            "Server failed to authenticate the request. Make sure the value of Authorization header is \
             formed correctly including the signature.",
        )
        .detail("AuthenticationErrorDetail", reason)
    }
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $message:literal;)*) => {
        impl ServiceError {
            $($(#[$doc])* pub(super) fn $name() -> Self { Self::new($status, $code, $message) })*
        }
    };
}

answers! {
    account_requires_https = 400 "AccountRequiresHttps" "The account being accessed does not support http.";
    append_position_not_met = 412 "AppendPositionConditionNotMet"
        "The append position condition specified was not met.";
    blob_already_exists = 409 "BlobAlreadyExists" "The specified blob already exists.";
    blob_archived = 409 "BlobArchived" "This operation is not permitted on an archived blob.";
    blob_being_rehydrated = 409 "BlobBeingRehydrated"
        "This operation is not permitted because the blob is being rehydrated.";
    blob_immutable_by_hold = 409 "BlobImmutableDueToLegalHold"
        "This operation is not permitted as the blob is immutable due to one or more legal holds.";
    blob_immutable_by_policy = 409 "BlobImmutableDueToPolicy"
        "This operation is not permitted as the blob is immutable due to a policy.";
    blob_uses_customer_key = 409 "BlobUsesCustomerSpecifiedEncryption"
        "The blob is encrypted with customer specified encryption, but it was not provided in the request.";
    blob_key_mismatch = 409 "BlobCustomerSpecifiedEncryptionMismatch"
        "The blob is encrypted with customer specified encryption, but the request's does not match.";
    blob_not_found = 404 "BlobNotFound" "The specified blob does not exist.";
    block_count_exceeds_limit = 409 "BlockCountExceedsLimit"
        "The uncommitted block count cannot exceed the maximum limit of 100,000 blocks.";
    block_list_too_long = 400 "BlockListTooLong" "The block list may not contain more than 50,000 blocks.";
    condition_not_met = 412 "ConditionNotMet"
        "The condition specified using HTTP conditional header(s) is not met.";
    container_already_exists = 409 "ContainerAlreadyExists" "The specified container already exists.";
    container_being_deleted = 409 "ContainerBeingDeleted"
        "The specified container is being deleted. Try operation later.";
    container_not_found = 404 "ContainerNotFound" "The specified container does not exist.";
    crc64_mismatch = 400 "Crc64Mismatch"
        "The CRC64 value specified in the request did not match with the CRC64 value calculated by the \
         server.";
    internal_error = 500 "InternalError"
        "The server encountered an internal error. Please retry the request.";
    invalid_blob_or_block = 400 "InvalidBlobOrBlock" "The specified blob or block content is invalid.";
    invalid_blob_type = 409 "InvalidBlobType" "The blob type is invalid for this operation.";
    invalid_block_list = 400 "InvalidBlockList" "The specified block list is invalid.";
    invalid_md5 = 400 "InvalidMd5"
        "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64-encoded.";
    invalid_page_range = 416 "InvalidPageRange" "The page range specified is invalid.";
    invalid_range = 416 "InvalidRange" "The range specified is invalid for the current size of the resource.";
    invalid_resource_name = 400 "InvalidResourceName"
        "The specified resource name contains invalid characters.";
    invalid_uri = 400 "InvalidUri" "The requested URI does not represent any resource on the server.";
    invalid_xml = 400 "InvalidXmlDocument" "XML specified is not syntactically valid.";
    lease_already_present = 409 "LeaseAlreadyPresent" "There is already a lease present.";
    lease_id_mismatch_blob = 412 "LeaseIdMismatchWithBlobOperation"
        "The lease ID specified did not match the lease ID for the blob.";
    lease_id_mismatch_container = 412 "LeaseIdMismatchWithContainerOperation"
        "The lease ID specified did not match the lease ID for the container.";
    lease_id_mismatch_lease = 409 "LeaseIdMismatchWithLeaseOperation"
        "The lease ID specified did not match the lease ID for the blob/container.";
    lease_id_missing = 412 "LeaseIdMissing"
        "There is currently a lease on the blob/container and no lease ID was specified in the request.";
    lease_is_breaking_acquire = 409 "LeaseIsBreakingAndCannotBeAcquired"
        "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it \
         is broken.";
    lease_is_breaking_change = 409 "LeaseIsBreakingAndCannotBeChanged"
        "The lease ID matched, but the lease is currently in breaking state and cannot be changed.";
    lease_is_broken_renew = 409 "LeaseIsBrokenAndCannotBeRenewed"
        "The lease ID matched, but the lease has been broken explicitly and cannot be renewed.";
    lease_lost = 412 "LeaseLost"
        "A lease ID was specified, but the lease for the blob/container has expired.";
    lease_not_present_blob = 412 "LeaseNotPresentWithBlobOperation"
        "There is currently no lease on the blob.";
    lease_not_present_container = 412 "LeaseNotPresentWithContainerOperation"
        "There is currently no lease on the container.";
    lease_not_present_lease = 409 "LeaseNotPresentWithLeaseOperation"
        "There is currently no lease on the blob/container.";
    md5_mismatch = 400 "Md5Mismatch"
        "The MD5 value specified in the request did not match with the MD5 value calculated by the server.";
    missing_content_length = 411 "MissingContentLengthHeader" "The Content-Length header was not specified.";
    metadata_too_large = 400 "MetadataTooLarge"
        "The metadata specified exceeds the maximum permissible limit (8KB).";
    empty_metadata_key = 400 "EmptyMetadataKey" "The key for one of the metadata key-value pairs is empty.";
    invalid_tags = 400 "InvalidTags"
        "The tags specified are invalid. It contains characters that are not permitted.";
    invalid_metadata = 400 "InvalidMetadata"
        "The specified metadata is invalid. It includes characters that are not permitted.";
    /// 401 with `WWW-Authenticate`: nothing was presented at all.
    no_authentication = 401 "NoAuthenticationInformation"
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate \
         header.";
    no_pending_copy = 409 "NoPendingCopyOperation" "There is currently no pending copy operation.";
    not_implemented = 501 "NotImplemented"
        "The requested operation is not implemented by the embedded blob store.";
    not_modified = 304 "ConditionNotMet"
        "The condition specified using HTTP conditional header(s) is not met.";
    out_of_range_input = 400 "OutOfRangeInput" "One of the request inputs is out of range.";
    pending_copy = 409 "PendingCopyOperation" "There is currently a pending copy operation.";
    permission_mismatch = 403 "AuthorizationPermissionMismatch"
        "This request is not authorized to perform this operation using this permission.";
    protocol_mismatch = 403 "AuthorizationProtocolMismatch"
        "This request is not authorized to perform this operation using this protocol.";
    request_body_too_large = 413 "RequestBodyTooLarge"
        "The request body is too large and exceeds the maximum permissible limit.";
    resource_not_found = 404 "ResourceNotFound" "The specified resource does not exist.";
    resource_type_mismatch = 403 "AuthorizationResourceTypeMismatch"
        "This request is not authorized to perform this operation using this resource type.";
    service_mismatch = 403 "AuthorizationServiceMismatch"
        "This request is not authorized to perform this operation using this service.";
    snapshots_present = 409 "SnapshotsPresent"
        "This operation is not permitted while the blob has snapshots.";
    source_condition_not_met = 412 "SourceConditionNotMet"
        "The source condition specified using HTTP conditional header(s) is not met.";
    source_ip_mismatch = 403 "AuthorizationSourceIPMismatch"
        "This request is not authorized to perform this operation using this source IP.";
    unauthorized_overwrite = 403 "UnauthorizedBlobOverwrite"
        "This request is not authorized to perform blob overwrites.";
}
