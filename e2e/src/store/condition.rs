//! Conditional headers (REST: "Specifying conditional headers for Blob service operations").

use std::time::SystemTime;

use http::HeaderMap;

use super::error::ServiceError;
use super::headers;
use super::version::Version;

/// The conditions of one request.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
    if_modified_since: Option<SystemTime>,
    if_unmodified_since: Option<SystemTime>,
}

/// What a failed condition answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads: 304 when the caller has the version already.
    Read,
    /// Writes: 412.
    Write,
    /// Writes that may create: `If-None-Match: *` on what exists answers 409.
    Create,
    /// The source of a copy: 412 SourceConditionNotMet.
    Source,
}

impl Conditions {
    /// Conditions on the resource itself.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ServiceError> {
        Self::parse(
            headers,
            [
                "if-match",
                "if-none-match",
                "if-modified-since",
                "if-unmodified-since",
            ],
        )
    }

    /// Conditions on the source of a copy.
    pub(super) fn of_source(headers: &HeaderMap) -> Result<Self, ServiceError> {
        Self::parse(
            headers,
            [
                "x-ms-source-if-match",
                "x-ms-source-if-none-match",
                "x-ms-source-if-modified-since",
                "x-ms-source-if-unmodified-since",
            ],
        )
    }

    fn parse(headers: &HeaderMap, names: [&'static str; 4]) -> Result<Self, ServiceError> {
        let date = |name: &'static str| match headers::text(headers, name) {
            None => Ok(None),
            Some(text) => httpdate::parse_http_date(text)
                .map(Some)
                .map_err(|_| ServiceError::invalid_header(name, text)),
        };
        Ok(Self {
            if_match: headers::text(headers, names[0]).map(str::to_owned),
            if_none_match: headers::text(headers, names[1]).map(str::to_owned),
            if_modified_since: date(names[2])?,
            if_unmodified_since: date(names[3])?,
        })
    }

    /// Checks against the version that is there, if any.
    pub(super) fn check(&self, there: Option<Version>, kind: Kind) -> Result<(), ServiceError> {
        let failed = || match kind {
            Kind::Source => ServiceError::source_condition_not_met(),
            _ => ServiceError::condition_not_met(),
        };
        let unchanged = || match kind {
            Kind::Read => ServiceError::not_modified(),
            _ => failed(),
        };
        if let Some(wanted) = &self.if_match
            && !there.is_some_and(|version| matches(wanted, version))
        {
            return Err(failed());
        }
        if let Some(unwanted) = &self.if_none_match
            && let Some(version) = there
        {
            if unwanted == "*" && kind == Kind::Create {
                return Err(ServiceError::blob_already_exists());
            }
            if matches(unwanted, version) {
                return Err(unchanged());
            }
        }
        let Some(version) = there else { return Ok(()) };
        // RFC 9110, 13.2.2: If-None-Match decides alone when both are given.
        if let Some(since) = self.if_modified_since
            && self.if_none_match.is_none()
            && version.time() <= since
        {
            return Err(unchanged());
        }
        if let Some(since) = self.if_unmodified_since
            && version.time() > since
        {
            return Err(failed());
        }
        Ok(())
    }
}

/// `*`, or the ETag with or without quotes; lists of ETags are not part of the service.
fn matches(given: &str, version: Version) -> bool {
    given == "*" || given.trim_matches('"') == version.etag().trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn check(pairs: &[(&'static str, String)], there: Option<Version>, kind: Kind) -> (u16, String) {
        let headers: HeaderMap = pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap()))
            .collect();
        match Conditions::of(&headers).unwrap().check(there, kind) {
            Ok(()) => (200, String::new()),
            Err(e) => (e.status, e.code.into_owned()),
        }
    }

    #[test]
    fn the_service_s_statuses() {
        let version = crate::store::version::Clock::default().next();
        let other = Version(version.0 + 1);
        let here = Some(version);
        let failed = (412, "ConditionNotMet".to_owned());
        let same = version.etag();
        assert_eq!(check(&[("if-match", same.clone())], here, Kind::Write).0, 200);
        assert_eq!(
            check(&[("if-match", same.trim_matches('"').into())], here, Kind::Write).0,
            200
        );
        assert_eq!(check(&[("if-match", other.etag())], here, Kind::Write), failed);
        assert_eq!(check(&[("if-match", other.etag())], here, Kind::Read), failed);
        assert_eq!(check(&[("if-match", "*".into())], None, Kind::Create), failed);
        assert_eq!(check(&[("if-none-match", "*".into())], None, Kind::Create).0, 200);
        assert_eq!(
            check(&[("if-none-match", "*".into())], here, Kind::Create),
            (409, "BlobAlreadyExists".into())
        );
        assert_eq!(check(&[("if-none-match", same.clone())], here, Kind::Read).0, 304);
        assert_eq!(check(&[("if-none-match", same)], here, Kind::Write), failed);
        assert_eq!(check(&[("if-none-match", other.etag())], here, Kind::Read).0, 200);
        let date = version.http_date();
        let before = httpdate::fmt_http_date(version.time() - std::time::Duration::from_secs(1));
        assert_eq!(
            check(&[("if-modified-since", date.clone())], here, Kind::Read).0,
            304
        );
        assert_eq!(
            check(&[("if-modified-since", date.clone())], here, Kind::Write),
            failed
        );
        assert_eq!(
            check(&[("if-modified-since", before.clone())], here, Kind::Read).0,
            200
        );
        assert_eq!(check(&[("if-unmodified-since", date)], here, Kind::Write).0, 200);
        assert_eq!(
            check(&[("if-unmodified-since", before)], here, Kind::Write),
            failed
        );
    }
}
