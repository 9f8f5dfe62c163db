//! Who sends a request and what that allows: account key, SAS, registered bearer token, or nobody (public
//! containers).

mod account;
mod grant;
mod sas;
mod shared_key;
#[cfg(test)]
mod tests;

pub use self::account::WhichKey;
pub(super) use self::account::{Account, Presented};
pub(super) use self::grant::Grant;
pub(super) use self::shared_key::string_to_sign;

use super::error::ServiceError;

impl Account {
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
                    "Authentication information is not given in the correct format. Check the value of \
                     Authorization header.",
                )
                .detail(
                    "AuthenticationErrorDetail",
                    "Issuer validation failed or the token is not \
                                                      registered.",
                ))
            }
        } else {
            Err(ServiceError::new(
                400,
                "InvalidAuthenticationInfo",
                "Authentication information is not given in the correct format. Check the value of \
                 Authorization header.",
            ))
        }
    }
}
