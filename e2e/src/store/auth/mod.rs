//! Who sends a request and what that allows: account key, SAS, registered bearer token, or nobody (public containers).

mod sas;
mod shared_key;
#[cfg(test)]
mod tests;

pub(super) use shared_key::string_to_sign;

use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, Method};
use ring::hmac;

use super::address::Target;
use super::error::ServiceError;
use super::operation::Operation;
use super::state::PublicAccess;

/// What the request's credentials allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grant {
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

/// What a request needs to be authenticated.
pub(super) struct Presented<'a> {
    /// Method.
    pub(super) method: &'a Method,
    /// URL.
    pub(super) target: &'a Target,
    /// Headers.
    pub(super) headers: &'a HeaderMap,
    /// Body length, for requests whose transport carries no Content-Length header.
    pub(super) body_len: u64,
    /// Sender, when known (`sip`).
    pub(super) peer: Option<IpAddr>,
    /// Now.
    pub(super) now: SystemTime,
}

/// The account's secret and name.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    key: hmac::Key,
}

impl Account {
    /// An account; the key is base64.
    pub(super) fn new(name: &str, key: &str) -> std::io::Result<Self> {
        let bytes = super::content::unbase64(key.trim()).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the account key is not valid base64",
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        })
    }

    /// True when `signature` (base64) is the HMAC-SHA256 of the text; constant time.
    fn verifies(&self, text: &str, signature: &str) -> bool {
        super::content::unbase64(signature)
            .is_some_and(|tag| hmac::verify(&self.key, text.as_bytes(), &tag).is_ok())
    }

    /// Base64 HMAC-SHA256 of a text.
    pub(super) fn sign(&self, text: &str) -> String {
        super::content::base64(hmac::sign(&self.key, text.as_bytes()).as_ref())
    }

    /// Establishes who sent a request. `token_ok` decides about bearer tokens.
    pub(super) fn authenticate(
        &self,
        request: &Presented<'_>,
        token_ok: impl FnOnce(&str) -> bool,
    ) -> Result<Grant, ServiceError> {
        let authorization = match request.headers.get(http::header::AUTHORIZATION) {
            None if request.target.query.has("sig") => return sas::verify(self, request),
            None => return Ok(Grant::Anonymous),
            Some(value) => value
                .to_str()
                .map_err(|_| ServiceError::authentication_failed("Authorization is not ASCII."))?,
        };
        let (scheme, value) = authorization.split_once(' ').unwrap_or((authorization, ""));
        if scheme.eq_ignore_ascii_case("sharedkey") {
            shared_key::verify(self, request, value)?;
            Ok(Grant::Owner)
        } else if scheme.eq_ignore_ascii_case("bearer") {
            if token_ok(value) {
                Ok(Grant::Owner)
            } else {
                Err(ServiceError::new(
                    401,
                    "InvalidAuthenticationInfo",
                    "Authentication information is not given in the correct format. Check the value of Authorization header.",
                )
                .detail("AuthenticationErrorDetail", "Issuer validation failed or the token is not registered."))
            }
        } else {
            Err(ServiceError::new(
                400,
                "InvalidAuthenticationInfo",
                "Authentication information is not given in the correct format. Check the value of Authorization header.",
            ))
        }
    }
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
        DeleteBlob => ('o', "d"),
        LeaseBlob => ('o', "wd"),
        AppendBlock => ('o', "aw"),
        // Key or token only; Get Account Information takes any SAS and is let through before.
        GetContainerAcl | SetContainerAcl | GetAccountInformation | Unsupported => ('o', ""),
    }
}

impl Grant {
    /// Whether an operation is allowed. `public` is the level of the container, when there is one.
    pub(super) fn allows(
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
                    // A service SAS covers blobs and the listing of its container, never the container itself.
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

    /// False when existing blobs must not be overwritten: a SAS with `c` and without `w`.
    pub(super) fn may_overwrite(&self) -> bool {
        match self {
            Grant::Sas { permissions, .. } => permissions.contains('w'),
            _ => true,
        }
    }
}
