//! What the credentials of a request allow.

use crate::store::error::ServiceError;
use crate::store::operation::Operation;
use crate::store::state::PublicAccess;

/// What the request's credentials allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum Grant {
    /// Account key or token: everything.
    Owner,
    /// A SAS with these letters.
    Sas {
        /// `sp`.
        permissions: String,
        /// `srt` of an account SAS; `None` for a service SAS, which covers one container or blob.
        resource_types: Option<String>,
        /// `sr=b`: only this blob, no listing.
        one_blob: bool,
    },
    /// No credentials.
    Anonymous,
}

/// Level of the resource an operation works on, as `srt` spells it, and the letters of which one is enough.
fn needed(operation: Operation) -> (char, &'static str) {
    use Operation::*;
    match operation {
        ListContainers => ('s', "l"),
        GetServiceProperties => ('s', "r"),
        CreateContainer => ('c', "cw"),
        GetContainerProperties => ('c', "r"),
        SetContainerMetadata => ('c', "w"),
        DeleteContainer => ('c', "d"),
        LeaseContainer => ('c', "wd"),
        ListBlobs => ('c', "l"),
        PutBlob | PutBlobFromUrl | PutBlock | PutBlockFromUrl | PutBlockList | CopyBlob | AbortCopyBlob => {
            ('o', "wc")
        }
        GetBlob | GetBlobProperties | GetBlobMetadata | GetBlockList => ('o', "r"),
        SetBlobMetadata | SetBlobProperties | SetBlobTier | PutPage => ('o', "w"),
        DeleteBlob | BlobBatch => ('o', "d"),
        SnapshotBlob => ('o', "cw"),
        UndeleteBlob => ('o', "w"),
        GetBlobTags | SetBlobTags => ('o', "t"),
        SetImmutabilityPolicy | DeleteImmutabilityPolicy | SetLegalHold => ('o', "i"),
        LeaseBlob => ('o', "wd"),
        AppendBlock => ('o', "aw"),
        // Key or token only; Get Account Information takes any SAS and is let through before.
        GetContainerAcl | SetContainerAcl | GetAccountInformation | Unsupported => ('o', ""),
    }
}

impl Grant {
    /// Whether an operation is allowed. `public` is the level of the container, when there is one.
    pub(in crate::store) fn allows(
        &self,
        operation: Operation,
        public: Option<PublicAccess>,
    ) -> Result<(), ServiceError> {
        use Operation::*;
        match self {
            Grant::Owner => Ok(()),
            Grant::Sas { .. } if operation == GetAccountInformation => Ok(()),
            Grant::Sas {
                permissions,
                resource_types,
                one_blob,
            } => {
                let (level, letters) = needed(operation);
                match resource_types {
                    Some(types) if !types.contains(level) => {
                        return Err(ServiceError::resource_type_mismatch());
                    }
                    // A service SAS covers blobs and the listing of its container, never the container
                    // itself.
                    None if level == 's' || (level == 'c' && operation != ListBlobs) => {
                        return Err(ServiceError::new(
                            403,
                            "AuthorizationFailure",
                            "This request is not authorized to perform this operation.",
                        ));
                    }
                    None if *one_blob && operation == ListBlobs => {
                        return Err(ServiceError::permission_mismatch());
                    }
                    _ => {}
                }
                if letters.chars().any(|letter| permissions.contains(letter)) {
                    Ok(())
                } else {
                    Err(ServiceError::permission_mismatch())
                }
            }
            Grant::Anonymous => {
                let readable = match public {
                    Some(PublicAccess::Container) => matches!(
                        operation,
                        GetBlob
                            | GetBlobProperties
                            | GetBlobMetadata
                            | GetBlockList
                            | ListBlobs
                            | GetContainerProperties
                    ),
                    Some(PublicAccess::Blob) => {
                        matches!(
                            operation,
                            GetBlob | GetBlobProperties | GetBlobMetadata | GetBlockList
                        )
                    }
                    _ => false,
                };
                if readable {
                    Ok(())
                } else if public.is_some_and(|p| p != PublicAccess::None) {
                    // A public container does not hide that it exists; what is not public in it looks absent.
                    Err(ServiceError::resource_not_found())
                } else {
                    Err(ServiceError::no_authentication())
                }
            }
        }
    }

    /// Whether index tags may be read, written and asked for: the permission `t`.
    pub(in crate::store) fn may_tag(&self) -> bool {
        match self {
            Grant::Owner => true,
            Grant::Sas { permissions, .. } => permissions.contains('t'),
            Grant::Anonymous => false,
        }
    }

    /// False when existing blobs must not be overwritten: a SAS with `c` and without `w`.
    pub(in crate::store) fn may_overwrite(&self) -> bool {
        match self {
            Grant::Sas { permissions, .. } => permissions.contains('w'),
            _ => true,
        }
    }
}
